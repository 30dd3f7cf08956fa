"""Optimizers and schedulers made from what a config says, with its key in whatever they refuse."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch

from lightning_app.errors import InputError
from lightning_app.training.schedules import SCHEDULED

Made = TypeVar("Made")
# They want a closure or sparse gradients, which training here has not.
UNFIT = (torch.optim.LBFGS, torch.optim.SparseAdam)
FOLLOWING = ("lr", *SCHEDULED)  # numbers of a group that may follow the steps


def made(key: str, make: Callable[[Any], Made] | None, argument: Any) -> Made:
    """`make(argument)`, an optimizer or a scheduler.

    Raises:
        InputError: it refuses its numbers, or cannot train these models.
    """
    if make is None:
        raise InputError(f"{key} is null; leave it out for AdamW, or give a class of torch.optim")
    try:
        result = make(argument)
    except InputError:
        raise
    except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError) as error:
        raise InputError(f"{key}: {str(error).partition(chr(10))[0]}") from error
    if isinstance(result, UNFIT):
        raise InputError(f"{key} is {type(result).__name__}, which cannot train here: take AdamW, SGD or another one")
    return result


def some(names: Sequence[str], most: int = 3) -> str:
    """The first of several names, for a message of one line."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def group_options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The numbers of each parameter group in plain types; where one has a schedule, that which it starts from."""
    groups = []
    for group in optimizer.param_groups:
        options = {name: _plain(value) for name, value in group.items() if name != "params"}
        options |= {name: options.pop(f"initial_{name}") for name in FOLLOWING if f"initial_{name}" in options}
        groups.append({name: x for name, x in options.items() if _is_plain(x)} | {"lr": float(options["lr"])})
    return groups


def scheduler_options(scheduler: Any) -> dict[str, Any]:
    """The arguments of a scheduler that it keeps under their names, in plain types."""
    names = inspect.signature(type(scheduler)).parameters.keys() - {"last_epoch"}
    found = {name: _plain(value) for name, value in vars(scheduler).items() if name in names}
    return {name: value for name, value in found.items() if _is_plain(value)}


def change_group(group: dict[str, Any], name: str, value: Any, *, before: Any) -> None:
    """Set one number of a parameter group; all its learning rates go on in proportion."""
    if name != "lr":
        for key in {name, f"initial_{name}"} & group.keys():
            group[key] = tuple(value) if isinstance(value, list) else value
        return
    for key in {"lr", "initial_lr"} & group.keys():
        group[key] = group[key] * (value / before)


def _plain(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    return list(value) if isinstance(value, tuple) else value


def _is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(_is_plain(x) for x in value)
    return value is None or isinstance(value, bool | int | float | str)
