"""A controller within a fit: what it computes with, what is left at the end, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_app.errors import InputError
from lightning_app.former import options_of_today
from lightning_app.models.registry import layouts_in
from lightning_app.plasticity.controller.callback import AdvancedController, HeadController
from lightning_app.training.callbacks.run_log import read_log
from lightning_app.training.checkpoint import Checkpoint

Main = Callable[..., None]
SMALL = {"model": {"init_args": {"backbone": {"layers": 2, "heads": 4}}}, "trainer": {"max_steps": 12}}


def heads_of(saved: dict) -> dict:
    """The layout of the heads in a checkpoint."""
    return layouts_in(Checkpoint.of(saved).model)["heads"]


def with_controller(name: str = "tiny", /, **options: Any) -> dict[str, Any]:
    given = {"controller_update_freq": 2, "warmup_steps": 2, "sample_rows": 2, "entropy_rows": 1, "log_every": 1}
    callback = {"class_path": "HeadController", "init_args": options_of_today(given | options, "HeadController")}
    trainer = {"max_steps": 12, "val_check_interval": 6, "callbacks": [callback]}
    return {"name": name, "model": SMALL["model"], "trainer": trainer}


def checkpoint(name: str = "tiny", version: int = 0) -> dict[str, Any]:
    path = Path(f"runs/{name}/version_{version}/checkpoints/last.ckpt")
    return torch.load(path, weights_only=True)


def records(event: str, name: str = "tiny", version: int = 0) -> list[dict[str, Any]]:
    return [r for r in read_log(Path(f"runs/{name}/version_{version}")) if r.get("event") == event]


CLOSES = {"controller_reg_weight": 10.0, "controller_lr": 3.0}  # no head is worth ten nats


@pytest.mark.slow
def test_inactive_heads_are_cut_out_and_the_model_that_is_saved_is_smaller(config: Callable[..., str], main: Main):
    main("fit", "--config", config(with_controller(**CLOSES)))
    saved = checkpoint()
    assert [len(present) for present in heads_of(saved)["present"]] == [
        1,
        1,
    ]  # each layer keeps one
    (proof,) = records("proof")
    assert proof["checks"]["dead heads"] == 6
    assert proof["checks"]["parameters removed"] == 6 * (4 * 16 * 4 + 3 * 4)
    updates = records("controller_update")
    assert updates[-1]["active"] == 2
    assert updates[-1]["total"] == 8
    logged = [r for r in read_log(Path("runs/tiny/version_0")) if "controller/active_heads" in r]
    assert [r["controller/active_heads"] for r in logged][-1] == 2
    assert logged[-1]["controller/total_heads"] == 8
    assert 0 < logged[-1]["controller/mean_gate"] < 0.5
    main("validate", "--config", "tiny.yaml", "--ckpt_path", "last")


@pytest.mark.slow  # cut out: fast
@pytest.mark.parametrize("at_end", ["mask", "keep"])
def test_masked_heads_stay_and_say_nothing(at_end: str, config: Callable[..., str], main: Main):
    main("fit", "--config", config(with_controller(**CLOSES, at_end=at_end)))
    saved = checkpoint()
    assert [len(present) for present in heads_of(saved)["present"]] == [4, 4]
    assert [len(masked) for masked in heads_of(saved)["masked"]] == [3, 3]
    assert len(records("proof")) == (at_end == "mask")
    main("validate", "--config", "tiny.yaml", "--ckpt_path", "last")


@pytest.mark.slow
def test_a_controller_that_switches_nothing_changes_nothing(config: Callable[..., str], main: Main):
    main("fit", "--config", config({**SMALL, "name": "plain"}, "plain.yaml"))
    main("fit", "--config", config(with_controller(controller_lr=1e-9), "tiny.yaml"))
    plain, gated = checkpoint("plain")["state_dict"], checkpoint()["state_dict"]
    assert plain.keys() == gated.keys()
    for name in plain:
        assert torch.equal(plain[name], gated[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["network", "logits"])
def test_a_resume_is_bit_exact(mode: str, config: Callable[..., str], main: Main):
    options = {"mode": mode, "controller_lr": 1.0, "controller_reg_weight": 0.003, "at_end": "keep"}
    if mode == "logits":
        options |= {"learn_from_loss": True, "update_scale": 20.0}
    name = config(with_controller("tiny", **options))
    main("fit", "--config", name)
    main("fit", "--config", name, "--trainer.max_steps", 7, "--model.scheduler.total_steps", 12)  # amid two updates
    main(
        *("fit", "--config", name, "--ckpt_path", "runs/tiny/version_1/checkpoints/last.ckpt"),
        *("--model.scheduler.total_steps", 12),
    )
    whole, parts = checkpoint(), checkpoint(version=max(int(p.name[8:]) for p in Path("runs/tiny").glob("version_*")))
    assert whole["global_step"] == parts["global_step"] == 12
    for tensor in whole["state_dict"]:
        assert torch.equal(whole["state_dict"][tensor], parts["state_dict"][tensor]), tensor
    (first,), (second,) = ([v for k, v in c["callbacks"].items() if "HeadController" in k] for c in (whole, parts))
    assert torch.equal(first["controller"]["gates"], second["controller"]["gates"])
    assert len(set(first["controller"]["gates"].flatten().tolist())) > 1
    assert torch.equal(first["active"], second["active"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"controller_update_freq": 0}, "controller_update_freq is 0"),
        ({"controller_lr": 0.0}, "controller_lr is 0"),
        ({"controller_reg_weight": -1.0}, "controller_reg_weight is -1"),
    ],
)
def test_bad_advanced_options(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        AdvancedController(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"at_end": "cut"}, "at_end is 'cut'"),
        ({"mode": "net"}, "mode is 'net'"),
        ({"advanced": AdvancedController(learn_from_loss=True)}, "mode: logits"),
        ({"steps": 100}, "never decide"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        HeadController(**options)


def test_what_is_refused_before_training(config: Callable[..., str], fails: Callable[..., str]):
    change = with_controller()
    change["trainer"]["callbacks"].append({"class_path": "PlasticitySchedule"})
    assert "both decide which heads are there" in fails("fit", "--config", config(change))
    change = with_controller()
    change["model"] = {"init_args": {**change["model"]["init_args"], "compile": True}}
    assert "compile" in fails("fit", "--config", config(change))
    assert "validation text" in fails("fit", "--config", config({**with_controller(), "data": {"val": None}}))
