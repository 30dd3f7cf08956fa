"""AveragedWeights: the average by the formula, in checkpoints and validations, beside everything else."""

import copy
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy

from lightning_app.errors import InputError
from lightning_app.models.registry import layouts_in
from lightning_app.plasticity.kinds import units_of
from lightning_app.training.callbacks.averaging import AveragedWeights
from lightning_app.training.callbacks.run_log import read_log
from lightning_app.training.checkpoint import Checkpoint, load_module
from lightning_app.training.checkpoint_keys import CURRENT
from lightning_app.training.compositions import ArticleGPT

DECAY = 0.75
AVERAGE = {"class_path": "AveragedWeights", "init_args": {"decay": DECAY}}
ART = {
    "class_path": "ARTRegularizer",
    "init_args": {"novelty": "drift", "average_decay": 0.9},
}

Main = Callable[..., None]
Config = Callable[..., str]
State = dict[str, torch.Tensor]


def plasticity(surgery: str) -> dict[str, Any]:
    sizes = {"cycles": 2, "pruning_level": 0.5, "training_steps": 2, "warmup_steps": 1, "finetuning_steps": 1}
    sample = {"sample_batches": 1, "sample_batch_size": 2, "targets": ["heads"], "keep_per_layer": 1}
    return {
        "class_path": "PlasticitySchedule",
        "init_args": {**sizes, **sample, "surgery": surgery, "regrow": 1},
    }


def checkpoint(run: str, name: str = "last") -> dict[str, Any]:
    return torch.load(f"runs/{run}/version_0/checkpoints/{name}.ckpt", weights_only=True)


def same(one: State, two: State) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture
def trajectory(monkeypatch: pytest.MonkeyPatch) -> list[State]:
    """The weights after each optimizer step of the fits of this test."""
    steps: list[State] = []
    step = ArticleGPT.optimizer_step

    def spy(module: ArticleGPT, *args: Any, **kwargs: Any) -> None:
        step(module, *args, **kwargs)
        steps.append(copy.deepcopy(dict(module.state_dict())))

    monkeypatch.setattr(ArticleGPT, "optimizer_step", spy)
    return steps


def test_the_average_is_that_of_the_formula_and_training_goes_on_as_without(
    main: Main, config: Config, trajectory: list[State]
):
    regularizers = {"model": {"init_args": {"extensions": [ART]}}}
    main("fit", "--config", config({"name": "plain", **regularizers}))
    main("fit", "--config", config({"name": "averaged", "trainer": {"callbacks": [AVERAGE]}, **regularizers}))
    plain, averaged = trajectory[:6], trajectory[6:]
    assert len(averaged) == 6
    assert all(same(one, two) for one, two in zip(plain, averaged, strict=True))
    saved, expected = checkpoint("averaged"), plain[0]
    trained = saved[CURRENT].keys()
    assert len(trained) > 10
    assert not any(name.startswith("regularizers.") for name in trained)
    for weights in plain[1:]:
        expected = {name: DECAY * x + (1 - DECAY) * weights[name] for name, x in expected.items() if name in trained}
    for name, x in saved["state_dict"].items():
        torch.testing.assert_close(x, expected.get(name, plain[-1][name]), rtol=0, atol=1e-6)
    assert same(saved[CURRENT], {name: plain[-1][name] for name in trained})
    assert saved["state_dict"]["regularizers.0.steps"] == 6


@pytest.mark.slow
def test_validation_and_the_best_checkpoint_are_of_the_average(main: Main, config: Config):
    name = config({"trainer": {"callbacks": [AVERAGE]}})
    main("fit", "--config", name)
    (found,) = [
        r["val/ce"]
        for r in read_log("runs/tiny/version_0")
        if r.get("step") == 6 and "val/loss" in r and "event" not in r
    ]
    main("validate", "--config", name, "--ckpt_path", "last")
    (validated,) = [r["val/ce"] for r in read_log("runs/tiny/version_0") if r.get("event") == "validate"]
    assert validated == pytest.approx(found, rel=1e-6)
    best = checkpoint("tiny", "best")
    module, _ = load_module("runs/tiny/version_0/checkpoints/best.ckpt")
    assert same(dict(module.state_dict()), best["state_dict"])
    weight = "backbone.transformer.wte.weight"
    assert not torch.equal(best["state_dict"][weight], best[CURRENT][weight])


