"""Weights of a model that something wraps, such as a memory, for one that nothing wraps, and the other way round.

What wraps a backbone has it as its part `backbone`: its tensors are `backbone.backbone.NAME`, and those of what wraps
it `backbone.OTHER`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_app.models.backbone import Backbone
from lightning_app.models.model_copy import ModelCopy

if TYPE_CHECKING:
    from lightning_app.training.module import LanguageModule

MODEL, INNER = "backbone.", "backbone."


def is_wrapped(names: Iterable[str]) -> bool:
    """Whether tensors of these names belong to a module whose model is wrapped."""
    return any(name.startswith(MODEL + INNER) for name in names)


def wrapped_as(module: LanguageModule, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a model under the names that they have in `module`, in copies of the model as well.

    What wraps the model of `module` alone has its own tensors in the result; what wraps that of the weights alone has
    none there. Where both are wrapped, or neither, nothing changes.
    """
    own = module.state_dict()
    if is_wrapped(own) == is_wrapped(state):
        return dict(state)
    owners = list(_owners(module))
    if is_wrapped(own):
        around = {name: tensor for name, tensor in own.items() if _is_around(name, owners)}
        return {_renamed(name, owners, "", INNER): tensor for name, tensor in state.items()} | around
    return {_renamed(name, owners, INNER, ""): x for name, x in state.items() if not _is_around(name, owners)}


def added(own: Iterable[str], given: Iterable[str]) -> set[str]:
    """Names of `own` that belong to a part around the model, such as a memory's reader, of which `given` has no tensor;
    none unless both are of wrapped models."""
    own, given = set(own), set(given)
    if not is_wrapped(own) or not is_wrapped(given):
        return set()
    there = {_part(name) for name in given}
    return {name for name in own if _is_around(name, [MODEL]) and _part(name) not in there}


def _part(name: str) -> str:
    """`backbone.readers.0` of `backbone.readers.0.bank.0.vectors`."""
    return ".".join(name.split(".")[:3])


def _owners(module: LanguageModule) -> Iterator[str]:
    """Starts of names: of the model, and of its copies in extensions."""
    yield MODEL
    for name, part in module.named_modules():
        if isinstance(part, ModelCopy) and isinstance(part.module, Backbone):
            yield f"{name}.module."


def _is_around(name: str, owners: Iterable[str]) -> bool:
    return any(name.startswith(owner) and not name.startswith(owner + INNER) for owner in owners)


def _renamed(name: str, owners: Iterable[str], before: str, after: str) -> str:
    owner = next((owner for owner in owners if name.startswith(owner + before)), None)
    return name if owner is None else f"{owner}{after}{name.removeprefix(owner + before)}"
