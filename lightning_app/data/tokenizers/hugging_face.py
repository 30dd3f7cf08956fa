"""A tokenizer of Hugging Face's, whatever its kind, behind the contract of all tokenizers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_app.data.tokenizers.base import Measured, Tokenizer, pieces, without_halves
from lightning_app.data.tokenizers.fast import FastEncoding, fast_encoding
from lightning_app.data.tokenizers.pipeline import Parsed, variant
from lightning_app.data.tokenizers.special import begin_of, end_of, pad_of
from lightning_app.data.tokenizers.vocabulary import bytes_of_ids, crosses_lines, puts_space, source_bytes

if TYPE_CHECKING:
    import tokenizers

TOKENIZER = "tokenizer.json"


class HuggingFaceTokenizer(Tokenizer, kind="hugging_face"):
    """A `tokenizer.json` with its special tokens.

    Args:
        name: what it was loaded by.
        files: the texts of its files by their names, `tokenizer.json` among them; an export writes them unchanged.
        eot, bos, pad: see `Tokenizer`.
        special_text: see `Tokenizer`.
    """

    def __init__(
        self,
        name: str,
        *,
        files: Mapping[str, str],
        eot: int,
        bos: int | None,
        pad: int | None,
        special_text: bool = False,
    ) -> None:
        self.name, self.files, self.special_text = name, dict(files), special_text
        self.eot, self.bos, self.pad = eot, bos, eot if pad is None else pad
        self._parsed: Parsed = json.loads(files[TOKENIZER])
        self._variants: dict[tuple[bool, bool], tokenizers.Tokenizer] = {}
        vocab = self._variant(special=True, continues=False).get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocab.values()) + 1

    @classmethod
    def of_files(cls, name: str, files: Mapping[str, str], config: Mapping[str, Any] | None = None) -> Tokenizer:
        """With the special tokens that its files name.

        Args:
            name: what it was loaded by.
            files: see `__init__`.
            config: of the model beside it, if any.

        Raises:
            InputError: nothing says which token ends a text.
        """
        parsed = json.loads(files[TOKENIZER])
        made = variant(parsed, ordinary=False, continues=False)
        eot = end_of(name, made, files, config or {})
        return cls(name, files=files, eot=eot, bos=begin_of(made, files), pad=pad_of(made, files))

    def _variant(self, *, special: bool, continues: bool) -> tokenizers.Tokenizer:
        key = (special, continues and self._may_put_space)
        if key not in self._variants:
            self._variants[key] = variant(self._parsed, ordinary=not special, continues=continues)
        return self._variants[key]

    # Text -> ids

    def encode_array(self, text: str, *, continues: bool = False, special: bool | None = None) -> np.ndarray:
        text, special = without_halves(text), self.special_text if special is None else special
        if not special and (ids := self._encoded_fast(text)) is not None:
            return ids
        encode = self._variant(special=special, continues=continues).encode_batch_fast
        return np.array(encode([text], add_special_tokens=False)[0].ids, dtype=np.uint32)

    def _encoded_fast(self, text: str) -> np.ndarray | None:
        """No byte of the text is lost then."""
        return None if self._fast is None else self._fast.encode(text)

    def measured(self, text: str, *, continues: bool = False) -> Measured:
        if not self.special_text and (fast := self._encoded_fast(without_halves(text))) is not None:
            return Measured(fast)
        ids, text = self.encode_array(text, continues=continues), without_halves(text)
        back, data = self.decode_bytes(ids.tolist(), continues=continues), text.encode()
        if back == data:
            n_bytes = self._lengths[ids]
            n_bytes[:1] -= n_bytes.sum() - len(data)  # the space that was put before the first word
        else:
            offsets = self._variant(special=self.special_text, continues=continues)
            n_bytes = source_bytes(text, offsets.encode(text, add_special_tokens=False).offsets)
        as_always = np.array_equal(n_bytes, self._token_bytes[ids])
        given_back = None if back == data else back.decode("utf-8", "replace")
        return Measured(ids, None if as_always else n_bytes, given_back)

    def pieces(self, text: str) -> list[str]:
        found = pieces(text)
        return found if len(found) == 1 or self._can_be_cut else [text]

    @cached_property
    def _can_be_cut(self) -> bool:
        """Whether the pieces of texts have the ids of the whole: by the vocabulary, and on samples of all kinds."""
        if crosses_lines(self._table):
            return False
        words = ["the", " cat", "Ab1", "é", " ", "  ", ".", "\n\n", "\t", "/", "'s", "ﬁ", "中", "▁", "<s>", "2"]
        for i in range(len(words)):
            text = "".join(
                f"{a}{b}.\n{c} {a}\nx" for a, b, c in zip(words, words[i:] + words[:i], words[::-1], strict=True)
            )
            first, *others = pieces(text, size=1)
            cut = [self.encode_array(first), *(self.encode_array(other, continues=True) for other in others)]
            if not np.array_equal(np.concatenate(cut), self.encode_array(text)):
                return False
        return True

    @cached_property
    def _fast(self) -> FastEncoding | None:
        return fast_encoding(self._parsed, self._variant(special=False, continues=False), vocab_size=self.vocab_size)

    # Ids -> text

    @cached_property
    def _table(self) -> dict[int, bytes]:
        return bytes_of_ids(self._parsed, self._variant(special=True, continues=False))

    @cached_property
    def _may_put_space(self) -> bool:
        return puts_space(self._parsed, self._variant(special=True, continues=False))

    @cached_property
    def _lengths(self) -> np.ndarray:
        """(vocab_size,) int64, names of special tokens counted."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        lengths[list(self._table)] = [len(token) for token in self._table.values()]
        return lengths

    def decode_bytes(self, ids: Sequence[int], *, continues: bool = False) -> bytes:
        if not continues and self.bos is not None and len(ids) and ids[0] == self.bos:
            ids = ids[1:]
        try:
            whole = b"".join([self._table[int(i)] for i in ids])
        except KeyError as error:
            raise self.unknown(ids) from error
        return whole.removeprefix(b" ") if self._may_put_space and not continues else whole

    def token_bytes(self) -> np.ndarray:
        return self._token_bytes.copy()

    @cached_property
    def _token_bytes(self) -> np.ndarray:
        lengths = self._lengths.astype(np.int32)
        lengths[[one["id"] for one in self._parsed["added_tokens"] if one["special"]]] = 0
        lengths[self.eot] = 0
        return lengths

    def known_ids(self) -> set[int]:
        return set(self._table)

    # Identity

    @property
    def fingerprint(self) -> str:
        decisive = (self._digest, self.eot, self.bos, self.special_text)
        return hashlib.sha256(repr(decisive).encode()).hexdigest()

    @cached_property
    def _digest(self) -> bytes:
        """A digest of the file's content: however it is indented, and without what a text's ids do not depend on."""
        content = {name: part for name, part in self._parsed.items() if name not in ("truncation", "padding")}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).digest()

    def state(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "files": dict(self.files),
            "eot": self.eot,
            "bos": self.bos,
            "pad": self.pad,
            "special_text": self.special_text,
        }

    @classmethod
    def of_state(cls, state: dict[str, Any]) -> HuggingFaceTokenizer:
        return cls(**{name: value for name, value in state.items() if name != "kind"})
