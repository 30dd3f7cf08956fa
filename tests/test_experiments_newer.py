"""Texts are shared out so that each document is scored once, what they share is left out, and the arms are what the
readers compute."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import (
    baselines,
    newer,
    newer_arms,
    newer_experts,
    newer_gate,
    newer_page,
    newer_pointer,
    newer_states,
    newer_texts,
    own_texts,
    plans,
    store,
)
from experiments.newer_pointer import Start
from experiments.newer_texts import Choice
from experiments.runs import context_of
from lightning_app.data.corpus import Document
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.errors import InputError
from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers.base import Reader, TokenContext
from lightning_app.memory.readers.distribution import CacheReader, KNNReader
from lightning_app.models.losses import token_nll
from lightning_app.peers import token_ids
from tests import families, tokenizers

TEXT = "the sea was calm and an old boat lay by the shore while gulls cried over grey water all day"
WORDS = TEXT.split()


def prose(seed: int, n: int = 60) -> str:
    return " ".join(WORDS[i] for i in np.random.default_rng(seed).integers(len(WORDS), size=n))


@pytest.fixture
def commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a repository with 8 docs and 12 files of source, another file, and changes that are not committed."""
    root = tmp_path / "clone"
    (root / "lightning_app").mkdir(parents=True)
    for i in range(8):
        (root / f"doc{i}.md").write_text(prose(i))
    for i in range(12):
        (root / "lightning_app" / f"part{i}.py").write_text(prose(100 + i))
    (root / "other.py").write_text(prose(0))
    as_someone = ("-c", "user.name=a", "-c", "user.email=a@b.c")
    for words in (("init", "-q"), ("add", "."), (*as_someone, "commit", "-q", "-m", "all")):
        subprocess.run(["git", *words], cwd=root, check=True)
    (root / "doc0.md").write_text("changed")
    monkeypatch.setattr(own_texts, "ROOT", root)
    monkeypatch.setattr(newer_texts, "BYTES", range(1, 10_000))
    return "HEAD"


def test_each_document_is_scored_once_by_a_seed_and_never_stored_then(commit: str):
    texts = newer_texts.chosen(Choice(commit=commit, tokens=10_000), tokenizers.made("smollm2"))
    assert sorted(document.name for document in texts.documents) == sorted(
        [*(f"doc{i}.md" for i in range(8)), *(f"lightning_app/part{i}.py" for i in range(12))]
    )
    assert all(document.text != "changed" for document in texts.documents)
    splits = texts.splits(0)
    assert len(splits) == 5
    assert sorted(i for split in splits for i in split.scored) == list(range(20))
    for split in splits:
        assert sorted((*split.stored, *split.tuned, *split.scored)) == list(range(20))
        of_docs = [sum(texts.documents[i].name.startswith("doc") for i in part) for part in vars(split).values()]
        assert of_docs[0] in (4, 5, 6)
        assert min(of_docs) >= 1
    assert texts.splits(0) == splits
    assert texts.splits(1)[0] != splits[0]
    assert texts.storable == texts.asked == list(range(20))


