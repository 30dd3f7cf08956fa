"""Streamed texts: the same windows as from disk, shares, shuffling, exact positions, mistakes."""

import itertools
import json
import multiprocessing
import pickle
import random
import signal

import numpy as np
import pytest
import torch
from huggingface_hub.errors import HTTPError
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_app.data import hub
from lightning_app.data.batch import Batch
from lightning_app.data.corpus import Document, read_documents
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.sources import Source
from lightning_app.data.stream import Reader, TokenStream
from lightning_app.data.stream_loader import StreamLoader
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.data.tokenizers import load_tokenizer
from lightning_app.data.windows import TokenWindows
from lightning_app.errors import InputError
from tests import tokenizers as kinds
from tests.data.aborting import Aborting

DOCUMENTS = 40
BLOCK, BATCH = 8, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """40 documents of 1 to 40 letters in two files of JSON lines; documents can be told by their first two letters."""
    folder, rng = tmp_path_factory.mktemp("stream"), random.Random(0)
    texts = [f"{i:02d}" + "".join(rng.choices("abcdefg ", k=rng.randrange(40))) for i in range(DOCUMENTS)]
    for name, part in (("a", texts[:20]), ("b", texts[20:])):
        rows = "".join(json.dumps({"text": text.strip()}) + "\n" for text in part)
        (folder / f"{name}.jsonl").write_text(rows + '{"text": ""}\n')
    return folder


def source(folder, **options) -> Source:
    return Source(f"hf:json:{folder}/*.jsonl", streaming=True, **{"shuffle_buffer": 10, **options})


@pytest.fixture
def make(folder):
    def make(*, buffer: int = 10, **options) -> TokenStream:
        tokenizer = load_tokenizer("bytes")
        return TokenStream(source(folder, shuffle_buffer=buffer), tokenizer, BLOCK, BATCH, **options)

    return make


def first(stream: TokenStream, n: int, *, share: int = 0, shares: int = 1) -> list[Batch]:
    found = stream.batches(share, shares, None)
    return [next(found)[0] for _ in range(n)]


def equal(ours, theirs) -> bool:
    return all(map(torch.equal, vars(ours).values(), vars(theirs).values()))


@pytest.mark.parametrize("respect", [False, True])
def test_windows_are_those_of_the_text_on_disk(make, folder, tmp_path, respect):
    tokens = prepare_tokens(read_documents(f"hf:json:{folder}/*.jsonl"), load_tokenizer("bytes"), tmp_path)
    windows = TokenWindows(tokens, BLOCK, respect_documents=respect)
    n = len(windows) // BATCH - 1  # the last window of the text is padded; the stream goes on with the first document
    assert n > 20
    for i, batch in enumerate(first(make(shuffle=False, respect_documents=respect), n)):
        assert equal(batch, windows.__getitems__([i * BATCH + row for row in range(BATCH)]))
    assert batch.input_ids.is_contiguous()


