"""Token arrays written once per text and tokenizer."""

import hashlib
import json
import logging
import shutil
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np

from lightning_app.data.corpus import Document
from lightning_app.data.encoding import Encoded, encode_documents, token_dtype
from lightning_app.data.reading import say_once
from lightning_app.data.shards import SHARD_BYTES, ShardWriter, shard_name
from lightning_app.data.token_array import (
    FORMAT,
    MANIFEST,
    NAMES,
    OFFSETS,
    OTHER_BYTES,
    PROMPTS,
    SCORED,
    DamagedCacheError,
    Manifest,
    TokenArray,
    checksum,
    is_whole,
    open_tokens,
    read_manifest,
    write_manifest,
)
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError
from lightning_app.io import locked, remove_leftovers, sync, temporary, writing_into

log = logging.getLogger(__name__)
WORTH_A_PROCESS = 2**22  # bytes: some 0.3 s, of which starting one takes 0.2


def prepare_tokens(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    cache_dir: Path | str,
    *,
    max_documents: int | None = None,
    num_proc: int = 1,
    shard_bytes: int = SHARD_BYTES,
) -> TokenArray:
    """Encode documents into `cache_dir/<hash of text and tokenizer>/`, or find them there.

    Whole or not at all: written under a temporary name and renamed, under a lock, so that of several processes one
    writes and the others wait. A folder found damaged is written anew, with a warning; its damaged shards alone where
    all else is whole.

    Args:
        documents: iterated over twice (a one-way iterator is read into memory): for their hash, and to encode.
        tokenizer: encodes prompt and text of each document, one by one.
        cache_dir: is made if missing.
        max_documents: takes the first ones only.
        num_proc: processes that encode, at most; what they write does not depend on their number.
        shard_bytes: of a file with tokens, at most. A cache that is found may have other ones.

    Raises:
        InputError: no documents, some with a prompt and some without, or a folder that cannot be written or is full.
    """
    if isinstance(documents, Iterator):
        documents = list(documents)
    content = _Content(islice(documents, max_documents))
    folder = Path(cache_dir) / content.key(tokenizer)
    try:
        tokens = open_tokens(folder)
    except (DamagedCacheError, FileNotFoundError):
        num_proc = max(1, min(num_proc, content.n_bytes // WORTH_A_PROCESS))
        shard_size = max(1, shard_bytes // token_dtype(tokenizer).itemsize)
        work = _Work(documents, max_documents, content, tokenizer, num_proc, shard_size)
        with locked(folder):
            tokens = _open_or_write(folder, work)
    _say_lost(tokens.manifest)
    return tokens


def _say_lost(found: Manifest) -> None:
    """A text that its tokens do not give back."""
    if found.lost_example is not None:
        text, back = found.lost_example
        say_once(
            f"the tokenizer {found.tokenizer!r} does not give back all of a text: {back!r} for {text!r}, and in "
            f"{found.lost} of the parts of {found.n_documents} documents; bits per byte count the text's own bytes"
        )


class _Content:
    """Hash and counts of documents, from one pass."""

    def __init__(self, documents: Iterable[Document]) -> None:
        self.n_documents = self.n_bytes = self.n_prompts = 0
        self._kinds: set[str] = set()
        digest, names = hashlib.sha256(), hashlib.sha256()
        for document in documents:
            names.update(document.name.encode("utf-8", "surrogateescape") + b"\0")
            self.n_documents += 1
            self.n_prompts += document.kind != "plain texts"
            self._kinds.add(document.kind)
            for part in (document.prompt, document.text):
                digest.update(b"-" if part is None else self._count(part))
            if document.turns is not None:
                digest.update(repr(document.turns).encode())
        self.sha256, self._names = digest.hexdigest(), names.hexdigest()
        self._check()

    def key(self, tokenizer: Tokenizer) -> str:
        """The folder's name. The documents' names are part of it: they are kept for messages."""
        return hashlib.sha256(repr((FORMAT, self.sha256, self._names, tokenizer.fingerprint)).encode()).hexdigest()[:20]

    def _count(self, text: str) -> bytes:
        data = text.encode()
        self.n_bytes += len(data)
        return len(data).to_bytes(8, "little") + data

    def _check(self) -> None:
        if not self.n_documents:
            raise InputError("there are no documents to encode; give a source with text")
        if len(self._kinds) > 1:
            raise InputError(f"the source holds {' and '.join(sorted(self._kinds))}; give them as separate sources")


@dataclass(frozen=True)
class _Work:
    """What to encode, and how."""

    documents: Iterable[Document]
    max_documents: int | None
    content: _Content
    tokenizer: Tokenizer
    num_proc: int
    shard_size: int  # tokens

    def read(self, start: int = 0, end: int | None = None) -> Iterator[Document]:
        """Documents `start` up to `end`, from the source."""
        return islice(self.documents, start, self.max_documents if end is None else end)

    def encode(self, documents: Iterable[Document]) -> Iterator[Encoded]:
        return encode_documents(documents, self.tokenizer, num_proc=self.num_proc)


def _open_or_write(folder: Path, work: _Work) -> TokenArray:
    try:
        return open_tokens(folder)  # another process wrote it while this one waited for the lock
    except FileNotFoundError:
        damaged: Sequence[int] = ()
    except DamagedCacheError as damage:
        damaged = damage.shards
        what = f"{len(damaged)} of its shards" if damaged else "it"
        log.warning("the token cache %s is damaged (%s); writing %s anew", folder, damage, what)
    # a token is a byte or more, and each document gets an end and perhaps a beginning
    around = 1 if work.tokenizer.bos is None else 2
    needed = (work.content.n_bytes + around * work.content.n_documents) * token_dtype(work.tokenizer).itemsize
    remove_leftovers(folder.parent)
    with writing_into(folder.parent, needed=needed):
        if not (damaged and _mend(folder, work, damaged)):
            _write(folder, work)
    return open_tokens(folder)


def _write(folder: Path, work: _Work) -> None:
    with temporary(folder) as new:
        new.mkdir()  # with the modes of the user's umask; mkdtemp's are for the user alone
        counted = _write_tokens(new, work)
        _write_manifest(new, work, counted)
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one; who has mapped it keeps what was mapped
        new.rename(folder)
        sync(folder.parent)


class _Counts:
    """Sums over the jobs; what is known of each document takes 16 bytes."""

    def __init__(self) -> None:
        self.n_characters = self.n_words = 0
        self.scored = bytearray()
        self.offsets, self.prompts = array("q", [0]), array("q")
        self.other_bytes: list[np.ndarray] = []
        self.lost: list[tuple[str, str]] = []  # the first one
        self.n_lost = 0
        self._end = self._prompt = 0

    def add(self, encoded: Encoded) -> None:
        self.n_characters += encoded.n_characters
        self.n_words += encoded.n_words
        self.scored += b"" if encoded.scored is None else encoded.scored.tobytes()
        self.n_lost += len(encoded.lost)
        self.lost = (self.lost or encoded.lost)[:1]
        if encoded.other_bytes.size:
            self.other_bytes.append(encoded.other_bytes + np.array([[self._end], [0]]))
        for is_prompt, is_last, n_ids in encoded.parts:
            self._end += n_ids
            self._prompt += n_ids if is_prompt else 0
            if is_last:
                self.offsets.append(self._end)
                self.prompts.append(self._prompt)
                self._prompt = 0


def _write_tokens(folder: Path, work: _Work) -> _Counts:
    """Shards, offsets, prompts and names."""
    counted = _Counts()
    with ShardWriter(folder, work.shard_size) as shards, (folder / NAMES).open("w", encoding="utf-8") as names:
        for encoded in work.encode(_noting(work.read(), names)):
            shards.write(encoded.ids)
            counted.add(encoded)
    np.save(folder / OFFSETS, np.array(counted.offsets, dtype=np.int64))
    if work.content.n_prompts:
        np.save(folder / PROMPTS, np.array(counted.prompts, dtype=np.int64))
    if counted.scored:
        np.save(folder / SCORED, np.frombuffer(counted.scored, dtype=bool))
    if counted.other_bytes:
        np.save(folder / OTHER_BYTES, np.concatenate(counted.other_bytes, axis=1))
    return counted


def _noting(documents: Iterable[Document], names: TextIO) -> Iterator[Document]:
    for document in documents:
        names.write(json.dumps(document.name) + "\n")
        yield document


def _write_manifest(folder: Path, work: _Work, counted: _Counts) -> None:
    paths = sorted(folder.iterdir())
    for path in paths:
        sync(path)
    content, tokenizer = work.content, work.tokenizer
    manifest = Manifest(
        format=FORMAT,
        content_sha256=content.sha256,
        tokenizer=tokenizer.name,
        tokenizer_fingerprint=tokenizer.fingerprint,
        eot=tokenizer.eot,
        dtype=token_dtype(tokenizer).name,
        n_documents=content.n_documents,
        n_tokens=counted.offsets[-1],
        n_bytes=content.n_bytes,
        n_characters=counted.n_characters,
        n_words=counted.n_words,
        shard_size=work.shard_size,
        files={path.name: (path.stat().st_size, checksum(path)) for path in paths},
        bos=tokenizer.bos,
        lost=counted.n_lost,
        lost_example=counted.lost[0] if counted.lost else None,
    )
    write_manifest(folder, manifest)
    sync(folder / MANIFEST)


def _mend(folder: Path, work: _Work, damaged: Sequence[int]) -> bool:
    """Write these shards anew, from their documents alone; False where they do not come out as they were."""
    manifest, offsets = read_manifest(folder), np.load(folder / OFFSETS)
    with temporary(folder) as new:
        new.mkdir()
        for number in damaged:
            start = number * manifest.shard_size
            end = min(start + manifest.shard_size, manifest.n_tokens)
            first, behind = np.searchsorted(offsets, start, "right") - 1, np.searchsorted(offsets, end)
            with ShardWriter(new, manifest.shard_size, first=number) as shard:
                encoded = work.encode(work.read(int(first), int(behind)))
                _write_range(shard, encoded, skip=start - int(offsets[first]), count=end - start)
            path = new / shard_name(number)
            if not is_whole(path, *manifest.files[path.name]):
                return False
            sync(path)
            path.replace(folder / path.name)
    sync(folder)
    return True


def _write_range(shard: ShardWriter, encoded: Iterable[Encoded], *, skip: int, count: int) -> None:
    for part in encoded:
        ids = part.ids[skip : skip + count]
        skip, count = max(0, skip - len(part.ids)), count - len(ids)
        shard.write(ids)
        if not count:
            break
