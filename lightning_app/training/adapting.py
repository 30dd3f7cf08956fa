"""Dynamic evaluation: what was scored is then learned, so that the model follows the text that it reads.

Krause et al. 2018 (arXiv:1709.07432) and 2019 (arXiv:1904.08378).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lightning_app.data.batch import Batch
from lightning_app.errors import InputError
from lightning_app.models.adaptation_options import AdaptationOptions
from lightning_app.models.losses import IGNORE, cross_entropy
from lightning_app.models.modes import evaluated
from lightning_app.training.module import LanguageModule

RECENT = 0.99  # of the mean of squared gradients, per step: Krause et al. have that of the training text
CLIP = 1.0  # norm of a step's gradient


class Adaptation:
    """Weights that follow a text: theta <- theta - lr g / sqrt(mean g^2) + decay (theta_trained - theta).

    The gradient g is that of cross-entropy on what was scored last, without dropout. The mean is over the steps so far.
    """

    def __init__(self, module: LanguageModule, options: AdaptationOptions):
        self._module, self._options = module, options
        self._weights = [weight for weight in module.parameters() if weight.requires_grad]
        if not self._weights:
            raise InputError("all weights of this model are frozen: nothing can adapt")
        self._trained = [weight.detach().clone() for weight in self._weights]
        self._optimizer = torch.optim.Adam(self._weights, lr=options.lr, betas=(0.0, RECENT))

    def learn(self, batch: Batch) -> None:
        """A step on what `batch` predicts, which has been scored."""
        if not bool((batch.targets != IGNORE).any()):
            return
        with torch.inference_mode(False), torch.enable_grad(), evaluated(self._module):
            batch = batch.each(torch.clone)  # an evaluation's tensors take no part in a backward
            model = self._module.backbone.of_states  # counts of tokens may have these by now
            cross_entropy(model.run_batch(batch.input_ids, batch).logits, batch.targets).backward()
        if not torch.nn.utils.clip_grad_norm_(self._weights, CLIP).isfinite():
            raise InputError("the gradient of what was read is not finite: this model cannot adapt")
        self._optimizer.step()
        self._optimizer.zero_grad()
        for weight, trained in zip(self._weights, self._trained, strict=True):
            weight.data.lerp_(trained, self._options.decay)

    def forget(self) -> None:
        """Back to the trained weights."""
        for weight, trained in zip(self._weights, self._trained, strict=True):
            weight.data.copy_(trained)


@contextmanager
def adapting(module: LanguageModule, options: AdaptationOptions | None) -> Iterator[Adaptation | None]:
    """Weights that are the trained ones again at the end; None where there are no options."""
    if options is None:
        yield None
        return
    adaptation = Adaptation(module, options)
    try:
        yield adaptation
    finally:
        adaptation.forget()
