"""The main job: `main.py fit` with a config of this repository, other texts and a number of steps.

What a fit prints at its end (samples, peers, a picture) is left out, as the clock stops at the saved model. So are
EarlyStopping and the samples on the way: the number of steps is fixed, and the last checkpoint is the model. The one
validation at the end chooses the weight of the counts, on the held-out text.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.contestant import Contestant, Job, Reader
from benchmarks.peers.vocabulary import BPE
from lightning_app.app import Harness, run
from lightning_app.data.batch import Batch
from lightning_app.training.checkpoint import load_module

VALIDATED = 20  # batches of the held-out text: a weight needs no more
RUN = "run"


class WithoutClosing(Harness):
    """Ends with the last checkpoint."""

    def after_fit(self) -> None:
        """Nothing is drawn, sampled or compared."""

    after_test = after_fit


class Ours(Contestant):
    def train(self, job: Job) -> None:
        run(words(job), harness=WithoutClosing)

    def reader(self, job: Job) -> Reader:
        module, tokenizer = load_module(checkpoint(job))
        backbone = module.backbone

        def logits(ids: Tensor) -> Tensor:
            batch = Batch.of(torch.nn.functional.pad(ids, (0, 1)))
            return backbone.run_batch(batch.input_ids, batch).logits

        return Reader(BPE(tokenizer, backbone.vocab_size), backbone.max_length or 128, logits)


def words(job: Job) -> list[str]:
    """Of the command line."""
    own = {
        "seed_everything": job.seed + 1,
        "fit_in": None,
        "trainer.max_steps": job.steps,
        "trainer.max_time": None,
        "trainer.val_check_interval": job.steps,
        "trainer.num_sanity_val_steps": 0,
        "trainer.limit_val_batches": VALIDATED,
        "trainer.callbacks": [],
        "data.test": None,
        **options_of_config(job),
    }
    given = [f"--{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in own.items()]
    return ["fit", f"--config={job.options['config']}", *given]


def options_of_config(job: Job) -> dict[str, Any]:
    """What every command is told: the texts, the places, and what the trial changes."""
    return {
        "runs_dir": job.folder,
        "name": RUN,
        "data.train.path": job.train,
        "data.split": None,
        "data.val": {"path": job.heldout},
        "data.clean": False,  # what is scored is the text as it is
        "data.tokenizer": str(Path(job.folder, "bpe.tiktoken")),
        "data.cache_dir": str(Path(job.folder, "tokens")),
        "trainer.accelerator": "cpu",
        "tune_allocator": False,  # nobody has it
        "trainer.enable_progress_bar": False,
        **job.options["options"],
    }


def checkpoint(job: Job) -> Path:
    """What the run has saved at its end."""
    return next(Path(job.folder, RUN).glob("*/checkpoints/last.ckpt"))


if __name__ == "__main__":
    run(sys.argv[1:], harness=WithoutClosing)
