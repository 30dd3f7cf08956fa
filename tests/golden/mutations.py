"""Ten ways to break a training, each of which the golden runs must notice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

Patch = pytest.MonkeyPatch


@dataclass(frozen=True)
class Mutation:
    """What is broken, and in which run.

    Attributes:
        run: the name of the golden run.
        config: laid over the run's.
        patch: what is changed in the code.
    """

    run: str
    config: dict[str, Any] = field(default_factory=dict)
    patch: Callable[[Patch], None] = lambda patch: None


def _model(**options: Any) -> dict[str, Any]:
    return {"model": {"init_args": options}}


def _optimizer(**options: Any) -> dict[str, Any]:
    return _model(optimizer={"class_path": "AdamW", "init_args": options})


def _no_store_cost(patch: Patch) -> None:
    from lightning_app.memory.readers.learned import LearnedReader

    terms = LearnedReader._terms

    def free(self: LearnedReader, *args: Any) -> dict[str, Any]:
        return {name: (0.0 if name == "store" else weight, x) for name, (weight, x) in terms(self, *args).items()}

    patch.setattr(LearnedReader, "_terms", free)


def _one_head_kept(patch: Patch) -> None:
    from lightning_app.plasticity import cycle

    choose = cycle.choose
    patch.setattr(cycle, "choose", lambda scores, alive, n, **options: choose(scores, alive, n - 1, **options))


def _decayed_biases(patch: Patch) -> None:
    from lightning_app.training import optim

    def all_in_one(trained: Any, matrices: Any, *, by_layer: bool) -> list[dict[str, Any]]:
        return [{"params": [parameter for _, parameter in trained]}]

    patch.setattr(optim, "parameter_groups", all_in_one)


def _no_document_mask(patch: Patch) -> None:
    """A query finds what stands at or behind its own position in its own document, too."""
    from lightning_app.memory.slots import UNKNOWN
    from lightning_app.memory.store import AssociativeMemory

    search = AssociativeMemory.search

    def seeing_all(self: AssociativeMemory, queries: Any, k: int | None = None, **options: Any) -> Any:
        return search(self, queries, k, **{**options, "origin": UNKNOWN})

    patch.setattr(AssociativeMemory, "search", seeing_all)


MUTATIONS = {
    "weight decay 0": Mutation("article_gpt", _optimizer(lr=3e-3, betas=[0.9, 0.95], weight_decay=0.0)),
    "clipping off": Mutation("article_gpt", {"trainer": {"gradient_clip_val": None}}),
    "ART's weight 0": Mutation("art_gpt2", _model(art={"lambda_art": 0.0})),
    "store cost 0": Mutation("varda_gpt", patch=_no_store_cost),
    "one head kept": Mutation("plasticity", patch=_one_head_kept),
    "average decay 0.99": Mutation("art_gpt2", _model(art={"average_decay": 0.99})),
    "noise off": Mutation("article_gpt", _model(token_noise=0.0)),
    "bias decayed": Mutation("article_gpt", patch=_decayed_biases),
    "betas swapped": Mutation("article_gpt", _optimizer(lr=3e-3, betas=[0.95, 0.9], weight_decay=0.1)),
    "one document mask dropped": Mutation("varda_gpt", patch=_no_document_mask),
}
CONTROLS = {  # the same changes with the values that the runs have: they must change nothing
    "optimizer": Mutation("article_gpt", _optimizer(lr=3e-3, betas=[0.9, 0.95], weight_decay=0.1)),
    "art": Mutation("art_gpt2", _model(art={"lambda_art": 0.5})),
}
