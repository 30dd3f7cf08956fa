"""Text that the model writes while it learns."""

from __future__ import annotations

from itertools import takewhile

import lightning as L
import torch

from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.strategies import shards_parameters
from lightning_app.errors import InputError
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.reports.run_folder import RunFolder
from lightning_app.training.callbacks.logger_output import log_texts
from lightning_app.training.callbacks.run_callback import Prompts, RunCallback
from lightning_app.training.callbacks.run_log import run_folder
from lightning_app.training.module import LanguageModule


class Samples(RunCallback):
    """Continues each prompt after a validation: `samples/step_N.txt` in the run's folder, and the loggers' pages.

    Draws with a generator of its own, so that training goes on as if nothing had been sampled. Rank 0 alone writes;
    under sharded strategies, where no rank has the whole model, nothing is sampled.

    Args:
        prompts: texts to continue.
        every_n_validations: not after each of them.
        max_new_tokens: length of a sample.
        temperature: see `GenerationOptions`.
        top_k: see `GenerationOptions`.
    """

    def __init__(
        self,
        prompts: list[str],
        every_n_validations: int = 1,
        max_new_tokens: int = 60,
        temperature: float = 0.8,
        top_k: int | None = 50,
    ):
        if not prompts or not all(prompts):
            raise InputError(f"samples need prompts of at least one character, not {prompts}")
        if every_n_validations < 1:
            raise InputError(f"every_n_validations is {every_n_validations}; it must be at least 1")
        self.prompts, self.every = prompts, every_n_validations
        self.options = GenerationOptions(
            max_new_tokens, temperature, top_k, seed=0
        )  # the same draws each time, so that samples compare
        self._validations = 0
        self._folder: RunFolder | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._folder = run_folder(trainer)
        self.run.prompts = self.run.prompts or Prompts(self.prompts, self.options)

    def state_dict(self) -> dict[str, int]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self._validations = state_dict["validations"]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        sharded = shards_parameters(trainer.strategy)
        if trainer.sanity_checking or trainer.state.fn != "fit" or sharded or not trainer.is_global_zero:
            return
        self._validations += 1
        if self._validations % self.every or self._folder is None or not self.has_data:
            return
        texts = [prompt + continued(prompt, self.module, self.data, self.options) for prompt in self.prompts]
        self._folder.write_samples(texts, step=trainer.global_step)
        log_texts(trainer, self.prompts, texts)


def continued(prompt: str, module: LanguageModule, data: TextDataModule, options: GenerationOptions) -> str:
    """What the model writes after a prompt, up to a token that ends a text."""
    given = data.tokenizer.prompt(prompt)
    ids = torch.tensor([given], device=module.device)
    drawn = [int(token) for token in module.generate(ids, options, eot=module.end_ids)]
    new = list(takewhile(lambda token: token not in module.end_ids, drawn))
    return data.tokenizer.decode(new, continues=data.tokenizer.goes_on(given))
