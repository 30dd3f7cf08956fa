"""What is looked at before a fit, and refused or warned of in one line."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence

from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from torch import nn

from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError
from lightning_app.models.backbone import Backbone

log = logging.getLogger(__name__)
BETTER = 0.5  # nats that pretrained weights are at least better than chance
LEAST_SHARE = 0.9  # of a model's ids that its own tokenizer has; the others make the number a round one
# Above this a model learns its text by heart. 900 steps with 116,544 parameters left 1.77 nats per byte of the training
# text where it had a tenth as many tokens, 1.27 with a 40th, 0.46 with a 100th, 0.08 with a 300th.
PARAMETERS_PER_TOKEN = 50


def check_sizes(data: TextDataModule, *, vocab_size: int, longest: int | None) -> None:
    """Whether a model with `vocab_size` ids and at most `longest` positions (None: any number) fits the data.

    Raises:
        InputError: with both numbers.
    """
    if data.vocab_size != vocab_size:
        raise InputError(
            f"data.vocab_size is {data.vocab_size}, but the backbone has {vocab_size} ids: they must be equal"
        )
    if longest is not None and data.block_size > longest:
        raise InputError(f"data.block_size is {data.block_size}, but the backbone holds at most {longest} positions")


@rank_zero_only
def say_if_ids_differ(
    special: Mapping[str, set[int]], size: int | None, tokenizer: Tokenizer, *, source: str | None
) -> None:
    """Special ids that a pretrained model's training had otherwise, and many ids that no text has.

    Args:
        special: the model's, by "bos" and "eos".
        size: how many ids the model has; None: nobody knows, or nobody has trained them.
    """
    ours = {"eos": tokenizer.eot, "bos": tokenizer.bos}
    remedy = "" if source == tokenizer.name else "data.tokenizer: model takes the model's own"
    for role, ids in special.items():
        if ours[role] is not None and ours[role] not in ids:
            log.warning(
                "the model was trained with %s as its %s id, and %r has %s: do they belong together? %s",
                *(" or ".join(map(str, sorted(ids))), role, tokenizer.name, ours[role], remedy),
            )
    if size is not None and tokenizer.vocab_size < LEAST_SHARE * size:
        log.warning(
            "the model has %d ids, and %r only %d: do they belong together? %s",
            *(size, tokenizer.name, tokenizer.vocab_size, remedy),
        )


def say_what_draws_otherwise(backbone: Backbone, tokenizer: Tokenizer) -> None:
    """Settings of the source's generation config that have no effect here. Suppressed ids without a text are left
    out: they write nothing."""
    sizes = tokenizer.token_bytes()
    said = {
        name: value
        for name, value in backbone.not_offered.items()
        if not isinstance(value, list) or any(i < len(sizes) and sizes[i] for i in value)
    }
    if said:
        log.warning(
            "the model's generation config has %s, which has no effect here: transformers draws other texts",
            ", ".join(said),
        )


@rank_zero_only
def say_if_no_better_than_chance(ce: float, *, ids: int, source: str) -> None:
    """The first loss (nats per token) of pretrained weights that do not know these ids."""
    if ce > math.log(ids) - BETTER:
        log.warning(
            "the first loss of %r is %.2f nats per token, no better than chance (ln %d = %.2f): its weights do not "
            "know these ids; data.tokenizer: model takes its own",
            *(source, ce, ids, math.log(ids)),
        )


def say_what_is_frozen(own: Sequence[nn.Parameter]) -> None:
    """Tell how many of a model's own parameters are trained, unless all are."""
    trained, total = sum(p.numel() for p in own if p.requires_grad), sum(p.numel() for p in own)
    if trained < total:
        rank_zero_info(f"{trained:,} of {total:,} parameters are trained ({trained / total:.2%})")


def warn_if_it_can_only_memorise(module: nn.Module, data: TextDataModule) -> None:
    """Many more trained parameters than training tokens; nobody knows where the text is streamed."""
    if data.streamed("train"):
        return
    parameters, text = sum(p.numel() for p in module.parameters() if p.requires_grad), data.tokens("train")
    tokens = min(text.n_tokens, len(data.dataset("train")) * data.block_size)  # max_samples may leave some out
    if parameters > PARAMETERS_PER_TOKEN * tokens:
        rank_zero_warn(
            f"{parameters:,} parameters for {tokens:,} training tokens: a model more than {PARAMETERS_PER_TOKEN} "
            "times larger than its text mostly learns it by heart; use more text or a smaller model"
        )
