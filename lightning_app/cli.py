"""The command line: `python main.py {fit,validate,test,predict,prepare,generate,chat,export,serve,compare,...}`.

Importing Lightning takes seconds, so cheap mistakes are looked for (`cli_checks`) before anything heavy is imported.
"""

from __future__ import annotations

import gc
import importlib.util
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from lightning_app.cli_checks import Config, check_arguments, given_options, named_classes, option, read_configs
from lightning_app.duration import seconds_of
from lightning_app.errors import InputError
from lightning_app.former import words_of_today
from lightning_app.plugins import IDEAS, load
from lightning_app.streams import drop, lasting
from lightning_app.utf8 import restart_in_utf8_mode, use_utf8_streams

COMMANDS = {  # those without a trainer
    "generate": "lightning_app.serving.generate:command",
    "chat": "lightning_app.serving.chat:command",
    "serve": "lightning_app.serving.serve:command",
    "export": "lightning_app.export.command:command",
    "compress": "lightning_app.compression.command:compress_command",
    "decompress": "lightning_app.compression.command:decompress_command",
    "compare": "lightning_app.reports.compare.command:command",
    "report": "lightning_app.reports.report:command",
}
DRY_RUN = "--dry_run"
NEEDED = {"serve": ("fastapi", "uvicorn")}  # by a command: pyproject's extra


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
    argv = [word for word in given if word != "--debug"]
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
    if DRY_RUN in argv and argv[0] != "fit":
        raise InputError(f"{DRY_RUN} is for fit: nothing else takes long enough to ask before")
    with imports():
        command = _command(argv[0]) if argv else None
    if command is not None:
        command(argv[1:])
        sys.stdout.flush()  # a closed pipe shows here
        return
    given = given_options(argv, configs)
    check_arguments(given)
    fit_in = _fit_in(argv, given)
    began = time.monotonic()  # before the imports, which are a part of the time that a short fit takes
    dry, argv = DRY_RUN in argv, [word for word in argv if word != DRY_RUN]
    with lasting():
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


def _command(name: str) -> Callable[[list[str]], None] | None:
    """The function that carries out a command without a trainer; None: it has one."""
    if name in COMMANDS:
        if missing := [package for package in NEEDED.get(name, ()) if importlib.util.find_spec(package) is None]:
            raise InputError(f"{name} needs packages that are not here: pip install {' '.join(missing)}")
        return load(COMMANDS[name])
    idea = next((idea for idea in IDEAS if name in idea.commands), None)
    return idea.load(idea.commands[name]) if idea else None


def _is_ctrl_c(error: BaseException) -> bool:
    """Lightning turns a KeyboardInterrupt into an exit with code 1."""
    return isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)


def _mistake(error: BaseException | None) -> InputError | None:
    """The InputError behind an error: the parser wraps what a constructor raises."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error
