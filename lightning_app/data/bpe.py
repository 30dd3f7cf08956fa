"""Byte-level BPE as tiktoken ranks: their file, and training them on a text of one's own."""

import base64
import binascii
import hashlib
import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from lightning_app.errors import InputError
from lightning_app.io import locked, write_atomic

log = logging.getLogger(__name__)

# GPT-2's rule for what BPE may not merge across, in tiktoken's faster, equivalent form
# (https://github.com/openai/tiktoken/blob/main/tiktoken_ext/openai_public.py, r50k_pat_str).
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""
MIN_VOCAB_SIZE = 257  # every byte and the end of text

LONGEST = (
    1_000  # characters without a change between white space and others, in training: its time grows with the square
)
_TOO_LONG = re.compile(rf"(?<!\S)\S{{{LONGEST},}}|(?<!\s)\s{{{LONGEST},}}")  # tried at the start of a run only: linear

Ranks = dict[bytes, int]
Texts = Callable[[], Iterable[str]]


@dataclass(frozen=True)
class Origin:
    """What a trained file was trained on; written to `<file>.json`. A file without one is the user's own."""

    vocab_size: int  # as asked for, the end of text included
    text_sha256: str
    file_sha256: str


def dump_ranks(ranks: Ranks) -> str:
    """The text of a `.tiktoken` file: one line per token, base64 and rank."""
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in sorted(ranks.items(), key=_rank))
    return "".join(lines)


def _rank(item: tuple[bytes, int]) -> int:
    return item[1]


def parse_ranks(text: str, *, source: str) -> Ranks:
    """The inverse of `dump_ranks`.

    Args:
        text: empty lines are skipped.
        source: the file, for messages.

    Raises:
        InputError: a line that is not a token and a rank, a token or rank given twice, or a byte that is not a token.
    """
    ranks: Ranks = {}
    lines: dict[int, int] = {}  # rank -> line number
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        token, rank = _parse_line(line, where=f"{source}, line {number}")
        if token in ranks or rank in lines:
            first = lines[ranks.get(token, rank)]
            raise InputError(f"{source}, line {number}: {line!r} repeats a token or rank of line {first}")
        ranks[token], lines[rank] = rank, number
    _check_bytes(ranks, source=source)
    return ranks


def _parse_line(line: str, *, where: str) -> tuple[bytes, int]:
    try:
        encoded, number = line.split()
        token, rank = base64.b64decode(encoded, validate=True), int(number)
    except (ValueError, binascii.Error) as error:
        raise InputError(f"{where}: {line[:80]!r} is not a base64 token and its rank; restore the file") from error
    if not token or not 0 <= rank < 2**31:
        raise InputError(f"{where}: {line[:80]!r} has an empty token or a rank out of range; restore the file")
    return token, rank


def _check_bytes(ranks: Ranks, *, source: str) -> None:
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise InputError(
            f"{source}: {len(missing)} of the 256 single bytes are not tokens (the first: 0x{missing[0]:02x}), "
            "so not every text could be encoded; restore the file, or delete it and set data.vocab_size to train one"
        )


def read_ranks(path: Path) -> Ranks:
    """Read a `.tiktoken` file. (`tiktoken.load.load_tiktoken_bpe` caches by path and returns old content.)

    Raises:
        InputError: it cannot be read, is not there, or is not what was trained here.
    """
    try:
        data = path.read_bytes()
        text = data.decode("ascii")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path}, line {line}: not a .tiktoken file (byte {error.start} is not ASCII)") from error
    except OSError as error:
        raise InputError(f"cannot read {path} ({error})") from error
    read_origin(path, data)
    return parse_ranks(text, source=str(path))


