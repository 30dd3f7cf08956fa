"""Tokenising against HF `tokenizers` and bare tiktoken, in one process and two, and fetching windows against torch's
default DataLoader, from one file and several."""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, default_collate

from benchmarks.common import Contestant, Row, Run, Table, Timings, compare, main, ratio_row
from lightning_app.data.batch import Batch
from lightning_app.data.bpe import new_trainee
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.loader import ResumableLoader
from lightning_app.data.sources import Corpus, Dataloader, Source
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.data.tokenizers import Tokenizer, load_tokenizer, pieces
from lightning_app.data.windows import TokenDataset, TokenWindows

ARTICLES = Path(__file__).parent.parent / "data" / "articles"
VOCABULARY = 1_024
MB = 10**6
BLOCK, BATCH = 128, 16  # as in configs/article_gpt.yaml


def articles() -> list[str]:
    return [path.read_text(encoding="utf-8") for path in sorted((ARTICLES / "train").glob("*.txt"))]


def long_text(size: int) -> str:
    """Lines of our articles, over and over with their words in another order, `size` characters or a few more."""
    lines = [line.split(" ") for text in articles() for line in text.split("\n")]
    chance, chosen, length = random.Random(0), [], 0
    while length < size:
        words = chance.choice(lines)
        chosen.append(" ".join(chance.sample(words, len(words))))
        length += len(chosen[-1]) + 1
    return "\n".join(chosen)


def check_same(what: str, timings: Timings) -> None:
    """Raises: AssertionError where two sides, or two rounds, did not give the same."""
    expected = timings.results["ours"][0]
    for side, rounds in timings.results.items():
        assert all(found == expected for found in rounds), f"{what}: {side} gave something else than ours"


# Tokenising. A run encodes the whole text, piece by piece, and returns the number of ids and their hash.


def digest(ids: Iterable[list[int]]) -> tuple[int, str]:
    array = np.concatenate([np.array(part, dtype=np.uint16) for part in ids])
    return len(array), hashlib.sha256(array.tobytes()).hexdigest()


def trained(folder: str) -> Tokenizer:
    return load_tokenizer(f"{folder}/articles.tiktoken", vocab_size=VOCABULARY, training_texts=articles)


def ours(folder: str, size: int) -> Run:
    tokenizer, parts = trained(folder), pieces(long_text(size))
    return lambda: digest(tokenizer.encode_many(parts))


def tiktoken(folder: str, size: int) -> Run:
    encoding, parts = trained(folder)._encoding, pieces(long_text(size))
    return lambda: digest([encoding.encode_ordinary(part) for part in parts])


def huggingface(size: int, fast: bool = False) -> Run:
    """The same BPE, trained by HF's own trainer on the same text.

    Args:
        fast: `encode_batch_fast`, which leaves out the offsets of the tokens, which we do not have either.
    """
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    from tokenizers import pre_tokenizers, trainers

    tokenizer, parts = new_trainee(), pieces(long_text(size))
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - 1, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(articles(), trainer=trainer)
    if fast:
        return lambda: digest([encoding.ids for encoding in tokenizer.encode_batch_fast(parts)])
    return lambda: digest([tokenizer.encode(part).ids for part in parts])


def tokenising(folder: str, *, quick: bool) -> list[Row]:
    size = MB // 10 if quick else 10 * MB
    contestants = [
        Contestant("ours", ours, {"folder": folder, "size": size}),
        Contestant("tiktoken", tiktoken, {"folder": folder, "size": size}),
        Contestant("encode", huggingface, {"size": size}),
        Contestant("encode_batch_fast", huggingface, {"size": size, "fast": True}),
    ]
    timings = compare(contestants, rounds=1 if quick else 7, warmup=1)
    check_same("ids", timings)
    return [
        timings.row("tokenising: ours / HF tokenizers, encode", "ours", "encode", at_least=5),
        timings.row("tokenising: ours / HF tokenizers, encode_batch_fast", "ours", "encode_batch_fast"),
        timings.row("tokenising: ours / bare tiktoken", "ours", "tiktoken", at_least=0.95),
        Row("tokenising: MB/s", f"{size / MB / timings.median('ours'):,.1f}"),
    ]


