"""One optimizer of several, each for a part of the parameters."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, get_args

import torch
from lightning.pytorch.cli import OptimizerCallable

from lightning_app.errors import InputError
from lightning_app.models.matrices import Kind
from lightning_app.models.registry import class_path
from lightning_app.training.groups import Groups
from lightning_app.training.optimizers import made, some

KEY = "model.init_args.optimizer"
REST = "the rest"


@dataclass(frozen=True)
class Entry:
    """An entry of the list.

    Attributes:
        optimizer: of the parameters that the entry takes.
        match: a kind of parameters (`matrices`, `embeddings`, `vectors` or `others`, see `Role`), or a regular
            expression that is searched in their names; None: all that no other entry takes.
    """

    optimizer: OptimizerCallable
    match: str | None = None


class OptimizerByParts(torch.optim.Optimizer):
    """Steps several optimizers as one. Its groups are theirs, and so is its state: one dictionary that all share.

    In YAML a list under `optimizer`: each parameter goes to the first entry whose `match` fits, see `Entry`.

    Args:
        params: of a LanguageModule.
        parts: the entries of the list.

    Raises:
        InputError: a parameter that no entry takes, an entry that takes none, two entries without a `match`.
    """

    def __init__(self, params: Any, parts: list[Entry]):
        if not isinstance(params, Groups):
            raise InputError("an optimizer by parts needs the names of parameters: give it to a LanguageModule")
        kinds = {name: params.roles[name].kind for name, _ in params.trained}
        taken = shared_out([part.match for part in parts], kinds)
        self.parts = [
            made(f"{KEY}.{i}", part.optimizer, params.of(names))
            for i, (part, names) in enumerate(zip(parts, taken, strict=True))
        ]
        self._matches = [part.match for part in parts]
        for part, match in zip(self.parts, self._matches, strict=True):
            for group in part.param_groups:
                group["part"] = match or REST  # for pages
        super().__init__(list(chain.from_iterable(part.param_groups for part in self.parts)), {})
        for part in self.parts:  # Adagrad's has something from the start
            self.state.update(part.state)
        self._share()

    def _share(self) -> None:
        first = 0
        for part in self.parts:
            last = first + len(part.param_groups)
            part.state, part.param_groups, first = self.state, self.param_groups[first:last], last

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "parts": self.parts, "_matches": self._matches}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Also called by `load_state_dict`, with new groups and a new state."""
        super().__setstate__(state)
        self._share()
        for part in self.parts:
            part.__setstate__({"state": self.state, "param_groups": part.param_groups})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part in self.parts:
            part.step()
        return loss

    def described(self) -> str:
        """Which class has which part."""
        found = zip(self.parts, self._matches, strict=True)
        return ", ".join(f"{class_path(part)} ({match or REST})" for part, match in found)


def optimizer_class(optimizer: torch.optim.Optimizer) -> str:
    """What a checkpoint's state is of."""
    return optimizer.described() if isinstance(optimizer, OptimizerByParts) else class_path(optimizer)


def shared_out(matches: Sequence[str | None], kinds: Mapping[str, Kind]) -> list[list[str]]:
    """The names of the parameters that each entry of the list takes.

    Args:
        matches: of the entries.
        kinds: by name of each parameter.

    Raises:
        InputError: as `OptimizerByParts`, or a `match` that is not a regular expression.
    """
    if not matches:
        raise InputError(f"{KEY} is an empty list; give it an entry, or leave it out for AdamW")
    rests = [i for i, match in enumerate(matches) if match is None]
    if len(rests) > 1:
        raise InputError(f"{KEY}.{rests[0]} and {KEY}.{rests[1]} have no match: one entry alone takes the rest")
    fitting = [None if match is None else _fitting(match, kinds, f"{KEY}.{i}") for i, match in enumerate(matches)]
    taken: list[list[str]] = [[] for _ in matches]
    for name in kinds:
        first = next((i for i, names in enumerate(fitting) if names is not None and name in names), None)
        owner = first if first is not None else next(iter(rests), None)
        if owner is not None:
            taken[owner].append(name)
    if lost := sorted(kinds.keys() - set(chain.from_iterable(taken)), key=list(kinds).index):
        raise InputError(f"{KEY}: no entry takes {some(lost)}; add an entry without match, which takes the rest")
    for i, names in enumerate(taken):
        if not names:
            raise InputError(f"{KEY}.{i} {_why_empty(matches[i], fitting[i], kinds)}")
    return taken


def _fitting(match: str, kinds: Mapping[str, Kind], key: str) -> list[str]:
    if match in get_args(Kind):
        return [name for name, kind in kinds.items() if kind == match]
    try:
        return [name for name in kinds if re.search(match, name)]
    except re.error as error:
        raise InputError(f"{key} has the match {match!r}, which is not a regular expression: {error}") from None


def _why_empty(match: str | None, fitting: list[str] | None, kinds: Mapping[str, Kind]) -> str:
    if match is None:
        return "has no match, and the other entries take all parameters: leave it out"
    if fitting:
        return f"matches {match!r}, and entries before it take {some(fitting)}: put it before them, or leave it out"
    return f"matches {match!r}, which fits no trained parameter; there are {some(list(kinds))}"
