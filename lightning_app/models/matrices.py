"""What the parameters of a model are: embeddings, matrices of its blocks, vectors; and which matrices hold several.

Shapes: H query heads, G groups of keys and values, K head size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import gcd
from typing import Any, Literal

from torch import Tensor, nn

Kind = Literal["matrices", "embeddings", "vectors", "others"]
# Queries, keys and values in one matrix: its name, and that of the projection which reads what they make.
ONE_AFTER_THE_OTHER = (("c_attn", "c_proj"), ("qkv_proj", "o_proj"), ("Wqkv", "out_proj"))  # GPT-2, Phi-3, MPT
BY_GROUP = (("query_key_value", "dense"),)  # q, k and v of each group of heads: BLOOM, GPT-NeoX, Falcon
GATES_AND_VALUES = (("c_fc", "c_proj"), ("gate_up_proj", "down_proj"))


@dataclass(frozen=True)
class Layout:
    """Where the matrices lie that one parameter holds. It stays the same when heads or neurons are removed.

    Attributes:
        transposed: (inputs, outputs) as Hugging Face's Conv1D has it, rather than (outputs, inputs).
        shares: of the outputs that each matrix has, in their order: [4, 1, 1] are q, k and v with H = 4 G.
        each: outputs of one share where the order starts again with each group of heads (K); None: it does not.
    """

    transposed: bool = False
    shares: tuple[int, ...] = (1,)
    each: int | None = None

    def pieces(self, matrix: Tensor) -> Sequence[Tensor]:
        """Views (periods, outputs of each, inputs), one for each of the matrices."""
        rows = matrix.mT if self.transposed else matrix
        each = self.each or rows.shape[0] // sum(self.shares)
        periods = rows.unflatten(0, (-1, sum(self.shares) * each))
        return periods.split([share * each for share in self.shares], dim=1)

    def plain(self) -> dict[str, Any]:
        """Its arguments in plain types."""
        return {"transposed": self.transposed, "shares": list(self.shares), "each": self.each}

    @classmethod
    def of(cls, plain: dict[str, Any]) -> Layout:
        return cls(plain["transposed"], tuple(plain["shares"]), plain["each"])


@dataclass(frozen=True)
class Role:
    """What a parameter is for.

    Attributes:
        kind: `embeddings` (positions, and a head that is tied to one), `matrices` (of the blocks), `vectors` (biases,
            norms) or `others` (an untied head, layers outside of the blocks).
        layout: of a matrix.
    """

    kind: Kind
    layout: Layout = field(default_factory=Layout)


def roles_of(module: nn.Module, blocks: Sequence[nn.Module]) -> dict[str, Role]:
    """The role of each parameter, by its name in `module`. FSDP shows shards: look before it wraps.

    Args:
        module: what is trained.
        blocks: of its model.
    """
    embeddings = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    in_blocks = {id(parameter) for block in blocks for parameter in block.parameters()}
    layouts = {id(weight): layout for block in blocks for weight, layout in _layouts(block)}

    def role(parameter: nn.Parameter) -> Role:
        if id(parameter) in embeddings:
            return Role("embeddings")
        if parameter.dim() < 2:
            return Role("vectors")
        is_matrix = id(parameter) in in_blocks and parameter.dim() == 2
        return Role("matrices" if is_matrix else "others", layouts.get(id(parameter), Layout()))

    return {name: role(parameter) for name, parameter in module.named_parameters()}


def _layouts(block: nn.Module) -> Iterator[tuple[nn.Parameter, Layout]]:
    for parent in block.modules():
        for name, child in parent.named_children():
            weight = child._parameters.get("weight")
            if weight is not None and weight.dim() == 2:
                shares, each = _shares(parent, name)
                yield weight, Layout(_is_transposed(child), shares, each)


def _shares(parent: nn.Module, name: str) -> tuple[tuple[int, ...], int | None]:
    """`shares` and `each` of the Layout of a child."""
    fused = _sizes(parent, name, ONE_AFTER_THE_OTHER)
    if fused is not None and vars(parent).get("multi_query") is not False:  # GPTBigCode without it: head by head
        return _of_queries(*fused), None
    fused = fused or _sizes(parent, name, BY_GROUP)
    if fused is not None and (K := next((vars(parent)[x] for x in ("head_dim", "head_size") if x in vars(parent)), 0)):
        shares = _of_queries(*fused)
        return (shares, K) if shares[1:] == (1, 1) else ((1,), None)
    gated = _sizes(parent, name, GATES_AND_VALUES)
    return ((1, 1) if gated is not None and gated[0] == 2 * gated[1] else (1,)), None


def _of_queries(outputs: int, q: int) -> tuple[int, ...]:
    """[H, G, G] in the smallest numbers."""
    kv, odd = divmod(outputs - q, 2)
    common = gcd(q, kv)
    return (q // common, kv // common, kv // common) if kv > 0 and not odd else (1,)


def _sizes(parent: nn.Module, name: str, pairs: Sequence[tuple[str, str]]) -> tuple[int, int] | None:
    """Outputs of a child, and inputs of its partner in `pairs`; None: it has none."""
    for into, out in pairs:
        partner = parent._modules.get(out)
        if name == into and partner is not None and isinstance(weight := getattr(partner, "weight", None), Tensor):
            own = parent.get_submodule(name)
            outputs = own.get_parameter("weight").shape[1 if _is_transposed(own) else 0]
            return outputs, weight.shape[0 if _is_transposed(partner) else 1]
    return None


def _is_transposed(projection: nn.Module) -> bool:
    """Hugging Face's Conv1D, by its name: importing it takes a second."""
    return type(projection).__name__ == "Conv1D"
