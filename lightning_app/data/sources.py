"""The options of the data, and which documents each split reads."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from lightning_app.data.corpus import Document, clean, read_documents, split_documents
from lightning_app.data.places import is_dataset
from lightning_app.data.reading import END_OF_TEXT, say_once
from lightning_app.errors import InputError

SPLITS = ("train", "val", "test", "predict")
T = TypeVar("T")


@dataclass(frozen=True)
class Source:
    """Where documents come from.

    Args:
        path: a file, folder or pattern, or a dataset; see `lightning_app.data.corpus`.
        max_samples: keep the first windows or pairs only.
        stride: tokens between the starts of two windows; block_size if null. Smaller: a sliding window.
        text_field: the field of a JSON line, or the column of a dataset, that holds the text.
        streaming: read a dataset while it is trained on, instead of writing its tokens to disk first. For train.
        shuffle_buffer: windows that are shuffled together while streaming.
        split_at_end_of_text: <|endoftext|> in a text ends a document; else it is ordinary text, and that is said.
        weight: of several sources to train on: its share of an epoch's tokens. Null for all: each sample once.
        name: what logs call it where there are several; the path's last part if null.
    """

    path: str
    max_samples: int | None = None
    stride: int | None = None
    text_field: str = "text"
    streaming: bool = False
    shuffle_buffer: int = 1_000
    split_at_end_of_text: bool = False
    weight: float | None = None
    name: str | None = None


@dataclass(frozen=True)
class Split:
    """Fractions of the training source's documents, for the splits that have no source of their own.

    Args:
        train: kept for training.
        val: for validation.
        test: for the test.
    """

    train: float = 0.9
    val: float = 0.1
    test: float = 0.0


def _without_own(split: Split, own: Collection[str]) -> Split | None:
    """The fractions without those of splits that have a source of their own; None: train has all."""
    given = asdict(split)
    left = {name: 0.0 if name in own else share for name, share in given.items()}
    if left == given:
        return split
    if not left["val"] and not left["test"]:
        return None
    return Split(**{name: share / sum(left.values()) for name, share in left.items()})


@dataclass(frozen=True)
class Dataloader:
    """How batches are made.

    Args:
        batch_size: samples per batch and rank.
        shuffle: train in an order drawn anew each epoch. Evaluation is in document order.
        num_workers: processes that fetch; 0 is the fastest for memory-mapped tokens.
        prefetch_factor: batches fetched ahead by each worker; needs workers.
        drop_last: leave out the training batch that is not full. Evaluation drops nothing.
        pin_memory: copy batches to page-locked memory, for CUDA.
    """

    batch_size: int = 8
    shuffle: bool = True
    num_workers: int = 0
    prefetch_factor: int | None = None
    drop_last: bool = False
    pin_memory: bool = False


def as_options(cls: type[T], value: T | dict[str, Any]) -> T:
    """An instance of a dataclass from itself or from a dict of its fields. Raises InputError for anything else."""
    if isinstance(value, cls):
        return value
    try:
        return cls(**value)  # type: ignore[arg-type]
    except TypeError as error:
        names = ", ".join(field.name for field in fields(cls))  # type: ignore[arg-type]
        raise InputError(f"cannot make a {cls.__name__} of {value!r} ({error}); its options are {names}") from error


def as_sources(value: Any) -> Source | list[Source]:
    """A split's source, or several; raises as `as_options` does."""
    if not isinstance(value, list):
        return as_options(Source, value)
    several = [as_options(Source, one) for one in value]
    return several[0] if len(several) == 1 else several


def check_least(name: str, value: int | None, least: int) -> None:
    """Refuse `data.<name>` below `least`."""
    if value is not None and value < least:
        raise InputError(f"data.{name} is {value}; it must be at least {least}")


def check_dataloader(options: Dataloader) -> None:
    """Refuse numbers out of range, and fetching ahead without workers."""
    check_least("dataloader.batch_size", options.batch_size, 1)
    check_least("dataloader.num_workers", options.num_workers, 0)
    check_least("dataloader.prefetch_factor", options.prefetch_factor, 1)
    if options.prefetch_factor is not None and options.num_workers == 0:
        raise InputError(
            f"data.dataloader.prefetch_factor is {options.prefetch_factor}, but num_workers is 0, so nothing is "
            "fetched ahead; set data.dataloader.num_workers to 1 or more, or leave prefetch_factor out"
        )


