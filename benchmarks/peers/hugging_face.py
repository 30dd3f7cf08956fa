"""Hugging Face's Trainer with its own defaults on a small GPT-2 of its own (transformers, as it is installed).

The text is cut into blocks side by side, as run_clm.py does. Sizes, vocabulary and learning rate are of trials.
"""

from __future__ import annotations

import os
from typing import Any

from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from benchmarks.peers.contestant import Job, Recipe


class HuggingFace(Recipe):
    def build(self, options: dict[str, Any], vocab_size: int) -> nn.Module:
        config = GPT2Config(
            vocab_size=vocab_size,
            n_positions=options["block_size"],
            n_layer=options["layers"],
            n_head=options["heads"],
            n_embd=options["width"],
            resid_pdrop=options["dropout"],
            embd_pdrop=options["dropout"],
            attn_pdrop=options["dropout"],
            bos_token_id=0,
            eos_token_id=0,
            use_cache=False,
        )
        return Logits(GPT2LMHeadModel(config))

    def fit(self, model: nn.Module, ids: Tensor, job: Job) -> None:
        assert isinstance(model, Logits)
        size = job.options["block_size"]
        blocks = ids[: len(ids) // size * size].view(-1, size)
        arguments = TrainingArguments(
            output_dir=os.path.join(job.folder, "trainer"),
            max_steps=job.steps,
            per_device_train_batch_size=job.options["batch_size"],
            learning_rate=job.options["lr"],
            warmup_steps=job.options["warmup"],
            weight_decay=job.options["weight_decay"],
            lr_scheduler_type=job.options["schedule"],
            seed=job.seed,
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            logging_strategy="no",
        )
        samples = [{"input_ids": block, "labels": block} for block in blocks]
        Trainer(model=model.model, args=arguments, train_dataset=samples).train()  # type: ignore[arg-type]


class Logits(nn.Module):
    """A GPT2LMHeadModel as a function of ids."""

    def __init__(self, model: GPT2LMHeadModel):
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.model(ids).logits
        return logits
