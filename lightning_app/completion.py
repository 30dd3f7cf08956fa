"""`lightning-app completion SHELL`: what a shell completes, from the same tables as the help."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import cyclopts

from lightning_app.command_line import PARAMETERS, add
from lightning_app.program import INSTALLED
from lightning_app.schema.find import keys

PATHS = ("config", "ckpt_path", "init_from")
FLAGS = ("dry_run", "debug")


def completion(shell: Literal["bash", "zsh", "fish"], /) -> None:
    """Print a script that completes commands, options and choices of `lightning-app`.

    For example `lightning-app completion bash >> ~/.bashrc`.

    Args:
        shell: which one.
    """
    from lightning_app.cli import commands

    app = cyclopts.App(name=INSTALLED, version_flags=(), default_parameter=PARAMETERS)
    for name, command in commands().items():
        if command.place or command.parts:
            add(app, name, command)
        else:
            app.command(_with_trainer(command.does), name=name)
    print(app.generate_completion(prog_name=INSTALLED, shell=shell))


def _with_trainer(does: str) -> Callable[..., None]:
    """A function with the options of a command with a trainer, which LightningCLI carries out."""

    def command(**options: Any) -> None:
        raise NotImplementedError

    command.__doc__ = does
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [_option(name) for name in dict.fromkeys((*PATHS, *FLAGS, *filter(_is_usual, keys())))]
    )
    return command


def _is_usual(key: str) -> bool:
    """False of what belongs to a part of the Trainer: there are many, which are seldom changed."""
    return not key.startswith("trainer.") or key.count(".") == 1


def _option(name: str) -> inspect.Parameter:
    kind: Any = bool if name in FLAGS else Path if name in PATHS else str
    told = Annotated[kind | None, cyclopts.Parameter(name=f"--{name}")]
    place = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(name.replace(".", "__"), place, default=None, annotation=told)
