"""The experiment on plasticity runs in small, goes on where it was interrupted, and its page says what was found."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from experiments import plasticity, plasticity_page, store
from experiments.cloze import Item, accuracy, items_of
from experiments.plasticity import (
    DEFAULT,
    LEVELS,
    OTHER_ORDER,
    SMALLER,
    STRATEGIES,
    UNPRUNED,
    Arm,
    Evidence,
    Job,
    Plan,
    Run,
    arms,
)
from experiments.runs import Training
from lightning_app.data.tokenizers import Tokenizer, load_tokenizer
from lightning_app.models.decoder import Decoder
from lightning_app.plasticity.importance import HardConcreteImportance, SubsetImportance
from lightning_app.plasticity.kinds import units_of
from tests.test_experiments_art import texts

SMALL = [
    Arm(UNPRUNED),
    Arm(OTHER_ORDER),
    Arm(SMALLER, 0.5),
    Arm(DEFAULT, 0.3),
    Arm("exact subset", 0.5),
    Arm("random 0", 0.3),
    Arm(DEFAULT, 0.5, cycles=2),
    Arm(DEFAULT, 0.5, regrow=1),
    Arm(DEFAULT, 0.5, layer_factor=3.0),
    Arm(DEFAULT, 0.5, head_factor=3.0),
    Arm(DEFAULT, 0.5, neurons=0.5),
]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(
        *texts(tmp_path),
        seeds=(0, 1),
        vocab_size=300,
        model={"embedding_dim": 16, "layers": 2, "heads": 4},
        training=Training(block_size=16, batch_size=4, group=1, steps=4, warmup_steps=2),
        finetuning=4,
        sample=8,
        blocks=10,
        items=5,
    )


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few steps of learned gates."""
    few = {"Hard Concrete": HardConcreteImportance(steps=2), "exact subset": SubsetImportance(steps=2)}
    for name, strategy in few.items():
        monkeypatch.setitem(STRATEGIES, name, strategy)


