"""Numbers that Lightning or torch would take and cannot mean: one line with their key, before anything is built."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_app.cli import main as command
from lightning_app.errors import InputError
from lightning_app.option_checks import RULES, Range, check_options

Fails = Callable[..., str]
Config = Callable[..., str]
END = {"max_steps": 5}
LR = "model.init_args.optimizer.init_args"


def nested(key: str, value: Any) -> dict[str, Any]:
    """{"a": {"b": value}} for "a.b"."""
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def options(key: str = "name", value: Any = "run", **trainer: Any) -> dict[str, Any]:
    given = nested(key, value)
    own = given.pop("trainer", {})
    return {"data": {}, "name": "run", "runs_dir": "runs", "model": {}, "trainer": {**END, **trainer, **own}} | given


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("trainer.gradient_clip_val", -1, "at least 0"),
        ("trainer.gradient_clip_val", math.nan, "at least 0"),
        ("trainer.accumulate_grad_batches", 0, "at least 1"),
        ("trainer.val_check_interval", 0, "above 0"),
        ("trainer.val_check_interval", 0.0, "above 0"),
        ("trainer.check_val_every_n_epoch", 0, "at least 1"),
        ("trainer.log_every_n_steps", -1, "at least 0"),
        ("trainer.num_sanity_val_steps", -2, "or -1"),
        ("trainer.min_steps", -1, "at least 0"),
        ("trainer.num_nodes", 0, "at least 1"),
        ("trainer.max_epochs", 0, "a fit needs one above 0"),
        ("trainer.max_steps", 0, "a fit needs one above 0"),
        ("trainer.max_steps", -2, "or -1"),
        ("trainer.limit_train_batches", 0, "a fit needs one above 0"),
        ("trainer.limit_train_batches", 0.0, "a fit needs one above 0"),
        ("trainer.max_time", "-1", "days:hours:minutes:seconds"),
        ("trainer.max_time", "00:00:00:00", "days:hours:minutes:seconds"),
        ("trainer.max_time", {"minutes": -5}, "days:hours:minutes:seconds"),
        ("seed_everything", -1, "[0, 4294967295]"),
        ("seed_everything", 2**32, "[0, 4294967295]"),
        (f"{LR}.lr", -1e-3, "above 0"),
        (f"{LR}.lr", 0.0, "above 0"),
        (f"{LR}.lr", math.inf, "above 0"),
        (f"{LR}.betas", (0.9, 1.5), "[0, 1)"),
        (f"{LR}.betas", (-0.1, 0.9), "[0, 1)"),
        (f"{LR}.eps", 0.0, "above 0"),
        (f"{LR}.weight_decay", -0.1, "at least 0"),
        (f"{LR}.weight_decay", math.nan, "at least 0"),
        (f"{LR}.momentum", 1.0, "[0, 1)"),
        (f"{LR}.maximize", True, "false"),
        ("model.init_args.scheduler.init_args.T_max", 0, "at least 1"),
        ("model.init_args.scheduler.init_args.gamma", -1.0, "above 0"),
        ("model.init_args.scheduler.init_args.last_epoch", 5, "be -1"),
        ("trainer.callbacks", [{"init_args": {"patience": -1}}], "at least 0"),
        ("model.init_args.anything", math.nan, "a number"),
        ("trainer.callbacks", [{"class_path": "lightning_app.C", "init_args": {"advanced": None}}], "leave it out"),
        ("trainer", None, "null"),
        ("data", None, "null"),
        ("name", None, "null"),
    ],
)
def test_what_is_refused_and_how(key: str, value: Any, words: str):
    with pytest.raises(InputError) as refused:
        check_options(options(key, value) if key != "trainer" else {**options(), "trainer": None}, fit=True)
    assert str(refused.value).startswith(key)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trainer.gradient_clip_val", 0),
        ("trainer.gradient_clip_val", math.inf),
        ("trainer.gradient_clip_val", None),
        ("trainer.val_check_interval", 0.25),
        ("trainer.val_check_interval", "00:00:10:00"),
        ("trainer.limit_val_batches", 0),
        ("trainer.num_sanity_val_steps", -1),
        ("trainer.max_time", {"minutes": 5}),
        ("seed_everything", True),
        (f"{LR}.betas", (0.0, 0.999)),
        (f"{LR}.weight_decay", 0.0),
        ("model.init_args.scheduler.init_args.last_epoch", -1),
    ],
)
def test_what_means_something_is_taken(key: str, value: Any):
    check_options(options(key, value), fit=True)


def test_a_fit_has_an_end_and_nothing_else_needs_one():
    for none in ({"max_steps": -1}, {"max_steps": -1, "max_epochs": -1}, {"max_steps": None, "max_epochs": None}):
        with pytest.raises(InputError, match=r"no end: give trainer\.max_steps, trainer\.max_epochs or trainer\.max_t"):
            check_options(options(**none), fit=True)
        check_options(options(**none), fit=False)
        check_options(options(**none, fast_dev_run=True), fit=True)
        check_options(options(**none, max_time="00:00:01:00"), fit=True)
    check_options(options(max_steps=-1, max_epochs=2), fit=True)
    check_options(options(max_steps=0, max_epochs=0, limit_train_batches=0), fit=False)


def test_ranges_say_what_they_hold():
    assert str(Range(0, 1, without=1)) == "lie in [0, 1)"
    assert str(Range(0, 1, without=0)) == "lie in (0, 1]"
    assert str(Range(0, without=0)) == "be above 0"
    assert str(Range()) == "be finite"
    assert len(RULES) > 30


def test_every_config_of_ours_passes():
    paths = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
    assert len(paths) > 5
    for path in paths:
        check_options({"name": "run", "runs_dir": "runs", **yaml.safe_load(path.read_text())}, fit=True)


def fit_fails(fails: Fails, name: str, *words: object) -> str:
    """What `fit` says in its one line; no run was begun."""
    error = [line for line in fails("fit", "--config", name, *words).splitlines() if line.startswith("error: ")]
    assert len(error) == 1, error
    assert not Path("runs").exists()
    return error[0].removeprefix("error: ")


# One of each way out is fast: others end by the same check, class or parser.
@pytest.mark.parametrize(
    ("change", "begin", "words"),
    [
        ({"trainer": {"gradient_clip_val": -1}}, "trainer.gradient_clip_val is -1", "at least 0"),
        pytest.param({"seed_everything": -1}, "seed_everything is -1", "lie in", marks=pytest.mark.slow),
        pytest.param(
            {"trainer": {"max_steps": -1}}, "the fit would have no end", "trainer.max_time", marks=pytest.mark.slow
        ),
        ({"trainer": {"strategy": "foo"}}, "trainer.strategy: ", "foo"),
        pytest.param({"trainer": {"accelerator": "foo"}}, "trainer.accelerator: ", "foo", marks=pytest.mark.slow),
        pytest.param({"trainer": {"devices": "foo"}}, "trainer.devices: ", "int > 0", marks=pytest.mark.slow),
        pytest.param({"trainer": {"precision": "8-bit"}}, "trainer.precision: ", "8-bit", marks=pytest.mark.slow),
        pytest.param(
            {"trainer": {"limit_val_batches": -3}}, "trainer.limit_val_batches: ", "-3", marks=pytest.mark.slow
        ),
        (
            {"trainer": {"callbacks": [{"class_path": "EarlyStopping", "init_args": {"monitor": "x", "mode": "up"}}]}},
            "trainer.callbacks.0: ",
            "got up",
        ),
        (
            {"trainer": {"logger": {"class_path": "CSVLogger"}, "callbacks": [{"class_path": "NoSuch"}]}},
            "trainer.callbacks",
            "NoSuch",
        ),
        (
            {"model": {"init_args": {"optimizer": {"init_args": {"lr": "fast"}}}}},
            "model.init_args.optimizer.init_args.lr is 'fast'",
            "must be a number",
        ),
        pytest.param({"data": {"block_size": "x"}}, "data.block_size: ", "int", marks=pytest.mark.slow),
        ({"data": {"dataloader": "\0"}}, "'data.dataloader' holds a zero byte", r"\x00"),
        pytest.param(
            {"data": {"cache_dir": "a\0b"}}, "'data.cache_dir' holds a zero byte", r"a\x00b", marks=pytest.mark.slow
        ),
        pytest.param(
            {"data": {"train": {"path": "a\nb"}}}, "no such file: a b", "check the path", marks=pytest.mark.slow
        ),
        ({"data": {"train": {"path": "hf:a\nb"}}}, "", "hf:"),
        ({"trainer": ["cpu", 1]}, "trainer is ", "must be a mapping"),
        pytest.param({"trainer": True}, "trainer is 'True'", "must be a mapping", marks=pytest.mark.slow),
    ],
)
def test_whatever_is_raised_while_a_run_is_built_is_one_line_with_its_key(
    fails: Fails, config: Config, change: dict[str, Any], begin: str, words: str
):
    error = fit_fails(fails, config(change))
    assert error.startswith(begin)
    assert words in error
    assert len(error) < 500


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"class_path": "torch.optim.SGD", "init_args": {"nesterov": True}}, "Nesterov"),
        pytest.param({"class_path": "torch.optim.SparseAdam"}, "cannot train here", marks=pytest.mark.slow),
        pytest.param({"class_path": "torch.optim.LBFGS"}, "LBFGS", marks=pytest.mark.slow),
        (None, "is null"),
    ],
)
def test_what_an_optimizer_refuses_has_its_key(fails: Fails, config: Config, spec: Any, words: str):
    error = fails("fit", "--config", config({"model": {"init_args": {"optimizer": spec}}})).splitlines()[-1]
    assert error.startswith("error: model.init_args.optimizer")
    assert words in error


def test_debug_shows_the_traceback(folder: Path, config: Config):
    with pytest.raises(InputError, match="gradient_clip_val"):
        command(["fit", "--config", config({"trainer": {"gradient_clip_val": -1}}), "--debug"])


def test_the_short_form_of_a_class_is_no_option_without_effect(folder: Path, config: Config):
    command(["prepare", "--config", config({}), "--model.init_args.optimizer", "SGD"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there it is no mistake")
def test_float16_on_a_cpu_is_refused(fails: Fails, config: Config):
    assert fit_fails(fails, config({"trainer": {"precision": "16-mixed"}})).startswith("trainer.precision is 16-mixed")
