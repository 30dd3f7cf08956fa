"""Extension: how an idea joins a language model. One list, one order, hooks that do nothing by default.

Shapes: B rows, T positions, D width, V vocabulary.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lightning_app.models.backbone import Backbone
from lightning_app.models.backbone import Outputs as Outputs
from lightning_app.models.registry import find_class
from lightning_app.models.stored import Draw, Stored
from lightning_app.models.weighing import Over, Terms

if TYPE_CHECKING:
    from lightning_app.data.datamodule import TextDataModule
    from lightning_app.data.tokenizers import Tokenizer


@dataclass(frozen=True)
class Found:
    """A text that belongs before a prompt, and the name of the document that it is from."""

    text: str
    document: str


class Extension(nn.Module):
    """Joins a LanguageModule by `model.init_args.extensions`. Hooks stand in the order in which they are called.

    Attributes:
        layers: indices of the layers whose states it needs, besides the last state.
        means_over: what each loss term is a mean over, by its name: "targets" (tokens that are predicted), "tokens"
            (those that are not padding) or "texts" (rows). `terms` gives the mean of its batch; a step has the mean
            over what all its batches have on all ranks. A term without a name here has the mean of the batches.
        over_ranks: whether the terms that it gives in training are means over all ranks already.
        on_bar: those of the numbers of `after_step` that the progress bar shows.
        group: registered name of the extension that joins the model for all of this kind in the list; None: each joins
            by itself.
        model: the model without what is read from memories; from `attach` on.
    """

    layers: tuple[int, ...] = ()
    means_over: Mapping[str, Over] = {}
    over_ranks = False
    on_bar: tuple[str, ...] = ()
    group: str | None = None
    model: Backbone

    def config(self) -> dict[str, Any]:
        """The arguments of `__init__` that rebuild it, in plain types."""
        return {}

    # It joins a model. A copy of that which it keeps is a `ModelCopy`, and loses the heads that the model loses.

    def wrap(self, backbone: Backbone) -> Backbone:
        """The model that runs, generates and is exported in its place: with an input, states or logits changed."""
        return backbone

    def unwrap(self, backbone: Backbone) -> Backbone:
        """What `wrap` was given, from what it gave."""
        return backbone

    def attach(self, model: Backbone) -> None:
        """Make what depends on the model, as new; called when all have wrapped it, and again where the module has taken
        its weights from a checkpoint that lacks this extension."""
        object.__setattr__(self, "model", model)  # not as a part: its parameters belong to the module

    def use_data(self, data: TextDataModule, *, stage: str, rank: int) -> None:
        """Called in `setup` with the data of the fit, evaluation or prediction."""

    # A batch

    def terms(self, outputs: Outputs) -> Terms:
        """Weight and value of loss terms by name, each a scalar with a gradient. Changes nothing."""
        return {}

    def measures(self, outputs: Outputs, *, training: bool) -> dict[str, Tensor]:
        """Scalars to be logged, not in a prediction; in every batch the same names, as ranks log together."""
        return {}

    def describe(self, outputs: Outputs) -> dict[str, Tensor]:
        """What it says of each sequence, (B,) by name: a line of `predict`; means of floats and bools are logged."""
        return {}

    # A step, once the optimizer has done it

    def learn_step(self, seen: Sequence[Outputs]) -> None:
        """Learn from the batches of an optimizer step (not from their logits), without gradients; on every rank the
        same."""

    def after_step(self) -> dict[str, float]:
        """Called after `learn_step` -> numbers to log."""
        return {}

    def learned_buffers(self) -> Iterable[Tensor]:
        """Buffers that ranks keep equal by learning the same, so that DDP need not send them around."""
        return self.buffers()

    # An evaluation, a prediction or a generated text: what it changes is a copy, which is forgotten at the end

    def begin_evaluation(self) -> None:
        """From here on, write to a copy."""

    def after_evaluation_batch(self, outputs: Outputs) -> None:
        """Called at the end of each of its batches."""

    def after_validation(self) -> None:
        """Called behind the last batch of each validation of a fit, on all ranks: some may have had no batch."""

    def end_evaluation(self) -> None:
        """Forget the copy. Called also where none has begun."""

    @property
    def adapts(self) -> bool:
        """Whether what an evaluation has read changes what is said of the rest of it."""
        return False

    @contextmanager
    def counting(self) -> Iterator[bool]:
        """Within this context an evaluation counts what it has read, too, where this extension can: whether it can."""
        yield False

    def during_generation(self, tokens: Iterator[Tensor], ids: Tensor) -> Iterator[Tensor]:
        """The tokens, (B,) each, that continue (B, T) ids; what is between two of them is this extension's time."""
        return tokens

    @property
    def finds(self) -> bool:
        """Whether `found_for` may find something."""
        return False

    def found_for(self, prompt: str, tokenizer: Tokenizer) -> Sequence[Found]:
        """Texts to put before a prompt, in this order."""
        return ()

    @property
    def texts_share_batches(self) -> bool:
        """Whether a text that is continued beside others gets the tokens that it gets alone."""
        return True

    # What it keeps

    def stored(self, draw: Draw, tokenizer: Tokenizer) -> Iterator[tuple[str, Stored]]:
        """Name and content of its stores of vectors that are not empty; `draw` says which vectors of each."""
        return iter(())

    def own_state(self) -> dict[str, Any]:
        """What it keeps beside tensors, in plain types, under keys that no other extension has."""
        return {}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        """Take its part of what a checkpoint has; a key may be missing."""


class Regularizer(Extension, ABC):
    """An extension of further loss terms that share a weight, with a state of its own in buffers.

    Args:
        weight: of every term in the total loss; at 0 terms are computed without a gradient, to be logged.
        layers: indices of the layers whose states `loss` and `learn` need, besides the last state.
    """

    def __init__(self, weight: float = 1.0, layers: tuple[int, ...] = ()):
        super().__init__()
        self.weight, self.layers = weight, layers

    def config(self) -> dict[str, Any]:
        """One with other arguments adds them."""
        return {"weight": self.weight, "layers": list(self.layers)}

    @abstractmethod
    def loss(self, outputs: Outputs) -> dict[str, Tensor]:
        """Terms by name, each a scalar with a gradient. Changes nothing."""

    def terms(self, outputs: Outputs) -> Terms:
        weight = self.weight
        with torch.set_grad_enabled(torch.is_grad_enabled() and weight != 0):
            return {name: (weight, term) for name, term in self.loss(outputs).items()}

    def learn(self, outputs: Outputs) -> None:
        """Update buffers from a batch of the step."""

    def learn_step(self, seen: Sequence[Outputs]) -> None:
        """Overridden where it matters how a step is cut into batches."""
        for outputs in seen:
            self.learn(outputs)


def grouped(extensions: Sequence[Extension]) -> list[Extension]:
    """With those of one `group` as one extension, in the place of the first."""
    found: dict[object, Extension] = {}
    for extension in extensions:
        if extension.group is None:
            found[extension] = extension
        elif extension.group not in found:
            of_group = [one for one in extensions if one.group == extension.group]
            found[extension.group] = find_class(extension.group)(of_group)
    return list(found.values())