def check_several(name: str, sources: Sequence[Source]) -> None:
    """Refuse what several sources of a split cannot have."""
    if not sources:
        raise InputError(f"data.{name} is an empty list; give a path, or several sources")
    if any(source.streaming for source in sources):
        raise InputError(
            f"data.{name} has several sources, and one is streamed; one alone can be, or give them as files"
        )
    given = [source.weight for source in sources]
    if any(weight is not None for weight in given):
        if name != "train":
            raise InputError(f"data.{name} has weights, but an evaluation reads each source once; leave them out")
        if bad := [weight for weight in given if weight is None or not 0 < weight < math.inf]:
            raise InputError(
                f"data.train has the weights {given}: {bad[0]} is not a number above 0; give each source one"
            )


@dataclass(frozen=True)
class Corpus:
    """The documents of a source, read from disk each time that they are iterated over. See `read_documents`."""

    path: str
    clean: bool = False
    text_field: str = "text"
    split_at_end_of_text: bool = False

    def __iter__(self) -> Iterator[Document]:
        for whole in read_documents(self.path, text_field=self.text_field):
            for document in self._parts(whole):
                yield cleaned(document) if self.clean else document

    def _parts(self, document: Document) -> list[Document]:
        """A document cut at its end-of-text marks, if that is asked for; a pair or a conversation stays whole."""
        if document.kind != "plain texts" or END_OF_TEXT not in document.text:
            return [document]
        if self.split_at_end_of_text:
            texts = document.text.split(END_OF_TEXT)
            return [Document(text, name=document.name) for text in texts if text.strip()]
        say_end_of_text(self.path, document, "split_at_end_of_text: true, beside the path,")
        return [document]


def say_end_of_text(path: str, document: Document, remedy: str) -> None:
    """Name the mark where a document has it; once for a source, which may have it in millions of them."""
    if END_OF_TEXT in document.text:
        say_once(f"{path} holds {END_OF_TEXT}, read as ordinary text; {remedy} makes it a document's end")


def cleaned(document: Document) -> Document:
    """See `clean`; a pair and a conversation stay as they are."""
    return Document(clean(document.text), name=document.name) if document.kind == "plain texts" else document


@dataclass(frozen=True)
class Corpora:
    """The documents of several sources, one behind the other."""

    parts: Sequence[Iterable[Document]]

    def __iter__(self) -> Iterator[Document]:
        return chain.from_iterable(self.parts)


