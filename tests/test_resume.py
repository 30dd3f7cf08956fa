"""A run that was stopped and resumed is the run that was never stopped, bit for bit.

Independent of models and text: a small network with dropout on a `ResumableLoader`, through Lightning itself.
"""

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_app.data.loader import ResumableLoader
from lightning_app.training.callbacks.exact_resume import ExactResume, MissedValidation, RandomState
from lightning_app.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from lightning_app.training.schedulers import WarmupCosine
from tests.advice import advised, missing

BATCHES = 5  # per epoch
BATCH_SIZE = 4
STEPS = 12
VALIDATION_ROWS = 6


class Points:
    """Rows of noise, and their numbers."""

    def __init__(self, size: int) -> None:
        self.rows = torch.randn(size, 4, generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor(indices), self.rows[indices]


@dataclass
class Step:
    """What one training step saw and found."""

    global_step: int
    epoch: int
    batch_idx: int
    rows: list[int]
    loss: float


class Net(L.LightningModule):
    """Draws from all generators in training, and also where it must not matter: in validation and between batches."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1))
        self.fail_at = fail_at
        self.steps: list[Step] = []
        self.validations: list[tuple[int, ...]] = []  # batches, steps, epoch, the step that is logged, rows
        self.rows = 0  # of the validation that goes on

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        numbers, rows = batch
        loss = (self.layers(rows) + random.random() + np.random.rand()).square().mean()
        if len(self.steps) == self.fail_at:
            raise KeyError("power cut")
        seen = self.trainer.global_step, self.trainer.current_epoch, batch_idx, numbers.tolist()
        self.steps.append(Step(*seen, loss.item()))
        return loss

    def on_validation_start(self) -> None:
        self.rows = 0

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        torch.rand(3), random.random()
        self.rows += len(batch[0])

    def on_validation_epoch_end(self) -> None:
        if not self.trainer.sanity_checking:
            loop = self.trainer.fit_loop
            where = loop.total_batch_idx + 1, self.trainer.global_step, self.trainer.current_epoch
            self.validations.append((*where, loop.epoch_loop._batches_that_stepped, self.rows))

    def on_train_batch_end(self, *args: Any) -> None:
        np.random.rand()

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.05)
        scheduler = WarmupCosine(optimizer, warmup_steps=2, total_steps=STEPS)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Everywhere(ModelCheckpoint):
    """Saves wherever Lightning's ModelCheckpoint can (a subclass, so that it is called as late as that)."""

    def __init__(self, folder: Path) -> None:
        super().__init__(dirpath=folder, save_top_k=0)
        self.folder = folder

    def _save(self, trainer: L.Trainer, place: str) -> None:
        if not trainer.sanity_checking:
            done = trainer.fit_loop.total_batch_idx + 1
            trainer.save_checkpoint(self.folder / f"{done:02d}-{place}.ckpt")

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._save(trainer, "batch")

    def on_validation_start(self, trainer: L.Trainer, *args: Any) -> None:
        self._save(trainer, "owing")

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._save(trainer, "owing-still")

    def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._save(trainer, "validation")

    def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self._save(trainer, "epoch")


@dataclass
class Options:
    """One way to train; `trainer` holds Trainer arguments."""

    trainer: dict[str, Any] = field(default_factory=dict)
    order: str = "shuffled"
    workers: int = 0


def loaders(options: Options) -> tuple[ResumableLoader, ResumableLoader]:
    data = Points(BATCHES * BATCH_SIZE)
    train = ResumableLoader(
        data, batch_size=BATCH_SIZE, order=options.order, seed=5, num_workers=options.workers, even=True
    )
    return train, ResumableLoader(Points(VALIDATION_ROWS), batch_size=BATCH_SIZE)


def new_trainer(options: Options, callbacks: list[L.Callback], **overrides: Any) -> L.Trainer:
    limits, exact = {"max_steps": STEPS, "max_epochs": -1, "num_sanity_val_steps": 1}, ExactResume()
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO()],
        callbacks=[RandomState(), exact, *callbacks, MissedValidation(exact)],
        **{**limits, **options.trainer, **overrides},
    )


