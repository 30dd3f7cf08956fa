import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_app.training.callbacks import progress
from lightning_app.training.callbacks.progress import ProgressLine


def trainer(**options: Any) -> Any:
    defaults = {"global_step": 10, "max_steps": -1, "max_epochs": None, "num_training_batches": 10, "callbacks": []}
    return SimpleNamespace(**{**defaults, "accumulate_grad_batches": 1, **options})


@pytest.fixture
def line(monkeypatch: pytest.MonkeyPatch) -> ProgressLine:
    """That of a fit that began 10 seconds ago, by a clock that stands still."""
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: 110.0))
    line = ProgressLine()
    line._started = 100.0  # one step a second
    return line


@pytest.mark.parametrize(
    ("options", "seconds"),
    [
        ({"max_steps": 40}, 30),
        ({"max_epochs": 3}, 20),
        ({"max_epochs": 3, "accumulate_grad_batches": 2}, 5),
        ({"max_epochs": -1}, None),
        ({"global_step": 0, "max_steps": 40}, None),
    ],
)
def test_time_left_from_the_pace_so_far(options: dict[str, int], seconds: float | None, line: ProgressLine):
    assert line.seconds_left(trainer(**options)) == seconds


def test_the_bar_shows_loss_val_loss_speed_and_time_left(line: ProgressLine):
    shown = {"train/loss": 2.5, "val/loss": 3.0, "tokens_per_s": 12345.6}
    metrics = line.get_metrics(trainer(max_steps=40, progress_bar_metrics=shown), None)  # type: ignore[arg-type]
    assert metrics == {"loss": 2.5, "val_loss": 3.0, "tokens/s": "12,346", "left": "0:30"}


@pytest.fixture
def with_art(config: Callable[..., str]) -> str:
    """The small config with ART."""
    art = {
        "class_path": "ARTRegularizer",
        "init_args": {"vigilance": 0.99, "novelty": "margin"},
    }
    return config({"model": {"init_args": {"extensions": [art]}}})


@pytest.fixture
def at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the bar shows of each step that it is drawn at."""
    drawn: list[dict[str, Any]] = []
    shown = ProgressLine.get_metrics

    def get_metrics(self: ProgressLine, trainer: Any, module: Any) -> dict[str, Any]:
        metrics = shown(self, trainer, module)
        if trainer.training:
            art = getattr(module.regularizers[0], "art", None) if len(module.regularizers) else None
            drawn.append({**metrics, "step": trainer.global_step, "really": None if art is None else len(art)})
        return metrics

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(ProgressLine, "get_metrics", get_metrics)
    return drawn


def test_with_art_the_bar_shows_all_terms_and_the_clusters_of_now_at_each_step(
    main: Callable[..., None], with_art: str, at_a_terminal: list[dict[str, Any]]
):
    main("fit", "--config", with_art)
    of_step = {shown["step"]: shown for shown in at_a_terminal}
    assert sorted(of_step) == [1, 2, 3, 4, 5, 6]
    for shown in of_step.values():
        assert shown["loss"] == pytest.approx(shown["ce"] + 0.1 * shown["art"], abs=1e-4)
        assert shown["art_clusters"] == shown["really"] > 0
        assert isinstance(shown["art_clusters"], int)
    assert len({shown["ce"] for shown in of_step.values()}) == 6


def test_without_regularisers_the_bar_is_drawn_every_five_steps(
    folder: Path, main: Callable[..., None], at_a_terminal: list[dict[str, Any]]
):
    main("fit", "--config", "tiny.yaml", "--trainer.val_check_interval", 6)
    assert {shown["step"] for shown in at_a_terminal} == {5, 6}  # the validation draws too
    assert not {"ce", "art_clusters"} & set(at_a_terminal[0])


def test_without_a_terminal_a_line_comes_behind_a_step_where_none_came_for_a_while(
    folder: Path, main: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(progress, "LONGEST_QUIET", 0.0)
    main("fit", "--config", "tiny.yaml", "--trainer.val_check_interval", 6)
    out = capsys.readouterr().out
    line = r"(?m)^epoch \d  step (\d)  train/loss \d\.\d{4}  elapsed 0:\d\d  left 0:\d\d$"
    assert re.findall(line, out) == list("123456")


@pytest.mark.slow
def test_the_line_that_stays_names_the_terms_too_where_there_is_no_terminal(
    main: Callable[..., None], with_art: str, capsys: pytest.CaptureFixture[str]
):
    main("fit", "--config", with_art)
    number = r"(\d+\.\d{4})"
    names = ("train/loss", "train/ce", "train/art")
    line = "  ".join(["step 6", *(f"{name} {number}" for name in names), rf"train/art_clusters \d+  val/loss {number}"])
    (found,) = re.findall(line, capsys.readouterr().out)
    loss, ce, art, _ = map(float, found)
    assert loss == pytest.approx(ce + 0.1 * art, abs=2e-4)
