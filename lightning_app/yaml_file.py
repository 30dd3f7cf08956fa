"""Reading YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from lightning_app.errors import InputError

UNREADABLE = (OSError, ValueError, RecursionError, yaml.YAMLError)


def read_yaml(path: Path) -> Any:
    """What a file holds.

    Raises:
        InputError: it is not YAML in UTF-8; in one line, though YAML's parser draws a picture of the place.
        FileNotFoundError: there is no such file.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{path} is no readable YAML: {_told(error)}") from None


def _told(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"
    return " ".join(str(error).split())