def test_as_many_are_read_as_fit_into_the_tokens(commit: str):
    tokenizer = tokenizers.made("smollm2")
    whole = newer_texts.chosen(Choice(commit=commit, tokens=10_000), tokenizer)
    fewer = newer_texts.chosen(Choice(commit=commit, tokens=sum(whole.sizes) // 2), tokenizer)
    assert 6 <= len(fewer.documents) <= 12
    assert sum(fewer.sizes) <= sum(whole.sizes) // 2
    with pytest.raises(InputError, match=r"none of 8 documents has 5 tokens or fewer: give more --tokens"):
        newer_texts.chosen(Choice(commit=commit, tokens=10), tokenizer)
    with pytest.raises(InputError, match=r"2 documents cannot be shared out to 5 parts"):
        replace(whole, documents=whole.documents[:2], parts=[[0, 1]]).splits(0)


def test_three_texts_keep_their_roles(tmp_path: Path):
    for name, numbers in {"train": range(10), "heldout": range(8, 14), "test": range(20, 23)}.items():
        (tmp_path / name).mkdir()
        for i in numbers:
            (tmp_path / name / f"{i}.txt").write_text(prose(i))
    given = (str(tmp_path / name) for name in ("train", "heldout", "test"))
    texts = newer_texts.chosen(Choice(*given, tokens=10_000), tokenizers.made("smollm2"))
    assert [len(part) for part in texts.parts] == [10, 4, 3]  # what is to be learned is not chosen on
    (one,), (other,) = texts.splits(0), texts.splits(1)
    assert (len(one.stored), len(one.tuned), one.scored) == (8, 3, (14, 15, 16))
    assert {*one.stored} < {*texts.parts[0]}
    assert {*one.stored} != {*other.stored}
    assert (texts.storable, texts.asked) == (list(range(10)), list(range(10, 17)))  # kept files are of all seeds
    halves = newer_texts.chosen(Choice(str(tmp_path / "train"), str(tmp_path / "heldout")), tokenizers.made("smollm2"))
    assert [len(part) for part in halves.parts] == [10, 3, 1]


def test_without_its_history_the_commit_is_named(commit: str):
    with pytest.raises(InputError, match=r"git ls-tree .* 0123abc failed .*from a clone's history"):
        newer_texts.chosen(Choice(commit="0123abc"), tokenizers.made("smollm2"))


def test_tokens_of_shared_runs_of_8_words_are_left_out(tmp_path: Path):
    tokenizer = tokenizers.made("smollm2")
    shared = "one twö three  four\nfive six seven eight"
    documents = [
        Document(f"Before it {shared} and 'nine' after it."),
        Document("short"),
        Document(f"elsewhere {shared.replace('  ', ' ')} ends"),
        Document("nine after it. and so on and on on"),
    ]
    tokens = prepare_tokens(documents, tokenizer, tmp_path)
    assert tokens.has_other_bytes  # it has no token for ö
    n_bytes = newer_texts.bytes_of(tokens, tokenizer)
    assert n_bytes.sum() == len("".join(document.text for document in documents).encode())
    new = newer_texts.new_tokens(documents, n_bytes=n_bytes, offsets=tokens.offsets)
    ids = tokenizer.encode(documents[0].text)
    kept = b"".join(tokenizer.decode_bytes([x]) for x, one in zip(ids, new, strict=False) if one).decode()
    assert kept == "Before it and 'nine' after it."
    assert new[len(ids) : tokens.offsets[2]].all()  # the end of text, and the other document
    assert new[tokens.offsets[3] :].all()
    assert len(new) == tokens.n_tokens


def test_a_gate_learns_whom_to_listen_to():
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(400, 2, generator=draw, dtype=torch.float64)
    first_knows = features[:, 0] > 0
    p = torch.stack([torch.where(first_knows, 0.9, 0.1), torch.where(first_knows, 0.1, 0.9)], dim=1).double()
    even = torch.tensor([0.5, 0.5], dtype=torch.float64)
    gate = newer_gate.learned(p, features, weights=even)
    assert float(-gate.mixed(p, features).log().mean()) < 0.25 < float(-(p @ even).log().mean()) - 0.4
    torch.testing.assert_close(gate.shares(features).sum(-1), torch.ones(400, dtype=torch.float64))
    constant = newer_gate.learned(p, torch.ones_like(features), weights=even)  # nothing to tell by
    assert float(-constant.mixed(p, torch.ones_like(features)).log().mean()) == pytest.approx(0.693, abs=0.01)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(families.save("LLaMA", tmp_path_factory.mktemp("newer") / "model"))


@pytest.fixture
def plan(model: str, commit: str) -> newer.Plan:
    choice = Choice(commit=commit, tokens=1800)
    return newer.Plan(model, choice, seeds=(0, 1), block=16, long_block=32, rates=(1e-3,), rate_blocks=1)


def context(read: newer_states.Read, rows: torch.Tensor) -> TokenContext:
    """Of these tokens, as one row."""
    return TokenContext.of(
        ids=read.targets[rows][None],  # not looked at
        next_ids=read.targets[rows][None],
        documents=read.documents[rows][None] + 1,
        positions=read.positions[rows][None],
        new=torch.ones(1, len(rows), dtype=torch.bool),
        rows=torch.zeros(1, dtype=torch.int64),
        segments=torch.zeros(len(rows), dtype=torch.int64),
    )


def p_by(reader: Reader, experiment: newer.Experiment, read: newer_states.Read, rows: torch.Tensor) -> torch.Tensor:
    """(Q,) of tokens of one document, by a reader that has half of the word."""
    with torch.no_grad():
        states = read.states[rows][None]
        logits, _ = reader.at_logits(experiment.backbone.logits(states), states, context(read, rows))
    return (-token_nll(logits, read.targets[rows][None])[0]).exp().double()


@pytest.mark.slow
@torch.no_grad()
def test_a_memory_and_a_cache_are_what_the_readers_compute(plan: newer.Plan, tmp_path: Path):
    experiment = newer.Experiment(replace(plan, seeds=(0,)), tmp_path / "work")
    read, near, split = experiment.short, experiment.near[False], experiment.texts.splits(0)[0]
    rows = experiment.rows(split.scored[:1])
    stored = torch.isin(read.documents, torch.tensor(split.stored))
    # what the model says is that of whole windows
    window = next(iter(newer_states.by_document(experiment.tokens, block=16)))[0]
    logits = MemoryLM(experiment.backbone, []).eval().run(window.input_ids, context_of(window)).logits
    wanted = token_nll(logits, window.targets)[0]
    torch.testing.assert_close(read.nats[: len(wanted)].float(), wanted)

    knn = KNNReader(memory_size=len(read.nats), num_search_results=len(read.nats), lam=0.5, temperature=3.0)
    knn.build(width=read.states.shape[1], vocab_size=experiment.tokenizer.vocab_size)
    known = stored.nonzero()[:, 0]
    knn.bank.write(
        context(read, known).update_of(read.states[known][None], torch.ones(1, len(known)) > 0), training=False
    )
    found = newer_experts.in_memory(near, rows, stored)
    assert found[0].isfinite().sum(1).min() >= 64  # of all other documents the nearest
    every = newer_experts.joined((found[0], found[1]))
    p = newer_experts.p_of_memory(every, read, rows, 3.0)
    expected = p_by(knn.eval(), experiment, read, rows)
    torch.testing.assert_close(0.5 * p + 0.5 * read.p[rows], expected, atol=2e-3, rtol=0.05)

    number = 10
    theta = 1 / newer_experts.thetas_of(read)[number]
    cache = CacheReader(memory_size=1, lam=0.5, theta=theta, scope="document")
    cache.build(width=read.states.shape[1], vocab_size=experiment.tokenizer.vocab_size)
    p = newer_experts.p_of_cache(near, read, rows, number)
    torch.testing.assert_close(
        0.5 * p + 0.5 * read.p[rows], p_by(cache.eval(), experiment, read, rows), atol=1e-5, rtol=1e-3
    )


def test_a_pointer_begins_as_the_cache(plan: newer.Plan, tmp_path: Path):
    experiment = newer.Experiment(replace(plan, seeds=(0,)), tmp_path / "work")
    read, number = experiment.short, 10
    theta = newer_experts.thetas_of(read)[number]
    pointer = newer_pointer.Pointer(read.states.shape[1], experiment.tokenizer.vocab_size, Start(0.3, theta))
    some = experiment.texts.splits(0)[0].scored
    found = newer_pointer.says(pointer, read, some)
    expected = newer_experts.p_of_cache(experiment.near[False], read, experiment.rows(some), number)
    torch.testing.assert_close(found["p"], expected, atol=1e-5, rtol=1e-3)
    assert found["signs"].shape == (len(expected), newer_pointer.SIGNS)
    with torch.no_grad():
        nats = torch.cat([pointer(read, i)[2] for i in some]).double()
    torch.testing.assert_close(
        nats, -(0.3 * expected + 0.7 * read.p[experiment.rows(some)]).log(), atol=1e-4, rtol=1e-3
    )


def test_a_pointer_learns_what_counts():
    """The half of the states that a token depends on is small, and the other is noise."""
    read = keys_in_noise(documents=6, tokens=120)
    start = Start(0.3, 4.0)
    options = newer_pointer.Options(rates=(1e-9, 3e-2))
    first, last = (
        newer_pointer.taught(read, on=range(4), chosen_on=[4], start=start, options=replace(options, epochs=n), seed=0)
        for n in (0, 15)
    )
    with torch.no_grad():
        before, after = (float(pointer(read, 5)[2].mean()) for pointer in (first, last))
    assert after < 0.7 * before


def keys_in_noise(*, documents: int, tokens: int) -> newer_states.Read:
    """8 keys, each always followed by its own token; the model knows nothing."""
    draw = torch.Generator().manual_seed(0)
    n = documents * tokens
    keys = torch.randint(8, (n,), generator=draw)
    states = torch.cat([torch.eye(8)[keys], 2 * torch.randn(n, 8, generator=draw)], dim=1)
    return newer_states.Read(
        states=states,
        nats=torch.full((n,), 3.0, dtype=torch.float64),
        entropies=torch.full((n,), 3.0),
        targets=keys,
        positions=torch.arange(tokens).repeat(documents),
        ends=[tokens * (i + 1) for i in range(documents)],
        seconds=0.0,
    )


def test_counts_are_of_what_is_stored(plan: newer.Plan, tmp_path: Path):
    experiment = newer.Experiment(plan, tmp_path / "work")
    split, read, size = experiment.texts.splits(0)[0], experiment.short, experiment.tokenizer.vocab_size
    ids, offsets = token_ids(experiment.tokens), experiment.tokens.offsets
    counts = baselines.counts_of(torch.cat([ids[offsets[i] : offsets[i + 1]] for i in split.stored]), size)
    mine = newer_experts.Counts(experiment.tokens, read, split.stored, size)
    document = split.scored[-1]
    text = ids[offsets[document] : offsets[document + 1]]
    expected = counts.distribution(text[None, 2:6])[0, text[6]]
    assert float(mine.p([document])[5]) == pytest.approx(float(expected))
    assert len(mine.p(split.scored)) == len(experiment.rows(split.scored))
    order = mine.signs([document])[5]
    contexts = [" ".join(map(str, text[6 - k : 6].tolist())) for k in range(1, 5)]
    stream = " ".join(str(int(x)) for i in split.stored for x in ids[offsets[i] : offsets[i + 1] - 1])
    assert int(order) == sum(f" {one} " in f" {stream} " for one in contexts)


@pytest.mark.slow
def test_each_arm_is_done_once_and_the_page_has_all(plan: newer.Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "work" / "one"
    plans.begin(folder, plan.rules, quick=True, allow_uncommitted=False)
    newer.run(plan, folder, quick=True)
    found = {(record["arm"], record["seed"]): record for record in store.records(folder)}
    arms = (*newer_arms.MIXTURES, newer_arms.ALONE, baselines.PPMD)
    assert set(found) == {(arm, seed) for arm in arms for seed in (0, 1)} | {(baselines.DYNAMIC, 0)}
    assert set(arms) | {baselines.DYNAMIC} == set(plan.rules.arms) == set(newer_page.ORDER)
    plain, dynamic = (np.array(found[arm, 0]["nats_of_all"]) for arm in (newer_arms.PLAIN, baselines.DYNAMIC))
    assert plain.tolist() == found[newer_arms.PLAIN, 1]["nats_of_all"]
    assert dynamic.sum() < plain.sum()
    for weighed in ("kNN", "n-grams + cache"):
        assert sum(found[weighed, 0]["weights"]) == pytest.approx(1)
        fixed, gated = (found[arm, 0]["tuning_nats"] for arm in (weighed, f"{weighed}, gated"))
        assert gated <= fixed + 1e-6
    out = tmp_path / "docs"
    out.mkdir()
    (out / "memory.md").write_text("# A page\n\n" + newer_page.SECTION + "\n\nold\n\n## Next\n\nstays\n")
    page = newer_page.write(folder, plan.rules, out, command="make it")
    text = (out / "memory.md").read_text()
    assert text.startswith("# A page\n\n" + page[:20])
    assert text.endswith("\n\n## Next\n\nstays\n")
    assert "old" not in text.split()
    assert all(f"| {arm} |" in page for arm in newer_page.ORDER)
    assert "Planned and not run" not in page
    first, *lines = map(json.loads, (out / "results" / newer_page.RESULTS).read_text().splitlines())
    assert first["plan"]["primary"] == plan.rules.primary
    assert lines == store.records(folder)

    kept = (folder / store.RESULTS).read_text().splitlines()
    (folder / store.RESULTS).write_text("\n".join(kept[:-1]) + '\n{"arm": "memo')

    def again(*_: object) -> None:
        raise AssertionError("it is kept")

    made = ((newer_states, "_made"), (newer_experts, "_searched"), (newer_pointer, "taught"))
    for owner, name in (*made, (newer.Experiment, "_adapted")):
        monkeypatch.setattr(owner, name, again)
    newer.run(plan, folder, quick=True)
    assert store.records(folder) == [found[record["arm"], record["seed"]] for record in store.records(folder)]
    assert len(store.records(folder)) == len(found)


def test_without_the_model_it_says_how_to_get_it(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    newer.main(["--model", str(tmp_path / "none"), "--work", str(tmp_path)])
    assert capsys.readouterr().out.endswith("is left out: `make smollm2` brings it\n")
    with pytest.raises(InputError, match="--heldout and --test need --train"):
        newer.main(["--model", str(tmp_path), "--heldout", "x"])
