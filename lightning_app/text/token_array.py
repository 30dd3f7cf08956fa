"""Tokens of a corpus in a memory-mapped array, and the check that its files are as they were written."""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

FORMAT = 1  # of the files below; another number means other cache folders
TOKENS, OFFSETS, PROMPTS, MANIFEST = "tokens.bin", "offsets.npy", "prompts.npy", "manifest.json"
FULL_CHECK = 100 * 2**20  # bytes up to which a file is hashed whole when it is opened
EDGE = 2**20  # bytes hashed at either end of a larger one


class DamagedCacheError(Exception):
    """A cache folder is not as it was written."""


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
    names: list[str]
    files: dict[str, tuple[int, str]]  # name -> bytes, digest


class TokenArray:
    """The tokens of all documents one behind the other, each document with the end-of-text id at its end.

    Pickled by its folder, so that a worker process maps the file instead of receiving a copy.

    Attributes:
        ids: (n_tokens,) uint16 or uint32, memory-mapped, read-only.
        offsets: (n_documents + 1,) int64; document d is `ids[offsets[d] : offsets[d + 1]]`.
        prompt_lengths: (n_documents,) int64 tokens of each document's prompt; None where there are no prompts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = _read_manifest(folder)
        self.ids: np.ndarray = np.memmap(folder / TOKENS, dtype=self.manifest.dtype, mode="r")
        self.offsets: np.ndarray = np.load(folder / OFFSETS)
        prompts = folder / PROMPTS
        self.prompt_lengths: np.ndarray | None = np.load(prompts) if prompts.name in self.manifest.files else None
        self._keys = np.zeros(self.n_documents, dtype=np.int64)  # 0: not asked for yet

    def __reduce__(self) -> tuple[type["TokenArray"], tuple[Path]]:
        return TokenArray, (self.folder,)

    @property
    def eot(self) -> int:
        return self.manifest.eot

    @property
    def names(self) -> list[str]:
        return self.manifest.names

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
            digest = hashlib.blake2b(self.ids[start:end].astype(np.uint32).tobytes(), digest_size=8).digest()
            self._keys[document] = max(1, int.from_bytes(digest, "little") >> 1)
        return self._keys[documents]


def file_digest(path: Path) -> str:
    """sha256 of a file, or of both ends of a large one."""
    with path.open("rb") as file:
        if path.stat().st_size <= FULL_CHECK:
            return hashlib.sha256(file.read()).hexdigest()
        first = file.read(EDGE)
        file.seek(-EDGE, os.SEEK_END)
        return hashlib.sha256(first + file.read()).hexdigest()


def _read_manifest(folder: Path) -> Manifest:
    return Manifest(**json.loads((folder / MANIFEST).read_bytes()))


def open_tokens(folder: Path) -> TokenArray:
    """Map a cache folder.

    Raises:
        FileNotFoundError: there is none.
        DamagedCacheError: there is one, but not as it was written.
    """
    if not folder.exists():
        raise FileNotFoundError(folder)
    try:
        for name, (size, digest) in _read_manifest(folder).files.items():
            if (folder / name).stat().st_size != size or file_digest(folder / name) != digest:
                raise DamagedCacheError(f"{name} has changed")
        return TokenArray(folder)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DamagedCacheError(str(error)) from error
