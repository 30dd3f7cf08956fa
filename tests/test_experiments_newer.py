"""The files of a commit are shared out, what they share is left out, and the arms are what the readers compute."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments import baselines, newer, newer_arms, newer_states, newer_texts, store
from experiments.runs import context_of
from lightning_app.data.corpus import Document
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.data.windows import TokenWindows
from lightning_app.errors import InputError
from lightning_app.memory.model import MemoryLM
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
    monkeypatch.setattr(newer_texts, "ROOT", root)
    monkeypatch.setattr(newer_texts, "BYTES", range(1, 10_000))
    return "HEAD"


def test_docs_and_source_are_in_every_part_and_no_file_is_in_two(commit: str):
    choice = newer_texts.Choice(commit, tokens=10_000)
    found = newer_texts.parts(choice, tokenizers.made("smollm2"))
    names = {part: [document.name for document in documents] for part, documents in found.items()}
    assert sorted(name for some in names.values() for name in some) == sorted(
        [*(f"doc{i}.md" for i in range(8)), *(f"lightning_app/part{i}.py" for i in range(12))]
    )
    assert {part: (sum(n.endswith(".md") for n in some), len(some)) for part, some in names.items()} == {
        "built": (4, 10),
        "tuned": (1, 3),
        "scored": (3, 7),
    }
    assert all(document.text != "changed" for documents in found.values() for document in documents)
    assert names["built"] != sorted(names["built"])
    tokens = sum(len(tokenizers.made("smollm2").encode(d.text)) for some in found.values() for d in some)
    fewer = newer_texts.parts(newer_texts.Choice(commit, tokens=tokens // 4), tokenizers.made("smollm2"))
    assert 0 < sum(len(some) for some in fewer.values()) < 6


def test_without_its_history_the_commit_is_named(commit: str):
    with pytest.raises(InputError, match=r"git ls-tree .* 0123abc failed .*from a clone's history"):
        newer_texts.parts(newer_texts.Choice("0123abc"), tokenizers.made("smollm2"))


def test_tokens_of_shared_runs_of_8_words_are_left_out(tmp_path: Path):
    tokenizer = tokenizers.made("smollm2")
    shared = "one twö three  four\nfive six seven eight"
    document = Document(f"Before it {shared} and 'nine' after it.")
    known = [Document(f"elsewhere {shared.replace('  ', ' ')} ends"), Document("nine after it. and so on and on on")]
    tokens = prepare_tokens([document, Document("short")], tokenizer, tmp_path)
    assert tokens.has_other_bytes  # it has no token for ö
    n_bytes = newer_texts.bytes_of(tokens, tokenizer)
    assert n_bytes.sum() == len((document.text + "short").encode())
    new = newer_texts.new_tokens([document, Document("short")], known, n_bytes=n_bytes, offsets=tokens.offsets)
    ids = tokenizer.encode(document.text)
    kept = b"".join(tokenizer.decode_bytes([x]) for x, one in zip(ids, new, strict=False) if one).decode()
    assert kept == "Before it and 'nine' after it."
    assert new[len(ids) :].all()  # the end of text, and the other document
    assert len(new) == len(ids) + 1 + len(tokenizer.encode("short")) + 1


@pytest.mark.slow
def test_the_arms_are_what_the_readers_compute_and_each_is_done_once(
    commit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(newer_states, "CHUNK", 16)
    model = families.save("LLaMA", tmp_path / "model")
    plan = newer.Plan(str(model), newer_texts.Choice(commit, tokens=1500), block=16, long_block=32)
    folder = tmp_path / "work"
    folder.mkdir()
    table = newer.run(plan, folder)
    records = {record["arm"]: record for record in store.records(folder)}
    assert len(records) == len(table.splitlines()) - 4 == 11
    plain, dynamic = (
        np.load(folder / f"{records[x]['number']}.npy") for x in (next(iter(records)), "dynamic evaluation")
    )
    assert dynamic[:16] == pytest.approx(plain[:16], abs=1e-4)  # nothing is learned before the first block is scored
    assert dynamic[16:].mean() < plain[16:].mean()
    assert records["memory"]["weights"][1] > 0
    assert records["memory"]["seconds_before"] > 0

    experiment = newer.Experiment(plan, folder)
    knn = experiment.reader("memory", [experiment.built, experiment.tuned])
    tuned = records["memory"]
    knn.tune(lam=tuned["weights"][1], temperature=tuned["temperatures"][0])
    lm = MemoryLM(experiment.backbone, [])
    lm.readers = torch.nn.ModuleList([knn])
    batch = TokenWindows(experiment.tokens("scored"), 16).__getitems__([0])
    with torch.no_grad():
        wanted = token_nll(lm.eval().run(batch.input_ids, context_of(batch)).logits, batch.targets)[0]
    number = tuned["number"]
    torch.testing.assert_close(torch.from_numpy(np.load(folder / f"{number}.npy"))[:16].float(), wanted)

    read, known, every = experiment.tuned, *(token_ids(experiment.tokens(x)) for x in ("built", "tuned"))
    found = newer_arms.p_of_counts(known, every, read, experiment.tokens("tuned"), experiment.backbone.vocab_size)
    counts = baselines.counts_of(known, experiment.backbone.vocab_size)
    at = int(experiment.tokens("tuned").offsets[1])  # the first token of the second document
    i = int((read.documents == 1).nonzero()[0])
    expected = counts.distribution(every[None, at - 3 : at + 1])[0, read.targets[i]]
    assert float(found[i]) == pytest.approx(float(expected))

    lines = (folder / store.RESULTS).read_text().splitlines()
    (folder / store.RESULTS).write_text("\n".join(lines[:-1]) + '\n{"arm": "memo')
    monkeypatch.setattr(newer_states, "_of_window", None)  # what the model made of the texts is kept
    assert newer.run(plan, folder).splitlines()[:-3] == table.splitlines()[:-3]
    assert len(store.records(folder)) == 11
