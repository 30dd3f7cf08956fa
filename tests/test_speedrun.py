"""The speedrun: what is run again, what is discarded, who is first, and how a text is scored."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.peers.contestant import CONTESTANTS, Job, Reader, contestant
from benchmarks.peers.loop import cosine
from benchmarks.peers.vocabulary import Characters, Encoded, Vocabulary, kept, trained
from benchmarks.speedrun import archives, clock, page
from benchmarks.speedrun import plan as plans
from benchmarks.speedrun.__main__ import main
from benchmarks.speedrun.clock import Cost, calibrate, within
from benchmarks.speedrun.plan import Entry, Plan
from benchmarks.speedrun.ranking import Figure, chosen, standings, verdict
from benchmarks.speedrun.results import ADAPTING, FILE, FROZEN, Key, Result, Results
from benchmarks.speedrun.runner import Runner
from benchmarks.speedrun.scoring import bits_per_byte, windows
from benchmarks.speedrun.texts import Text, halves, shares
from lightning_app.errors import InputError

TEXT = "the cat sat on the mat, and the dog sat on the cat. " * 40


# The plan


def test_each_neural_contestant_has_as_many_trials_and_begins_with_its_recipe():
    plan = Plan.read()
    neural = [entry for entry in plan.contestants if entry.is_neural]
    assert len(neural) >= 6
    for entry in plan.contestants:
        assert entry.kind in CONTESTANTS
        assert entry.trials[0] == {}
    for entry in neural:
        assert plan.number_of_trials(entry) == plan.trials == 8
        options = [str(entry.options(trial)) for trial in range(8)]
        assert len(set(options)) == 8
        assert all(set(entry.options(trial)) >= set(entry.recipe) for trial in range(8))


def test_quick_is_the_same_plan_with_smaller_numbers_and_an_unknown_contestant_is_refused():
    plan, quick = Plan.read(), Plan.read(quick=True)
    assert quick.budgets[-1] < plan.budgets[0]
    assert {entry.name for entry in quick.contestants} < {entry.name for entry in plan.contestants}
    with pytest.raises(InputError, match="nobody is not one of the contestants: ours, "):
        plan.only(["ours", "nobody"])


def test_a_config_that_changed_is_another_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(plans, "ROOT", tmp_path)
    ours = Entry("ours", "ours", "ours", {"config": "some.yaml", "options": {}}, [{}])
    found = []
    for text in ("a: 1\n", "a: 2\n", "# of note\na: 2\n"):
        (tmp_path / "some.yaml").write_text(text)
        found.append(ours.options(0))
    assert found[0] != found[1] == found[2]


# What is there is not run again


@pytest.fixture
def text(tmp_path: Path) -> Text:
    for part in ("train", "heldout", "test"):
        (tmp_path / f"{part}.txt").write_text(TEXT)
    return Text.given("cats", *(str(tmp_path / f"{part}.txt") for part in ("train", "heldout", "test")))


COUNTS = Entry("fivegrams", "counts", "counts", {"vocabulary": 300, "order": 5}, [{}, {"vocabulary": 280}])
NEURAL = Entry("net", "nanogpt", "a net", {"lr": 1e-3}, [{}, {"lr": 2e-3}])


PLAN = Plan([240, 960], [80, 320], seeds=1, seeds_of_first=1, overshoot=1.01, trials=2, heldout_bytes=1000)


def key_of(entry: Entry, text: Text, **other: Any) -> Key:
    return replace(Key(FROZEN, entry.name, text.name, 240, 0, 1, entry.options(0), text.sha256), **other)


def runner_of(tmp_path: Path, text: Text, *entries: Entry, **numbers: Any) -> Runner:
    plan = replace(PLAN, contestants=list(entries), **numbers)
    return Runner(plan, [text], text.name, Results(tmp_path / "results"), tmp_path / "work", 1)


def test_a_run_is_known_by_all_that_decides_it(text: Text):
    key = key_of(NEURAL, text)
    others = [
        replace(key, seed=1),
        replace(key, budget=960),
        replace(key, options=NEURAL.options(1)),
        replace(key, threads=2),
        replace(key, sha256="0"),
        replace(key, contestant="other"),
        replace(key, table=ADAPTING),
    ]
    assert len({key.name, *(other.name for other in others)}) == 8
    assert replace(key).name == key.name


def test_a_text_that_changed_is_another_text(text: Text):
    before = text.sha256
    text.test.write_text(TEXT + "!")
    assert text.sha256 != before


def test_a_finished_run_is_not_done_again_and_a_cut_line_does_not_count(tmp_path: Path, text: Text):
    runner = runner_of(tmp_path, text, NEURAL)
    result = Result(key_of(NEURAL, text), steps=7, cpu_seconds=239, heldout_bpb=2.0, test_bpb=2.1)
    runner.results.add(result)
    with (tmp_path / "results" / FILE).open("a") as file:
        file.write('{"key": {"table": "fro')
    again = runner_of(tmp_path, text, NEURAL)
    assert again.ensure(NEURAL, text, 240, 0, 0, test=True) == result
    again.results.add(replace(result, key=replace(result.key, seed=1)))
    assert len(list(Results(tmp_path / "results"))) == 2


@pytest.mark.slow
def test_a_run_is_kept_scored_and_found_by_another_process(tmp_path: Path, text: Text):
    """The real thing, of counts; the test text is scored when it is asked for, without a second training."""
    runner = runner_of(tmp_path, text, COUNTS)
    first = runner.ensure(COUNTS, text, 240, 0, 0, test=False)
    assert (first.key.budget, first.steps, first.test_bpb) == (0, 0, None)
    assert 0 < first.cpu_seconds == first.spent
    second = runner.ensure(COUNTS, text, 240, 0, 0, test=True)
    assert second.cpu_seconds == first.cpu_seconds
    assert second.test_bpb is not None
    assert second.test_bpb < 1
    assert len((tmp_path / "results" / FILE).read_text().splitlines()) == 2
    assert len(list(runner.results)) == 1


@pytest.mark.slow
def test_a_failed_training_says_why(tmp_path: Path, text: Text):
    job = Job(str(tmp_path / "job"), "counts", str(tmp_path / "nowhere.txt"), str(text.heldout), 1, 0, 1, {})
    with pytest.raises(InputError, match="ended with 1"):
        clock.cpu_seconds(job)


# Budgets


def clock_of(*, fixed: float, each: Callable[[int], float]) -> tuple[Callable[[Job], float], list[int]]:
    """A clock without a training, and the steps that it was asked for."""
    asked: list[int] = []

    def run(job: Job) -> float:
        asked.append(job.steps)
        return fixed + each(len(asked)) * job.steps

    return run, asked


JOB = Job("nowhere", "nanogpt", "", "", 0, 0, 1, {})


@pytest.mark.parametrize("each", [0.003, 0.2, 4.0, 30.0])
def test_a_calibration_finds_what_a_step_costs_and_says_what_it_took(each: float):
    run, asked = clock_of(fixed=7, each=lambda _: each)
    cost, spent = calibrate(JOB, 240, run)
    assert (cost.fixed, cost.each) == (pytest.approx(7), pytest.approx(each))
    assert spent == pytest.approx(sum(7 + each * steps for steps in asked))
    assert spent < 240
    assert all(first < second for first, second in pairwise(asked))


def test_a_run_within_one_per_cent_counts():
    run, asked = clock_of(fixed=40, each=lambda _: 1.04)
    timed = within(JOB, 240, Cost(40, 1), overshoot=1.01, run=run)
    assert asked == [timed.job.steps] == [192]  # 97 % of the budget
    assert (timed.discarded, timed.spent) == (0, timed.cpu_seconds)


def test_a_run_that_takes_longer_is_discarded_counted_and_done_again_with_fewer_steps():
    run, asked = clock_of(fixed=40, each=lambda _: 1.1)
    timed = within(JOB, 240, Cost(40, 1), overshoot=1.01, run=run)
    assert timed.discarded == 1
    assert asked[1] == timed.job.steps < asked[0]
    assert timed.cpu_seconds <= 1.01 * 240
    assert timed.spent == pytest.approx(sum(40 + 1.1 * steps for steps in asked))


def test_the_third_that_takes_longer_is_the_last():
    run, asked = clock_of(fixed=40, each=lambda n: 1.1**n)
    with pytest.raises(InputError, match="is the machine busy"):
        within(JOB, 240, Cost(40, 1), overshoot=1.01, run=run)
    assert len(asked) == 3


def test_a_budget_without_room_for_a_step_is_refused():
    with pytest.raises(InputError, match="30 CPU seconds go before the first step: 24 are too few"):
        Cost(30, 1).steps(24)


def test_a_rate_begins_small_and_ends_at_the_floor():
    rates = [cosine(step, steps=100, warmup=10, floor=0.1) for step in range(101)]
    assert rates[0] < rates[5] < rates[10] == max(rates) == 1
    assert rates[-1] == pytest.approx(0.1)


# Ranking


def filled(tmp_path: Path, text: Text, rows: dict[tuple[str, float], list[float]]) -> Results:
    results = Results(tmp_path / "ranked")
    for (name, budget), values in rows.items():
        for seed, value in enumerate(values):
            key = key_of(NEURAL, text, contestant=name, budget=budget, seed=seed)
            results.add(Result(key, heldout_bpb=value, test_bpb=value))
    return results


def test_the_larger_budget_ranks_and_those_without_it_come_last(tmp_path: Path, text: Text):
    rows = {("a", 240): [1.7], ("a", 960): [1.6], ("b", 240): [1.9], ("b", 960): [1.5], ("c", 240): [1.4]}
    rows[("counts", 0)] = [1.55]
    found = standings(filled(tmp_path, text, rows), FROZEN, text.name, [240, 960])
    assert [one.contestant for one in found] == ["b", "counts", "a", "c"]
    assert found[1].figures[240] == found[1].figures[960] == Figure(1.55, 1, 0.0)


def test_what_has_no_budget_is_not_first_because_nobody_had_the_larger_one(tmp_path: Path, text: Text):
    rows = {("a", 240): [1.7], ("counts", 0): [1.8]}
    found = standings(filled(tmp_path, text, rows), FROZEN, text.name, [240, 960])
    assert [one.contestant for one in found] == ["a", "counts"]


def test_the_best_by_held_out_text_is_chosen_whatever_the_test_text_says(tmp_path: Path, text: Text):
    results = Results(tmp_path)
    assert chosen(results, NEURAL, text.name, 240, 1) == 0
    results.add(Result(key_of(NEURAL, text), trial=0, heldout_bpb=2.0, test_bpb=1.0))
    results.add(Result(key_of(NEURAL, text, options=NEURAL.options(1)), trial=1, heldout_bpb=1.9, test_bpb=3.0))
    results.add(Result(key_of(NEURAL, text, options={"lr": 9}), trial=2, heldout_bpb=0.1))  # of a former plan
    results.add(Result(key_of(NEURAL, text, budget=960), trial=0, heldout_bpb=0.5))  # another budget is no trial
    assert chosen(results, NEURAL, text.name, 240, 1) == 1


def test_a_figure_is_of_the_recipe_that_was_chosen_last(tmp_path: Path, text: Text):
    results = Results(tmp_path)
    for trial, values in ((0, [1.0, 1.1]), (1, [1.5, 1.6])):
        for seed, value in enumerate(values):
            key = key_of(NEURAL, text, options=NEURAL.options(trial), seed=seed)
            results.add(Result(key, trial=trial, heldout_bpb=value, test_bpb=value))
    (standing,) = standings(results, FROZEN, text.name, [240])
    assert (standing.figures[240].mean, standing.figures[240].n) == (pytest.approx(1.55), 2)
    assert [result.trial for result in standing.results] == [1, 1]


def test_the_page_says_when_each_is_where_another_is(tmp_path: Path, text: Text):
    names = ("ours", "net", "slow")
    plan = replace(PLAN, contestants=[replace(NEURAL, name=name, title=f"the {name} one") for name in names])
    rows = {("ours", 80): [1.9], ("ours", 240): [1.7], ("ours", 960): [1.5]}
    rows |= {("net", 240): [2.0], ("net", 960): [1.4], ("slow", 240): [3.0]}
    results = filled(tmp_path, text, rows)
    results.add(Result(Key(ADAPTING, "PPMd", text.name, 0, 0, 1, {}, text.sha256), test_bpb=1.45))
    results.add(Result(key_of(NEURAL, text, contestant="ours", table=ADAPTING), test_bpb=1.3))
    written = page.write(results, plan, tmp_path, threads=1, text_names=[text.name]).read_text()
    assert "Ours, frozen: 1.9000 with 80 CPU s, beside 2.0000 of the net one with 240." in written
    found = "the net one within 960 CPU s, the ours one, adapting within 240 CPU s"
    assert f"PPMd's 1.4500: {found}; no other one within 960 CPU s." in written


def test_ours_is_run_for_a_third_of_each_budget_once(tmp_path: Path, text: Text):
    ours = replace(NEURAL, name="ours")
    assert PLAN.budgets_of(ours) == [80, 240, 320, 960]
    assert PLAN.budgets_of(NEURAL) == [240, 960]
    found = [job.args for job in runner_of(tmp_path, text, ours, NEURAL)._chosen()]
    assert [(entry.name, budget) for entry, _, budget, _ in found] == [
        ("ours", 80),
        ("ours", 240),
        ("net", 240),
        ("ours", 320),
        ("ours", 960),
        ("net", 960),
    ]


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        ([1.50, 1.51] * 3, [1.60, 1.61] * 3, "established: 31.6"),
        ([1.50, 1.56] * 3, [1.53, 1.59] * 3, "not established: 1.6"),
        (
            [1.50, 1.51],
            [1.90, 1.91] * 3,
            "not established: 3.09 standard errors of 5 seeds are asked for, and one has 2",
        ),
        ([1.50], [1.90, 1.91] * 3, "not established: 3.09 standard errors of 5 seeds are asked for, and one has 1"),
    ],
)
def test_a_record_needs_seeds_and_3_09_standard_errors(first: list[float], second: list[float], said: str):
    assert verdict(Figure.of(first), Figure.of(second)).startswith(said)


def test_without_chance_any_difference_is_established():
    archives_ = [Figure.of([value], chance=False) for value in (1.8, 1.9)]
    assert verdict(*archives_).startswith("established")
    assert verdict(Figure.of([1.5, 1.501] * 3), archives_[0]).startswith("established")


# Scoring


class Bytes(Vocabulary):
    """256 ids."""

    size = 256

    def encode(self, text: str) -> Encoded:
        ids = torch.tensor(list(text.encode()))
        return Encoded(ids, torch.ones_like(ids, dtype=torch.bool))


def uniform(block_size: int, vocabulary: Vocabulary) -> Reader:
    return Reader(vocabulary, block_size, lambda ids: torch.zeros(*ids.shape, vocabulary.size))


@pytest.mark.parametrize("block_size", [2, 8, 64, 10_000])
@pytest.mark.parametrize("length", [1, 2, 9, 500])
def test_an_even_choice_of_bytes_costs_8_bits_a_byte(block_size: int, length: int):
    assert bits_per_byte(uniform(block_size, Bytes()), TEXT[:length]) == pytest.approx(8)


@pytest.mark.parametrize("n", [0, 1, 2, 5, 16, 17, 18, 40, 41, 1000])
def test_each_token_but_the_first_is_scored_once_with_half_a_block_before_it(n: int):
    scored = []
    for number, window in enumerate(windows(n, 16)):
        end = min(window.start + 17, n)
        assert window.start >= 0
        assert number == 0 or window.first - window.start >= 8
        scored += range(window.first, end)
    assert scored == list(range(1, n))


def test_a_token_is_scored_by_what_stands_before_it():
    """A model that knows that the alphabet follows itself pays for the first letter alone, whatever its windows are."""

    def successor(ids: torch.Tensor) -> torch.Tensor:
        return 1e4 * torch.nn.functional.one_hot((ids - 97 + 1) % 26 + 97, 256).float()

    alphabet = "abcdefghijklmnopqrstuvwxyz" * 5
    for block_size in (4, 30, 1000):
        assert bits_per_byte(Reader(Bytes(), block_size, successor), alphabet) == pytest.approx(8 / len(alphabet))
    assert bits_per_byte(Reader(Bytes(), 4, successor), "abd") > 1000


def test_an_unseen_character_costs_an_escape_and_its_bytes_and_the_others_pay_for_it():
    vocabulary = Characters.of("aab ")  # two of its characters came once
    assert vocabulary.escape == 3 / 5
    assert vocabulary.size == 3
    bits = 3 * (math.log2(3) - math.log2(2 / 5)) + 2 * (-math.log2(3 / 5) + 8 * 2)
    assert bits_per_byte(uniform(8, vocabulary), "aéßab"[:5]) == pytest.approx(bits / 7)
    assert bits_per_byte(uniform(8, vocabulary), "é") == pytest.approx((-math.log2(3 / 5) + 16) / 2)


@pytest.mark.parametrize("kind", ["characters", 300])
def test_a_vocabulary_is_found_again(kind: str | int, tmp_path: Path):
    made = trained(kind, TEXT, tmp_path)
    found = kept(kind, tmp_path)
    new = TEXT[:50] + "é"
    assert found.size == made.size
    assert found.encode(new).ids.tolist() == made.encode(new).ids.tolist()
    assert found.encode(new).escape_bits == made.encode(new).escape_bits


# Contestants

SMALL: dict[str, dict[str, Any]] = {
    "nanogpt": {"layers": 1, "heads": 2, "width": 16, "dropout": 0.1, "lr": 1e-2, "min_lr": 1e-3, "beta2": 0.99},
    "nanochat": {"depth": 1, "head_size": 32, "embedding_lr": 0.2, "head_lr": 0.004, "matrix_lr": 0.02}
    | {"warmdown": 0.2, "floor": 0.0},
    "hugging_face": {"layers": 1, "heads": 2, "width": 16, "dropout": 0.1, "lr": 1e-2, "schedule": "linear"},
    "litgpt": {
        "model_name": "pythia-14m",
        "n_layer": 1,
        "n_embd": 16,
        "lr": 1e-2,
        "min_lr": 1e-3,
        "betas": [0.9, 0.99],
    },
}


@pytest.mark.parametrize("kind", SMALL)
def test_a_recipe_learns_and_what_it_saved_is_read(kind: str, tmp_path: Path, text: Text):
    if kind == "litgpt":
        pytest.importorskip("litgpt")
    shared = {"vocabulary": "characters", "block_size": 16, "batch_size": 8, "weight_decay": 0.1, "warmup": 2}
    options = shared | SMALL[kind]
    job = Job(str(tmp_path / kind), kind, str(text.train), str(text.heldout), 30, 0, 1, options)
    job.write()
    one = contestant(kind)
    one.train(Job.read(job.folder))
    reader = one.reader(job)
    even = bits_per_byte(uniform(16, reader.vocabulary), TEXT[:300])
    assert bits_per_byte(reader, TEXT[:300]) < 0.9 * even
    ids = reader.vocabulary.encode(TEXT[:16]).ids[None]
    changed = ids.clone()
    changed[:, 10:] = 0
    with torch.no_grad():
        assert torch.allclose(reader.logits(ids)[:, :10], reader.logits(changed)[:, :10], atol=1e-5)


# Texts and archives


def test_wikitext_is_cut_before_an_article_and_shakespeare_by_share():
    article = " = {} = \n\n text \n\n = = section = = \n\n more \n"
    whole = "".join(article.format(name) for name in "ABCDE")
    first, second = halves(whole)
    assert first + second == whole
    assert second.startswith((" = C = ", " = D = "))
    assert [len(part) for part in shares("x" * 1000)] == [900, 50, 50]


def test_a_text_of_ones_own_needs_three_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--train", "a.txt", "--page", "--work", str(tmp_path), "--out", str(tmp_path)]) == 1
    assert "--train, --heldout and --test belong together" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"cannot read the text .*nowhere"):
        Text.given("x", *[str(tmp_path / "nowhere.txt")] * 3)


@pytest.mark.parametrize("name", archives.ARCHIVES)
def test_an_archive_knows_what_it_has_read(name: str):
    """Repeated text costs next to nothing after itself."""
    train, other = TEXT.encode(), bytes(range(32, 127)) * 3
    found = archives.measured(name, train, train[:520])
    if found is None:
        pytest.skip(f"{name} is not installed")
    new = archives.measured(name, train, other)
    assert new is not None
    assert found[0] < 1 < new[0]


@pytest.mark.slow
def test_a_quick_speedrun_writes_a_page_and_goes_on_where_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    places = ["--out", str(tmp_path / "out"), "--work", str(tmp_path / "work"), "--threads", "1"]
    words = ["--quick", "--budgets", "12", "--only", "fivegrams", "nanogpt_cpu", *places]
    assert main(words) == 0
    page = (tmp_path / "out" / "speedrun.md").read_text()
    for said in ("## articles", "### Frozen", "### Adapting", "nanoGPT, its CPU recipe", "LZMA2", "## What it took"):
        assert said in page
    assert (tmp_path / "out" / "images" / "speedrun.png").stat().st_size > 5000
    lines = (tmp_path / "out" / "results" / FILE).read_text()
    capsys.readouterr()
    assert main(words) == 0
    assert (tmp_path / "out" / "results" / FILE).read_text() == lines
    assert ": 1." not in capsys.readouterr().out


@pytest.mark.slow
def test_the_main_config_is_trained_frozen_and_adapting(tmp_path: Path, text: Text):
    from benchmarks.speedrun import adapting

    small = {"data.vocab_size": 300, "model.init_args.backbone.embedding_dim": 12, "data.block_size": 16}
    options = {"config": "configs/article_gpt.yaml", "options": small}
    job = Job(str(tmp_path / "ours"), "ours", str(text.train), str(text.heldout), 3, 0, 1, options)
    assert clock.cpu_seconds(job) > 0
    frozen = bits_per_byte(contestant("ours").reader(job), TEXT)
    adapted, seconds = adapting.bits_per_byte(job, text.test)
    assert seconds > 0
    assert 0 < frozen < 4
    assert 0 < adapted < 4
