"""Documents in memories, made, deleted from and changed by the product's own commands; and a search by words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.facts_world import Article, words_of, write
from lightning_app.cli import main
from lightning_app.data.corpus import read_documents
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.memory.extension import VardaGPT, memory_of
from lightning_app.memory.readers import KNNReader, PromptReader, Reader
from lightning_app.memory.slots import Entries
from lightning_app.models.generation import use_column_major_weights
from lightning_app.peers import token_ids
from lightning_app.serving.before import Before
from lightning_app.training.checkpoint import load_module

K1, B = 1.2, 0.75  # of BM25 (Robertson and Zaragoza 2009, doi:10.1561/1500000019)
SCALED = 200  # entries whose neighbours say how far apart entries lie


@dataclass(frozen=True)
class Library:
    """Documents, and what a model has of them in its memories.

    Attributes:
        model: a directory of Hugging Face's.
        folder: where texts and checkpoints lie.
        articles: as they are now.
        stage: name of what was done last; each has its own checkpoints.
    """

    model: str
    folder: Path
    articles: tuple[Article, ...]
    stage: str = "built"

    def checkpoint(self, part: str) -> Path:
        """With a reader of this class; built if it is not there."""
        path = self._path(part, self.stage)
        if not path.exists():
            write(self.folder / "texts", self.articles)
            words = ["--ckpt_path", self.model, "--text", str(self.folder / "texts"), "--output", str(path)]
            numbers = ["--lam", "0.25", "--temperature", "10"] if part == "KNNReader" else []  # an arm sets its own
            call("build", *words, "--reader", part, *numbers)
        return path

    def _path(self, part: str, stage: str) -> Path:
        return self.folder / f"{part}-{stage}.ckpt"

    def without(self, names: Sequence[str], parts: Sequence[str], stage: str) -> Library:
        """The library after documents were deleted from these memories."""
        for part in parts:
            given = [word for name in names for word in ("--document", name)]
            output = str(self._path(part, stage))
            call("delete", "--ckpt_path", str(self.checkpoint(part)), "--output", output, *given)
        kept = tuple(article for article in self.articles if article.name not in names)
        return Library(self.model, self.folder, kept, stage)

    def changed(self, articles: Sequence[Article], parts: Sequence[str], stage: str) -> Library:
        """The library after documents were deleted, and others of the same names added."""
        names = [article.name for article in articles]
        left = self.without(names, parts, stage)
        write(self.folder / stage, articles)
        for part in parts:
            path = str(self._path(part, stage))
            call("add", "--ckpt_path", path, "--text", str(self.folder / stage))
        return Library(self.model, self.folder, (*left.articles, *articles), stage)

    def drop(self) -> None:
        """Remove the checkpoints of this stage, half a gigabyte each, and what was read of them."""
        self._loaded.clear()
        for path in self.folder.glob(f"*-{self.stage}.*"):
            path.unlink()

    # What arms are made of

    @cached_property
    def _loaded(self) -> dict[str, tuple[VardaGPT, Tokenizer]]:
        return {}

    def module(self, part: str) -> tuple[VardaGPT, Tokenizer]:
        """The model with this reader, read once."""
        if part not in self._loaded:
            module, tokenizer = load_module(self.checkpoint(part))
            assert isinstance(module, VardaGPT)
            use_column_major_weights(module.backbone)
            self._loaded[part] = (module, tokenizer)
        return self._loaded[part]

    @property
    def knn(self) -> KNNReader:
        return reader_of(self.module("KNNReader")[0])

    @property
    def entries(self) -> Entries:
        """All that the kNN memory holds, with vectors."""
        memory = self.knn.bank.shared
        known = memory.payload(memory.ids())
        return Entries(known.tokens, known.documents, known.positions, known.spans, memory.get_all_embeddings())

    @cached_property
    def distance(self) -> float:
        """Mean distance of an entry to those that a search for it finds."""
        memory = self.knn.bank.shared
        vectors = memory.get_all_embeddings()
        some = vectors[torch.linspace(0, len(vectors) - 1, min(SCALED, len(vectors))).long()]
        return float(memory.search(some)[1].clamp_max(1e9).mean())

    @cached_property
    def square(self) -> float:
        """Mean square length of a state."""
        return float(self.entries.vectors.square().sum(-1).mean())

    @cached_property
    def text(self) -> Tensor:
        """(N,) ids of all documents."""
        write(self.folder / "texts", self.articles)
        documents = read_documents(str(self.folder / "texts"))
        return token_ids(prepare_tokens(documents, self.module("KNNReader")[1], self.folder / "tokens"))

    def with_readers(self, *readers: Reader) -> tuple[VardaGPT, Tokenizer]:
        """The same model with other readers."""
        module, tokenizer = self.module("KNNReader")
        made = VardaGPT(module.backbone.backbone, list(readers))
        made.use_tokenizer(tokenizer)
        memory = memory_of(module)
        assert memory is not None
        made.memory.documents = dict(memory.documents)
        return made.eval(), tokenizer


def reader_of(module: VardaGPT) -> Any:
    """The only reader of a model that `memory build` has made."""
    (reader,) = module.memory.readers
    assert isinstance(reader, KNNReader | PromptReader)
    return reader


def call(*words: str) -> str:
    """`main.py memory ...` -> what it printed."""
    printed = StringIO()
    with redirect_stdout(printed):
        main(["memory", *words])
    return printed.getvalue()


# A search by words


@dataclass(frozen=True)
class Overlap:
    """BM25 over passages."""

    texts: Sequence[str]
    documents: Sequence[str]

    @classmethod
    def of(cls, articles: Sequence[Article], tokenizer: Tokenizer, *, length: int) -> Overlap:
        """Passages of so many tokens with a quarter more on both sides, as a PromptReader has them."""
        found = [(text, one.name) for one in articles for text in _cut(tokenizer, one.text.strip(), length)]
        return cls(*zip(*found, strict=True))

    @cached_property
    def _words(self) -> list[Counter[str]]:
        return [Counter(words_of(text)) for text in self.texts]

    @cached_property
    def _idf(self) -> Mapping[str, float]:
        held = Counter(word for words in self._words for word in words)
        return {word: math.log(1 + (len(self.texts) - n + 0.5) / (n + 0.5)) for word, n in held.items()}

    def scores(self, question: str) -> list[float]:
        """Of each passage."""
        mean = sum(words.total() for words in self._words) / len(self._words)
        asked = [word for word in words_of(question) if word in self._idf]
        scores = []
        for words in self._words:
            norm = K1 * (1 - B + B * words.total() / mean)
            scores.append(sum(self._idf[w] * words[w] * (K1 + 1) / (words[w] + norm) for w in asked))
        return scores

    def before(self, question: str, *, passages: int) -> Before:
        """The best passages, the best one first."""
        scores = self.scores(question)
        best = sorted(range(len(scores)), key=lambda i: -scores[i])[:passages]
        return Before(tuple(self.texts[i] for i in best), tuple(dict.fromkeys(self.documents[i] for i in best)))


def _cut(tokenizer: Tokenizer, text: str, length: int) -> list[str]:
    ids, more = tokenizer.encode(text), length // 4
    starts = range(0, len(ids), length)
    return [tokenizer.decode(ids[max(0, start - more) : start + length + more]).strip("\ufffd ") for start in starts]
