"""On a resume the config's numbers hold, Adam's moments stay, and what is another run is refused or named."""

import functools
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping

from lightning_app.data.datamodule import TextDataModule
from lightning_app.errors import InputError
from lightning_app.io import temporary_name
from lightning_app.models.decoder import Decoder
from lightning_app.training.callbacks.exact_resume import ExactResume
from lightning_app.training.callbacks.resume_options import ResumeOptions
from lightning_app.training.checkpoint import Checkpoint, put
from lightning_app.training.compositions import ArticleGPT
from lightning_app.training.schedulers import WarmupCosine

ADAMW: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.99), "weight_decay": 0.1}
STEPS = 8
WARM_UP = functools.partial(WarmupCosine, warmup_steps=2, total_steps=STEPS)


class Rates(L.Callback):
    """The learning rate of each step, and what the optimizer held when the run began."""

    def __init__(self) -> None:
        self.lrs: list[float] = []
        self.moments: list[torch.Tensor] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.moments = [state["exp_avg"].clone() for state in trainer.optimizers[0].state.values()]

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        self.lrs.append(optimizer.param_groups[0]["lr"])


Fit = Callable[..., tuple[L.Trainer, Rates]]


@pytest.fixture
def fit(folder: Path) -> Fit:
    def run(
        steps: int = STEPS,
        path: str | None = None,
        *,
        make: type[torch.optim.Optimizer] = torch.optim.AdamW,
        optimizer: dict[str, Any] | None = None,
        scheduler: Any = WARM_UP,
        data: dict[str, Any] | None = None,
        dropout: float = 0.0,
        callbacks: tuple[L.Callback, ...] = (),
        **options: Any,
    ) -> tuple[L.Trainer, Rates]:
        torch.manual_seed(0)
        decoder = Decoder(vocab_size=257, block_size=16, embedding_dim=8, layers=1, heads=2, dropout=dropout)
        numbers = {**(ADAMW if make is torch.optim.AdamW else {"lr": 1e-2}), **(optimizer or {})}
        module = ArticleGPT(decoder, optimizer=functools.partial(make, **numbers), scheduler=scheduler)
        text = TextDataModule(
            **{
                "train": {"path": "train.txt"},
                "val": {"path": "val.txt"},
                "block_size": 16,
                "dataloader": {"batch_size": 4},
                **(data or {}),
            }
        )
        rates = Rates()
        trainer = L.Trainer(
            accelerator="cpu",
            max_steps=steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            callbacks=[ExactResume(), ResumeOptions(), rates, *callbacks],
            **{"limit_val_batches": 0, **options},
        )
        trainer.fit(module, datamodule=text, ckpt_path=path)
        if path is None:
            trainer.save_checkpoint("a.ckpt")
        return trainer, rates

    return run


COSINE = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=8)
ONE_CYCLE = functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1e-2, total_steps=STEPS + 1)


@pytest.mark.parametrize("scheduler", [None, COSINE, ONE_CYCLE])
def test_the_same_options_change_nothing(fit: Fit, scheduler: Any):
    whole, _ = fit(scheduler=scheduler)
    fit(4, scheduler=scheduler)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        parts, _ = fit(path="a.ckpt", scheduler=scheduler)
    for one, two in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(one, two)


@pytest.mark.parametrize("recorded", [True, False], ids=["", "a checkpoint of before"])
def test_a_lower_rate_keeps_the_moments_and_the_schedule(fit: Fit, recorded: bool):
    _, whole = fit()
    fit(4)
    saved = torch.load("a.ckpt", weights_only=True)
    if not recorded:
        put(saved, options=None)
        torch.save(saved, "a.ckpt")
    changed = {"lr": 1e-3, "betas": (0.8, 0.95), "weight_decay": 0.3}
    trainer, rates = fit(path="a.ckpt", optimizer=changed)
    assert rates.lrs == pytest.approx([lr / 10 for lr in whole.lrs[4:]], rel=1e-12)
    moments = [state["exp_avg"] for state in saved["optimizer_states"][0]["state"].values()]
    assert len(rates.moments) == len(moments) > 5
    assert all(torch.equal(one, two) for one, two in zip(rates.moments, moments, strict=True))
    groups = trainer.optimizers[0].param_groups
    assert [group["weight_decay"] for group in groups] == [0.3, 0.0]
    assert {group["betas"] for group in groups} == {(0.8, 0.95)}
    trainer.save_checkpoint("b.ckpt")
    _, second = fit(10, path="b.ckpt", optimizer=changed)
    assert second.lrs == pytest.approx([1e-4] * 2)  # the schedule's end, and not scaled a second time


