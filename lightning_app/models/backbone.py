"""The contract that every language model of this project keeps, whatever its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from types import MethodType
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from lightning_app.data.batch import Batch

MASK, GATE = "unit_mask", "unit_gate"  # buffers of a projection whose inputs are masked and gated


@dataclass(frozen=True)
class HiddenStates:
    """What `Backbone.hidden` returns.

    Attributes:
        last: (B, T, D), the state that `logits` reads (after the final normalisation).
        layers: (B, T, D) each, by layer index, for the layers that were asked for.
    """

    last: Tensor
    layers: dict[int, Tensor] = field(default_factory=dict)

    def detached(self) -> HiddenStates:
        """Without the graph that a backward needs."""
        return HiddenStates(self.last.detach(), {i: state.detach() for i, state in self.layers.items()})


@dataclass(frozen=True)
class Forward:
    """What `Backbone.run_batch` returns.

    Attributes:
        states: those that the logits were computed from, and the layers asked for.
        logits: (B, T, V).
    """

    states: HiddenStates
    logits: Tensor

    @property
    def plain_states(self) -> HiddenStates:
        """The states before memory reads are added."""
        return self.states

    def detached(self) -> Forward:
        """Without the logits, and the graph that a backward needs."""
        return replace(self, states=self.states.detached(), logits=self.logits.new_empty(0))


@dataclass(frozen=True)
class Outputs:
    """What a step saw and computed: all that extensions may look at.

    Attributes:
        ids: (B, T) input ids, as read from the batch (before `token_noise`).
        targets: (B, T) next ids, IGNORE where nothing is to be predicted.
        mask: (B, T) bool, False on padding.
        document_ids: (B, T), -1 on padding.
        states: last state (B, T, D) and those of `Extension.layers`.
        logits: (B, T, V).
        forward: all that the backbone gave, see `Backbone.run_batch`; None: states and logits alone.
    """

    ids: Tensor
    targets: Tensor
    mask: Tensor
    document_ids: Tensor
    states: HiddenStates
    logits: Tensor
    forward: Forward | None = None

    @classmethod
    def of(cls, batch: Batch, forward: Forward) -> Outputs:
        """What the backbone gave for a batch."""
        known = batch.input_ids, batch.targets, batch.attention_mask, batch.document_ids
        return cls(*known, forward.states, forward.logits, forward)

    @property
    def plain_states(self) -> HiddenStates:
        """The states before memory reads are added."""
        return self.states if self.forward is None else self.forward.plain_states

    def detached(self) -> Outputs:
        """What `learn` may look at: all but the logits, without the graph that a backward needs."""
        forward = None if self.forward is None else self.forward.detached()
        return replace(self, states=self.states.detached(), logits=self.logits.new_empty(0), forward=forward)


class Cache(Protocol):
    """Keys and values of the positions seen so far; made by `Backbone.new_cache`, opaque to everybody else."""

    @property
    def length(self) -> int:
        """Positions held."""

    def kept(self, rows: Sequence[int]) -> Cache | None:
        """These rows alone; None where this kind of cache cannot tell them apart."""

    def joined(self, other: Any) -> Cache | None:
        """Its rows and then those of another one, the shorter of both padded on the left; None where it cannot."""


class Shaped(Protocol):
    """Parts of a backbone that can be cut out of it, all of one kind."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing and nothing masked."""

    @property
    def removed(self) -> int:
        """How many are missing."""

    def layout(self) -> dict[str, Any]:
        """What is there, in plain types."""

    def fold_mask(self) -> None:
        """Write zeros for what is masked, so that nothing has to be multiplied by 0 any more."""

    def fill_removed(self) -> None:
        """Bring back, as zeros, what was removed: the model computes what it did, in the shape that it had at first."""