# Preparing a corpus in several processes. A run is a process of its own, from the start of the work to the end of it:
# files -> documents, cleaned -> hash -> tokens -> files. It prints its seconds and the hashes of the files.

PREPARE = """
import sys, time
from lightning_app.data.sources import Corpus
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.data.tokenizers import load_tokenizer
texts, tokenizer, cache, num_proc = sys.argv[1:]
tokenizer = load_tokenizer(tokenizer)
start = time.perf_counter()
tokens = prepare_tokens(Corpus(texts, clean=True), tokenizer, cache, num_proc=int(num_proc))
print(time.perf_counter() - start, sorted(tokens.manifest.files.items()))
"""


def start_preparing(folder: str, *, num_proc: int) -> subprocess.Popen[str]:
    cache = tempfile.mkdtemp(dir=folder)
    command = [sys.executable, "-c", PREPARE, f"{folder}/texts", f"{folder}/articles.tiktoken", cache, str(num_proc)]
    root = Path(__file__).parent.parent
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root)


def prepared(folder: str, *, num_proc: int, runs: int = 1) -> tuple[float, set[str]]:
    """Wall seconds of `runs` at once (of the last one to end), and what they wrote."""
    outputs = [
        process.communicate()[0] for process in [start_preparing(folder, num_proc=num_proc) for _ in range(runs)]
    ]
    found = [output.split(" ", 1) for output in outputs]
    return max(float(seconds) for seconds, _ in found), {files for _, files in found}


