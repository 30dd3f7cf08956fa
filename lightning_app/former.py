"""Configs and command lines of before: classes that were named by files which have moved since."""

from __future__ import annotations

import re
from pathlib import Path

PACKAGE = Path(__file__).parent
# A class of this project by its place.
NAMED = re.compile(r"\blightning_app((?:\.\w+)+)\.([A-Z]\w*)\b")


def with_names_of_today(text: str) -> str:
    """The text of a config, or a word of the command line, in which a class that is not where it is said to be is named
    by itself: `lightning_app.modules.VardaGPT` becomes `VardaGPT`."""
    return NAMED.sub(lambda found: found[0] if _is_here(found[1]) else found[2], text)


def _is_here(module: str) -> bool:
    place = PACKAGE.joinpath(*module.split(".")[1:])
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()