@pytest.mark.slow
@pytest.mark.parametrize("surgery", [None, "mask", "remove"])
def test_a_resumed_run_is_the_run_that_never_stopped(
    main: Main, config: Config, monkeypatch: pytest.MonkeyPatch, surgery: str | None
):
    """With surgery: before and after the stop."""
    callbacks = [AVERAGE] if surgery is None else [plasticity(surgery), AVERAGE]
    model = {"init_args": {"backbone": {"layers": 2, "heads": 4}, "extensions": [ART]}}
    for run in ("whole", "parts"):
        config({"name": run, "trainer": {"callbacks": callbacks, "max_steps": 8}, "model": model}, f"{run}.yaml")

    def crash(module: ArticleGPT, batch: object, batch_idx: int) -> None:
        if module.global_step == 4:
            raise RuntimeError("power cut")

    main("fit", "--config", "whole.yaml")
    with monkeypatch.context() as patch:
        patch.setattr(ArticleGPT, "on_train_batch_start", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            main("fit", "--config", "parts.yaml", "--save_every_n_steps", 4)
    main("fit", "--config", "parts.yaml", "--ckpt_path", "last")
    whole, parts = checkpoint("whole"), checkpoint("parts")
    assert same(whole["state_dict"], parts["state_dict"])
    assert same(whole[CURRENT], parts[CURRENT])
    assert whole["averaging_state"] == parts["averaging_state"]
    weight = "backbone.transformer.h.1.attn.c_attn.weight"
    assert whole["state_dict"][weight].shape == whole[CURRENT][weight].shape
    if surgery is None:
        return
    layout = layouts_in(Checkpoint.of(whole).model)["heads"]
    dead = [8 - sum(map(len, layout["present"])), sum(map(len, layout["masked"]))]
    assert dead == ([4, 0] if surgery == "remove" else [0, 4])
    module, _ = load_module("runs/whole/version_0/checkpoints/best.ckpt")
    assert int((~units_of(module.backbone, "heads").mask).sum()) == 4


def test_neither_surgery_nor_gates_leave_the_average_behind(folder: Path):
    """What stays keeps its average; what comes back joins with the weights that it has in the model."""
    model = ArticleGPT(backbone=decoder())
    average = copy.deepcopy(model)
    with torch.no_grad():
        for p in average.parameters():
            p += 1.0
    ours, theirs = units_of(average.backbone, "heads"), units_of(model.backbone, "heads")
    was = ours.slice_of(0, 2)
    dead = torch.zeros(theirs.shape, dtype=torch.bool)
    dead[0, 1] = dead[1, 3] = True
    theirs.remove(dead)
    ours.follow(theirs)
    assert torch.equal(ours.mask, ~dead)
    assert all(torch.equal(a.value, b.value) for a, b in zip(ours.slice_of(0, 2), was, strict=True))
    theirs.regrow(0, 1, "undo")
    theirs.open_gates()
    ours.follow(theirs)
    assert ours.layout() == theirs.layout()
    assert dict(average.named_buffers()).keys() == dict(model.named_buffers()).keys()
    joined = zip(ours.slice_of(0, 1), theirs.slice_of(0, 1), strict=True)
    assert all(torch.equal(a.value, b.value) for a, b in joined)


def decoder() -> Any:
    from lightning_app.models.decoder import Decoder

    return Decoder(embedding_dim=16, layers=2, heads=4)


@pytest.mark.parametrize("options", [{"decay": 1.0}, {"decay": -0.1}])
def test_options_out_of_range(options: dict[str, Any]):
    with pytest.raises(InputError, match=next(iter(options))):
        AveragedWeights(**options)


def test_a_strategy_that_shards_is_refused():
    trainer: Any = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(InputError, match="ddp"):
        AveragedWeights().setup(trainer, L.LightningModule(), "fit")


def test_a_precision_in_which_an_average_comes_to_a_stand_is_refused(fails: Callable[..., str], config: Config):
    error = fails("fit", "--config", config({"trainer": {"precision": "bf16-true", "callbacks": [AVERAGE]}}))
    assert "error: trainer.precision is bf16-true, in which AveragedWeights would come to a stand" in error


def test_a_copy_of_a_module_shares_what_makes_its_optimizer():
    """What the command line hands over may hold what cannot be copied: under DDP the other processes."""
    held = functools.partial(torch.optim.SGD, lr=threading.Lock())
    twin = copy.deepcopy(ArticleGPT(backbone=decoder(), optimizer=held))
    assert twin._optimisation.optimizer is held