def folder_of(plan: Plan, tmp_path: Path) -> Path:
    folder = tmp_path / "results"
    folder.mkdir()
    return folder


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Polyfit", "ignore:invalid value", "ignore:Mean of empty")
def test_arms_run_in_small_go_on_and_become_a_page(
    plan: Plan, quickly: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = folder_of(plan, tmp_path)
    jobs = [Job(plan, folder, seed) for seed in plan.seeds]
    for do in (plasticity.train_base, plasticity.score_all):
        store.do_all(do, jobs, workers=1, folder=folder)
    every = [Job(plan, folder, seed, arm) for arm in SMALL for seed in plan.seeds]
    store.do_all(plasticity.finetune, every, workers=1, folder=folder)
    records = {(r["arm"], r["seed"]): r for r in store.records(folder)}
    assert len(records) == 2 + 2 * len(SMALL)
    unpruned, pruned = records[UNPRUNED, 0], records["Taylor, 30%", 0]
    assert (unpruned["heads"], pruned["heads"], records["Taylor, 50%, 1 regrown", 0]["heads"]) == (8, 6, 4)
    assert records["Taylor, 50%, 2 cycles", 0]["heads"] == 4
    assert records["Taylor, 50%, 50% of neurons", 0]["neurons"] == 64  # of 2 x 64
    assert unpruned["parameters"] == unpruned["parameters_whole"] > pruned["parameters"]
    assert unpruned["test"] != records[OTHER_ORDER, 0]["test"]
    assert records["Taylor, 50%, layers x 3", 0]["test"] != records["Taylor, 50%, heads x 3", 0]["test"]
    before = (folder / store.RESULTS).read_bytes()
    store.do_all(plasticity.score_all, jobs, workers=1, folder=folder)
    store.do_all(plasticity.finetune, every, workers=1, folder=folder)
    assert (folder / store.RESULTS).read_bytes() == before  # nothing is done twice
    Evidence(plan, folder).keep_untrained()
    page = plasticity_page.write(folder, asdict(plan), tmp_path, command="make it")
    assert "| bits per byte | text to score | unseen text |" in page
    assert (tmp_path / plasticity_page.PICTURE).stat().st_size > 10_000
    assert all(f"| {arm.name} |" in page for arm in SMALL[1:])
    assert "beats each random draw at 30%" in page


def test_all_arms_of_a_seed_see_the_same_batches(plan: Plan, tmp_path: Path):
    evidence = Evidence(plan, folder_of(plan, tmp_path))
    whole, resumed = Run(plan, evidence, 0), Run(plan, evidence, 0)
    whole.train(plan.training.steps)
    whole.save(tmp_path / "base.pt")
    resumed.load(tmp_path / "base.pt")
    for run in (whole, resumed):
        run.train(plan.finetuning)
    for one, two in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_the_learning_rate_is_constant_until_heads_go(plan: Plan, tmp_path: Path):
    run = Run(plan, Evidence(plan, folder_of(plan, tmp_path)), 0)
    factors = []
    for run.step in range(plan.training.steps + plan.finetuning + 1):
        factors.append(run.factor())
    assert factors[:4] == [0.5, 1.0, 1.0, 1.0]
    assert factors[4] == 1.0
    assert factors[6] == pytest.approx(0.05 + 0.95 / 2)
    assert factors[8] == pytest.approx(0.05)


def test_more_arms_keep_what_was_measured(plan: Plan):
    assert replace(plan, full=True).fingerprint == plan.fingerprint == replace(plan, seeds=(0,)).fingerprint
    assert replace(plan, finetuning=5).fingerprint != plan.fingerprint
    names = [arm.name for arm in arms(plan)]
    assert len(names) == len(set(names))
    assert {f"random {i}, {level}" for i in range(5) for level in ("30%", "50%")} <= set(names)
    assert len(arms(replace(plan, full=True))) > len(STRATEGIES) * len(LEVELS)


# Cloze


@pytest.fixture
def tokenizer() -> Tokenizer:
    return load_tokenizer("bytes")


def test_items_are_the_last_words_of_sentences_spread_over_the_texts(tmp_path: Path):
    text = " ".join(f"Number {'one' * (i % 2)} is followed by the word{'abcdefghij'[i % 10] * 3} ." for i in range(200))
    items = items_of(tmp_path / "cloze.jsonl", [text], n=7)
    assert len(items) == 7
    for item in items:
        assert item.text.endswith("followed by the")
        assert item.word.startswith(" word")
        assert text.count(item.text + item.word + " .") >= 1
    other = items_of(tmp_path / "cloze.jsonl", ["something else"], n=3)
    assert other == items  # the file counts, once it is there


def test_a_word_is_right_when_all_of_its_tokens_are_likeliest(tokenizer: Tokenizer):
    class Parrot(Decoder):
        """Always says that "b" follows "a", and "a" everything else."""

        def forward(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
            following = torch.where(ids == ord("a"), ord("b"), ord("a"))
            return torch.nn.functional.one_hot(following, self.vocab_size).float()

    model = Parrot(vocab_size=257, block_size=32, embedding_dim=8, layers=1, heads=1)
    items = [Item("so ", "abab"), Item("so ", "abba"), Item("so ", "x")]
    assert accuracy(model, tokenizer, items) == [1, 0, 0]


# The page


def records_of(folder: Path) -> None:
    """One seed: Taylor is as good as unpruned, and a draw is worse."""
    levels = {str(level): {"dead": [], "test": [102.0, 102.0], "unseen": [1.0]} for level in LEVELS}
    worse = {level: found | {"test": [110.0, 110.0]} for level, found in levels.items()}
    strategies = {
        DEFAULT: {"scores": [], "seconds": 1.0, "spearman": 0.9, "levels": levels},
        "random 0": {"scores": [], "seconds": 0.0, "spearman": 0.0, "levels": worse},
    }
    whole = {"test": [100.0, 100.0], "unseen": [1.0]}
    store.append(
        folder,
        {"arm": "scores", "seed": 0, "strategies": strategies, "whole": whole, "heldout_spearman": 0.4}
        | {"scale": {"test": [50.0, 50.0], "unseen": [1.0]}},
    )
    for arm, test, speedup in (
        (UNPRUNED, [90.0, 90.0], 1.0),
        (f"{DEFAULT}, 30%", [90.9, 90.9], 1.1),
        ("random 0, 30%", [99.0, 99.0], 1.1),
        (f"{DEFAULT}, 50%", [95.0, 95.0], 1.2),
        (f"{DEFAULT}, 50%, 30% of neurons", [90.5, 90.5], 1.6),
    ):
        sizes = {"parameters": 5, "parameters_whole": 10, "flops": 10, "flops_whole": 20, "training_seconds": 2.0}
        texts = {"heldout": test, "test": test, "unseen": [1.0]}
        record = {"arm": arm, "seed": 0, **texts, "cloze": [1, 0], "speedup": speedup, **sizes}
        store.append(folder, record)


def test_the_page_says_what_the_records_say(plan: Plan, tmp_path: Path):
    folder = folder_of(plan, tmp_path)
    records_of(folder)
    results = plasticity_page.Results(folder)
    assert results.against(f"{DEFAULT}, 30%").mean == pytest.approx(1.0)
    assert results.before(DEFAULT, "0.3") == [pytest.approx(2.0)]
    (tmp_path / "plasticity.md").write_text("above\n\n## Is it real?\n\nold\n")
    page = plasticity_page.write(folder, asdict(plan), tmp_path, command="make it")
    written = (tmp_path / "plasticity.md").read_text()
    assert written == f"above\n\n{page}"
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in page.splitlines() if line.startswith("| ")}
    assert "1 of 1 before fine-tuning, 1 of 1 after | yes" in rows[f"{DEFAULT} beats each random draw at 30%"]
    assert rows["at 30% not worse than unpruned by 0.5 %: the interval lies below that"].endswith("| undecided |")
    assert rows["at 50% not worse than unpruned by 1 %: the interval lies below that"].endswith("| no |")
    assert "38 % less time" in rows["with neurons 30 % less inference time at no more than 1 %"]
    assert "0.40 | **no** |" in page
    assert "| 50.0% | 2.00 | 1.60 | 2 (1.00) |" in rows[f"{DEFAULT}, 50%, 30% of neurons"]


def test_the_arm_of_a_target_is_not_chosen_on_what_is_scored(plan: Plan, tmp_path: Path):
    """One that is faster at no loss on the text to choose on, and loses 5 % on the one to score, misses."""
    folder = folder_of(plan, tmp_path)
    records_of(folder)
    last = store.records(folder)[-1]
    store.append(
        folder, last | {"arm": f"{DEFAULT}, 75%, 30% of neurons", "test": [94.5, 94.5], "speedup": last["speedup"] + 1}
    )
    page = plasticity_page._targets(plasticity_page.Results(folder), plan.rules.margins)
    row = next(line for line in page.splitlines() if "with neurons" in line)
    assert "75%, 30% of neurons: 62 % less time, +5.00" in row
    assert row.endswith("| **no** |")


def test_heads_that_are_missed_come_back(plan: Plan, tmp_path: Path):
    evidence = Evidence(plan, folder_of(plan, tmp_path))
    run = Run(plan, evidence, 0)
    run.train(2)
    arm = Arm(DEFAULT, 0.5, regrow=2)
    plasticity.prune(run, arm, evidence, 1)
    heads = units_of(run.model, "heads")
    assert int(heads.mask.sum()) == int(heads.present.sum()) == 4
    run.train(1)
    assert all(bool(p.isfinite().all()) for p in run.model.parameters())


@pytest.mark.slow
def test_quick_runs_from_the_command_line(tmp_path: Path):
    first, heldout, second = texts(tmp_path)
    names = ["--train", first, "--heldout", heldout, "--unseen", second]
    plasticity.main([*names, "--quick", "--workers", "1", "--work", str(tmp_path / "work")])
    (folder,) = (tmp_path / "work").iterdir()
    assert json.loads((folder / "plan.json").read_text())["seeds"] == [0]
    assert (folder / "plasticity.md").is_file()