class Splits:
    """Which documents "train", "val", "test" and "predict" read.

    Each of several sources of a split is a split of its own: "train[0]", "train[1]".

    Args:
        sources: those with a source of their own, or with several.
        split: shares of train's documents for val and test.
        clean: see `clean`.

    Raises:
        InputError: an option out of range.
    """

    def __init__(self, sources: Mapping[str, Source | list[Source]], split: Split | None, *, clean: bool) -> None:
        several = {name: given for name, given in sources.items() if isinstance(given, list)}
        self._parts_of = {name: [f"{name}[{i}]" for i in range(len(given))] for name, given in several.items()}
        self.sources = {name: given for name, given in sources.items() if isinstance(given, Source)}
        for name, given in several.items():
            check_several(name, given)
            self.sources |= dict(zip(self._parts_of[name], given, strict=True))
        self.split = None if split is None else _without_own(split, {"val", "test"} & sources.keys())
        self.clean = clean
        self._parts: dict[str, list[Document]] | None = None
        for name, source in self.sources.items():
            check_least(f"{name}.max_samples", source.max_samples, 1)
            check_least(f"{name}.stride", source.stride, 1)
            check_least(f"{name}.shuffle_buffer", source.shuffle_buffer, 1)
            if source.weight is not None and name in sources:
                raise InputError(
                    f"data.{name}.weight is {source.weight}, and there is one source; leave it out, or give a list"
                )
            if source.streaming:
                self._check_streaming(name, source)
        if self.split is not None:
            self._check()

    def _check(self) -> None:
        if "train" in self._parts_of:
            raise InputError(
                "data.split deals out the documents of one source, and data.train has several; give data.val"
            )
        if "train" not in self.sources:
            raise InputError("data.split deals out the documents of data.train, which is null; set data.train.path")

    def _check_streaming(self, name: str, source: Source) -> None:
        if name != "train":
            raise InputError(
                f"data.{name}.streaming is true, but only the training text can be streamed, because every evaluation "
                "reads the same text; leave it out, and give a text that fits the disk"
            )
        if not is_dataset(source.path):
            raise InputError(
                f"data.train.streaming is true, but {source.path!r} is no Hugging Face dataset; give hf:name, or "
                "local files as hf:json:FILES, hf:parquet:FILES or hf:text:FILES (a document per line); other texts "
                "are tokenised once and then read from disk, with streaming: false"
            )
        if self.split is not None:
            raise InputError("data.split deals out all documents, so data.train.streaming must be false; give data.val")
        for option, value in (
            ("max_samples", source.max_samples),
            ("stride", source.stride),
            ("split_at_end_of_text", source.split_at_end_of_text or None),
        ):
            if value is not None:
                raise InputError(
                    f"data.train.{option} is {value}, which a streamed text does not know; leave it out "
                    "(trainer.max_steps ends the run)"
                )

    def streamed(self, name: str) -> bool:
        """Whether the documents of a split are read while it is trained on."""
        return name in self.sources and self.sources[name].streaming

    def deals_out(self, name: str) -> bool:
        """Whether a split is a share of train's documents."""
        return self.split is not None and name in ("val", "test") and getattr(self.split, name) > 0

    def origin(self, name: str) -> str | None:
        """The split whose documents `name` reads: itself, a stand-in for predict, or None where there are none."""
        if name in self.sources or name in self._parts_of or self.deals_out(name):
            return name
        return next(filter(None, map(self.origin, ("test", "val"))), None) if name == "predict" else None

    def _required(self, name: str) -> str:
        origin = self.origin(name)
        if origin is None:
            share = "" if name in ("train", "predict") else f", or data.split.{name} for a share of train's documents"
            unless = "; trainer.limit_val_batches: 0 trains without validation" if name == "val" else ""
            raise InputError(f"there is no {name} data: data.{name} is null; set data.{name}.path{share}{unless}")
        return origin

    def source(self, name: str) -> Source:
        """The options that `name` reads its documents with. Raises InputError where there are none."""
        origin = self._required(name)
        return self.sources.get(origin) or Source(self.sources["train"].path)

    def parts(self, name: str) -> list[str]:
        """The splits of its sources where it has several; else itself alone. Raises as `source` does."""
        return self._parts_of.get(self._required(name), [name])

    def labels(self, name: str) -> list[str]:
        """What logs call each of several sources, no two alike."""
        sources = [self.sources[part] for part in self.parts(name)]
        labels = [source.name or Path(source.path.rstrip("/")).stem.strip("*") or "all" for source in sources]
        while twice := {label for label in labels if labels.count(label) > 1}:  # a new name may be another's
            labels = [f"{label}_{i}" if label in twice else label for i, label in enumerate(labels)]
        return labels

    def documents(self, name: str, *, seed: int) -> Iterable[Document]:
        """The documents of a split, dealt out by `seed` if they are shared. Raises as `source` does."""
        origin = self._required(name)
        if origin in self._parts_of:
            return Corpora([self._corpus(part) for part in self._parts_of[origin]])
        if self.split is None or (origin in self.sources and origin != "train"):
            return self._corpus(origin)
        if self._parts is None:
            self._parts = split_documents(self._corpus("train"), asdict(self.split), seed=seed)
        return self._parts[origin]

    def _corpus(self, name: str) -> Corpus:
        source = self.sources[name]
        return Corpus(source.path, self.clean, source.text_field, source.split_at_end_of_text)

    def forget(self) -> None:
        """Read the files anew when asked next."""
        self._parts = None
