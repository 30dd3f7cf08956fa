"""The experiment runs in small, goes on where it was interrupted, and computes what its readers do."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import after, continual, gated, memory, report, runs, store, storing
from experiments.memory import Job, Plan
from experiments.runs import Scores, Training, blocks, context_of, new_optimizer, training_batches
from experiments.texts import Texts, articles, halves, prepare
from lightning_app.data.batch import IGNORE
from lightning_app.data.corpus import Document
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.errors import InputError
from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers.base import ReaderOutput, TokenContext
from lightning_app.models.losses import cross_entropy
from lightning_app.training.evaluation import Evaluation
from lightning_app.training.optimizer_parts import OptimizerByParts
from tests import tokenizers

TEXT = "the sea was calm and the old boat lay by the shore while gulls cried over grey water all day"
WORDS = TEXT.split()


def article(name: str, seed: int, words: int = 150) -> str:
    drawn = np.random.default_rng(seed).integers(len(WORDS), size=words)
    return f" = {name} = \n\n {' '.join(WORDS[i] for i in drawn)} \n\n = = Part = = \n\n {WORDS[seed % 5]} \n\n"


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    training = Training(
        block_size=16, batch_size=2, group=2, steps=4, warmup_steps=1, validations=2, validation_blocks=3
    )
    train, heldout = tmp_path / "train.txt", tmp_path / "heldout.txt"
    train.write_text(" \n" + "".join(article(f"A{i}", i, words=400) for i in range(3)))
    heldout.write_text("".join(article(f"B{i}", 10 + i) for i in range(4)))
    return Plan(
        str(train),
        str(heldout),
        seeds=(0, 1),
        vocab_size=300,
        model={"embedding_dim": 16, "layers": 1, "heads": 2, "positions": "rotary"},
        training=training,
        further=replace(training, steps=2),
        concat=memory.CONCAT | {"memory_size": 50},
        attention=memory.ATTENTION | {"memory_size": 50, "num_search_results": 4},
        storing=storing.Options(thetas=(4.0,), decays=(0.0, 0.01), steps=2),
        trime=memory.TRIME | {"memory_size": 30, "num_search_results": 30},
        after=after.Options(
            cache_size=20,
            k=4,
            tuning_blocks=5,
            sizes=(10, 40),
            curve_every=2,
            gated=gated.Options(streams=2, epochs=1, looks=2, hidden=4),
        ),
        scored_blocks=8,
    )


def run(plan: Plan, folder: Path) -> list[tuple[str, int | None]]:
    """Run what is missing, in this process; returns the jobs that had something to do."""
    before: list[tuple[str, int | None]] = []

    def do(job: Job) -> None:
        if {(arm, job.seed) for arm in job.arms} - memory.done(folder):
            before.append((job.arm or "after", job.seed))
        memory.run_job(job)

    folder.mkdir(exist_ok=True)
    memory.run_all(plan, folder, workers=1, quick=True, do=do)
    return before


@pytest.mark.slow
def test_all_arms_and_a_resume(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(memory, "tune_allocator", lambda: True)
    monkeypatch.setattr(memory, "SIDE_BY_SIDE", plan.training.group)
    folder = tmp_path / "work"
    others = ("after", *memory.TRAINED, "storing", "dynamic evaluation")
    jobs = [("no memory", 0), ("no memory", 1), ("PPMd", 0), *((arm, seed) for seed in (0, 1) for arm in others)]
    jobs += [(report.AS_LONG, 0), (report.AS_LONG, 1)]
    assert run(plan, folder) == jobs
    lines = (folder / store.RESULTS).read_text().splitlines()
    budgets = len(plan.storing.arms) + len(plan.storing.arms_of_attention)
    assert len(lines) == 2 * (16 + budgets) + 1 + 2  # PPMd has no seed, and the first seed also draws the picture
    assert run(plan, folder) == []

    # Cut off within the last line of the cache's, and the model of one arm is gone with its line
    kept = [line for line in lines if json.loads(line)["arm"] not in ("concat", "knn + cache")]
    (folder / store.RESULTS).write_text("\n".join(kept) + '\n{"arm": "knn + cache", "seed": 0, "te')
    for name in ("nats-1.npy", "no_memory-1.pt"):  # as on another machine, which has the published results alone
        (folder / name).unlink()
    assert run(plan, folder) == [("after", 0), ("concat", 0), ("after", 1), ("concat", 1)]
    again = report.records(folder)
    assert sorted((r["arm"], r["seed"]) for r in again) == sorted(
        (json.loads(line)["arm"], json.loads(line)["seed"]) for line in lines
    )
    figures = {(r["arm"], r["seed"]): r["test_bpb"] for r in again if "test_bpb" in r}
    for line in map(json.loads, lines):
        if "test_bpb" in line:
            assert figures[line["arm"], line["seed"]] == pytest.approx(line["test_bpb"], abs=1e-6)

    written = tmp_path / "docs" / "memory.md"
    written.parent.mkdir()
    written.write_text(f"# How it works\n\n{report.SECTION}\n\nolder results\n")
    page = report.write(folder, memory.asdict(plan), tmp_path / "docs", command="this test")
    assert (tmp_path / "docs" / "images" / "memory_size.png").stat().st_size > 1000
    assert written.read_text() == f"# How it works\n\n{page}"
    first, *others = map(json.loads, (tmp_path / "docs" / "results" / "memory.jsonl").read_text().splitlines())
    assert first["plan"]["question"] == plan.rules.question
    assert others == again
    for arm in report.ARMS:
        assert f"\n| {arm} | {1 if arm == 'PPMd' else 2} |" in page
    assert "\n| 2,000 | " in page
    assert " recency with 256 entries." in page
    assert "Planned and not run" not in page
    assert "nan" not in page


def test_the_best_arm_is_not_chosen_on_what_is_scored(tmp_path: Path):
    """The cache is best on the text to choose on, and the text to score likes another one better."""
    figures = {"no memory": (4.0, 4.0), "cache": (3.0, 3.8), "knn": (3.5, 3.0), "knn + cache": (3.2, 2.0)}
    figures |= {"trime": (3.9, 3.9), "further training": (4.0, 4.0)}
    for arm, (tuning, scored) in figures.items():
        store.append(tmp_path, {"arm": arm, "seed": 0, "tuning_nats": tuning, "nats": [scored, scored]})
    page = report._targets(report.Results(tmp_path), {"trime": 0.5, "knn": 0.5})
    assert "(cache) at least 10 % below no memory | -5.00 [-5.00, -5.00] (one seed) | missed |" in page
    assert "| trime not worse than further training by 0.5 % | -2.50 [-2.50, -2.50] (one seed) | undecided |" in page


def test_arms_of_unequal_training_are_not_compared_and_costs_are_targets(tmp_path: Path):
    """What was trained further has more steps than the model that the cache and the counts are read off."""
    cheap = {"hurt": 0.25, "memory_bytes": 6e6, "seconds_per_token": 0.0004}
    figures = dict.fromkeys(("no memory", "further training", "n-grams + cache", "cache", "knn", "knn + cache"), 4.0)
    for arm, nats in {**figures, "mixture": 3.8, "trime": 3.0, "attention": 3.2}.items():
        record = {"arm": arm, "seed": 0, "tuning_nats": nats, "nats": [nats, nats]}
        store.append(tmp_path, record | (cheap if arm == "mixture" else {}))
    page = report._targets(report.Results(tmp_path), {})
    assert "trime below further training, interval clear of zero | -25.00" in page
    assert "trime below cache" not in page
    assert "\n| mixture at least 2 % below n-grams + cache, interval clear of zero | -5.00" in page
    assert "\n| mixture: tokens hurt at most 30 % | 25 % | met |" in page
    assert "\n| mixture: memory at most 5 MB | 6 MB | missed |" in page
    assert "\n| mixture: time of a token at most 0.5 ms | 0.4 ms | met |" in page
    assert page.count("mixture: ") == 3


def test_all_arms_score_the_same_tokens(plan: Plan, tmp_path: Path):
    texts = prepare(plan.train, plan.heldout, None, vocab_size=300, folder=tmp_path)
    scored = [batch.targets >= 0 for batch in blocks(texts.test, 16)]
    assert sum(int(s.sum()) for s in scored) == texts.test.n_tokens - 1


@pytest.mark.parametrize("kind", ["unigram", "wordpiece", "smollm2"])
def test_bytes_are_those_of_the_text_where_a_tokenizer_loses_some(kind: str, tmp_path: Path):
    """As the product counts them, token by token."""
    tokenizer = tokenizers.made(kind)
    documents = [Document(f"Ein  Wörtchen, {i} ﬁsh\x01 and  MORE of it" * 3, name=str(i)) for i in range(5)]
    text = prepare_tokens(documents, tokenizer, tmp_path)
    assert text.has_other_bytes
    product = Evaluation()
    product.use_tokenizer(tokenizer, vocab_size=tokenizer.vocab_size, device=torch.device("cpu"))
    product.use_text(text)
    assert product.token_bytes is not None
    batches = list(blocks(text, 16))
    assert len(batches) > 3
    counted = [product.bytes_of_targets(batch) for batch in batches]
    expected = [n for n, b in zip(counted, batches, strict=True) if n is not None for n in n[b.targets != IGNORE]]
    scores = Scores.of(batches, [torch.ones(batch.targets.shape) for batch in batches])
    assert scores.n_bytes(text, product.token_bytes).tolist() == [int(n) for n in expected]
    held_out = continual.Texts(text, product.token_bytes, block_size=16, blocks=96)
    assert held_out.scale.sum() / math.log(2) == pytest.approx(sum(map(int, expected)))


def test_data_order_depends_on_the_seed_alone_and_a_group_follows_the_text(plan: Plan, tmp_path: Path):
    texts = prepare(plan.train, plan.heldout, None, vocab_size=300, folder=tmp_path)
    first, second, other = (training_batches(texts.train, plan.training, seed) for seed in (0, 0, 1))
    a, b, c = next(first), next(second), next(other)
    assert a.input_ids.equal(b.input_ids)
    assert not a.input_ids.equal(c.input_ids)
    assert a.targets[0, -1] == a.input_ids[1, 0]  # two blocks side by side
    with pytest.raises(InputError, match="groups of 3"):
        next(training_batches(texts.train, replace(plan.training, group=3), 0))


def test_streams_go_on_where_they_ended_and_an_arm_of_one_teaches_its_writer(plan: Plan, tmp_path: Path):
    texts = prepare(plan.train, plan.heldout, None, vocab_size=300, folder=tmp_path)
    for arm in ("concat", "attention"):
        training = memory.training_of(plan, arm)
        batches = training_batches(texts.train, training, 0)
        a, b = next(batches), next(batches)
        assert a.targets[:, -1].equal(b.input_ids[:, 0]) == training.streams == (arm == "attention")
        assert a.input_ids.numel() == plan.training.batch_size * plan.training.block_size * (
            2 if arm == "concat" else 1
        )
        torch.manual_seed(0)
        model = memory.new_model(arm, plan).train()
        model.readers[0].steps.fill_(plan.training.steps + 300)  # after those in which all is stored
        found = model.run(a.input_ids, context_of(a, model.segment_length))
        cross_entropy(found.logits, a.targets).backward()
        for name in ("fc_storable_vector", "fc_store_decision"):
            gradient = getattr(model.readers[0].writer, name).weight.grad
            assert gradient is not None, (arm, name)
            assert gradient.any(), (arm, name)


def test_attention_adds_little_to_a_trained_model_at_first(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With all that it reads added a trained model had 4.14 nats in place of 3.20, and with a tenth of it 3.17."""
    texts = prepare(plan.train, plan.heldout, None, vocab_size=300, folder=tmp_path)
    model = memory.new_model("attention", replace(plan, attention=memory.ATTENTION | {"memory_size": 50}))
    reader, shares = model.readers[0], []
    at_states = reader.at_states

    def measured(states: torch.Tensor, context: TokenContext) -> tuple[torch.Tensor, ReaderOutput]:
        changed, output = at_states(states, context)
        shares.append(float((changed - states).norm() / states.norm()))
        return changed, output

    monkeypatch.setattr(reader, "at_states", measured)
    runs.read(model, list(blocks(texts.val, 16)))
    assert 0 < max(shares) < 0.25


