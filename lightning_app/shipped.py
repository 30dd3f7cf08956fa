"""Configs and articles that come with the package: in a clone where they lie, of an installed wheel in `share`."""

from __future__ import annotations

import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

CONFIGS = ("configs", "configs/overlays")
FLAGS = ("--config", "-c")


def shipped(path: str | Path) -> Path | None:
    """The file or folder of this place in a clone; None: there is none, or the path is absolute."""
    if Path(path).is_absolute():
        return None
    clone, installed = Path(__file__).parents[1], Path(sysconfig.get_path("data"), "share", "lightning_app")
    return next((root / path for root in (clone, installed) if (root / path).exists()), None)


def here_or_shipped(path: str) -> str:
    """A path as it is, unless nothing is there and it names something that is shipped."""
    if not path or Path(path).exists():
        return path
    return str(shipped(path) or path)


def with_configs(argv: Iterable[str]) -> list[str]:
    """A command line with `--config article_gpt`, or a shipped config's path, as a path that is there."""
    words = list(argv)
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag in FLAGS and equals:
            words[i] = f"{flag}={_config(value)}"
        elif i and words[i - 1] in FLAGS:
            words[i] = _config(word)
    return words


def _config(name: str) -> str:
    return next((path for path in map(here_or_shipped, _places(name)) if Path(path).is_file()), name)


def _places(name: str) -> Iterator[str]:
    yield name
    if not Path(name).suffix:
        yield from (f"{folder}/{name}.yaml" for folder in CONFIGS)
