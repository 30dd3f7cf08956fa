"""Token arrays written once per text and tokenizer."""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import islice
from pathlib import Path

import numpy as np

from lightning_app.errors import InputError
from lightning_app.text.corpus import Document
from lightning_app.text.files import locked, sync, writing_into
from lightning_app.text.token_array import (
    FORMAT,
    MANIFEST,
    OFFSETS,
    PROMPTS,
    TOKENS,
    DamagedCacheError,
    Manifest,
    TokenArray,
    file_digest,
    open_tokens,
)
from lightning_app.text.tokenizer import Tokenizer, pieces

log = logging.getLogger(__name__)


def prepare_tokens(
    documents: Iterable[Document], tokenizer: Tokenizer, cache_dir: Path | str, *, max_documents: int | None = None
) -> TokenArray:
    """Encode documents into `cache_dir/<hash of text and tokenizer>/`, or find them there.

    Whole or not at all: written under a temporary name and renamed, under a lock, so that of several processes one
    writes and the others wait. A folder found damaged is written anew, with a warning.

    Args:
        documents: iterated over twice (a one-way iterator is read into memory): for their hash, and to encode.
        tokenizer: encodes prompt and text of each document, one by one.
        cache_dir: is made if missing.
        max_documents: takes the first ones only.

    Raises:
        InputError: no documents, some with a prompt and some without, or a folder that cannot be written or is full.
    """
    if isinstance(documents, Iterator):
        documents = list(documents)
    content = _Content(islice(documents, max_documents))
    folder = Path(cache_dir) / content.key(tokenizer)
    try:
        return open_tokens(folder)
    except (DamagedCacheError, FileNotFoundError):
        with locked(folder):
            return _open_or_write(folder, islice(documents, max_documents), content, tokenizer)


def _open_or_write(
    folder: Path, documents: Iterable[Document], content: "_Content", tokenizer: Tokenizer
) -> TokenArray:
    try:
        return open_tokens(folder)  # another process wrote it while this one waited for the lock
    except FileNotFoundError:
        pass
    except DamagedCacheError as damage:
        log.warning("the token cache %s is damaged (%s); writing it anew", folder, damage)
    needed = (content.n_bytes + content.n_documents) * _dtype(tokenizer).itemsize  # a token is a byte or more
    for leftover in folder.parent.glob(f".{folder.name}.*.tmp"):  # of killed processes: the lock is ours
        shutil.rmtree(leftover)
    with writing_into(folder.parent, needed=needed):
        _write(folder, documents, content, tokenizer)
    return open_tokens(folder)


class _Content:
    """Hash and counts of documents, from one pass."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self.names: list[str] = []
        self.n_bytes = self.n_characters = self.n_words = self.n_prompts = 0
        digest = hashlib.sha256()
        for document in documents:
            self.names.append(document.name)
            self.n_prompts += document.prompt is not None
            for part in (document.prompt, document.text):
                digest.update(b"-" if part is None else self._count(part))
        self.n_documents = len(self.names)
        self.sha256 = digest.hexdigest()
        self._check()

    def key(self, tokenizer: Tokenizer) -> str:
        """The folder's name. The documents' names are part of it: they are kept for messages."""
        return hashlib.sha256(repr((FORMAT, self.sha256, self.names, tokenizer.fingerprint)).encode()).hexdigest()[:20]

    def _count(self, text: str) -> bytes:
        data = text.encode()
        self.n_bytes += len(data)
        self.n_characters += len(text)
        self.n_words += len(text.split())
        return len(data).to_bytes(8, "little") + data

    def _check(self) -> None:
        if not self.n_documents:
            raise InputError("there are no documents to encode; give a source with text")
        if self.n_prompts not in (0, self.n_documents):
            raise InputError(
                f"{self.n_prompts} of {self.n_documents} documents have a prompt; "
                "give pairs and plain texts as separate sources"
            )


def _dtype(tokenizer: Tokenizer) -> np.dtype:
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)


def _write(folder: Path, documents: Iterable[Document], content: _Content, tokenizer: Tokenizer) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        lengths, prompts = _write_tokens(temporary / TOKENS, documents, tokenizer)
        np.save(temporary / OFFSETS, np.cumsum([0, *lengths], dtype=np.int64))
        if content.n_prompts:
            np.save(temporary / PROMPTS, np.array(prompts, dtype=np.int64))
        _write_manifest(temporary, content, tokenizer, n_tokens=sum(lengths))
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one; who has mapped it keeps what was mapped
        temporary.rename(folder)
        sync(folder.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_tokens(path: Path, documents: Iterable[Document], tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Tokens of each document, and of its prompt."""
    lengths, prompts, dtype = [], [], _dtype(tokenizer)
    with path.open("wb") as file:
        for document in documents:
            start = file.tell()
            for piece in pieces(document.prompt or ""):
                file.write(np.array(tokenizer.encode(piece), dtype=dtype).tobytes())
            prompts.append((file.tell() - start) // dtype.itemsize)
            for piece in pieces(document.text):
                file.write(np.array(tokenizer.encode(piece), dtype=dtype).tobytes())
            file.write(np.array([tokenizer.eot], dtype=dtype).tobytes())
            lengths.append((file.tell() - start) // dtype.itemsize)
    return lengths, prompts


def _write_manifest(folder: Path, content: _Content, tokenizer: Tokenizer, *, n_tokens: int) -> None:
    paths = sorted(folder.iterdir())
    for path in paths:
        sync(path)
    manifest = Manifest(
        format=FORMAT,
        content_sha256=content.sha256,
        tokenizer=tokenizer.name,
        tokenizer_fingerprint=tokenizer.fingerprint,
        eot=tokenizer.eot,
        dtype=_dtype(tokenizer).name,
        n_documents=content.n_documents,
        n_tokens=n_tokens,
        n_bytes=content.n_bytes,
        n_characters=content.n_characters,
        n_words=content.n_words,
        names=content.names,
        files={path.name: (path.stat().st_size, file_digest(path)) for path in paths},
    )
    (folder / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1))
    sync(folder / MANIFEST)
