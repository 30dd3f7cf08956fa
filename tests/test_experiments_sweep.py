"""A sweep tries options, stops what is worse than most, goes on where it was cut, and refuses what makes no sense."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from experiments.space import Choices, Range, check_known, read_space
from experiments.sweep import Pruning, as_words, main
from lightning_app import closing
from lightning_app.errors import InputError

LR = "model.init_args.optimizer.init_args.lr"


def space(path: Path, options: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(options))
    return path


def test_a_space_is_read(tmp_path: Path):
    found = read_space(
        space(
            tmp_path / "space.yaml",
            {
                "a.lr": {"low": 0.001, "high": 0.1, "log": True},
                "b": {"low": 2, "high": 8, "step": 2},
                "c": {"choices": [None, "x"]},
            },
        )
    )
    assert found == {"a.lr": Range(0.001, 0.1, log=True), "b": Range(2, 8, step=2), "c": Choices([None, "x"])}


@pytest.mark.parametrize(
    ("dimension", "message"),
    [
        ({"low": 1}, "give {low: ..., high: ...}"),
        ({"low": 1, "high": 2, "steps": 1}, "give {low: ..., high: ...}"),
        ([1, 2], "or {choices: [...]}"),
        ({"choices": []}, "or {choices: [...]}"),
        ({"choices": [[1]]}, "each must be one number"),
        ({"low": "1e-3", "high": 1}, "YAML reads 1e-3 as a text"),
        ({"low": 2, "high": 1}, "low must be below high"),
        ({"low": 0, "high": 1, "log": True}, "with log above 0"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(dimension: Any, message: str, tmp_path: Path):
    with pytest.raises(InputError, match=r"x (is|has)") as error:
        read_space(space(tmp_path / "space.yaml", {"x": dimension}))
    assert message in str(error.value)


def test_an_option_that_the_config_lacks_is_refused_and_the_nearest_named():
    with pytest.raises(InputError, match=f"no option model.lr; the nearest that it has is {LR}"):
        check_known({"model.lr": Range(0, 1)}, [LR, "data.block_size"])


def test_values_are_written_as_yaml_reads_them():
    words = as_words({"a": None, "b": True, "c": 1e-05, "d": 3, "e": "x"})
    assert {k: yaml.safe_load(v) for k, v in (w.split("=") for w in words)} == {
        "--a": None,
        "--b": True,
        "--c": "1e-05",  # jsonargparse, which knows that it is a number, reads it as one
        "--d": 3,
        "--e": "x",
    }


def test_a_run_worse_than_most_is_ended_in_order():
    reported: list[tuple[float, int]] = []
    trial = SimpleNamespace(
        report=lambda value, step: reported.append((value, step)), should_prune=lambda: len(reported) > 1
    )
    pruning = Pruning(trial, "val/ce")  # type: ignore[arg-type]
    trainer = SimpleNamespace(sanity_checking=True, state=SimpleNamespace(fn="fit"), should_stop=False)
    for sanity, step, value in ((True, 0, 9.0), (False, 10, 3.0), (False, 20, 4.0)):
        trainer.sanity_checking, trainer.global_step, trainer.callback_metrics = sanity, step, {"val/ce": value}
        pruning.on_validation_end(trainer, None)  # type: ignore[arg-type]
    assert reported == [(3.0, 10), (4.0, 20)]
    assert (pruning.best, pruning.pruned, trainer.should_stop) == (3.0, True, True)


@pytest.fixture
def sweep(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs one over the small config."""
    monkeypatch.setattr(closing, "SAMPLED_TOKENS", 20)
    space(
        folder / "space.yaml",
        {LR: {"low": 1e-4, "high": 1e-1, "log": True}, "model.init_args.backbone.layers": {"choices": [1, 2]}},
    )
    return lambda *words: main(["--config", "tiny.yaml", "--space", "space.yaml", *map(str, words)])


def test_what_a_fit_refuses_is_refused_before_a_sweep(sweep: Callable[..., None], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        sweep("--trials", 1, "--dataloader.batch_size", 2)
    assert "a top-level `dataloader`" in capsys.readouterr().err


@pytest.mark.slow
def test_trials_are_ordinary_runs_and_a_second_call_goes_on(
    sweep: Callable[..., None], capsys: pytest.CaptureFixture[str], fails: Callable[..., str], main: Callable[..., None]
):
    sweep("--trials", 1, "--max_steps", 4)
    sweep("--trials", 2, "--max_steps", 4)
    out = capsys.readouterr().out
    assert sorted(path.name for path in Path("runs/sweep").glob("trial_*")) == ["trial_0", "trial_1"]
    rates = [
        yaml.safe_load(p.read_text())["model"]["init_args"]["optimizer"]["init_args"]["lr"]
        for p in sorted(Path("runs/sweep").glob("*/*/config.yaml"))
    ]
    assert len(set(rates)) == 2  # a sweep that goes on does not draw again what it drew
    command = out.rpartition("train with it: ")[2].splitlines()[0]
    assert command.startswith("python main.py fit --config tiny.yaml --model.")
    assert f" --{LR}=" in command
    main(*out.rpartition("compare: python main.py ")[2].split())
    assert "trial_1" in Path("runs/sweep/compare.html").read_text()
    with pytest.raises(SystemExit):
        sweep("--trials", 3, "--max_steps", 5)
    assert "had another max_steps: give another --name" in capsys.readouterr().err


@pytest.mark.slow
def test_a_trial_that_was_cut_is_tried_again_and_one_that_fails_is_not(
    sweep: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from experiments import sweep as module

    def cut(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    original = module.run
    with monkeypatch.context() as patch:
        patch.setattr(module, "run", lambda argv, **more: original(argv) if "--print_config" in argv else cut())
        with pytest.raises(KeyboardInterrupt):
            sweep("--trials", 1)
    sweep("--trials", 1)
    rows = capsys.readouterr().out.rpartition("trial  state")[2].splitlines()[1:3]
    assert rows[0].split()[1:3] == ["fail", "-"]
    assert rows[1].split()[1] == "complete"
    assert rows[0].split()[3:] == rows[1].split()[3:]