def ensure_trained(path: Path, *, vocab_size: int, texts: Texts) -> Path:
    """Train ranks on `texts()` with `vocab_size` ids, once, and return the file that holds them.

    That is `path`. A file that is there is never written again, as other runs need it: where it was trained on another
    text or with another size, the ranks lie beside it, under a name with both in it, and a line says so. A file that
    was not trained here (it has no `.json` beside it) is the user's own and is taken for any text.

    Raises:
        InputError: `vocab_size` below 257, no text, no place to write, or a file that is not as it was trained.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise InputError(
            f"data.vocab_size is {vocab_size}; the 256 bytes and the end of text need at least {MIN_VOCAB_SIZE}"
        )
    if _is_users(path):
        return path  # before the lock: the folder of a file of one's own may be read-only
    with locked(path):
        if _is_users(path):
            return path
        text_sha256 = _hash_texts(texts())
        own = path.with_name(f"{path.stem}-{text_sha256[:12]}-{vocab_size}{path.suffix}")
        for target in (path, own):
            if not target.exists():
                _write(
                    target, train_ranks(texts(), size=vocab_size - 1), vocab_size=vocab_size, text_sha256=text_sha256
                )
            origin = read_origin(target, target.read_bytes())
            if origin is not None and (origin.vocab_size, origin.text_sha256) == (vocab_size, text_sha256):
                break
            log.warning("%s was trained on another text or vocab_size and stays; taken instead: %s", path, own)
        return target


def _is_users(path: Path) -> bool:
    return path.exists() and not _sidecar(path).exists()


def read_origin(path: Path, data: bytes) -> Origin | None:
    """What a file with this content was trained on; None where nothing says so.

    Raises:
        InputError: what says so cannot be read, or says something of another content.
    """
    beside = _sidecar(path)
    if not beside.exists():
        return None
    remedy = (
        f"restore both from a copy, or delete both to train anew; delete {beside.name} alone if {path.name} is yours"
    )
    try:
        origin = Origin(**json.loads(beside.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{beside}, which says on what {path} was trained, is damaged ({error}): {remedy}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != origin.file_sha256:
        raise InputError(
            f"{path} is not as it was trained: {beside.name} says SHA-256 {origin.file_sha256}, "
            f"it has {found}; {remedy}"
        )
    return origin


def _sidecar(path: Path) -> Path:
    return path.with_name(path.name + ".json")


def _hash_texts(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def _write(path: Path, ranks: Ranks, *, vocab_size: int, text_sha256: str) -> None:
    data = dump_ranks(ranks).encode()
    origin = Origin(vocab_size, text_sha256, file_sha256=hashlib.sha256(data).hexdigest())
    # first: a crash leaves it alone, never a file that passes for the user's
    write_atomic(_sidecar(path), json.dumps(asdict(origin), indent=1).encode())
    write_atomic(path, data)
    log.info("trained %s: %d tokens", path, len(ranks))


def train_ranks(texts: Iterable[str], *, size: int) -> Ranks:
    """Train up to `size` tokens; fewer, with a warning, where the text has no more pairs to merge.

    Rank = id. All 256 bytes are in the alphabet: tiktoken panics on a byte that is not a token.
    """
    import tokenizers

    tokenizer = new_trainee()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=size, initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_cut_long_runs(_not_empty(texts)), trainer=trainer)
    symbols = byte_symbols()
    ranks = {bytes(symbols[c] for c in token): rank for token, rank in tokenizer.get_vocab().items()}
    if len(ranks) < size:
        log.warning("the text allows only %d of %d tokens; the other ids stay unused", len(ranks), size)
    return ranks


def new_trainee() -> Any:
    """An untrained `tokenizers.Tokenizer` that cuts and decodes as GPT-2's does."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def _not_empty(texts: Iterable[str]) -> Iterator[str]:
    found = False
    for text in texts:
        found = found or bool(text)
        yield text
    if not found:
        raise InputError("there is no text to train a tokenizer on; give data.train.path a file that is not empty")


def _cut_long_runs(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        runs = _TOO_LONG.finditer(text)
        cuts = [0, *(cut for run in runs for cut in range(run.start() + LONGEST, run.end(), LONGEST)), len(text)]
        yield from (text[start:end] for start, end in pairwise(cuts))


def byte_symbols() -> dict[str, int]:
    """GPT-2's printable stand-in of each byte -> the byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(b): b for b in printable} | {chr(256 + n): b for n, b in enumerate(others)}
