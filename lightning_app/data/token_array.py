"""Tokens of a corpus in memory-mapped files (shards), and the check that these are as they were written."""

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lightning_app.data.shards import Shards, shard_name

FORMAT = 3  # of the files below; another number means other cache folders
OFFSETS, PROMPTS, NAMES, MANIFEST = "offsets.npy", "prompts.npy", "names.jsonl", "manifest.json"
SCORED = "scored.npy"
OTHER_BYTES = "other_bytes.npy"
OWN = "manifest"  # the key under which a manifest has its own checksum
STEP = 2**20  # bytes that are read at once


class DamagedCacheError(Exception):
    """A cache folder is not as it was written.

    Attributes:
        shards: numbers of the damaged shards, where all else is whole; else empty.
    """

    def __init__(self, message: str, shards: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.shards = shards


@dataclass(frozen=True)
class Manifest:
    """What a cache folder holds. Bytes, characters and words count prompts too, but no end-of-text ids."""

    format: int
    content_sha256: str
    tokenizer: str
    tokenizer_fingerprint: str
    eot: int
    dtype: str
    n_documents: int
    n_tokens: int
    n_bytes: int
    n_characters: int
    n_words: int
    shard_size: int  # tokens in each shard but the last
    files: dict[str, tuple[int, str]]  # name -> bytes, checksum
    bos: int | None = None  # the id at every document's beginning
    lost: int = 0  # parts of documents that their tokens do not give back
    lost_example: tuple[str, str] | None = None  # text and what comes back, of the first of them

    @property
    def n_shards(self) -> int:
        return max(1, -(-self.n_tokens // self.shard_size))


class TokenArray:
    """The tokens of all documents one behind the other, each document with the end-of-text id at its end.

    Pickled by its folder, so that a worker process maps the files instead of receiving a copy.

    Attributes:
        ids: (n_tokens,) uint16 or uint32, memory-mapped, read-only; several shards are read as if they were one.
        offsets: (n_documents + 1,) int64; document d is `ids[offsets[d] : offsets[d + 1]]`.
        prompt_lengths: (n_documents,) int64 tokens of each document's prompt, or of a conversation before the
            assistant's first turn; None where there are no prompts.
        scored: (n_tokens,) bool, which tokens of conversations are to be predicted; None where there are none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        dtype, numbers = self.manifest.dtype, range(self.manifest.n_shards)
        shards = [np.memmap(folder / shard_name(number), dtype=dtype, mode="r") for number in numbers]
        self.ids: np.ndarray | Shards = shards[0] if len(shards) == 1 else Shards(shards, self.manifest.shard_size)
        self.offsets: np.ndarray = np.load(folder / OFFSETS)
        prompts = folder / PROMPTS
        self.prompt_lengths: np.ndarray | None = np.load(prompts) if prompts.name in self.manifest.files else None
        self.scored: np.ndarray | None = None
        if SCORED in self.manifest.files:
            self.scored = np.load(folder / SCORED, mmap_mode="r")
        others = folder / OTHER_BYTES
        self._other_bytes: np.ndarray | None = (
            np.load(others, mmap_mode="r") if others.name in self.manifest.files else None
        )
        self._keys = np.zeros(self.n_documents, dtype=np.int64)  # 0: not asked for yet

    def __reduce__(self) -> tuple[type["TokenArray"], tuple[Path]]:
        return TokenArray, (self.folder,)

    @property
    def eot(self) -> int:
        return self.manifest.eot

    @property
    def bos(self) -> int | None:
        return self.manifest.bos

    @property
    def has_other_bytes(self) -> bool:
        """Whether some tokens cover more or fewer bytes of the text than their ids say."""
        return self._other_bytes is not None

    def other_bytes(self, position: np.ndarray) -> np.ndarray:
        """How many more bytes of the text the tokens at positions (any shape) cover than their ids say, int64."""
        if self._other_bytes is None:
            return np.zeros(position.shape, dtype=np.int64)
        places, more = self._other_bytes
        at = np.searchsorted(places, position).clip(max=len(places) - 1)
        return np.where(places[at] == position, more[at], 0)

    @cached_property
    def names(self) -> list[str]:
        """Where each document came from; read when first asked for."""
        return [json.loads(line) for line in (self.folder / NAMES).read_bytes().splitlines()]

    @property
    def n_documents(self) -> int:
        return self.manifest.n_documents

    @property
    def n_tokens(self) -> int:
        """End-of-text ids included."""
        return self.manifest.n_tokens

    @property
    def n_bytes(self) -> int:
        return self.manifest.n_bytes

    @property
    def n_words(self) -> int:
        """Runs of anything but white space."""
        return self.manifest.n_words

    def document_of(self, position: np.ndarray) -> np.ndarray:
        """The index of the document that each position (any shape, 0 <= position < n_tokens) lies in, int64."""
        return np.searchsorted(self.offsets, position, side="right") - 1

    def keys_of(self, documents: np.ndarray) -> np.ndarray:
        """A number above 0 per document (any shape), int64: the same tokens have the same one, in whatever file."""
        for document in np.unique(documents[self._keys[documents] == 0]):
            start, end = self.offsets[document], self.offsets[document + 1]
            self._keys[document] = document_key(self.ids[start:end])
        return self._keys[documents]


def document_key(ids: np.ndarray) -> int:
    """A number above 0, below 2**63, that follows from a document's tokens (n,) alone."""
    digest = hashlib.blake2b(ids.astype(np.uint32).tobytes(), digest_size=8).digest()
    return max(1, int.from_bytes(digest, "little") >> 1)


def checksum(path: Path) -> str:
    """CRC-32 of a file: against damage, not against malice. 160 MB take 0.07 s, and SHA-256 twice that or more."""
    found = 0
    with path.open("rb") as file:
        while part := file.read(STEP):
            found = zlib.crc32(part, found)
    return f"{found:08x}"


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Its own checksum is part of it."""
    values = asdict(manifest)
    (folder / MANIFEST).write_text(json.dumps({**values, OWN: _own_checksum(values)}, indent=1), encoding="utf-8")


def read_manifest(folder: Path) -> Manifest:
    """Raises OSError, ValueError, TypeError or AttributeError where it cannot be read, or is not as it was written."""
    values = json.loads((folder / MANIFEST).read_bytes())
    if values.pop(OWN, None) != _own_checksum(values):
        raise ValueError(f"{MANIFEST} changed")
    return Manifest(**values)


def _own_checksum(values: dict[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(values, sort_keys=True).encode()):08x}"


def open_tokens(folder: Path) -> TokenArray:
    """Map a cache folder.

    Raises:
        FileNotFoundError: there is none.
        DamagedCacheError: there is one, but not as it was written.
    """
    if not folder.exists():
        raise FileNotFoundError(folder)
    try:
        manifest = read_manifest(folder)
        damaged = [name for name, found in manifest.files.items() if not is_whole(folder / name, *found)]
        if damaged:
            numbers = {shard_name(number): number for number in range(manifest.n_shards)}
            shards = [numbers[name] for name in damaged if name in numbers]
            raise DamagedCacheError(
                f"{', '.join(damaged)} changed", shards=shards if len(shards) == len(damaged) else ()
            )
        return TokenArray(folder)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DamagedCacheError(str(error)) from error


def is_whole(path: Path, size: int, found: str) -> bool:
    """Whether a file is as it was written."""
    return path.is_file() and path.stat().st_size == size and checksum(path) == found