@dataclass
class Run:
    """A finished (or crashed) fit."""

    net: Net
    trainer: L.Trainer

    @property
    def state(self) -> dict[str, Any]:
        optimizer = self.trainer.optimizers[0].state_dict()
        scheduler = self.trainer.lr_scheduler_configs[0].scheduler.state_dict()
        return {"weights": self.net.state_dict(), "optimizer": optimizer, "scheduler": scheduler}


def fit(
    options: Options, *callbacks: L.Callback, resume: Path | None = None, fail_at: int | None = None, **overrides: Any
) -> Run:
    """Train as a fresh process would: new objects, and another seed where a checkpoint must bring the state."""
    L.seed_everything(3 if resume is None else 99, verbose=False)
    net, trainer = Net(fail_at), new_trainer(options, list(callbacks), **overrides)
    train, val = loaders(options)
    with advised(*missing(trainer, resume)):
        try:
            trainer.fit(net, train, val, ckpt_path=resume)
        except KeyError:
            assert fail_at is not None
    return Run(net, trainer)


def assert_continues(run: Run, whole: Run, *, after: int, validated: bool = True) -> None:
    """`run` did the steps of `whole` behind the first `after`, and ended in its state.

    Its validations are those of `whole`, with that of batch `after` itself unless that was `validated` before.
    """
    assert run.net.steps == whole.net.steps[after:]
    assert run.net.validations == [v for v in whole.net.validations if v[0] >= after + validated]
    torch.testing.assert_close(run.state, whole.state, rtol=0, atol=0)


EVERY_2 = Options({"val_check_interval": 2})
WAYS = {
    "validation in mid-epoch": EVERY_2,
    "streams": Options({"val_check_interval": 2}, order="streams"),
    "validation at epoch's end": Options(),
    "no validation": Options({"limit_val_batches": 0}),
    "validation across epochs": Options({"val_check_interval": 3, "check_val_every_n_epoch": None}),
    "validation every second epoch": Options({"check_val_every_n_epoch": 2}),
    "limited epochs": Options({"limit_train_batches": 3}),
    "by epochs": Options({"max_steps": -1, "max_epochs": 3, "val_check_interval": 2}),
    "by epochs without validation": Options({"max_steps": -1, "max_epochs": 3, "limit_val_batches": 0}),
    "accumulation": Options({"max_steps": 7, "accumulate_grad_batches": 2, "val_check_interval": 2}),
}
SLOW = pytest.mark.slow


# The tests below try some of the checkpoints of the other ways.
OFTEN = [("validation across epochs", 2), ("accumulation", 2)]


@pytest.mark.parametrize(("way", "step"), [*OFTEN, *(pytest.param(way, 1, marks=SLOW) for way in WAYS)])
def test_from_every_checkpoint(way, step, tmp_path):
    """After each batch (first, middle, last but one, last, second epoch), in and after each validation, at each
    epoch's end, and with nothing left but the last validation; or every second of these."""
    options = WAYS[way]
    whole = fit(options, Everywhere(tmp_path))
    tried = 0
    for path in sorted(tmp_path.iterdir())[::step]:
        after = int(path.name[:2])
        if (after < len(whole.net.steps) or "owing" in path.name) and not is_inside_window(path, options):
            assert_continues(fit(options, resume=path), whole, after=after, validated=is_validated(path))
            tried += 1
    assert tried >= (6 if way == "accumulation" else 10) / step


def is_validated(path: Path) -> bool:
    """Whether `Everywhere` has written it behind a validation of its batch."""
    return path.stem[3:] in ("validation", "epoch")


def assert_validated_last(run: Run) -> None:
    """A fit ends with a validation of its last step, if it has any."""
    steps, validations = len(run.net.steps), run.net.validations
    if run.trainer.enable_validation:
        last = run.net.steps[-1]
        done = run.trainer.global_step
        assert validations[-1] == (steps, done, last.epoch, done - 1, VALIDATION_ROWS)
    assert len({v[0] for v in validations}) == len(validations)  # each once


def is_inside_window(path: Path, options: Options) -> bool:
    """Gradients that wait for their optimizer step are in no checkpoint; ModelCheckpoint by steps saves at none."""
    batches = read_checkpoint(path)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    accumulate = options.trainer.get("accumulate_grad_batches", 1)
    return bool(batches["current"]["processed"] % accumulate) and not batches["is_last_batch"]


