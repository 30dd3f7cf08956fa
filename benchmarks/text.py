"""Tokenising against HF `tokenizers` and bare tiktoken, and fetching windows against torch's default DataLoader."""

from __future__ import annotations

import hashlib
import json
import os
import random
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.common import Contestant, Row, Run, Table, Timings, compare, main, ratio_row
from lightning_app.text.bpe import GPT2_PATTERN
from lightning_app.text.datamodule import TextDataModule
from lightning_app.text.sources import Dataloader, Source
from lightning_app.text.tokenizer import Tokenizer, load_tokenizer, pieces

ARTICLES = Path(__file__).parent.parent / "data" / "articles"
VOCABULARY = 1_024
MEGABYTE = 2**20
BLOCK, BATCH = 128, 16  # as in configs/article_gpt.yaml


def long_text(size: int) -> str:
    """Paragraphs of our articles, over and over with their words in another order, `size` characters or more."""
    paragraphs = [line.split(" ") for path in sorted(ARTICLES.rglob("*.txt")) for line in path.read_text().split("\n")]
    shuffle, lines, length = random.Random(0), [], 0
    while length < size:
        words = shuffle.choice(paragraphs)
        lines.append(" ".join(shuffle.sample(words, len(words))))
        length += len(lines[-1]) + 1
    return "\n".join(lines)


def trained(folder: Path) -> Tokenizer:
    """The tokenizer of the main job, trained on the articles."""
    texts = [path.read_text() for path in sorted((ARTICLES / "train").glob("*.txt"))]
    path = folder / "articles.tiktoken"
    return load_tokenizer(str(path), vocab_size=VOCABULARY, training_texts=lambda: texts)


# Tokenising. A run encodes the whole text and returns the number of ids and their hash.


def digest(ids: Iterable[list[int]]) -> tuple[int, str]:
    array = np.concatenate([np.array(part, dtype=np.uint16) for part in ids])
    return len(array), hashlib.sha256(array.tobytes()).hexdigest()


def ours(folder: Path, size: int) -> Run:
    tokenizer, text = trained(folder), long_text(size)
    return lambda: digest(tokenizer.encode_many(pieces(text)))


def bare_tiktoken(folder: Path, size: int) -> Run:
    encoding, parts = trained(folder)._encoding, pieces(long_text(size))
    return lambda: digest([encoding.encode_ordinary(part) for part in parts])


def huggingface(folder: Path, size: int) -> Run:
    """The same BPE, its merges recovered from the ranks; one thread."""
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
    tokenizer, parts = huggingface_bpe(trained(folder)), pieces(long_text(size))
    return lambda: digest([tokenizer.encode(part).ids for part in parts])


def huggingface_bpe(ours: Tokenizer):  # noqa: ANN201  (tokenizers is a tool of the benchmarks only)
    from tokenizers import Regex, pre_tokenizers
    from tokenizers import Tokenizer as Pipeline
    from tokenizers.models import BPE

    letters = {byte: letter for byte, letter in enumerate(byte_letters())}
    vocabulary = {"".join(letters[b] for b in token): rank for token, rank in ours.ranks.items()}
    merges = [tuple("".join(letters[b] for b in half) for half in pair) for pair in merged_pairs(ours.ranks)]
    pipeline = Pipeline(BPE(vocabulary, merges))
    pattern = Regex(GPT2_PATTERN.replace("++", "+"))  # Oniguruma reads "++" differently; the matches are the same
    split = pre_tokenizers.Split(pattern, behavior="isolated")
    pipeline.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    return pipeline
