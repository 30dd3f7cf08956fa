"""Files of text: which ones of a folder, and their bytes as text. No UTF-8 is refused, with the likely code page."""

import codecs
import logging
import os
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from lightning_app.errors import InputError

log = logging.getLogger(__name__)

BOM = "\ufeff"
END_OF_TEXT = "<|endoftext|>"
_PACKED = {".gz", ".bz2", ".xz", ".zst", ".zip", ".7z", ".tar", ".tgz", ".rar", ".lz4"}
_OTHERS = {".arrow", ".feather", ".xlsx", ".xls", ".ods", ".sqlite", ".db"}
_OTHERS |= {".pdf", ".doc", ".docx", ".odt", ".rtf", ".epub", ".pkl", ".npy", ".npz", ".pt", ".h5"}
_HEAD = 4096  # bytes by which a file's content is told from what its ending says
_MAGIC = {
    b"PAR1": "a Parquet file",
    b"\x1f\x8b": "packed by gzip",
    b"PK\x03\x04": "a ZIP archive, or an office document",
    b"BZh91AY&SY": "packed by bzip2",
    b"\xfd7zXZ\x00": "packed by xz",
    b"\x28\xb5\x2f\xfd": "packed by zstd",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"%PDF-": "a PDF document",
    b"{\\rtf": "an RTF document",
    b"\xd0\xcf\x11\xe0": "an old office document",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
    b"GGUF\x02": "a GGUF model",
    b"GGUF\x03": "a GGUF model",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"\x7fELF": "a program",
    b"\x93NUMPY": "a NumPy array",
}
_WIDE = [
    (codecs.BOM_UTF32_LE, "UTF-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"),
    (codecs.BOM_UTF16_BE, "UTF-16"),
]
_SIGNS, _KANA, _HAN, _HANGUL, _WIDTHS = [
    (chr(a), chr(b))
    for a, b in ((0x3000, 0x3040), (0x3040, 0x3100), (0x4E00, 0xA000), (0xAC00, 0xD7A4), (0xFF00, 0xFF60))
]
_OFTEN = [(sign, chr(ord(sign) + 1)) for sign in "的是了我在這这"]
_USUAL = {
    "EUC-JP": [_SIGNS, _KANA, _HAN, _WIDTHS],
    "SHIFT_JIS": [_SIGNS, _KANA, _HAN, _WIDTHS],
    "EUC-KR": [_SIGNS, _HANGUL, _WIDTHS],
    "GB18030": [_SIGNS, _HAN, _WIDTHS],
    "BIG5": [_SIGNS, _HAN, _WIDTHS],
}
_TELLING = {"EUC-JP": [_KANA], "SHIFT_JIS": [_KANA], "EUC-KR": [_HANGUL], "GB18030": _OFTEN, "BIG5": _OFTEN}
_ALPHABETS = ["CP1251", "KOI8-R", "CP866", "CP1253", "CP1255", "CP1256"]


def check_file(path: Path) -> None:
    """Refuse what is not a regular file, an ending whose content is not plain text, and content of another kind.

    Raises:
        InputError: with what to do instead.
    """
    if not path.is_file():
        raise InputError(f"{path} is a pipe or a device, not a file; write its text to a file first")
    ending = path.suffix.lower()
    if ending in _PACKED | _OTHERS:
        way = "unpack it first" if ending in _PACKED else "convert it to .txt, .csv or .jsonl (an object per line)"
        raise InputError(f"{path} ends in {path.suffix}, which is not read as it is; {way}")
    _check_content(path, is_parquet=ending == ".parquet")


def _check_content(path: Path, *, is_parquet: bool) -> None:
    head = read_bytes(path, _HEAD)
    kind = next((name for magic, name in _MAGIC.items() if head.startswith(magic)), None)
    if is_parquet and not head.startswith(b"PAR1"):
        raise InputError(f"{path} ends in {path.suffix}, but is {kind or 'not a Parquet file'}; name it by its content")
    if kind is not None and not is_parquet:
        way = "name it .parquet" if head.startswith(b"PAR1") else "unpack or convert it first"
        what = f"ends in {path.suffix}, but is" if path.suffix else "is"
        raise InputError(f"{path} {what} {kind}; {way}")


