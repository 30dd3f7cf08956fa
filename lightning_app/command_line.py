"""Commands are typed functions: cyclopts reads their arguments off the signature, and their help off the docstring.

The modules of these functions import nothing heavy, so that help and a mistake are answered at once.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence

import cyclopts

from lightning_app.errors import did_you_mean
from lightning_app.plugins import Command, load
from lightning_app.program import program

# Names of options are those of the arguments; a flag has no opposite.
PARAMETERS = cyclopts.Parameter(negative=(), name_transform=lambda name: name)


def carry_out(name: str, command: Command, argv: Sequence[str]) -> None:
    """Call the function of a command with its arguments, or print its help.

    Raises:
        SystemExit: 2 with one line on stderr, where the arguments are not its.
    """
    app = app_of(name, command)
    words = list(argv) or (["--help"] if command.parts else [])
    try:
        app(words, exit_on_error=False, print_error=False, result_action="return_value")
    except cyclopts.CycloptsError as error:
        print(f"error: {told(error, name)}", file=sys.stderr)
        sys.exit(2)


def app_of(name: str, command: Command) -> cyclopts.App:
    """The parser of a command, with those of its parts."""
    app = cyclopts.App(
        name=f"{program()} {name}", version_flags=(), default_parameter=PARAMETERS, help_format="markdown"
    )
    if command.place is not None:
        app.default(load(command.place))
    else:
        app.help = _sentence(command.does)
        _add_parts(app, command)
    return app


def add(app: cyclopts.App, name: str, command: Command) -> None:
    """Put a command, with its parts, below others."""
    if command.place is not None:
        app.command(load(command.place), name=name)
    else:
        group = cyclopts.App(name=name, help=_sentence(command.does), version_flags=())
        _add_parts(group, command)
        app.command(group)


def _add_parts(app: cyclopts.App, command: Command) -> None:
    for part, place in command.parts.items():
        app.command(load(place), name=part)


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def told(error: cyclopts.CycloptsError, name: str) -> str:
    """What is wrong, in one line."""
    if isinstance(error, cyclopts.MissingArgumentError) and error.argument is not None:
        needed = error.argument.name
        if error.keyword:
            return f"{error.keyword} needs a value"
        options = [word.partition("=")[0] for word in error.unused_tokens or () if word.startswith("--")]
        if near := difflib.get_close_matches(needed, options, n=1):
            return f"there is no option {near[0]}: {did_you_mean([needed])}"
        whole = " ".join([name, *(error.command_chain or ())])
        return f"{whole} needs {needed}: {program()} {whole} --help"
    line = " ".join(str(error).split())
    return f"{line[:1].lower()}{line[1:]}".removesuffix(".")