def processes(folder: str, *, quick: bool) -> list[Row]:
    size, rounds = (MB // 10, 1) if quick else (40 * MB, 5)
    (Path(folder) / "texts").mkdir()
    for i in range(2 if quick else 4):
        (Path(folder) / "texts" / f"{i}.txt").write_text(long_text(size), encoding="utf-8")
    trained(folder)
    ratios, limits, written = [], [], set()
    for _ in range(rounds):
        one, files_of_one = prepared(folder, num_proc=1)
        two, files_of_two = prepared(folder, num_proc=2)
        both, _ = prepared(folder, num_proc=1, runs=2)
        ratios.append(one / two)
        limits.append(2 * one / both)
        written |= files_of_one | files_of_two
    assert len(written) == 1, "the number of processes changed what was written"
    return [
        ratio_row("preparing 160 MB: 2 processes / 1, wall time", ratios, at_least=1.7),
        ratio_row("the machine's limit: two runs of 1 process at once / one after the other", limits),
    ]


# Fetching. A run is one epoch and returns the number of batches and the hash of what is in them.


def data_module(folder: str, size: int) -> TextDataModule:
    """The articles' bytes as a token array; made once, then mapped."""
    path = Path(folder) / "long.txt"
    if not path.exists():
        path.write_text(long_text(size), encoding="utf-8")
    loader = Dataloader(batch_size=BATCH, shuffle=False)
    data = TextDataModule(
        train=Source(str(path)), block_size=BLOCK, dataloader=loader, cache_dir=f"{folder}/tokens", clean=False, seed=0
    )
    data.prepare_data()
    data.setup()
    return data


def epoch(batches: Iterable[Batch]) -> tuple[int, int]:
    """Goes through an epoch and adds up a little of each batch, so that the sides can be compared at no cost."""
    count = total = 0
    for batch in batches:
        count += 1
        total += int(batch.input_ids[-1, -1]) * count + int(batch.targets[0, 0])
    return count, total


def our_loader(folder: str, size: int) -> Run:
    data = data_module(folder, size)
    return lambda: epoch(data.train_dataloader())


class ItemByItem:
    """The same windows without `__getitems__`: what a Dataset is that knows single samples alone."""

    def __init__(self, windows: TokenDataset):
        self.windows = windows

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> Batch:
        return self.windows[index]


def collated(samples: list[Batch]) -> Batch:
    return Batch(**default_collate([vars(sample) for sample in samples]))


def default_loader(folder: str, size: int) -> Run:
    windows = ItemByItem(data_module(folder, size).dataset("train"))
    return lambda: epoch(DataLoader(windows, batch_size=BATCH, collate_fn=collated))  # type: ignore[arg-type]


def check_same_batches(folder: str, size: int) -> None:
    """Every tensor of every batch, once and in this process.

    Raises:
        AssertionError: the two loaders differ.
    """
    data = data_module(folder, size)
    windows = ItemByItem(data.dataset("train"))
    theirs: DataLoader = DataLoader(windows, batch_size=BATCH, collate_fn=collated)  # type: ignore[arg-type]
    for ours, other in zip(data.train_dataloader(), theirs, strict=True):
        columns = zip(vars(ours).values(), vars(other).values(), strict=True)
        assert all(column.equal(same) for column, same in columns), "the loaders give different batches"


def sharded_loader(folder: str, size: int, shards: int) -> Run:
    """The same text in files of 2 bytes per token, in an order that goes back and forth between them."""
    data = data_module(folder, size)
    tokens = prepare_tokens(
        Corpus(data.splits.source("train").path),
        data.tokenizer,
        f"{folder}/{shards}",
        shard_bytes=2 * -(-data.tokens("train").n_tokens // shards),
    )
    assert len(list(tokens.folder.glob("tokens-*.bin"))) == shards
    windows = TokenWindows(tokens, BLOCK)

    def run() -> tuple[int, int]:
        return epoch(ResumableLoader(windows, batch_size=BATCH, order="shuffled"))  # the same order in each run

    return run


def fetching_shards(folder: str, size: int, *, quick: bool) -> Row:
    sides = {"ours": 8, "one file": 1}
    contestants = [
        Contestant(name, sharded_loader, {"folder": folder, "size": size, "shards": shards})
        for name, shards in sides.items()
    ]
    timings = compare(contestants, rounds=1 if quick else 7, warmup=1)
    check_same("batches", timings)
    return timings.row("fetching: from 8 shards / from one file", "ours", "one file")


def fetching(folder: str, *, quick: bool) -> list[Row]:
    size = MB // 10 if quick else 2 * MB
    check_same_batches(folder, size)
    options = {"folder": folder, "size": size}
    contestants = [Contestant("ours", our_loader, options), Contestant("default", default_loader, options)]
    timings = compare(contestants, rounds=1 if quick else 7, warmup=1)
    check_same("batches", timings)
    batches, _ = timings.results["ours"][0]
    return [
        timings.row("fetching: our loader / torch's default DataLoader", "ours", "default", at_least=5),
        Row("fetching: time per batch", f"{1e6 * timings.median('ours') / batches:,.0f} us"),
        fetching_shards(folder, size, quick=quick),
    ]


TOKENISING = f"""10 MB of our articles with their words in another order, cut into pieces of 1 MB, a BPE of
{VOCABULARY:,} ids, one thread. The ids of all sides are equal. `encode` also finds each token's place in the
text, which we do not need."""
FETCHING = f"""An epoch of {BATCH} x {BLOCK} byte tokens per batch, 2 MB, in order and without workers. Theirs is
`DataLoader(windows, batch_size={BATCH})`: one `__getitem__` of the same windows per sample, then the default collation.
All batches are equal. A shuffled batch of the last row has windows of all 8 files; a corpus of less than 512 MB of
tokens has one file."""
PROCESSES = f"""4 files of 40 MB, made as above, read, cleaned, hashed, tokenised ({VOCABULARY:,} ids) and written, in
`data.num_proc` processes, their start included. What they write is equal. Wall time: the second row says how much more
two processes that share nothing get done at the same time than one after the other."""


def tables(quick: bool = False) -> Iterator[Table]:
    with tempfile.TemporaryDirectory() as folder:
        yield Table("Tokenising", tokenising(folder, quick=quick), TOKENISING)
        yield Table("Preparing a corpus in several processes", processes(folder, quick=quick), PROCESSES)
        yield Table("Fetching windows", fetching(folder, quick=quick), FETCHING)


if __name__ == "__main__":
    main(tables)