def read_bytes(path: Path, size: int = -1) -> bytes:
    """The first bytes of a file; all of them unless said otherwise. Raises InputError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(size)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror})") from error


def text_files(folder: Path) -> list[Path]:
    """Every `*.txt` below a folder, sorted; links are followed, and what is left out is said once.

    Raises:
        InputError: there is none.
    """
    found: list[Path] = []
    others: Counter[str] = Counter()
    for path in _walk(folder, others):
        if path.suffix.lower() == ".txt" and path.is_file() and not path.name.startswith("."):
            found.append(path)
        else:
            others[
                "hidden files" if path.name.startswith(".") else f"*{path.suffix}" if path.is_file() else "pipes"
            ] += 1
    left_out = ", ".join(f"{n} {what}" for what, n in sorted(others.items()))
    if not found:
        there = f" (there are {left_out})" if left_out else ""
        raise InputError(
            f"no *.txt file in folder {folder}{there}; for other suffixes give a pattern such as {folder}/**/*"
        )
    if left_out:
        say_once(f"{folder}: {len(found)} *.txt files are read; left out: {left_out}")
    return sorted(found)


def _walk(folder: Path, left_out: Counter[str]) -> Iterator[Path]:
    """Files below a folder, through links (each folder once), without hidden folders."""
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        hidden = [name for name in folders if name.startswith(".")]
        left_out.update({"hidden folders": len(hidden)} if hidden else {})
        folders[:] = [name for name in folders if name not in hidden]
        yield from (Path(place, name) for name in files)


@cache
def say_once(message: str) -> None:
    """A source is read several times: to hash it, to train a tokenizer, to encode it."""
    log.warning(message)


def decoded(data: bytes, path: Path) -> str:
    """The text of a file, without a byte order mark.

    Raises:
        InputError: it is no UTF-8. What it seems to be is named; a wrong name would make text that looks fine to us.
    """
    wide = next((name for mark, name in _WIDE if data.startswith(mark)), None) or _unmarked_utf16(data)
    if wide is not None:
        raise InputError(f"{path} is {wide}, not UTF-8; {_convert(wide, path)}")
    if b"\0" in data:
        raise InputError(f"{path} is a binary file (NUL at byte {data.index(0)}); give plain text in UTF-8")
    try:
        return data.decode().removeprefix(BOM)
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path} is not UTF-8 (byte 0x{data[error.start]:02x} at offset {error.start}); {_remedy(data, path)}"
        ) from error


def unify_newlines(text: str) -> str:
    """Windows' and old Macs' line ends -> "\\n"."""
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _unmarked_utf16(data: bytes) -> str | None:
    """Text of which nearly every second byte is NUL, and no other."""
    start = data[:4096]
    for name, high, low in (("UTF-16LE", start[1::2], start[::2]), ("UTF-16BE", start[::2], start[1::2])):
        if len(high) > 1 and high.count(0) > 0.7 * len(high) and not low.count(0):
            return name
    return None


def _remedy(data: bytes, path: Path) -> str:
    text = data.decode(errors="replace")
    broken = text.count("\ufffd")
    if broken < sum(ord(sign) > 0x7F for sign in text) / 4:
        return f"the rest is, so it is damaged: restore it, or drop the {broken} bad places: " + _convert("UTF-8", path)
    return _convert(code_page(data), path) + ", and read the result: its bytes fit this code page best"


def _convert(name: str, path: Path) -> str:
    drop = " -c" if name == "UTF-8" else ""
    return f"convert it: iconv{drop} -f {name} -t UTF-8 '{path}' > new.txt"


def code_page(data: bytes) -> str:
    """The likeliest encoding of text that is not UTF-8, by which letters its bytes would be."""
    high = sum(byte > 0x7F for byte in data)
    latin = sum(chr(byte).isalpha() for byte in data if byte < 0x80)
    if high <= 0.4 * (high + latin):
        return "CP1252" if _decodes(data, "CP1252") else "LATIN1"
    scores = {name: _eastern(data, name) for name in _USUAL}
    best = max(scores, key=lambda name: scores[name])
    if scores[best] > 0.9:
        return best
    return max(_ALPHABETS, key=lambda name: _lower_case(data, name))


def _decodes(data: bytes, name: str) -> bool:
    try:
        data.decode(name)
    except UnicodeDecodeError:
        return False
    return True


def _eastern(data: bytes, name: str) -> float:
    """Share of signs that are usual in such texts, and a little more for those that only such texts have."""
    if not _decodes(data, name):
        return 0.0
    signs = [sign for sign in data.decode(name) if ord(sign) > 0x7F]
    usual = sum(any(low <= sign < high for low, high in _USUAL[name]) for sign in signs)
    telling = sum(any(low <= sign < high for low, high in _TELLING.get(name, ())) for sign in signs)
    return (usual + 0.1 * telling) / max(len(signs), 1)


def _lower_case(data: bytes, name: str) -> float:
    """Share of small letters in what is not ASCII: another alphabet's code page shows capitals and signs."""
    signs = [sign for sign in data.decode(name, errors="replace") if ord(sign) > 0x7F]
    return sum(sign.islower() or (sign.isalpha() and not sign.isupper()) for sign in signs) / max(len(signs), 1)