class Backbone(nn.Module, ABC):
    """A causal language model in three steps: `embed`, `hidden`, `logits`.

    Attributes:
        vocab_size: V, number of ids, spare ones included.
        width: D of `embed` and `hidden`.
        max_length: the most positions that a sequence may have; None where there is no limit.
        attention_width: sum over the layers of heads x head size, for counting FLOPs; follows when heads are removed.
        units: what can be cut out of it, by kind, once it was asked for. A deep copy has its own.
        source: where its weights came from, if they were loaded.
        no_graph: why its forward cannot be written as a graph of tensor operations; empty where it can.
    """

    no_graph: ClassVar[str] = ""
    source: str | None = None

    vocab_size: int
    width: int
    max_length: int | None
    attention_width: int

    def __init__(self) -> None:
        super().__init__()
        self.units: dict[str, Shaped] = {}

    def special_ids(self) -> dict[str, set[int]]:
        """The ids that its training took as "bos" and "eos", as far as that is known."""
        return {}

    @abstractmethod
    def embed(self, ids: Tensor) -> Tensor:
        """(B, T) ids -> (B, T, D) token embeddings; positions are added by `hidden`."""

    @abstractmethod
    def hidden(
        self,
        embeddings: Tensor,
        *,
        mask: Tensor | None = None,
        cache: Cache | None = None,
        layers: Sequence[int] = (),
    ) -> HiddenStates:
        """(B, T, D) embeddings -> states.

        Args:
            embeddings: (B, T, D).
            mask: (B, P + T) bool, False on padding, over the P positions in the cache and the T new ones. Rows padded
                on the left get their positions from it. Not needed for padding on the right: no real token sees it.
            cache: extended in place by the T new positions.
            layers: indices of the layers whose states are wanted besides the last one.
        """

    @abstractmethod
    def logits(self, hidden: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, V), with the family's own scaling."""

    def next_logits(self, ids: Tensor, *, mask: Tensor | None, cache: Cache | None, recent: Tensor) -> Tensor:
        """(B, V) behind the last of (B, T) new ids of a generation; see `hidden`.

        Args:
            recent: (B, K) the last tokens of each text, -1 before its first; what is not in the states needs them.
        """
        states = self.hidden(self.embed(ids), mask=mask, cache=cache)
        return self.logits(states.last[:, -1:])[:, -1]

    @abstractmethod
    def new_cache(self, batch_size: int) -> Cache:
        """An empty cache for `batch_size` rows."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The arguments of `__init__` that rebuild this model, in plain types."""

    @classmethod
    def decisive(cls, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options of `config` that change what is computed from the same weights."""
        return {}

    def flops_per_token(self, length: int) -> int:
        """FLOPs of one training step per token: 6 per matrix weight, 12 per attention weight and position.

        Chowdhery et al. 2022 (PaLM, arXiv:2204.02311), appendix B: a multiplication and an addition, once forward and
        twice backward; without a discount for the causal half. Look-ups of embeddings cost nothing, a tied output
        matrix does.
        """
        matrices = sum(m.weight.numel() for m in self.modules() if isinstance(m, nn.Linear))
        return 6 * matrices + 12 * self.attention_width * length

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a text, as its source says; empty where nobody said."""
        return frozenset()

    @property
    def sampling(self) -> dict[str, Any]:
        """The fields of `GenerationOptions` that its source has of its own; empty where nobody said."""
        return {}

    @property
    def not_offered(self) -> dict[str, Any]:
        """Sampling settings of the source that no option here stands for, by transformers' names."""
        return {}

    @property
    def core(self) -> Backbone:
        """The language model within what wraps it; itself where nothing does."""
        return self

    @property
    def without_memory(self) -> Backbone:
        """The same model, of the same weights, that reads from no memory."""
        return self

    @property
    def of_states(self) -> Backbone:
        """The model without what `next_logits` reads beside the states: `logits` of a state is all of it."""
        return self

    @property
    def most_rows(self) -> int | None:
        """The most rows of a batch; None: any number."""
        return None

    @property
    def longest_text(self) -> int | None:
        """The most tokens that `states` takes; None where there is no limit."""
        return self.max_length

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """Its layers in their order, each called as a module: what is sharded one by one. None: it is one piece."""
        return ()

    @property
    def segment(self) -> int:
        """A whole block has a multiple of so many tokens."""
        return 1

    def outside_session(self) -> AbstractContextManager[None]:
        """For as long as this lasts, what a text that is being generated has left in the model is not there."""
        return nullcontext()

    def attention_visible(self) -> AbstractContextManager[None]:
        """For as long as this lasts, attention modules return their probabilities too, at whatever cost."""
        return nullcontext()

    def states(self, ids: Tensor, *, layers: Sequence[int] = ()) -> HiddenStates:
        """(B, T) ids of whole texts, padded on the right, -> states."""
        return self.hidden(self.embed(ids), layers=layers)

    def hidden_of_texts(self, embeddings: Tensor, *, layers: Sequence[int] = ()) -> HiddenStates:
        """`hidden` of whole texts, padded on the right; a generation calls `hidden` itself."""
        return self.hidden(embeddings, layers=layers)

    def compile_texts(self) -> None:
        """Let `torch.compile` have what runs whole texts. A copy made later runs its own weights."""
        core = self.core
        for name in ("states", "hidden_of_texts"):
            method = MethodType(torch.compile(getattr(type(core), name)), core)  # a copy's is bound to the copy
            setattr(core, name, method)

    def text_logits(self, ids: Tensor) -> Tensor:
        """(B, T) ids of whole texts, padded on the right, -> (B, T, V) without memory reads."""
        return self.logits(self.states(ids).last)

    def run_batch(self, ids: Tensor, batch: Batch, *, layers: Sequence[int] = ()) -> Forward:
        """A batch, memory reads included.

        Args:
            ids: (B, T) the batch's own, or those with noise.
            batch: says where the ids are from.
            layers: see `hidden`.
        """
        states = self.states(ids, layers=layers)
        return Forward(states, self.logits(states.last))

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T) ids -> (B, T, V) logits."""
        return self.logits(self.hidden(self.embed(ids), mask=mask).last)
