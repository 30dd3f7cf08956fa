"""Documents: read from files and data sets, cleaned, and split."""

import glob
import hashlib
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

from lightning_app.data.chats import Chat, chat_field, chat_of, is_unicode
from lightning_app.data.places import DATASET, missing
from lightning_app.data.reading import BOM, check_file, decoded, read_bytes, say_once, text_files, unify_newlines
from lightning_app.data.rows import has_rows, read_rows
from lightning_app.errors import InputError
from lightning_app.shipped import here_or_shipped

_MANY_NEWLINES = re.compile(r"\n\n\n\n+")  # \n{4,} has no literal start to search for: 10 times slower
_ROW = re.compile(r"(:\d+|, row \d+|\[\d+\])$")  # in the name of a row's document, behind its source


@dataclass(frozen=True)
class Document:
    """A text that stands for itself, the answer (`text`) to a prompt, or a conversation.

    Prompt and text are encoded one by one, so the first token of `text` never reaches into the prompt. A conversation
    is encoded as a whole, once a template has written it.

    Attributes:
        name: where it came from, for messages.
        chat: the messages, of which `text` has the contents, until a template has written them.
        turns: first character and end of each turn of the assistant in the `text` that a template wrote.
    """

    text: str
    prompt: str | None = None
    name: str = ""
    chat: Chat | None = None
    turns: tuple[tuple[int, int], ...] | None = None

    @property
    def kind(self) -> str:
        """What it is, in words: those of a source are all of one kind."""
        if self.chat is not None or self.turns is not None:
            return "conversations"
        return "plain texts" if self.prompt is None else "pairs"


def read_documents(path: str, *, text_field: str = "text") -> Iterator[Document]:
    """Read a source; which kind it is follows from `path`.

    ==========================  =====================================================================
    `file.txt`, any other file  one document, UTF-8
    `folder`                    every `*.txt` below it, sorted by path; links are followed, hidden ones left out
    `texts/**/*.md`             every file that the pattern matches, sorted by path
    `file.jsonl`, `.ndjson`     a row per line: {"text": ...}, {"prompt": ..., "target": ...} or {"messages": [...]}
    `file.json`                 a list of such rows, or of texts
    `file.csv`, `.tsv`          rows under the names of the columns
    `file.parquet`              rows (by pyarrow)
    `hf:name:config:split`      a Hugging Face dataset; config and split ("train") may be left out
    `hf:json:file.jsonl`        local files through a builder of `datasets`: json, text, parquet or csv
    ==========================  =====================================================================

    Line ends become "\\n", a byte order mark is dropped, and nothing else is changed.

    Args:
        path: the source.
        text_field: the field of a JSON line or the column of a dataset that holds the text.

    Raises:
        InputError: a source that is missing, empty, not what its ending says, or no UTF-8, or a bad row; some while
            iterating.
    """
    if not path:
        raise InputError("the path of a source is empty; give a file, a folder, a pattern or hf:name")
    if path.startswith(DATASET):
        return _read_dataset(path.removeprefix(DATASET), text_field=text_field)
    path = here_or_shipped(path)
    if Path(path).exists():
        return _read_path(Path(path), text_field=text_field)
    if glob.has_magic(path):
        return _read_glob(path, text_field=text_field)
    raise missing(path)


def _read_path(path: Path, *, text_field: str) -> Iterator[Document]:
    if path.is_dir():
        return map(read_text, text_files(path))
    check_file(path)
    if has_rows(path):
        return _read_file_of_rows(path, text_field=text_field)
    return iter([read_text(path)])


def _read_glob(pattern: str, *, text_field: str) -> Iterator[Document]:
    files = sorted(path for path in map(Path, glob.glob(pattern, recursive=True)) if path.is_file())
    if not files:
        raise InputError(f"no file matches {pattern}; check the pattern against the folder you run in ({Path.cwd()})")
    return (document for file in files for document in _read_path(file, text_field=text_field))


def read_text(path: Path) -> Document:
    """Read a file as one document. Raises as `read_documents` does."""
    text = decoded(read_bytes(path), path)
    if not text or text.isspace():  # strip copies all of it
        raise InputError(f"{path} is empty; give a file with text, or remove it")
    return Document(unify_newlines(text), name=str(path))


def _read_file_of_rows(path: Path, *, text_field: str) -> Iterator[Document]:
    first: Document | None = None
    for name, row in read_rows(path):
        document = _from_row(row, name, text_field)
        first = first or document
        if first.kind != document.kind:
            kinds = " and ".join(sorted((first.kind, document.kind)))
            raise InputError(f"{document.name}: {kinds} in one file ({first.name}); use two files")
        yield document
    if first is None:
        raise InputError(f"{path} is empty; give rows with text, with prompt and target, or with messages")


