"""Text <-> token ids: a tiktoken encoding by name, from a `.tiktoken` file, trained here, or plain bytes."""

import codecs
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken

from lightning_app.data.bpe import GPT2_PATTERN, Ranks, Texts, dump_ranks, ensure_trained, parse_ranks, read_ranks
from lightning_app.data.reading import END_OF_TEXT
from lightning_app.errors import InputError

BYTES = "bytes"
MAX_SPACES = 100_000  # tiktoken's regex overflows its stack on runs of some 10^6 white space characters
_TOO_LONG = re.compile(rf"(?<!\s)\s{{{MAX_SPACES},}}")  # tried at the start of a run only: linear
# Where a text may be cut without changing its ids: behind a line's single newline, before a letter or digit.
# (Before other signs it may not: o200k_base merges "./" across ".\n/"; behind a run of white space neither.)
_CUT = re.compile(r"(?<=\S\n)(?=[^\W_])")


def pieces(text: str, *, size: int = 2**20) -> list[str]:
    """Cut a long text into pieces of about `size` characters whose ids, joined, are those of the whole."""
    cuts, position = [0], size
    while position < len(text) and (cut := _CUT.search(text, position)):
        cuts.append(cut.start())
        position = cut.start() + size
    return _cut(text, cuts)


def _cut(text: str, starts: list[int]) -> list[str]:
    return [text[start:end] for start, end in zip(starts, [*starts[1:], len(text)], strict=True)]


def _has_long_run(text: str) -> bool:
    """Whether there may be a run of `MAX_SPACES` white space characters: it would cover one aligned half of that."""
    half = MAX_SPACES // 2
    return len(text) > MAX_SPACES and any(text[i : i + half].isspace() for i in range(0, len(text) - half + 1, half))


def _cut_long_runs(text: str) -> list[str]:
    """At every `MAX_SPACES` white space characters of a run."""
    runs = _TOO_LONG.finditer(text)
    starts = [0, *(cut for run in runs for cut in range(run.start() + MAX_SPACES, run.end() + 1, MAX_SPACES))]
    return _cut(text, starts)


class Tokenizer:
    """A tiktoken encoding with an end-of-text id. Picklable, and rebuilt from `state` without its source.

    Attributes:
        name: what it was loaded by.
        vocab_size: number of ids, the end of text included (an encoding may leave gaps).
        eot: the id at every document's end; `encode` never returns it.
    """

    def __init__(self, name: str, *, ranks: Ranks, pattern: str, specials: dict[str, int]) -> None:
        self.name = name
        self.eot = specials[END_OF_TEXT]
        self._ranks, self._pattern, self._specials = ranks, pattern, specials
        self._encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=specials)
        self.vocab_size: int = self._encoding.n_vocab

    def __reduce__(self) -> tuple[Callable[[dict[str, Any]], "Tokenizer"], tuple[dict[str, Any]]]:
        return Tokenizer.from_state, (self.state(),)

    def encode(self, text: str) -> list[int]:
        """Ids of a text, special tokens' names taken as ordinary text."""
        if not _has_long_run(text):
            return self._encoding.encode_ordinary(text)
        return [i for part in _cut_long_runs(text) for i in self._encoding.encode_ordinary(part)]

    def encode_array(self, text: str) -> np.ndarray:
        """The same ids (n,), uint32, without the Python objects of a list, which take a fifth of the time."""
        if not _has_long_run(text):
            return self._encoding.encode_to_numpy(text, disallowed_special=())
        parts = [self._encoding.encode_to_numpy(part, disallowed_special=()) for part in _cut_long_runs(text)]
        return np.concatenate(parts)

    def encode_many(self, texts: Iterable[str]) -> list[list[int]]:
        """Ids of each text."""
        return [self.encode(text) for text in texts]

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of ids; the end of text gives its name.

        Raises:
            InputError: an id that is no token.
        """
        try:
            return self._encoding.decode_bytes([int(i) for i in ids])
        except (KeyError, OverflowError) as error:
            raise InputError(
                f"id {self._first_unknown(ids)} is no token of {self.name!r}, whose ids lie below {self.vocab_size}; "
                "decode with the tokenizer that encoded, and do not sample padded ids"
            ) from error

    def _first_unknown(self, ids: Sequence[int]) -> int:
        known = {*self._ranks.values(), *self._specials.values()}
        return next(int(i) for i in ids if int(i) not in known)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD. Raises as `decode_bytes` does."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def stream_decoder(self) -> "StreamDecoder":
        """A decoder of one id at a time."""
        return StreamDecoder(self)

    def token_bytes(self) -> np.ndarray:
        """Bytes that each id stands for (vocab_size,), int32; 0 for special ids and gaps."""
        lengths = np.zeros(self.vocab_size, dtype=np.int32)
        lengths[list(self._ranks.values())] = [len(token) for token in self._ranks]
        return lengths

    @property
    def fingerprint(self) -> str:
        """sha256 of all that decides the ids of a text; the name does not."""
        specials = sorted(self._specials.items())
        return hashlib.sha256(repr((dump_ranks(self._ranks), self._pattern, specials)).encode()).hexdigest()

    def state(self) -> dict[str, Any]:
        """Plain types that `from_state` takes; `torch.load` reads them with `weights_only=True`."""
        return {
            "name": self.name,
            "ranks": dump_ranks(self._ranks),
            "pattern": self._pattern,
            "specials": dict(self._specials),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "Tokenizer":
        """The tokenizer that `state()` was asked of."""
        ranks = parse_ranks(state["ranks"], source=f"the saved tokenizer {state['name']!r}")
        return cls(state["name"], ranks=ranks, pattern=state["pattern"], specials=dict(state["specials"]))


class StreamDecoder:
    """Takes one id at a time and returns the text that it completed: "" in the middle of a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def __call__(self, token: int) -> str:
        return self._decoder.decode(self._tokenizer.decode_bytes([token]))

    def flush(self) -> str:
        """What is left at the end: U+FFFD for a character that was begun, else ""."""
        return self._decoder.decode(b"", final=True)