def test_model_checkpoint_by_steps_does_not_save_inside_an_accumulation_window(tmp_path):
    options = WAYS["accumulation"]
    whole = fit(options, ModelCheckpoint(tmp_path, every_n_train_steps=1, save_top_k=-1))
    saved = sorted(tmp_path.glob("*.ckpt"))
    assert len(saved) == options.trainer["max_steps"]
    assert not any(is_inside_window(path, options) for path in saved)
    assert whole.trainer.global_step == len(saved)


@pytest.mark.parametrize("stop", [4, 5, 11, *(pytest.param(stop, marks=SLOW) for stop in (1, 6, 7, 10))])
@pytest.mark.parametrize("way", ["validation in mid-epoch", "no validation", "limited epochs"])
def test_from_a_run_that_ended_earlier(way, stop, tmp_path):
    """max_steps, max_time and signals close an epoch in its middle; the checkpoint is written behind `fit`."""
    whole = fit(WAYS[way])
    first = fit(WAYS[way], max_steps=stop)
    assert first.net.steps == whole.net.steps[:stop]
    assert_validated_last(first)
    first.trainer.save_checkpoint(tmp_path / "end.ckpt")
    assert_continues(fit(WAYS[way], resume=tmp_path / "end.ckpt"), whole, after=stop)


@pytest.mark.parametrize("workers", [pytest.param(1, marks=SLOW), 2])
@pytest.mark.parametrize("stop", [pytest.param(3, marks=SLOW), 5, pytest.param(8, marks=SLOW)])
def test_with_workers(workers, stop, tmp_path):
    options = Options({"val_check_interval": 2}, workers=workers)
    whole = fit(EVERY_2)
    fit(options, ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=stop, save_top_k=-1), max_steps=stop)
    assert_continues(fit(options, resume=tmp_path / f"step={stop}.ckpt"), whole, after=stop)


@pytest.mark.parametrize(
    ("first_stop", "way"),
    [
        (4, "validation in mid-epoch"),
        (5, "by epochs"),
        (5, "no validation"),
        pytest.param(5, "validation in mid-epoch", marks=SLOW),
        pytest.param(4, "by epochs", marks=SLOW),
        pytest.param(4, "no validation", marks=SLOW),
    ],
)
def test_a_resume_of_a_resume(way, first_stop, tmp_path):
    """Behind an epoch's last batch Lightning alone leaves its epochs uncounted, and the second resume wrong."""
    options = WAYS[way]
    whole = fit(options, Everywhere(tmp_path / "a"))
    with advised("The dirpath has changed from"):  # meant: both runs are read again
        fit(options, Everywhere(tmp_path / "b"), resume=tmp_path / "a" / f"{first_stop:02d}-batch.ckpt")
    second = [path for path in sorted((tmp_path / "b").iterdir()) if int(path.name[:2]) in (6, 9, 10)]
    assert len(second) >= 4
    for path in second:
        assert_continues(fit(options, resume=path), whole, after=int(path.name[:2]), validated=is_validated(path))


@pytest.mark.parametrize("crash", [3, 5, 9])
def test_after_a_crash_it_continues_from_the_last_checkpoint(crash, tmp_path):
    whole = fit(EVERY_2)
    every_2 = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=2, save_top_k=-1)
    crashed = fit(EVERY_2, every_2, fail_at=crash)
    assert len(crashed.net.steps) == crash
    last = crash - crash % 2
    assert_continues(fit(EVERY_2, resume=tmp_path / f"step={last}.ckpt"), whole, after=last, validated=False)


@pytest.mark.parametrize("crash", [1, 3, 5, 9])
def test_a_checkpoint_written_by_the_crash_loses_no_batch(crash, tmp_path):
    whole = fit(EVERY_2)
    on_crash = ModelCheckpoint(tmp_path, save_on_exception=True, save_top_k=0)
    fit(EVERY_2, on_crash, fail_at=crash)
    (path,) = tmp_path.glob("*.ckpt")
    assert_continues(fit(EVERY_2, resume=path), whole, after=crash)
