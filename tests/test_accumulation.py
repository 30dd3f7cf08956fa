"""A step of accumulated batches is that of one large batch, whatever their lengths."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader

from lightning_app.data.batch import Batch
from lightning_app.plasticity.controller.callback import AdvancedController, HeadController
from lightning_app.training.callbacks.run_log import RunLog
from tests.accumulation_cases import CASES, article, sgd, trained, write_pairs
from tests.test_ddp import run

SLOW = ("memory at the input", "art of tokens")
EXACT = [
    pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else [])
    for name in CASES
    if name not in ("budget", "still")
]


@pytest.fixture
def pairs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_pairs(tmp_path)
    return tmp_path


def largest_difference(one: dict[str, Any], two: dict[str, Any]) -> float:
    """Of the updates of all weights, over the largest entry of one."""
    return float((one["update"] - two["update"]).abs().max() / one["update"].abs().max())


def check_same(name: str, one: dict[str, Any], two: dict[str, Any]) -> None:
    """Updates, logged losses and gradient norms, memories and categories."""
    assert len(one["losses"]) == len(two["losses"]) >= 3
    assert largest_difference(one, two) < 1e-5
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert two["norms"] == pytest.approx(one["norms"], rel=1e-5)
    torch.testing.assert_close(two["state"], one["state"], rtol=1e-4, atol=1e-5)
    if "memory" in name:
        prefix = "backbone.readers.0."
        assert int((one["state"][f"{prefix}bank.memories.0.slot_ids"] >= 0).sum()) > 100
        assert one["state"][f"{prefix}threshold.value"].isfinite()
    if "art" in name:
        assert int(one["state"]["regularizers.0.art.size"]) > 3


@pytest.mark.parametrize("name", EXACT)
def test_4_batches_of_2_are_one_of_8(name: str, pairs: Path):
    """The last step of an epoch has 4 pairs, in two batches."""
    check_same(name, trained(name, accumulate=1), trained(name, accumulate=4))


@pytest.mark.slow
def test_4_batches_of_1_on_each_of_two_ranks_are_one_of_8(pairs: Path):
    """Of one process, too, but for rehearsal: each rank draws texts of its own."""
    names = ["another term", "clipped", "memory", "art"]
    run("-m", "tests.accumulation_cases", json.dumps(names), folder=pairs)
    first, second = (torch.load(f"{rank}.pt", weights_only=True) for rank in range(2))
    for name in names:
        check_same(name, *first[name])
        for one, two in zip(first[name], second[name], strict=True):
            torch.testing.assert_close(one["state"], two["state"], rtol=0, atol=0)
        if name != "art":
            check_same(name, trained(name, accumulate=1), first[name][1])


def test_a_limit_ends_the_last_step_of_an_epoch(pairs: Path):
    one, four = (trained("by epoch", accumulate=n, limit_train_batches=n * 3 // 2) for n in (2, 4))
    check_same("by epoch", one, four)
    assert four["planned"] == len(four["losses"]) == 4


class Inside(L.Callback):
    """Saves behind the second batch of a step of four."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            trainer.save_checkpoint("inside.ckpt")


def test_a_resume_within_a_step_has_the_mean_of_what_is_left_of_it(pairs: Path):
    """The gradients of what came before are in no checkpoint."""
    trained("still", accumulate=4, callbacks=[Inside()])
    left = trained("still", accumulate=4, ckpt_path="inside.ckpt")
    by_4 = trained("still", accumulate=1, loader={"batch_size": 4})
    assert left["losses"][0] == pytest.approx(by_4["losses"][1], rel=1e-6)


class Slopes(HeadController):
    """Keeps what it has seen of each gate's gradient."""

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_after_backward(trainer, pl_module)
        self.slopes = torch.cat(self._sums, dim=-1)[0] / self._backwards


def test_a_controller_sees_the_gradient_of_a_short_step_as_that_of_a_whole_one(pairs: Path):
    """Three batches, where four or three would make a step."""
    seen = []
    for n in (4, 3):
        controller = Slopes(warmup_steps=0, at_end="keep", advanced=AdvancedController(sample_rows=2, entropy_rows=1))
        batches = {"loader": {"batch_size": 2}, "limit_train_batches": 3}
        trained("plain", accumulate=n, callbacks=[RunLog("run"), controller], **batches)
        seen.append(controller.slopes)
    assert seen[0].abs().max() > 1e-4
    torch.testing.assert_close(*seen, rtol=1e-5, atol=1e-8)


def test_a_term_that_is_not_a_mean_is_that_of_each_batch(pairs: Path):
    """Its gradient is not that of one large batch; the terms beside it are."""
    one, four = (trained("budget", accumulate=n) for n in (1, 4))
    assert 1e-4 < largest_difference(one, four) < 0.2


def test_each_epoch_of_a_schedule_has_its_steps(pairs: Path):
    """20 pairs in 10 batches: 3 steps, then 5; a schedule by steps ends with them."""
    changed = GradientAccumulationScheduler({0: 4, 1: 2})
    found = trained("by epoch", accumulate=1, callbacks=[changed], loader={"batch_size": 2})
    assert len(found["losses"]) == found["planned"] == 3 + 5


@pytest.mark.parametrize("stop", [pytest.param(3, marks=pytest.mark.slow), 5, pytest.param(6, marks=pytest.mark.slow)])
def test_a_schedule_goes_on_after_a_resume(stop: int, pairs: Path):
    """Within an epoch Lightning has forgotten how many batches a step has."""

    def fit(**options: Any) -> dict[str, Any]:
        changed = GradientAccumulationScheduler({0: 4, 1: 2})
        return trained("by epoch", accumulate=1, callbacks=[changed], loader={"batch_size": 2}, **options)

    whole = fit()
    fit(max_steps=stop, save="stopped.ckpt")
    resumed = fit(ckpt_path="stopped.ckpt")
    assert resumed["losses"] == whole["losses"][stop:]
    torch.testing.assert_close(resumed["state"], whole["state"], rtol=0, atol=0)


def test_batches_of_a_loader_that_does_not_look_ahead_count_alike_and_that_is_said(pairs: Path):
    """Also the two of the last step, each of which Lightning divides by four."""
    ids = torch.randint(0, 250, (6, 2, 9), generator=torch.Generator().manual_seed(0))
    batches = [Batch.of(x, scored=(torch.arange(8) >= i).expand(2, 8)) for i, x in enumerate(ids)]
    torch.manual_seed(0)
    module, by_hand = article(), article()
    by_hand.load_state_dict(module.state_dict())
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=4,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(module, DataLoader(batches, batch_size=None))
    assert sum("a DataLoader does not say which batches come next" in str(one.message) for one in said) == 1
    assert trainer.global_step == 2
    optimizer = sgd(by_hand.parameters())
    for window in (batches[:4], batches[4:]):
        losses = [by_hand.loss_terms(by_hand.outputs(batch))["ce"][1] for batch in window]
        torch.stack(losses).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    torch.testing.assert_close(module.state_dict(), by_hand.state_dict(), rtol=1e-5, atol=1e-7)
