"""The contract of a tokenizer: text <-> token ids, and how many bytes of the text each id stands for."""

from __future__ import annotations

import codecs
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from lightning_app.errors import InputError

# Where a text may be cut without changing its ids: behind a line's single newline, before a letter or digit.
# (Before other signs it may not: o200k_base merges "./" across ".\n/"; behind a run of white space neither.)
_CUT = re.compile(r"(?<=\S\n)(?=[^\W_])")


def pieces(text: str, *, size: int = 2**20) -> list[str]:
    """Cut a long text into pieces of about `size` characters whose ids, joined, are those of the whole."""
    cuts, position = [0], size
    while position < len(text) and (cut := _CUT.search(text, position)):
        cuts.append(cut.start())
        position = cut.start() + size
    return cut_at(text, cuts)


def cut_at(text: str, starts: list[int]) -> list[str]:
    """The parts of a text that begin at these characters, of which the first is 0."""
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def without_halves(text: str) -> str:
    """The text with U+FFFD for half of a surrogate pair, which has no bytes; as tiktoken does for lists."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


@dataclass(frozen=True)
class Measured:
    """The ids (n,) of a text, uint32, and the bytes of it that they stand for.

    Attributes:
        n_bytes: (n,) int64, which sum to the text's; None where they are those of `token_bytes`.
        given_back: what the ids decode to, where that is not the text; None where it is.
    """

    ids: np.ndarray
    n_bytes: np.ndarray | None = None
    given_back: str | None = None


class Tokenizer(ABC):
    """Text <-> token ids. Picklable, and rebuilt from `state` without its source.

    A text begins a document unless it `continues` one: some tokenizers put a space before a document's first word,
    which is not part of the text, and decoding takes it away again.

    Attributes:
        name: what it was loaded by.
        vocab_size: number of ids, special ones included (there may be gaps).
        eot: the id at every document's end.
        bos: the id at every document's beginning; None: the model was trained without one.
        pad: the id that padding gets.
        special_text: names of special tokens in a text become those tokens; else they are ordinary text.
    """

    kinds: ClassVar[dict[str, type[Tokenizer]]] = {}  # by the name that a state has
    kind: ClassVar[str]
    name: str
    vocab_size: int
    eot: int
    bos: int | None = None
    pad: int
    special_text: bool = False

    def __init_subclass__(cls, *, kind: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.kind = kind
        Tokenizer.kinds[kind] = cls

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], Tokenizer], tuple[dict[str, Any]]]:
        return Tokenizer.from_state, (self.state(),)

    # Text -> ids

    @abstractmethod
    def encode_array(self, text: str, *, continues: bool = False, special: bool | None = None) -> np.ndarray:
        """Ids (n,) of a text, uint32, without begin and end.

        Args:
            text: any text.
            continues: it does not begin a document.
            special: names of special tokens become those tokens; None: as `special_text` says.
        """

    def encode(self, text: str, *, continues: bool = False, special: bool | None = None) -> list[int]:
        """The ids of `encode_array` as a list."""
        ids: list[int] = self.encode_array(text, continues=continues, special=special).tolist()
        return ids

    def encode_many(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of each text."""
        return [self.encode(text) for text in texts]

    def prompt(self, text: str, *, special: bool | None = None) -> list[int]:
        """Ids of a document's beginning, as the model saw it in training: one at least, whatever the text.

        Args:
            text: may name the begin token itself, where special tokens are asked for: it is not doubled then.
            special: see `encode_array`.
        """
        ids = self.encode(text, special=special)
        begin = [] if self.bos is None or ids[:1] == [self.bos] else [self.bos]
        return [*begin, *ids] or [self.eot]

    def goes_on(self, ids: Sequence[int]) -> bool:
        """Whether what follows these ids continues a text: they do not end with a document's beginning or end."""
        return bool(ids) and ids[-1] not in (self.bos, self.eot)

    def measured(self, text: str, *, continues: bool = False) -> Measured:
        """Ids of a text with what they stand for."""
        return Measured(self.encode_array(text, continues=continues))

    def pieces(self, text: str) -> list[str]:
        """See `pieces`; all but the first continue. The whole text, where no cut is known to change nothing."""
        return pieces(text)

    # Ids -> text

    @abstractmethod
    def decode_bytes(self, ids: Sequence[int], *, continues: bool = False) -> bytes:
        """The bytes of ids; a special id gives its name, but for a begin token where it belongs.

        Args:
            ids: of this tokenizer.
            continues: they do not begin a document.

        Raises:
            InputError: an id that is not a token.
        """

    def decode(self, ids: Sequence[int], *, continues: bool = False) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD. Raises as `decode_bytes` does."""
        return self.decode_bytes(ids, continues=continues).decode("utf-8", errors="replace")

    def stream_decoder(self, *, continues: bool = False) -> StreamDecoder:
        """A decoder of one id at a time."""
        return StreamDecoder(self, continues=continues)

    @abstractmethod
    def token_bytes(self) -> np.ndarray:
        """Bytes that each id stands for (vocab_size,), int32; 0 for special ids and gaps."""

    @abstractmethod
    def known_ids(self) -> set[int]:
        """All ids but the gaps."""

    def unknown(self, ids: Sequence[int]) -> InputError:
        """What is raised for ids of which some are no tokens."""
        known = self.known_ids()
        first = next(int(i) for i in ids if int(i) not in known)
        return InputError(
            f"id {first} is not a token of {self.name!r}, whose ids lie below {self.vocab_size}; "
            "decode with the tokenizer that encoded, and do not sample padded ids"
        )

    # Identity

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """sha256 of all that decides the ids of a text; the name does not."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Plain types that `from_state` takes; `torch.load` reads them with `weights_only=True`."""

    def saved(self) -> dict[str, Any]:
        """What a checkpoint keeps of it, as the data module's state."""
        return {"tokenizer": self.state(), "fingerprint": self.fingerprint}

    @classmethod
    @abstractmethod
    def of_state(cls, state: dict[str, Any]) -> Tokenizer:
        """The tokenizer of this kind that `state()` was asked of."""

    @staticmethod
    def from_state(state: dict[str, Any]) -> Tokenizer:
        """The tokenizer, of whatever kind, that `state()` was asked of."""
        kind = state.get("kind", "tiktoken")  # the oldest states name none
        if kind not in Tokenizer.kinds:
            raise InputError(
                f"the saved tokenizer {state['name']!r} is a {kind}, which this code does not know: update it"
            )
        return Tokenizer.kinds[kind].of_state(state)


class StreamDecoder:
    """Takes one id at a time and returns the text that it completed: "" in the middle of a character."""

    def __init__(self, tokenizer: Tokenizer, *, continues: bool = False) -> None:
        self._tokenizer, self._continues = tokenizer, continues
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def __call__(self, token: int) -> str:
        new = self._tokenizer.decode_bytes([token], continues=self._continues)
        self._continues = self._continues or token != self._tokenizer.bos
        return self._decoder.decode(new)

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was begun, else ""."""
        return self._decoder.decode(b"", final=True)