def _from_row(row: Mapping[str, Any], name: str, text_field: str) -> Document:
    """Another field that is asked for; else messages, or a pair where there are a prompt and a target; else a text."""
    asked, messages = _asked(row, text_field), chat_field(row)
    if isinstance(row.get(text_field), list) or (messages is not None and "target" not in row and not asked):
        chat = chat_of(row, text_field if row.get(text_field) is not None else str(messages), name)
        return Document("\n\n".join(chat.texts), name=name, chat=chat)
    if messages is not None and text_field == "text":
        both = ("text", "it is") if asked else ("prompt and target", "these are")
        say_once(
            f"{_ROW.sub('', name)}: rows have {both[0]} beside {messages}, and {both[1]} read; text_field: {messages}, "
            "beside the path, reads the conversations"
        )
    if "target" in row and not asked:
        return Document(_field(row, "target", name), _field(row, "prompt", name), name)
    return Document(_field(row, text_field, name), name=name)


def _asked(row: Mapping[str, Any], text_field: str) -> bool:
    """Whether a row's text is wanted. The default field gives way to a pair's prompt, and where it is null."""
    if text_field != "text":
        return text_field in row
    return "text" in row and "prompt" not in row and (row["text"] is not None or chat_field(row) is None)


def _field(row: Mapping[str, Any], field: str, name: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not is_unicode(value):
        raise InputError(
            f"{name}: {field!r} is {value!r:.60}, not a text (fields: {', '.join(row) or 'none'}); "
            "give strings under 'text' or another text_field, or under 'prompt' and 'target', or a list of 'messages'"
        )
    if not value.strip():
        raise InputError(f"{name}: {field!r} is empty; fill it in or remove the line")
    return unify_newlines(value.removeprefix(BOM))


def _read_dataset(spec: str, *, text_field: str) -> Iterator[Document]:
    from lightning_app.data.hub import load_rows

    found = False
    for number, row in enumerate(load_rows(spec)):
        document = document_of(row, f"{DATASET}{spec}[{number}]", text_field)
        if document is not None:
            yield document
            found = True
    if not found:
        raise InputError(f"the dataset {spec} has no text; choose another split as hf:name:config:split")


def document_of(row: Mapping[str, Any], name: str, text_field: str) -> Document | None:
    """A dataset's row; None for an empty one. (Many have some, such as wikitext between its articles.)

    Raises:
        InputError: it has no such column, or something else than a text in it.
    """
    value = row.get(text_field)
    if (
        text_field in row
        and not {"prompt", "target"} <= row.keys()
        and (_asked(row, text_field) or chat_field(row) is None)
        and (value is None or (isinstance(value, str) and not value.strip()))
    ):
        return None
    return _from_row(row, name, text_field)


def clean(text: str) -> str:
    """Unify line ends, strip spaces at line ends, and let at most two empty lines follow each other."""
    stripped = "\n".join(map(str.rstrip, unify_newlines(text).split("\n")))  # a regex tries every space
    return _MANY_NEWLINES.sub("\n\n\n", stripped)


def split_documents(
    documents: Iterable[Document], fractions: Mapping[str, float], *, seed: int
) -> dict[str, list[Document]]:
    """Deal whole documents out to splits, decided by the seed and their content, not by their order.

    Args:
        documents: each lands in one split, equal ones in the same; the order stays as it was.
        fractions: of the number of documents, by name of the split; they sum to 1. 0 asks for no documents.
        seed: another one gives another split.

    Raises:
        InputError: fractions that do not sum to 1, or fewer documents than splits asked for.
    """
    wanted = _checked(fractions)
    listed = list(documents)
    keys = [_split_key(document, seed) for document in listed]
    copies = Counter(keys)
    if len(copies) < len(wanted):
        equal = f", {len(copies)} of them different," if len(copies) < len(listed) else ""
        raise InputError(
            f"{len(listed)} document(s){equal} cannot fill the {len(wanted)} splits {', '.join(wanted)}; whole "
            "documents are split, so give more of them (cut the file into several), or give data.val.path"
        )
    ordered = sorted(copies)
    ends = _ends(list(wanted.values()), [copies[key] for key in ordered])
    part_of = {
        key: name for name, start, end in zip(wanted, [0, *ends], ends, strict=False) for key in ordered[start:end]
    }
    parts: dict[str, list[Document]] = {name: [] for name in fractions}
    for document, key in zip(listed, keys, strict=True):
        parts[part_of[key]].append(document)
    return parts


def _checked(fractions: Mapping[str, float]) -> dict[str, float]:
    if any(fraction < 0 for fraction in fractions.values()) or abs(sum(fractions.values()) - 1) > 1e-6:
        raise InputError(f"the fractions of data.split are {dict(fractions)}; they must be 0 or more and sum to 1")
    return {name: fraction for name, fraction in fractions.items() if fraction > 0}


def _split_key(document: Document, seed: int) -> bytes:
    return hashlib.sha256(repr((seed, document.prompt, document.text)).encode()).digest()


def _ends(fractions: list[float], copies: list[int]) -> list[int]:
    """Where each part ends: at its share, but with at least one document for it and for each that follows.

    Args:
        copies: how often there is each different document; equal ones stay together.
    """
    up_to = [0, *accumulate(copies)]
    ends: list[int] = []
    for k, share in enumerate(accumulate(fractions)):
        least, most = (ends[-1] if ends else 0) + 1, len(copies) - (len(fractions) - k - 1)
        ends.append(min(max(bisect_left(up_to, round(share * up_to[-1])), least), most))
    return ends
