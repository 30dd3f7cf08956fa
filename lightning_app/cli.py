"""The command line: `python main.py COMMAND`, of the commands in `COMMANDS` and in the table of ideas.

Importing Lightning takes seconds, so cheap mistakes are looked for (`cli_checks`) before anything heavy is imported.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning_app import __version__
from lightning_app.cli_checks import (
    Config,
    check_arguments,
    check_config_is_given,
    check_texts,
    config_paths,
    given_options,
    named_classes,
    option,
    read_configs,
)
from lightning_app.commands import told, unknown
from lightning_app.duration import seconds_of
from lightning_app.errors import InputError
from lightning_app.former import words_of_today
from lightning_app.plugins import IDEAS, Command, here
from lightning_app.pulse import RANK, pulse
from lightning_app.schema.find import check_config, check_words, schema
from lightning_app.schema.help import told as help_of
from lightning_app.shipped import with_configs
from lightning_app.streams import drop, lasting
from lightning_app.utf8 import restart_in_utf8_mode, use_utf8_streams

SERVING, COMPRESSION = "lightning_app.serving.commands", "lightning_app.compression.commands"
COMMANDS = {  # of the core
    "fit": Command("train", "train a model"),
    "validate": Command("train", "measure it on the validation text"),
    "test": Command("train", "measure it on the test text"),
    "predict": Command("train", "write down what it says of each token"),
    "prepare": Command("train", "clean, split and tokenise the texts, and say what there is"),
    "generate": Command("use", "continue a prompt, or a file of prompts", f"{SERVING}:generate"),
    "chat": Command("use", "talk with it in the terminal", f"{SERVING}:chat"),
    "serve": Command("use", "OpenAI's HTTP interface, and a page", f"{SERVING}:serve", ("fastapi", "uvicorn")),
    "export": Command("use", "a Hugging Face directory or a GGUF file", "lightning_app.export.commands:export"),
    "compress": Command("use", "make a file short by what it predicts", f"{COMPRESSION}:compress"),
    "decompress": Command("use", "and back", f"{COMPRESSION}:decompress"),
    "report": Command("look", "the page of a run", "lightning_app.reports.commands:report"),
    "compare": Command("look", "a page and a table over several runs", "lightning_app.reports.commands:compare"),
    "completion": Command("look", "completion for bash, zsh or fish", "lightning_app.completion:completion"),
    "schema": Command("look", "the JSON schema of the YAML, for editors", "lightning_app.schema.commands:schema"),
}
DRY_RUN = "--dry_run"
ASKS_HELP = {"-h", "--help"}


def main(args: Sequence[str] | None = None) -> None:
    """Run one command.

    A mistake of the user's ends with one line on stderr and exit code 1 (2 if it is one of syntax), Ctrl-C with one
    line and 130. When nobody reads the output any more a command with a trainer goes on, any other ends (141). With
    `--debug` a mistake keeps its traceback.
    """
    if args is None:
        restart_in_utf8_mode()
    use_utf8_streams()
    given = list(sys.argv[1:] if args is None else args)
    argv = with_configs(word for word in given if word != "--debug")
    try:
        configs = read_configs(argv)
        _run(words_of_today(argv, named_classes(configs)), configs)
    except ValueError as error:
        mistake = _mistake(error)
        if mistake is None or "--debug" in given:
            raise
        print(f"error: {' '.join(str(mistake).splitlines())}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        drop(sys.stdout)
        sys.exit(128 + signal.SIGPIPE)
    except (KeyboardInterrupt, SystemExit) as error:
        if not _is_ctrl_c(error):
            raise
        print(f"{' '.join(argv[:1])}: stopped by Ctrl-C", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def _run(argv: list[str], configs: Sequence[Config]) -> None:
    if argv[:1] in ([], ["-h"], ["--help"], ["help"]):
        print(told(commands()))
        return
    if argv[0] == "--version":
        print(f"lightning_app {__version__}")
        return
    if DRY_RUN in argv and argv[0] != "fit":
        raise InputError(f"{DRY_RUN} is for fit: nothing else takes long enough to ask before")
    command = _command(argv[0])
    if command.place or command.parts:
        from lightning_app.command_line import carry_out

        with imports():
            carry_out(argv[0], command, argv[1:])
        sys.stdout.flush()  # a closed pipe shows here
        return
    if ASKS_HELP & {*argv} and (whole := schema()) is not None:  # else LightningCLI helps
        print(help_of(whole, argv[0], COMMANDS[argv[0]].does, named_classes(configs)))
        return
    given = given_options(argv, configs)
    check_arguments(given)
    _check_by_schema(argv, configs, given)
    fit_in = _fit_in(argv, given)
    began = time.monotonic()  # before the imports, which are a part of the time that a short fit takes
    dry, argv = DRY_RUN in argv, [word for word in argv if word != DRY_RUN]
    _say_begin(argv, given)
    with lasting(), pulse(argv[0]):
        with imports():
            from lightning_app.app import run
        if fit_in is not None:
            from lightning_app.fit_in import sized

            argv = sized(argv, given, fit_in)
        if dry:
            from lightning_app.dry_run import dry_run

            dry_run(argv, began=began)
        else:
            run(argv)


def _say_begin(argv: Sequence[str], given: Mapping[str, Any]) -> None:
    """The first line of a run: the imports take seconds in which there is none."""
    if os.environ.get(RANK, "0") == "0" and "--print_config" not in argv:
        name = option(argv, "name", given.get("name"))
        print(f"{' '.join([argv[0], *([str(name)] if name else [])])}: loading", file=sys.stderr, flush=True)


def _check_by_schema(argv: Sequence[str], configs: Sequence[Config], given: Mapping[str, Any]) -> None:
    """Refuse keys, classes and values that no run has, by the nearest right ones; and a run without a config."""
    if not {"--print_config", *ASKS_HELP} & {*argv} and not any(word.endswith(".help") for word in argv):
        check_config_is_given(argv)
    for path, config in zip(config_paths(argv), configs, strict=True):
        check_config(config, path)
    check_words(argv[1:], named_classes(configs))
    check_texts(argv[0], given)


def _fit_in(argv: Sequence[str], given: Mapping[str, Any]) -> str | None:
    """How long a fit is to take, as it was given; None where it was not.

    Raises:
        InputError: it is not a time.
    """
    fit_in = option(argv, "fit_in", given.get("fit_in"))
    if fit_in is None or argv[0] != "fit":
        return None
    seconds_of(fit_in, option="fit_in")
    return str(fit_in)


@contextmanager
def imports() -> Iterator[None]:
    """Imports make half a million objects that stay. Python's collector would look through them again and again, which
    takes a quarter of the time of the imports; after them it leaves them out."""
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def commands() -> dict[str, Command]:
    """All of the core and of the ideas that are here."""
    return COMMANDS | {name: command for idea in here() for name, command in idea.commands.items()}


def _command(name: str) -> Command:
    """The command of that name.

    Raises:
        InputError: it is not known, or its idea or packages are not here.
    """
    if any(name in idea.commands and not idea.is_here for idea in IDEAS):
        raise InputError(next(idea.missing for idea in IDEAS if name in idea.commands))
    known = commands()
    if name not in known:
        print(told(known), file=sys.stderr)
        raise InputError(unknown(name, known))
    if missing := [package for package in known[name].needs if importlib.util.find_spec(package) is None]:
        raise InputError(f"{name} needs packages that are not here: pip install {' '.join(missing)}")
    return known[name]


def _is_ctrl_c(error: BaseException) -> bool:
    """Lightning turns a KeyboardInterrupt into an exit with code 1."""
    return isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)


def _mistake(error: BaseException | None) -> InputError | None:
    """The InputError behind an error: the parser wraps what a constructor raises."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error