def load_tokenizer(name: str, *, vocab_size: int | None = None, training_texts: Texts | None = None) -> Tokenizer:
    """Load a tokenizer by name, or train it first.

    Args:
        name: "bytes" (256 bytes and the end of text); a tiktoken encoding such as "r50k_base"; or the path of a
            `.tiktoken` file. A file that does not exist is trained, if both other arguments are given. Where it was
            trained on other ones, the tokenizer is that of a file beside it (see `ensure_trained`).
        vocab_size: number of ids, the end of text included. A tokenizer may have fewer (ids to spare).
        training_texts: called for the texts to train on, each time that they are read.

    Raises:
        InputError: an unknown name, a failed download, a damaged file, or a `vocab_size` below what it has.
    """
    if name == BYTES:
        tokenizer = _bytes_tokenizer()
    elif name.endswith(".tiktoken"):
        tokenizer = _file_tokenizer(Path(name), vocab_size=vocab_size, training_texts=training_texts)
    else:
        tokenizer = _named_tokenizer(name)
    if vocab_size is not None and vocab_size < tokenizer.vocab_size:
        raise InputError(
            f"data.vocab_size is {vocab_size}, but tokenizer {name!r} has {tokenizer.vocab_size} ids; "
            "set at least that many, or leave it out"
        )
    return tokenizer


def _bytes_tokenizer() -> Tokenizer:
    ranks = {bytes([byte]): byte for byte in range(256)}
    return Tokenizer(BYTES, ranks=ranks, pattern=r"[\s\S]+", specials={END_OF_TEXT: 256})


def _file_tokenizer(path: Path, *, vocab_size: int | None, training_texts: Texts | None) -> Tokenizer:
    name = str(path)
    if vocab_size is not None and training_texts is not None:
        path = ensure_trained(path, vocab_size=vocab_size, texts=training_texts)
    if not path.exists():
        raise InputError(
            f"no such tokenizer file: {path} (data.vocab_size is {vocab_size}); give an existing .tiktoken file, "
            "or set data.vocab_size (at least 257) and data.train.path to train one and write it there"
        )
    ranks = read_ranks(path)
    return Tokenizer(name, ranks=ranks, pattern=GPT2_PATTERN, specials={END_OF_TEXT: max(ranks.values()) + 1})


def _named_tokenizer(name: str) -> Tokenizer:
    encoding = _named_encoding(name)
    specials = dict(encoding._special_tokens)
    if END_OF_TEXT not in specials:
        raise InputError(f"the tiktoken encoding {name!r} has no {END_OF_TEXT} token; choose another, or 'bytes'")
    return Tokenizer(name, ranks=encoding._mergeable_ranks, pattern=encoding._pat_str, specials=specials)


def _named_encoding(name: str) -> tiktoken.Encoding:
    available = sorted(tiktoken.list_encoding_names())
    if name not in available:
        raise InputError(
            f"unknown tokenizer {name!r}; choose 'bytes', the path of a .tiktoken file, "
            f"or a tiktoken encoding: {', '.join(available)}"
        )
    try:
        return tiktoken.get_encoding(name)
    except (OSError, ValueError, AssertionError, KeyError) as error:  # requests' errors are OSErrors
        raise InputError(
            f"tiktoken could not load {name!r} ({type(error).__name__}): its file is not in the cache folder, or is "
            "damaged there, and could not be downloaded. Set TIKTOKEN_CACHE_DIR to a folder that has it; or work "
            "offline with data.tokenizer: bytes, or a path ending in .tiktoken with data.vocab_size"
        ) from error
