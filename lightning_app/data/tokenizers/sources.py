"""Where a Hugging Face tokenizer comes from: a directory, a file, or a name on the hub."""

from __future__ import annotations

import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lightning_app.data.adapter_folder import base_of, is_adapter, with_model
from lightning_app.data.gguf_file import is_named_gguf, read_gguf
from lightning_app.data.gguf_tokenizer import gguf_tokenizer
from lightning_app.errors import InputError

HUB = "hf:"
TOKENIZER = "tokenizer.json"
# What a tokenizer consists of beside it; an export writes them unchanged.
CONFIG, SPECIAL_TOKENS, TEMPLATE = BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
TEMPLATES = "additional_chat_templates"  # a folder of others by name, such as tool_use.jinja

SENTENCEPIECE = ("tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model")


def is_hugging_face(name: str) -> bool:
    """Whether a tokenizer's name is a directory, a `tokenizer.json`, a GGUF file, or `hf:` and a name on the hub."""
    return name.startswith(HUB) or name.endswith(".json") or is_named_gguf(name) or Path(name).is_dir()


def read_files(name: str) -> dict[str, str]:
    """The texts of a tokenizer's files by their names; a slow one is converted by transformers.

    Raises:
        InputError: there is none, or it cannot be read.
    """
    path = Path(name)
    if name.startswith(HUB):
        return _converted(name.removeprefix(HUB))
    if path.is_dir() and not (path / TOKENIZER).is_file() and is_adapter(path):
        return read_files(str(base_of(path)))
    if path.is_dir():
        return _of_folder(path, TOKENIZER) if (path / TOKENIZER).is_file() else _converted(name)
    if is_named_gguf(path):
        return _saved(gguf_tokenizer(read_gguf(path)))
    if not path.is_file():
        raise InputError(f"there is no tokenizer {name}: give a directory with a tokenizer.json, or the file itself")
    return _of_folder(path.parent, path.name)


def read_config(name: str) -> dict[str, Any]:
    """The config of the model beside a tokenizer; empty where there is none."""
    path = Path(name) if Path(name).is_dir() else Path(name).parent
    file = with_model(path) / "config.json"
    return _parsed(file) if file.is_file() and not name.startswith(HUB) else {}


def _of_folder(folder: Path, own: str) -> dict[str, str]:
    parsed = _parsed(folder / own)
    if not isinstance(parsed.get("model"), dict) or "vocab" not in parsed["model"]:
        raise InputError(f"{folder / own} is not a tokenizer of Hugging Face's: it has no model with a vocabulary")
    others = sorted(f"{TEMPLATES}/{path.name}" for path in (folder / TEMPLATES).glob("*.jinja"))
    beside = [name for name in (*BESIDE, *others) if (folder / name).is_file()]
    for name in beside:
        if name.endswith(".json"):
            _parsed(folder / name)
    return {TOKENIZER: _text(folder / own)} | {name: _text(folder / name) for name in beside}


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read: {error}") from error


def _parsed(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: it is not JSON ({error}); download it again") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} holds a {type(found).__name__}, not an object; download it again")
    return found


def _converted(name: str) -> dict[str, str]:
    """What transformers makes of it."""
    from transformers import AutoTokenizer

    _check_sentencepiece(Path(name))
    try:
        return _saved(AutoTokenizer.from_pretrained(name, trust_remote_code=False))
    except (OSError, ValueError, ImportError, TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{name!r} has no tokenizer that can be read ({reason}); give a directory with a tokenizer.json"
        ) from error


def _check_sentencepiece(folder: Path) -> None:
    """The library says only that it has another package's way to read the file, and that it fails."""
    for name in SENTENCEPIECE:
        if find_spec("sentencepiece") is None and _is_sentencepiece(folder / name):
            raise InputError(
                f"{folder / name} is a file of SentencePiece's, and the package that reads it is missing: pip install "
                "sentencepiece, or put the model's tokenizer.json there"
            )


def _is_sentencepiece(file: Path) -> bool:
    """By its first byte, that of a message's first field: others by this name are lines of base64 (LLaMA 3)."""
    if not file.is_file():
        return False
    with file.open("rb") as opened:
        return opened.read(1) == b"\n"


def _saved(tokenizer: Any) -> dict[str, str]:
    """The files of one of transformers' own."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return _of_folder(Path(folder), TOKENIZER)