def test_schedules_and_patience_are_the_configs(fit: Fit):
    stop = EarlyStopping("train/loss", patience=2)
    fit(4, scheduler=COSINE, callbacks=(stop,))
    longer = functools.partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=16)
    patient = EarlyStopping("train/loss", patience=9)
    trainer, _ = fit(path="a.ckpt", scheduler=longer, callbacks=(patient,))
    assert trainer.lr_scheduler_configs[0].scheduler.T_max == 16
    assert patient.patience == 9
    warm = functools.partial(WarmupCosine, warmup_steps=6, total_steps=STEPS)
    fit(4)
    _, rates = fit(path="a.ckpt", scheduler=warm)
    assert rates.lrs[1] == pytest.approx(1e-2)  # step 6, where the warm-up now ends


def test_another_optimizer_is_refused(fit: Fit):
    fit(4)
    with pytest.raises(InputError, match=r"optimizer is torch\.optim\.adamw\.AdamW, this one torch\.optim\.sgd\.SGD"):
        fit(path="a.ckpt", make=torch.optim.SGD)


def test_options_that_the_state_is_laid_out_for_are_the_checkpoints(fit: Fit):
    fit(4)
    with pytest.warns(UserWarning, match=r"amsgrad is True, which has no effect on a resume: the checkpoint's False"):
        trainer, _ = fit(path="a.ckpt", optimizer={"amsgrad": True})
    assert not any(group["amsgrad"] for group in trainer.optimizers[0].param_groups)
    trainer.save_checkpoint("b.ckpt")
    groups = Checkpoint.of(torch.load("b.ckpt", weights_only=True)).options["optimizers"][0]["groups"]
    assert [group["amsgrad"] for group in groups] == [False, False]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": {"shift": True}}, "data.shift is True, the checkpoint's run had False"),
        ({"data": {"order": "streams"}}, "data.order is streams, the checkpoint's run had windows"),
        ({"data": {"dataloader": {"batch_size": 4, "shuffle": False}}}, "data.dataloader.shuffle is False"),
        ({"dropout": 0.2}, "dropout is 0.2, the checkpoint's run had 0.0"),
        ({"accumulate_grad_batches": 2}, "trainer.accumulate_grad_batches is 2, the checkpoint's run had 1"),
    ],
)
def test_what_makes_it_another_run_is_named(fit: Fit, change: dict[str, Any], words: str):
    fit(4)
    with pytest.warns(UserWarning, match=words):
        fit(path="a.ckpt", **change)


def test_another_text_is_named(fit: Fit):
    fit(4)
    text = Path("train.txt").read_text()
    Path("train.txt").write_text(text.swapcase())
    with pytest.warns(UserWarning, match=r"the text \(its digest\) is \w+, the checkpoint's run had \w+"):
        fit(path="a.ckpt")


def test_config_yaml_says_what_is_in_force(main: Callable[..., None], config: Callable[..., str], trained: Path):
    """It is replaced whole, and what a process that was killed has left beside it goes."""
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    run = Path("runs/tiny/version_0")
    left = temporary_name(run / "loss.png")
    left = left.with_name(left.name.replace(f"-{os.getpid()}.", f"-{killed.pid}."))
    left.write_text("half")
    os.link(run / "config.yaml", "before.yaml")
    before = Path("before.yaml").read_text()
    option = "model.init_args.optimizer.init_args.lr"
    main("fit", "--config", config({}), "--ckpt_path", "last", "--trainer.max_steps", 8, f"--{option}", 2e-4)
    assert Path("before.yaml").read_text() == before
    assert not left.exists()
    saved = yaml.safe_load((run / "config.yaml").read_text())
    assert saved["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 2e-4
    state = torch.load("runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True)
    rates = [group["initial_lr"] for group in state["optimizer_states"][0]["param_groups"]]
    assert rates == pytest.approx([2e-4, 2e-4])


@pytest.mark.slow  # three runs
def test_a_plateau_is_stepped_once_a_validation_and_resumes_exactly(
    main: Callable[..., None], config: Callable[..., str]
):
    spec = {"monitor": "val/ce", "patience": 0, "threshold": 1e9, "threshold_mode": "abs", "factor": 0.5}
    plateau = {"class_path": "lightning.pytorch.cli.ReduceLROnPlateau", "init_args": {**spec, "warmup_steps": None}}
    change = {"model": {"init_args": {"scheduler": plateau}}}
    names = {name: config({"name": name, **change}, f"{name}.yaml") for name in ("whole", "parts")}
    for path in names.values():
        text = yaml.safe_load(Path(path).read_text())
        del text["model"]["init_args"]["scheduler"]["init_args"]["warmup_steps"]  # of the small config
        Path(path).write_text(yaml.safe_dump(text))
    main("fit", "--config", names["whole"], "--trainer.max_steps", 9)
    main("fit", "--config", names["parts"])
    main("fit", "--config", names["parts"], "--ckpt_path", "last", "--trainer.max_steps", 9)
    states = [torch.load(f"runs/{name}/version_0/checkpoints/last.ckpt", weights_only=True) for name in names]
    rates = [state["optimizer_states"][0]["param_groups"][0]["lr"] for state in states]
    assert rates == pytest.approx([1e-3 / 4] * 2)  # validations at steps 3, 6 and 9; the first sets the best
    weights = [state["state_dict"] for state in states]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