def test_shuffling_keeps_every_window_of_a_buffer_and_follows_the_seed(make):
    rounds = -(-10 // BATCH)  # batches that are shuffled together
    plain, shuffled = first(make(shuffle=False), 3 * rounds), first(make(), 3 * rounds)
    for start in range(0, 3 * rounds, rounds):
        rows = [
            sorted(row.tolist() for batch in batches[start : start + rounds] for row in batch.input_ids)
            for batches in (plain, shuffled)
        ]
        assert rows[0] == rows[1]
    assert not equal(plain[0], shuffled[0])
    assert equal(shuffled[-1], first(make(), 3 * rounds)[-1])
    assert not equal(shuffled[0], first(make(seed=1), 1)[0])


def test_drawing_leaves_the_global_generators_alone(make):
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first(make(), 20)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all()
    assert states[2] == random.getstate()


def test_streams_continue_from_batch_to_batch(make):
    batches = first(make(order="streams"), 30)
    for before, after in itertools.pairwise(batches):
        assert torch.equal(before.targets[:, -1], after.input_ids[:, 0])
        same = before.document_ids[:, -1] == after.document_ids[:, 0]
        assert torch.equal(after.positions[same, 0], before.positions[same, -1] + 1)
        assert (after.positions[~same, 0] == 0).all()
    rows = [set(torch.cat([batch.document_ids[i] for batch in batches]).tolist()) for i in range(BATCH)]
    assert len(set.union(*rows)) == sum(map(len, rows))


@pytest.mark.parametrize("shares", [1, 2, 3, 4])  # two files: by file where the number allows, else by document
def test_shares_are_disjoint_and_make_up_the_whole(folder, shares):
    parts = []
    for share in range(shares):
        documents = Reader(source(folder), share, shares, repeat=False)
        parts.append([(number, document.text) for number, document in documents])
    texts = [text for part in parts for _, text in part]
    assert sorted(texts) == sorted(document.text for document in read_documents(source(folder).path))
    assert len({number for part in parts for number, _ in part}) == DOCUMENTS


def test_it_begins_again_with_the_first_document(folder):
    documents = Reader(source(folder), 0, 1)
    texts = [next(documents) for _ in range(2 * DOCUMENTS)]
    assert [text.text for _, text in texts[:DOCUMENTS]] == [text.text for _, text in texts[DOCUMENTS:]]
    assert [number for number, _ in texts] == list(range(2 * DOCUMENTS))


OPTIONS = [{}, {"shuffle": False}, {"order": "streams"}, {"respect_documents": True}]


def loader(make, *, workers: int = 0, **options) -> StreamLoader:
    ranks = {name: options.pop(name) for name in ("rank", "world_size") if name in options}
    return StreamLoader(make(**options), num_workers=workers, **ranks)


def take(loader: StreamLoader, n: int) -> list[Batch]:
    batches = iter(loader)
    return [next(batches) for _ in range(n)]


@pytest.mark.parametrize(
    ("rank", "world_size", "options"),
    [
        pytest.param(*rank, options, marks=() if rank == often else pytest.mark.slow)
        for options, often in zip(OPTIONS, [(2, 3), (0, 2), (0, 2), (0, 1)], strict=True)
        for rank in [(0, 1), (0, 2), (2, 3)]
    ],
    ids=str,
)
def test_it_goes_on_after_any_batch(make, tmp_path, options, rank, world_size):
    """The first pass over the text has some 25 batches (of all ranks), so this reaches into the next ones."""
    options = {**options, "rank": rank, "world_size": world_size}
    whole = take(loader(make, **options), 40)
    interrupted = loader(make, **options)
    batches = iter(interrupted)
    for done in range(35):
        state = interrupted.state_dict()
        if done in (0, 1, 4, 5, 8, 13, 27, 34):
            torch.save(state, tmp_path / "state.pt")
            state = torch.load(tmp_path / "state.pt", weights_only=True)
            for back in (0, 1) if done else (0,):  # 1: as if the last batch had not been fetched (ExactResume)
                resumed = loader(make, **options)
                resumed.load_state_dict(state | {"batches": done - back})
                ours, theirs = take(resumed, 5), whole[done - back : done - back + 5]
                assert all(equal(a, b) for a, b in zip(ours, theirs, strict=True)), (done, back)
        assert equal(next(batches), whole[done])


def test_a_second_resume_and_a_second_iterator_go_on_too(make):
    whole = take(loader(make), 30)
    state = None
    for start in range(0, 30, 6):
        resumed = loader(make)
        if state is not None:
            resumed.load_state_dict(state)
        found = take(resumed, 4) + take(resumed, 2)  # a new iterator continues
        assert all(equal(a, b) for a, b in zip(found, whole[start : start + 6], strict=True))
        state = resumed.state_dict()


def test_a_state_is_small_and_an_anchor_is_never_far(make):
    long = loader(make, shuffle=True)
    take(long, 60)
    state = long.state_dict()
    assert len(pickle.dumps(state)) < 20_000
    (part,) = state["ranks"][0]
    assert 60 - 2 * -(-10 // BATCH) <= part["batches"] < 60


@pytest.mark.slow
def test_workers_share_the_text_and_their_position_is_exact(make):
    shares = [first(make(), 12, share=i, shares=2) for i in range(2)]
    whole = [shares[t % 2][t // 2] for t in range(24)]
    interrupted = loader(make, workers=2)
    assert all(equal(a, b) for a, b in zip(take(interrupted, 11), whole[:11], strict=True))
    resumed = loader(make, workers=2)
    resumed.load_state_dict(interrupted.state_dict())
    assert all(equal(a, b) for a, b in zip(take(resumed, 8), whole[11:19], strict=True))


@pytest.mark.slow
def test_an_abort_in_the_last_clean_up_of_a_worker_is_none_of_the_runs():
    """As of Arrow's threads, which still read ahead."""
    batches = iter(StreamLoader(Aborting(), num_workers=1))
    workers = set(multiprocessing.active_children())
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    (worker,) = set(multiprocessing.active_children()) - workers
    batches.close()
    worker.join()
    assert worker.exitcode != -signal.SIGABRT


@pytest.mark.slow
def test_a_mistake_in_a_worker_is_named_without_a_traceback(make, folder, tmp_path):
    (tmp_path / "bad.jsonl").write_text('{"words": "a"}\n')
    stream = TokenStream(Source(f"hf:json:{tmp_path}/bad.jsonl", streaming=True), load_tokenizer("bytes"), 8, 2)
    with pytest.raises(InputError, match=r"^hf:json:.*bad\.jsonl\[0\]: 'text' is None"):
        take(StreamLoader(stream, num_workers=1), 1)


def test_a_state_of_something_else_is_refused(make):
    state = loader(make).state_dict()
    with pytest.raises(InputError, match="seed 0, now it is 1"):
        loader(make, seed=1).load_state_dict(state)
    with pytest.raises(InputError, match="num_workers 0, now it is 2"):
        loader(make, workers=2).load_state_dict(state)
    with pytest.raises(InputError, match="number of processes 1, now it is 2"):
        loader(make, world_size=2).load_state_dict(state)
    with pytest.raises(InputError, match="a text that was not streamed"):
        loader(make).load_state_dict({"epoch": 0, "batches": 1, "of": 5, "seed": 0})


def test_a_stream_without_text_or_with_pairs_is_refused(tmp_path):
    for rows, said in [
        ('{"text": ""}\n', "has no text; choose another split"),
        ('{"prompt": "a", "target": "b"}\n', "pairs cannot be streamed"),
        ('{"text": 3}\n', "'text' is 3, not a text"),
        ('{"words": "a"}\n', r"'text' is None, not a text \(fields: words\).*text_field"),
        ('{"text": "a"}\n{"text"', r"broke off \("),
    ]:
        (tmp_path / "a.jsonl").write_text(rows)
        with pytest.raises(InputError, match=said):
            list(Reader(Source(f"hf:json:{tmp_path}/a.jsonl"), 0, 1, repeat=False))
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(InputError, match=r"has no text for part 2 of 2; .* fewer processes"):
        next(Reader(Source(f"hf:json:{tmp_path}/a.jsonl"), 1, 2))
    with pytest.raises(InputError, match=r"cannot load the dataset 'json:/missing\.jsonl'"):
        next(Reader(Source("hf:json:/missing.jsonl"), 0, 1))


@pytest.mark.parametrize("error", [ConnectionError, HTTPError])
def test_a_network_that_fails_is_named_with_the_remedy(folder, monkeypatch, error):
    def breaks(self, batch_size):
        yield {"text": ["a"]}
        raise error("no route to host")

    monkeypatch.setattr("datasets.IterableDataset.iter", breaks)
    documents = Reader(source(folder), 0, 1)
    next(documents)
    with pytest.raises(InputError, match=rf"broke off \({error.__name__}: no route to host\).*--ckpt_path last"):
        next(documents)


@pytest.mark.parametrize("kind", ["parquet", "text"])
def test_other_files_stream_too(tmp_path, kind):
    texts = [f"text {i}" for i in range(7)]
    if kind == "parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.table({"words": texts}), tmp_path / "a.parquet", row_group_size=2)
    else:
        (tmp_path / "a.text").write_text("\n".join(texts))
    read = Source(f"hf:{kind}:{tmp_path}/a.{kind}", text_field="words" if kind == "parquet" else "text")
    for done in range(8):
        before = Reader(read, 0, 1)
        for _ in range(done):
            next(before)
        after = Reader(read, 0, 1, at=before.state())
        assert [next(after)[1].text for _ in range(9)] == ((texts * 3)[done : done + 9])


def test_the_data_module_streams(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hub, "load_rows", None)  # would be called to read it as a whole
    (tmp_path / "val.txt").write_text("text to validate on")
    data = TextDataModule(
        train=source(folder), val=Source(str(tmp_path / "val.txt")), block_size=8, cache_dir=str(tmp_path / "cache"),
        tokenizer=str(tmp_path / "t.tiktoken"), vocab_size=260, seed=3,
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    assert len([path for path in (tmp_path / "cache").iterdir() if path.is_dir()]) == 1  # that of val
    batches = data.train_dataloader()
    assert next(iter(batches)).input_ids.shape == (8, 8)
    with pytest.raises(TypeError):
        len(batches)
    assert [row.split for row in data.counts()] == ["val"]
    assert f"train is streamed from hf:json:{folder}" in data.summary()
    assert data.tokenizer.vocab_size == 260
    with pytest.raises(InputError, match=r"data\.train is streamed"):
        data.dataset("train")
    changing = GradientAccumulationScheduler({0: 3, 1: 4})
    trainer = {"global_rank": 0, "world_size": 1, "max_steps": 7, "accumulate_grad_batches": 2, "callbacks": []}
    trainer["overfit_batches"] = 0.0
    data.trainer = type("Attached", (), trainer)()
    assert len(data.train_dataloader()) == data.batches_per_epoch() == 14
    data.trainer.callbacks = [changing]
    with pytest.raises(InputError, match=r"one epoch, but GradientAccumulationScheduler changes at epochs \[1\]"):
        data.setup("fit")
    data.trainer.callbacks = [GradientAccumulationScheduler({0: 3})]
    assert len(data.train_dataloader()) == 21
    data.trainer.max_steps = -1
    with pytest.raises(InputError, match=r"set trainer\.max_steps \(now -1\)"):
        data.setup("fit")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"val": {"path": "hf:json:a", "streaming": True}}, r"data\.val\.streaming is true, but only the training"),
        (
            {"train": {"path": "data/articles", "streaming": True}},
            r"'data/articles' is no Hugging Face .* hf:text:FILES",
        ),
        ({"split": {}}, r"data\.split deals out all documents"),
        ({"shift": True}, r"data\.shift is true"),
        ({"train": {"path": "hf:a", "streaming": True, "stride": 4}}, r"data\.train\.stride is 4"),
        ({"train": {"path": "hf:a", "streaming": True, "max_samples": 4}}, r"data\.train\.max_samples is 4"),
        ({"train": {"path": "hf:a", "streaming": True, "shuffle_buffer": 0}}, r"shuffle_buffer is 0"),
    ],
)
def test_options_that_contradict_streaming_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        TextDataModule(**{"train": {"path": "hf:a", "streaming": True}, **options})


def test_a_stream_begins_its_documents_as_training_did_and_says_what_is_lost(tmp_path, caplog):
    rows = [{"text": "The model learns"}, {"text": "The ▁ forgets"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = kinds.made("llama")
    stream = TokenStream(Source(f"hf:json:{tmp_path}/a.jsonl", streaming=True), tokenizer, 8, 1, shuffle=False)
    tokens = prepare_tokens([Document(row["text"]) for row in rows], tokenizer, tmp_path / "cache")
    batch = first(stream, 1)[0]
    assert batch.input_ids[0].tolist() == tokens.ids[:8].tolist()
    targets = torch.cat([found.targets[0] for found in first(stream, 4)])
    assert tokenizer.bos not in targets
    assert tokenizer.eot in targets
    assert len([r for r in caplog.records if "does not give back all of the text of hf:json:" in r.message]) == 1
