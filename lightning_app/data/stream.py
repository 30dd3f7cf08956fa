"""A text that is never on this disk as a whole: read, tokenised and cut into batches while training goes on.

Shapes: B samples, T = block_size; the `document_ids` of a batch number the documents in the order in which they were
read.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch

from lightning_app.data.batch import Batch
from lightning_app.data.corpus import DATASET, Document, document_of
from lightning_app.data.encoding import encode_job, parts_of
from lightning_app.data.reading import say_once
from lightning_app.data.sources import Source, cleaned, say_end_of_text
from lightning_app.data.stream_loader import Anchor
from lightning_app.data.token_array import document_key
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError


@dataclass(frozen=True)
class Piece:
    """The tokens (n,) of a document that are not yet in a batch.

    Attributes:
        document: its number.
        key: see `document_key`.
        start: position of the first of them in the document.
    """

    ids: np.ndarray
    document: int
    key: int
    start: int = 0

    def behind(self, n: int) -> "Piece":
        return Piece(self.ids[n:], self.document, self.key, self.start + n)

    def state(self) -> dict[str, Any]:
        """Plain types and a tensor."""
        return {**vars(self), "ids": torch.from_numpy(self.ids.astype(np.int32))}

    @staticmethod
    def from_state(state: dict[str, Any]) -> "Piece":
        return Piece(**{**state, "ids": state["ids"].numpy()})


class Row:
    """Documents one behind the other, from which windows are cut: T tokens each, and one more for the last target.

    Args:
        block_size: T.
        respect_documents: a window ends with its document; else with the T-th token.
    """

    def __init__(self, block_size: int, *, respect_documents: bool, pieces: Iterable[Piece] = ()) -> None:
        self.block_size, self.respect_documents = block_size, respect_documents
        self.pieces: deque[Piece] = deque()
        self._tokens = 0
        for piece in pieces:
            self.append(piece)

    def append(self, piece: Piece) -> None:
        self.pieces.append(piece)
        self._tokens += len(piece.ids)

    def is_ready(self) -> bool:
        """Whether a window can be cut."""
        return self._tokens >= (2 if self.respect_documents else self.block_size + 1)

    def cut(self) -> list[Piece]:
        """The parts of the next window: T + 1 tokens, or what is left of the document."""
        room, window = self.block_size + 1, []
        while room and self.pieces:
            piece = self.pieces.popleft()
            self._tokens -= len(piece.ids)
            window.append(Piece(piece.ids[:room], piece.document, piece.key, piece.start))
            last = self.respect_documents or len(piece.ids) >= room
            rest = piece.behind(room - 1) if last else None  # the last token is the next window's first
            room = 0 if last else room - len(piece.ids)
            if rest is not None and len(rest.ids) > (1 if self.respect_documents else 0):
                self.pieces.appendleft(rest)
                self._tokens += len(rest.ids)
        return window


def collate(windows: Sequence[Sequence[Piece]], block_size: int, *, eot: int, bos: int | None = None) -> Batch:
    """A batch of B windows."""
    ids, documents, keys, positions = (np.zeros((len(windows), block_size + 1), dtype=np.int64) for _ in range(4))
    lengths = np.zeros((len(windows), 1), dtype=np.int64)
    for i, window in enumerate(windows):
        at = 0
        for piece in window:
            cells = (i, slice(at, at + len(piece.ids)))
            ids[cells], documents[cells], keys[cells] = piece.ids, piece.document, piece.key
            positions[cells] = np.arange(piece.start, piece.start + len(piece.ids))
            at += len(piece.ids)
        lengths[i] = at
    columns = np.arange(block_size)
    scored = columns < lengths - 1
    if bos not in (None, eot):  # see TokenDataset
        scored &= ids[:, 1:] != bos
    return Batch.of(
        torch.from_numpy(ids),
        real=torch.from_numpy(columns < lengths),
        scored=torch.from_numpy(scored),
        documents=torch.from_numpy(documents[:, :-1]),
        keys=torch.from_numpy(keys[:, :-1]),
        positions=torch.from_numpy(positions[:, :-1]),
        eot=eot,
    )


@dataclass(frozen=True)
class TokenStream:
    """The batches of a Hugging Face dataset, read over and over again.

    It is dealt out to shares by its files where their number allows, else document by document. In "windows" order
    the tokens of a share are cut into windows of T, `source.shuffle_buffer` of which are shuffled together; in
    "streams" order each of the B rows has documents of its own, and continues from batch to batch.

    Args:
        source: a dataset.
        tokenizer: encodes each document.
        block_size: T.
        batch_size: B.
        order: "windows" or "streams".
        shuffle: in windows order.
        seed: of the shuffling, which draws from a generator of its own.
        respect_documents: a window ends with its document, and is padded.
        clean: see `TextDataModule`.
    """

    source: Source
    tokenizer: Tokenizer
    block_size: int
    batch_size: int
    order: str = "windows"
    shuffle: bool = True
    seed: int = 0
    respect_documents: bool = False
    clean: bool = True

    def options(self) -> dict[str, Any]:
        """What decides what the batches are."""
        names = ("block_size", "batch_size", "order", "shuffle", "seed", "respect_documents", "clean")
        source = {"path": self.source.path, "shuffle_buffer": self.source.shuffle_buffer}
        return source | {name: getattr(self, name) for name in names} | {"tokenizer": self.tokenizer.fingerprint}

    def batches(self, share: int, shares: int, anchor: Anchor | None) -> Iterator[tuple[Batch, Anchor | None]]:
        """See `lightning_app.data.stream_loader.Stream`. An anchor comes about every `shuffle_buffer` windows.

        Raises:
            InputError: a stream without text (for this share), a bad row, or a network that fails.
        """
        reader = Reader(self.source, share, shares, clean=self.clean, at=anchor and anchor["reader"])
        rows = self._rows(anchor)
        per_round = max(1, -(-self.source.shuffle_buffer // self.batch_size))
        for number in count(anchor["round"] if anchor else 0):
            kept = [[piece.state() for piece in row.pieces] for row in rows]
            here: Anchor = {"round": number, "reader": reader.state(), "rows": kept}
            for i, windows in enumerate(self._round(reader, rows, per_round, (self.seed, share, number))):
                yield (
                    collate(windows, self.block_size, eot=self.tokenizer.eot, bos=self.tokenizer.bos),
                    None if i else here,
                )

    def _rows(self, anchor: Anchor | None) -> list[Row]:
        n = self.batch_size if self.order == "streams" else 1
        kept = anchor["rows"] if anchor else [[]] * n
        return [
            Row(self.block_size, respect_documents=self.respect_documents, pieces=map(Piece.from_state, states))
            for states in kept
        ]

    def _round(
        self, reader: "Reader", rows: list[Row], n: int, seed: tuple[int, int, int]
    ) -> Iterator[list[list[Piece]]]:
        """The windows of n batches."""
        if self.order == "streams":
            yield from ([self._cut(row, reader) for row in rows] for _ in range(n))
        elif not self.shuffle:
            yield from ([self._cut(rows[0], reader) for _ in range(self.batch_size)] for _ in range(n))
        else:
            windows = [self._cut(rows[0], reader) for _ in range(n * self.batch_size)]
            order = np.random.default_rng(seed).permutation(len(windows)).reshape(n, self.batch_size)
            yield from ([windows[i] for i in chosen] for chosen in order)

    def _cut(self, row: Row, reader: "Reader") -> list[Piece]:
        while not row.is_ready():
            row.append(self._encode(*next(reader)))
        return row.cut()

    def _encode(self, number: int, document: Document) -> Piece:
        encoded = encode_job(list(parts_of(document, self.tokenizer)), self.tokenizer)
        if encoded.lost:
            say_once(f"the tokenizer {self.tokenizer.name!r} does not give back all of the text of {self.source.path}")
        array = encoded.ids.astype(np.int32)
        return Piece(array, number, document_key(array))


class Reader:
    """Number and text of each document of a share.

    Args:
        source: a dataset.
        share: which one of `shares`.
        shares: disjoint parts that make up the dataset.
        clean: see `TextDataModule`.
        repeat: begin again when the last document was read.
        at: the `state` to go on from.
    """

    def __init__(
        self,
        source: Source,
        share: int,
        shares: int,
        *,
        clean: bool = False,
        repeat: bool = True,
        at: dict[str, Any] | None = None,
    ) -> None:
        self.source, self.share, self.shares, self.clean, self.repeat = source, share, shares, clean, repeat
        self._number: int = at["documents"] if at else 0
        self._place: dict[str, Any] | None = at["place"] if at else None
        self._documents = self._read()

    def __iter__(self) -> "Reader":
        return self

    def __next__(self) -> tuple[int, Document]:
        return next(self._documents)

    def state(self) -> dict[str, Any]:
        """What was read, in plain types."""
        return {"documents": self._number, "place": self._place}

    def _read(self) -> Iterator[tuple[int, Document]]:
        from lightning_app.data.hub import StreamedRows

        spec = self.source.path.removeprefix(DATASET)
        while True:
            rows, before, begun = StreamedRows(spec, self.share, self.shares), self._number, self._place
            for number, row in enumerate(rows.read(self._place)):
                self._place = rows.place()
                document = document_of(row, f"{DATASET}{spec}[{number}]", self.source.text_field)
                if document is not None:
                    self._check(document)
                    say_end_of_text(self.source.path, document, "split_at_end_of_text: true, without streaming,")
                    self._number += 1
                    yield (self._number - 1) * self.shares + self.share, cleaned(document) if self.clean else document
            if begun is None and before == self._number:
                self._refuse()
            self._place = None
            if not self.repeat:
                return

    def _check(self, document: Document) -> None:
        if document.kind != "plain texts":
            raise InputError(
                f"{document.name}: {document.kind} cannot be streamed; set data.train.streaming to false, or name "
                "the column of a text with data.train.text_field"
            )

    def _refuse(self) -> None:
        part = f" for part {self.share + 1} of {self.shares}" if self.shares > 1 else ""
        raise InputError(
            f"the stream {self.source.path} has no text{part}; choose another split as hf:name:config:split, or fewer "
            "processes (data.dataloader.num_workers times trainer.devices) than it has documents"
        )
