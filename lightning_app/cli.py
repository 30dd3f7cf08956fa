"""The command line: `python main.py {fit,validate,test,predict,prepare,generate,chat,export,serve,compare,...}`.

Importing Lightning takes seconds, so cheap mistakes are looked for (`cli_checks`) before anything heavy is imported.
"""

from __future__ import annotations

import importlib
import importlib.util
import signal
import sys
from collections.abc import Sequence

from lightning_app.cli_checks import check_arguments
from lightning_app.errors import InputError
from lightning_app.streams import drop, lasting
from lightning_app.utf8 import restart_in_utf8_mode, use_utf8_streams

COMMANDS = {  # those without a trainer: a module each, with a function `command`
    **{name: f"inference.{name}" for name in ("generate", "chat", "export", "serve", "memory", "categories")},
    "compare": "reports.compare.command",
    "report": "reports.report",
}
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
        _run(argv)
    except ValueError as error:
        mistake = _mistake(error)
        if mistake is None or argv != given:
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


def _run(argv: list[str]) -> None:
    if argv[:1] and argv[0] in COMMANDS:
        if missing := [name for name in NEEDED.get(argv[0], ()) if importlib.util.find_spec(name) is None]:
            raise InputError(f"{argv[0]} needs packages that are not here: pip install {' '.join(missing)}")
        importlib.import_module(f"lightning_app.{COMMANDS[argv[0]]}").command(argv[1:])
        sys.stdout.flush()  # a closed pipe shows here
        return
    check_arguments(argv)
    with lasting():
        from lightning_app.harness import run

        run(argv)


def _is_ctrl_c(error: BaseException) -> bool:
    """Lightning turns a KeyboardInterrupt into an exit with code 1."""
    return isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt)


def _mistake(error: BaseException | None) -> InputError | None:
    """The InputError behind an error: the parser wraps what a constructor raises."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error
