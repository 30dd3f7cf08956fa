"""Optimizers and schedulers made from what a config says, with its key in whatever they refuse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch

from lightning_app.errors import InputError

Made = TypeVar("Made")
# They want a closure or sparse gradients, which training here has not.
UNFIT = (torch.optim.LBFGS, torch.optim.SparseAdam)


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
