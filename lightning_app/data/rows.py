"""The rows of a file of records, by its ending: JSON lines, a JSON list, separated values, Parquet."""

import codecs
import csv
import importlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lightning_app.data.reading import decoded
from lightning_app.errors import InputError, first_line

Row = tuple[str, dict[str, Any]]  # where it stands, for messages; and its fields
_LONGEST_FIELD = 2**31 - 1  # characters of a CSV field; Python's own limit is 131,072


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file whose ending is in `READERS`.

    Raises:
        InputError: the file is not what its ending says, is not UTF-8, or has a row that cannot be read.
    """
    return READERS[path.suffix.lower()](path)


def has_rows(path: Path) -> bool:
    """Whether a file's ending says that it holds records, not one text."""
    return path.suffix.lower() in READERS


def _lines(path: Path) -> Iterator[Row]:
    with path.open("rb") as lines:  # by bytes: JSON strings may hold signs that str.splitlines takes for line ends
        for number, line in enumerate(lines, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                yield f"{path}:{number}", _object(line, path, number)


def _object(line: bytes, path: Path, number: int) -> dict[str, Any]:
    where = f"{path}:{number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        decoded(line, path)  # says what it is where it is not UTF-8
        raise InputError(
            f"{where}: no JSON in UTF-8 ({error}); give one object per line (a list over several lines is read from "
            "a file that ends in .json)"
        ) from error
    if not isinstance(row, dict):
        hint = "; a list of objects is read from a file that ends in .json" if isinstance(row, list) else ""
        raise InputError(f"{where}: a {type(row).__name__}, not an object; give one object per line{hint}")
    return row


def _list(path: Path) -> Iterator[Row]:
    text = decoded(path.read_bytes(), path)
    try:
        rows = json.loads(text)
    except (ValueError, RecursionError) as error:
        lines = "; it has one object per line, so name it .jsonl" if _is_object(text.lstrip().split("\n")[0]) else ""
        raise InputError(f"{path}: not JSON ({error}){lines or '; give a list of objects'}") from error
    if not isinstance(rows, list):
        fields = f" with {', '.join(rows)}" if isinstance(rows, dict) else ""
        raise InputError(f"{path} holds one {type(rows).__name__}{fields}, not a list; give [{{...}}, {{...}}]")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict | str):
            raise InputError(f"{path}, row {number}: {row!r:.60} is neither an object nor a text")
        yield f"{path}, row {number}", {"text": row} if isinstance(row, str) else row


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _separated(path: Path, delimiter: str) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_FIELD)
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            names = _names(next(reader, []), path, delimiter)
            line = reader.line_num
            for fields in reader:
                if fields:
                    yield f"{path}:{line + 1}", _named(names, fields, f"{path}:{line + 1}")
                line = reader.line_num
        except UnicodeDecodeError:
            decoded(path.read_bytes(), path)
            raise
        except csv.Error as error:
            raise InputError(
                f"{path}:{reader.line_num}: {error}; a quote within quotes is written twice, and each is closed"
            ) from error


def _names(names: list[str], path: Path, delimiter: str) -> list[str]:
    line = delimiter.join(names)
    if line.lstrip()[:1] in ("{", "["):
        raise InputError(f"{path} ends in {path.suffix} and holds JSON; name it .jsonl (a row per line) or .json")
    other = next((sign for sign in "\t;,|" if sign in line and sign != delimiter), None)
    if len(names) == 1 and other is not None:
        by = {"\t": "tabs (name it .tsv)", ",": "commas (name it .csv)"}.get(other, f"{other!r} (use commas)")
        raise InputError(f"{path} ends in {path.suffix}, and its first line is separated by {by}")
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{path}:1: two columns are named {twice[0]!r}; the first line names each column")
    return names


def _named(names: list[str], fields: list[str], where: str) -> dict[str, Any]:
    if len(fields) != len(names):
        raise InputError(
            f"{where}: {len(fields)} fields, and the first line names {len(names)} ({', '.join(names)}); "
            "put a text with separators or line ends in double quotes"
        )
    return dict(zip(names, fields, strict=True))


def _comma_separated(path: Path) -> Iterator[Row]:
    return _separated(path, ",")


def _tab_separated(path: Path) -> Iterator[Row]:
    return _separated(path, "\t")


def _parquet(path: Path) -> Iterator[Row]:
    try:
        arrow, parquet = importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise InputError(f"{path} needs pyarrow, which comes with datasets: pip install pyarrow") from None
    try:
        batches = (batch for batch in parquet.ParquetFile(path).iter_batches(batch_size=1000))
        number = 0
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except (arrow.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be read as Parquet ({first_line(error)}); is it whole?") from error


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _lines,
    ".ndjson": _lines,
    ".json": _list,
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
    ".parquet": _parquet,
}
