"""LoRA on a pretrained backbone: small matrices beside the frozen ones, by the library peft.

Hu et al. 2021 (arXiv:2106.09685), eq. 3: W x becomes W x + (alpha / r) B A x, where A is (r, inputs), B (outputs, r),
and B begins with zeros. In the names of tensors W is `NAME.base_layer.weight`; A and B are
`NAME.lora_A.default.weight` and `NAME.lora_B.default.weight`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from torch import Tensor, nn

from lightning_app.errors import InputError
from lightning_app.models.backbone import Backbone
from lightning_app.models.registry import build, describe

if TYPE_CHECKING:  # importing peft takes seconds
    from lightning_app.models.pretrained import PretrainedLM

BASE, ADAPTER = "base_layer", "default"  # what peft calls the frozen projection, and ours among several adapters
OF_ADAPTERS = (".lora_A.", ".lora_B.")


@dataclass(frozen=True)
class LoRA:
    """Which projections get adapters. Nothing else of the backbone is trained but what `train` names.

    Args:
        r: rank of the adapters.
        alpha: what they say is multiplied by alpha / r.
        dropout: on what they read.
        target_modules: names of projections, such as [c_attn, c_proj]; None: those that peft takes for the family.
        train: ends of the names of further parameters that are trained, such as [ln_f.weight, ln_f.bias].

    Raises:
        InputError: a number out of range.
    """

    r: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    target_modules: list[str] | None = None
    train: list[str] | None = None

    def __post_init__(self) -> None:
        if self.r < 1:
            raise InputError(f"lora.r is {self.r}; the rank must be at least 1 (lora: null trains the whole model)")
        if self.alpha <= 0:
            raise InputError(f"lora.alpha is {self.alpha}; it must be above 0")
        if not 0 <= self.dropout < 1:
            raise InputError(f"lora.dropout is {self.dropout}; it must lie in [0, 1)")
        if self.target_modules == []:
            raise InputError("lora.target_modules is empty: name projections, or leave it out")


def add_adapters(model: nn.Module, lora: LoRA, *, family: str) -> None:
    """Give a Hugging Face model adapters, in place, and freeze the rest of it.

    Raises:
        InputError: names that the model does not have; a head that is tied to the embedding; a family without a
            default; peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise InputError("lora needs the package peft: pip install peft") from error
    targets = _targets(model, lora, family)
    meant = [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in targets]
    _check_tied(model, meant)
    transposed = any(_holds_columns(module) for module in meant)
    options = LoraConfig(
        r=lora.r,
        lora_alpha=cast(int, lora.alpha),  # peft computes with any number
        lora_dropout=lora.dropout,
        target_modules=targets,
        fan_in_fan_out=transposed,
    )
    inject_adapter_in_model(options, model, ADAPTER)
    for name in lora.train or []:
        _train(model, name)


def _targets(model: nn.Module, lora: LoRA, family: str) -> list[str]:
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    there = {name.rsplit(".", 1)[-1] for name, m in model.named_modules() if _is_projection(m)}
    targets = lora.target_modules or DEFAULTS.get(family)
    if targets is None:
        raise InputError(f"peft has no default for {family!r}: give lora.target_modules, of {', '.join(sorted(there))}")
    if unknown := sorted(set(targets) - there):
        raise InputError(
            f"lora.target_modules names {', '.join(unknown)}, which {family!r} does not have: it has "
            f"{', '.join(sorted(there))}"
        )
    return list(targets)


def _check_tied(model: nn.Module, projections: Iterable[nn.Module]) -> None:
    """Adapters of a matrix that is the embedding, too, could not be merged into it."""
    embeddings = [m.weight for m in model.modules() if isinstance(m, nn.Embedding)]
    for projection in projections:
        if any(projection.get_parameter("weight") is weight for weight in embeddings):
            raise InputError(
                "lora.target_modules names the head, whose matrix is the embedding's, too: leave it out (lora.train "
                "trains the matrix itself: [wte.weight] of GPT-2), or untie them (tie_word_embeddings: false)"
            )


def _is_projection(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or _holds_columns(module)


def _holds_columns(module: nn.Module) -> bool:
    """Hugging Face's Conv1D: a projection whose weight is (inputs, outputs)."""
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, Conv1D)


def _train(model: nn.Module, name: str) -> None:
    meant = [p for own, p in model.named_parameters() if f".{own}".endswith(f".{name}")]
    if not meant:
        raise InputError(f"lora.train names {name!r}, and no parameter's name ends so: see the model's state_dict")
    for parameter in meant:
        parameter.requires_grad_(True)


def adapters_of(projection: nn.Module) -> tuple[nn.Module, nn.Linear, nn.Linear] | None:
    """The frozen projection, A and B, of one with adapters; None for a plain one."""
    if BASE not in projection._modules or "lora_A" not in projection._modules:
        return None
    a, b = (cast(nn.Linear, projection.get_submodule(f"{matrix}.{ADAPTER}")) for matrix in ("lora_A", "lora_B"))
    return projection.get_submodule(BASE), a, b


def has_adapters(names: Iterable[str]) -> bool:
    """Whether tensors of these names belong to a model with adapters."""
    return any(part in name for name in names for part in OF_ADAPTERS)


def named_as(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights `state` of a model without adapters under the names of one with them, whose adapters stay as they
    are in `own`. Where both have adapters, or neither, nothing changes."""
    if has_adapters(state) or not has_adapters(own):
        return dict(state)
    plain = {name.replace(f".{BASE}.", "."): name for name in own}
    kept = {name: tensor for name, tensor in own.items() if has_adapters([name])}
    return {plain.get(name, name): tensor for name, tensor in state.items()} | kept


def merged(backbone: PretrainedLM) -> PretrainedLM:
    """A plain model, on the CPU, that computes the same: W + (alpha / r) B A in the place of W. Heads and neurons that
    are masked or removed are so in it, too. `backbone` stays as it is; without adapters the result is a copy."""
    described = describe(backbone)
    plain: PretrainedLM = build({**described, "options": {**described["options"], "lora": None}})
    plain.load_state_dict(merged_state(backbone))
    return plain.train(backbone.training)


def merged_state(backbone: Backbone) -> dict[str, Tensor]:
    """The `state_dict` of a plain model that computes the same as one with adapters."""
    state = {name.replace(f".{BASE}.", "."): x for name, x in backbone.state_dict().items() if not has_adapters([name])}
    for name, module in backbone.named_modules():
        if adapters_of(module) is not None:
            delta = cast(Any, module).get_delta_weight(ADAPTER)  # peft's: scaled, and transposed for a Conv1D
            state[f"{name}.weight"] = state[f"{name}.weight"] + delta.detach()
    return state
