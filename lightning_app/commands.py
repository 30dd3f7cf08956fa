"""How the commands are told, which stand in `cli.COMMANDS` and in the table of ideas."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from lightning_app import __version__
from lightning_app.errors import did_you_mean
from lightning_app.plugins import Command
from lightning_app.program import program

GROUPS = {  # of commands, in the order in which they are told
    "train": "Train and measure, by a config",
    "use": "Use a trained model",
    "look": "Look at runs, memories and categories",
}


def told(commands: Mapping[str, Command]) -> str:
    """All of them, by group."""
    width = max(map(len, commands)) + 2
    parts = [
        f"lightning_app {__version__}: train, use and compare language models",
        f"usage: {program()} COMMAND [OPTIONS]     COMMAND --help tells its options, --version the version",
        *("\n".join([title, *_rows(commands, group, width)]) for group, title in GROUPS.items()),
        f"To begin: {program()} fit --config article_gpt",
    ]
    return "\n\n".join(parts)


def _rows(commands: Mapping[str, Command], group: str, width: int) -> Iterator[str]:
    for name, command in commands.items():
        if command.group == group:
            yield f"  {name:{width}}{command.does}"


def unknown(name: str, commands: Mapping[str, Command]) -> str:
    """What to say of a command that there is not."""
    if name.startswith("-"):
        return f"the command comes first: {program()} COMMAND {name}"
    near = did_you_mean(difflib.get_close_matches(name, commands, n=1))
    return f"there is no command {name!r}" + (f": {near}" if near else "")