@pytest.mark.parametrize("arm", [memory.PLAIN, "attention", "trime"])
def test_muon_takes_the_matrices_of_the_blocks(arm: str, plan: Plan):
    model = memory.new_model(arm, plan)
    optimizer = new_optimizer(model, replace(plan.training, muon_lr=0.02))
    assert isinstance(optimizer, OptimizerByParts)
    muon, adamw = ({id(p) for group in part.param_groups for p in group["params"]} for part in optimizer.parts)
    matrices = {id(p) for name, p in model.backbone.named_parameters() if ".c_" in name and p.ndim == 2}
    assert muon == matrices
    assert muon | adamw == {id(p) for p in model.parameters()}
    assert not any(group["weight_decay"] for group in optimizer.param_groups if group["params"][0].ndim < 2)


def test_arms_that_are_trained_go_on_from_the_model_without_memory(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    begun: dict[str, dict[str, torch.Tensor]] = {}

    def train(model: MemoryLM, texts: Texts, options: Training, *, seed: int) -> dict[str, float]:
        begun[f"{len(begun)}"] = {name: tensor.clone() for name, tensor in model.backbone.state_dict().items()}
        assert options.steps == (plan.training if len(begun) == 1 else plan.further).steps
        for parameter in model.parameters():
            parameter.data += 1
        return {}

    monkeypatch.setattr(memory, "train", train)
    texts = prepare(plan.train, plan.heldout, None, vocab_size=300, folder=tmp_path)
    job = memory.Job(plan, tmp_path, 0, memory.PLAIN)
    base, _ = memory.trained(job, memory.PLAIN, texts)
    for arm in memory.TRAINED:
        memory.trained(job, arm, texts)
    first, *others = begun.values()
    assert len(others) == len(memory.TRAINED)
    assert all(torch.equal(one[name], tensor) for one in others for name, tensor in base.backbone.state_dict().items())
    assert not all(torch.equal(first[name], tensor) for name, tensor in base.backbone.state_dict().items())


def test_a_training_without_memory_may_take_as_long_as_the_dearest_arm(plan: Plan, tmp_path: Path):
    job = memory.Job(plan, tmp_path, 0, report.AS_LONG)
    for i, arm in enumerate(memory.TRAINED):
        for seed in (0, 1):
            taken = {"last_step": 600, "train_seconds": 50 * (1 + i) * (1 + seed)}
            store.append(tmp_path, {"arm": arm, "seed": seed, **taken})
    assert memory.steps_for_as_long(job) == 600 * len(memory.TRAINED)


def test_articles_are_cut_at_titles_and_halved_between_them(plan: Plan):
    found = articles(plan.heldout)
    assert [document.text.split("\n")[0] for document in found] == [f" = B{i} = " for i in range(4)]
    assert "".join(document.text for document in found) == Path(plan.heldout).read_text()
    val, test = halves([Document("x" * n) for n in (5, 1, 3, 3)])
    assert ([len(d.text) for d in val], [len(d.text) for d in test]) == ([5, 1], [3, 3])
    with pytest.raises(InputError, match="give TEST as well"):
        halves([Document("x")])


def test_an_article_that_is_trained_on_is_not_held_out(plan: Plan, tmp_path: Path):
    Path(plan.heldout).write_text(Path(plan.heldout).read_text() + article("A1", 1, words=400))
    with pytest.raises(InputError, match=r"1 document.* in two of the texts"):
        prepare(plan.train, plan.heldout, None, vocab_size=300, folder=tmp_path)


def test_other_options_are_another_folder_but_other_seeds_are_not(plan: Plan):
    assert replace(plan, seeds=(0, 1, 2)).fingerprint == plan.fingerprint
    assert replace(plan, scored_blocks=9).fingerprint != plan.fingerprint
