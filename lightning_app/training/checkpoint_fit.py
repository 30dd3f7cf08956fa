"""Whether the weights of a checkpoint fit a module: in plain words before torch says it tensor by tensor."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.models.registry import Description, describe, differing, is_description
from lightning_app.training.checkpoint_keys import OF_EXTENSIONS
from lightning_app.training.wrapping import added, is_wrapped

if TYPE_CHECKING:
    from lightning_app.training.module import LanguageModule


def check_fits(module: LanguageModule, weights: Mapping[str, Tensor], model: Description | None) -> None:
    """Refuse a checkpoint of another model.

    Args:
        module: in the shape that the checkpoint's model has.
        weights: of the checkpoint.
        model: its description, where it has one.

    Raises:
        InputError: another list of extensions, shape, decisive option or name of a tensor, in this order.
    """
    own = module.state_dict()
    other = own.keys() ^ weights.keys() if module.strict_loading else set()
    other |= {name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape} - _any_length(
        module
    )
    if other and model is not None:
        # see `training.checkpoint.start_from`
        more = added(own, weights)
        anew = all(name.startswith(OF_EXTENSIONS) or name in more for name in other)
        anew = anew or is_wrapped(own) != is_wrapped(weights)
        _check_extensions(extensions_in(describe(module)), extensions_in(model), anew=anew)
    for misfit in _misfits(module, own, weights, model):
        raise InputError(misfit)


def extensions_in(described: Description) -> list[str]:
    """Names of the extensions in the description of a module, each reader of a memory for itself."""
    found = []
    for name, value in described["options"].items():
        for part in value if isinstance(value, list) else [value]:
            if name != "backbone" and is_description(part):
                found += extensions_in(part) or [part["part"].rpartition(".")[2]]
    return found


def _check_extensions(ours: list[str], theirs: list[str], *, anew: bool) -> None:
    """Refuse other extensions; `anew`: a start from the weights alone would take them."""
    missing, extra = Counter(theirs) - Counter(ours), Counter(ours) - Counter(theirs)
    told, remedies = [], []
    if missing:
        told.append(f"this model lacks the checkpoint's {_named(missing)}")
        remedies.append(f"give {_named(missing)} as in the config.yaml of the run that wrote the checkpoint")
    if extra:
        told.append(f"the checkpoint lacks this model's {_named(extra)}")
        remedies.append(f"leave out {_named(extra)}")
    if told:
        remedy = " and ".join(remedies) + (", or start a fit from its weights alone (--init_from)" if anew else "")
        raise InputError(f"{', and '.join(told)}: {remedy}")


def _named(extensions: Counter[str]) -> str:
    return ", ".join(extensions.elements())


def _any_length(module: LanguageModule) -> set[str]:
    """Names of the tensors that take the length that a checkpoint has."""
    return {f"{part}.{name}" for part, x in module.named_modules() for name in getattr(x, "any_length", ())}


def _misfits(
    module: LanguageModule, own: Mapping[str, Tensor], given: Mapping[str, Tensor], model: Description | None
) -> Iterator[str]:
    any_length = _any_length(module)
    for name, tensor in given.items():
        if name in own and name not in any_length and own[name].shape != tensor.shape:
            yield (
                f"the checkpoint's {name} has shape {tuple(tensor.shape)}, this model's {tuple(own[name].shape)}: "
                "give the options (or the tokenizer) that the checkpoint was trained with"
            )
    for option, ours, theirs in differing(describe(module), model) if model is not None else ():
        yield (
            f"the checkpoint's model has {option} {theirs}, this one {ours}: give the options that the checkpoint was "
            "trained with"
        )
    for names, where in ((own.keys() - given.keys(), "checkpoint"), (given.keys() - own.keys(), "model")):
        if names and module.strict_loading:
            yield f"the {where} lacks {len(names)} tensors, such as {sorted(names)[0]}: it belongs to another config"
