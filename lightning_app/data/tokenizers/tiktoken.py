"""Byte-level BPE by tiktoken: an encoding by name, from a `.tiktoken` file, trained here, or plain bytes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cached_property, partial
from typing import Any

import numpy as np
import tiktoken

from lightning_app.data.bpe import Ranks, dump_ranks, parse_ranks
from lightning_app.data.reading import END_OF_TEXT
from lightning_app.data.tokenizers.base import Measured, Tokenizer, cut_at, without_halves

MAX_SPACES = 100_000  # tiktoken's regex overflows its stack on runs of some 10^6 white space characters
_TOO_LONG = re.compile(rf"(?<!\s)\s{{{MAX_SPACES},}}")  # tried at the start of a run only: linear


def has_long_run(text: str) -> bool:
    """Whether there may be a run of `MAX_SPACES` white space characters: it would cover one aligned half of that."""
    half = MAX_SPACES // 2
    return len(text) > MAX_SPACES and any(text[i : i + half].isspace() for i in range(0, len(text) - half + 1, half))


def _without_long_runs(text: str) -> list[str]:
    """The text, cut at every `MAX_SPACES` white space characters of a run."""
    if not has_long_run(text):
        return [text]
    runs = _TOO_LONG.finditer(text)
    starts = [0, *(cut for run in runs for cut in range(run.start() + MAX_SPACES, run.end() + 1, MAX_SPACES))]
    return cut_at(text, starts)


class TiktokenTokenizer(Tokenizer, kind="tiktoken"):
    """A tiktoken encoding with an end-of-text id. No text is lost, and none gets a space before it."""

    def __init__(
        self, name: str, *, ranks: Ranks, pattern: str, specials: dict[str, int], special_text: bool = False
    ) -> None:
        self.name, self.special_text = name, special_text
        self.eot = self.pad = specials[END_OF_TEXT]
        self._ranks, self._pattern, self._specials = ranks, pattern, specials
        self._encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)
        self.vocab_size = self._encoding.n_vocab

    def encode(self, text: str, *, continues: bool = False, special: bool | None = None) -> list[int]:
        encode = self._encoding.encode_ordinary
        if self.special_text if special is None else special:
            encode = partial(self._encoding.encode, allowed_special="all")
        return [i for part in _without_long_runs(text) for i in encode(part)]

    def encode_array(self, text: str, *, continues: bool = False, special: bool | None = None) -> np.ndarray:
        """Without the Python objects of a list, which take a fifth of the time."""
        allowed: Any = "all" if (self.special_text if special is None else special) else set()
        encode = partial(self._encoding.encode_to_numpy, allowed_special=allowed, disallowed_special=())
        first, *others = map(encode, _without_long_runs(without_halves(text)))
        return np.concatenate([first, *others]) if others else first

    def measured(self, text: str, *, continues: bool = False) -> Measured:
        ids = self.encode_array(text)
        return Measured(ids, self._lengths[ids] if self.special_text else None)

    @cached_property
    def _lengths(self) -> np.ndarray:
        """(vocab_size,) int64, names of special tokens counted."""
        lengths = self.token_bytes().astype(np.int64)
        lengths[list(self._specials.values())] = [len(name.encode()) for name in self._specials]
        return lengths

    def decode_bytes(self, ids: Sequence[int], *, continues: bool = False) -> bytes:
        try:
            return self._encoding.decode_bytes([int(i) for i in ids])
        except (KeyError, OverflowError) as error:
            raise self.unknown(ids) from error

    def known_ids(self) -> set[int]:
        return {*self._ranks.values(), *self._specials.values()}

    def token_bytes(self) -> np.ndarray:
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        lengths[list(self._ranks.values())] = [len(token) for token in self._ranks]
        return lengths

    @property
    def fingerprint(self) -> str:
        decisive: tuple[Any, ...] = (dump_ranks(self._ranks), self._pattern, sorted(self._specials.items()))
        return hashlib.sha256(repr((*decisive, True) if self.special_text else decisive).encode()).hexdigest()

    def state(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "ranks": dump_ranks(self._ranks),
            "pattern": self._pattern,
            "specials": dict(self._specials),
            **({"special_text": True} if self.special_text else {}),
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> TiktokenTokenizer:
        ranks = parse_ranks(state["ranks"], source=f"the saved tokenizer {state['name']!r}")
        specials, special_text = dict(state["specials"]), state.get("special_text", False)
        return cls(state["name"], ranks=ranks, pattern=state["pattern"], specials=specials, special_text=special_text)
