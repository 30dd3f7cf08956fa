"""A run with a poisoned batch equals, bit for bit, the run in which that step's update is left out."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_app.art.extension import ARTRegularizer
from lightning_app.data.datamodule import Dataloader, Source, TextDataModule
from lightning_app.errors import InputError
from lightning_app.models.decoder import Decoder
from lightning_app.plasticity.controller.callback import AdvancedController, HeadController
from lightning_app.training.callbacks.exact_resume import ExactResume
from lightning_app.training.checkpoint import Checkpoint
from lightning_app.training.checkpoint_keys import SPIKES
from lightning_app.training.compositions import ArticleGPT
from lightning_app.training.module import LanguageModule
from lightning_app.training.schedulers import WarmupCosine
from lightning_app.training.spike_rule import ENOUGH
from lightning_app.training.spikes import IN_A_ROW, SpikeGuard
from tests.advice import advised

POISONED = 40
STEPS = 44
WARM_UP = functools.partial(WarmupCosine, warmup_steps=4, total_steps=STEPS)
Fit = Callable[..., tuple[L.Trainer, ArticleGPT]]


class Poisoned(ArticleGPT):
    """Its loss at one step (the last batch of its window) is far above all others, or not finite."""

    poison: float | None = 50.0
    leave_out = False  # what `skip_spikes` must equal

    def loss_terms(self, outputs: Any) -> dict[str, tuple[float, Tensor]]:
        terms = super().loss_terms(outputs)
        weight, ce = terms["ce"]
        if self.poison is None or not self.training or self.trainer.global_step != POISONED:
            return terms
        return {**terms, "ce": (weight, ce * self.poison)}

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        super().configure_gradient_clipping(optimizer, *args, **kwargs)
        if self.leave_out and self.trainer.global_step == POISONED:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None

    def learn(self, seen: Any) -> None:
        if not (self.leave_out and self.trainer.global_step == POISONED):
            super().learn(seen)


@pytest.fixture
def fit(folder: object) -> Fit:
    def run(
        skip: bool | float,
        *,
        steps: int = STEPS,
        path: str | None = None,
        leave_out: bool = False,
        poison: float | None = 50.0,
        callbacks: Sequence[L.Callback] = (),
        **options: Any,
    ) -> tuple[L.Trainer, ArticleGPT]:
        torch.manual_seed(0)
        decoder = Decoder(vocab_size=257, block_size=16, embedding_dim=8, layers=1, heads=2)
        art = ARTRegularizer(lambda_art=0.1, capacity=30)
        module = Poisoned(decoder, extensions=[art], scheduler=WARM_UP, skip_spikes=skip)
        module.poison, module.leave_out = poison, leave_out
        data = TextDataModule(
            train=Source("train.txt"), val=Source("val.txt"), block_size=16, dataloader=Dataloader(batch_size=4)
        )
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            limit_val_batches=0,
            callbacks=[ExactResume(), *callbacks],
            **options,
        )
        trainer.fit(module, datamodule=data, ckpt_path=path)
        return trainer, module

    return run


def assert_same(one: tuple[L.Trainer, LanguageModule], two: tuple[L.Trainer, LanguageModule]) -> None:
    states = [module.state_dict() for _, module in (one, two)]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    kept = [list(trainer.optimizers[0].state.values()) for trainer, _ in (one, two)]
    assert len(kept[0]) == len(kept[1]) > 5
    for a, b in zip(*kept, strict=True):
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "options", [{}, pytest.param({"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}, marks=pytest.mark.slow)]
)
def test_a_poisoned_batch_and_a_loss_that_is_not_finite_change_nothing(fit: Fit, options: dict[str, Any]):
    with pytest.warns(
        UserWarning, match=f"step {POISONED} is left out: its loss is .* and its gradient norm is .*; the limit"
    ):
        skipped = fit(True, **options)
    without = fit(False, leave_out=True, **options)
    assert_same(skipped, without)
    with pytest.warns(UserWarning, match=f"step {POISONED} is left out: its loss is nan"):
        assert_same(fit(True, poison=float("nan"), **options), without)
    guard = skipped[1].spikes
    assert guard is not None
    assert guard.skipped == 1
    assert skipped[0].callback_metrics["train/skipped_steps"] == 1
    steps = {float(state["step"]) for state in skipped[0].optimizers[0].state.values()}
    assert steps == {STEPS - 1}
    assert skipped[0].global_step == STEPS


def test_a_loss_that_is_not_finite_ends_a_fit_that_skips_none(fit: Fit):
    with pytest.raises(InputError, match="the loss is nan at step"):
        fit(False, poison=float("nan"))


@pytest.mark.slow  # tests/golden runs with it
def test_without_spikes_it_changes_nothing(fit: Fit):
    assert_same(fit(True, poison=None), fit(False, poison=None))


@pytest.mark.slow
def test_a_resume_compares_with_the_same_steps(fit: Fit):
    with pytest.warns(UserWarning, match="is left out"):
        whole = fit(True)
    trainer, _ = fit(True, steps=36)
    trainer.save_checkpoint("a.ckpt")
    saved = Checkpoint.of(torch.load("a.ckpt", weights_only=True)).own[SPIKES]
    assert [len(values) for values in saved["seen"].values()] == [36, 36]
    with pytest.warns(UserWarning, match="is left out"):
        resumed = fit(True, path="a.ckpt")
    assert_same(whole, resumed)
    guards = [module.spikes for _, module in (whole, resumed)]
    assert guards[0] is not None
    assert guards[1] is not None
    assert guards[0].state_dict() == guards[1].state_dict()


class Alone:
    """A trainer of one device."""

    global_step = 7

    class strategy:  # noqa: N801
        @staticmethod
        def reduce(loss: Tensor, reduce_op: str) -> Tensor:
            return loss

        @staticmethod
        def reduce_boolean_decision(decision: bool, all: bool) -> bool:
            return decision


def judged(guard: SpikeGuard, loss: float) -> bool:
    return guard.judge(Alone(), torch.tensor(loss), torch.tensor(1.0 + loss / 10))


def test_a_new_level_is_learned_after_eight_steps():
    guard = SpikeGuard()
    assert not any(judged(guard, 2.0 + i % 2) for i in range(ENOUGH))
    assert guard.ready
    with pytest.warns(UserWarning, match="step 7 is left out"):
        assert all(judged(guard, 9.0) for _ in range(IN_A_ROW))
    assert guard.skipped == IN_A_ROW
    assert not any(judged(guard, 9.0 + i % 2) for i in range(ENOUGH))
    with pytest.warns(UserWarning, match="step 7 is left out"):
        assert judged(guard, 50.0)


def test_what_cannot_be_meant_is_refused():
    for number in (-1, 0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="skip_spikes is"):
            SpikeGuard(number)
    assert SpikeGuard(True).deviations == 6
    assert SpikeGuard(3).deviations == 3


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_controller_of_heads_does_not_hear_of_it(fit: Fit, accumulate: int):
    heard = []
    for poison, said in ((None, ()), (50.0, (f"step {POISONED} is left out",))):
        controller = HeadController(
            "logits", 0, at_end="keep", advanced=AdvancedController(controller_update_freq=STEPS - 2)
        )
        options = {"callbacks": [controller], "accumulate_grad_batches": accumulate}
        with advised("the controller decides from step", *said):
            fit(True, steps=POISONED + 2, poison=poison, **options)
        heard.append(controller._backwards)
    assert heard[0] > POISONED
    assert heard[1] == heard[0] - accumulate
