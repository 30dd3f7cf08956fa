"""`test` and `validate` say what the text needs without a model, where they know what the model has read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_app.training.callbacks.run_log import read_log

Config = Callable[..., str]
Main = Callable[..., None]
BEST = ("--ckpt_path", "best")


def measured(run: Path) -> list[dict[str, Any]]:
    return [record for record in read_log(run) if record.get("event") == "measured"]


def figures(run: Path) -> list[float]:
    """What `test` has logged itself."""
    return [record["test/bpb"] for record in read_log(run) if record.get("event") == "test"]


def test_an_evaluation_is_logged_and_printed_beside_what_needs_no_model(
    main: Main, trained: Path, capsys: pytest.CaptureFixture[str]
):
    main("test", "--config", "tiny.yaml", *BEST)
    (found,) = measured(trained)
    printed = capsys.readouterr().out.split("bits per byte of the test text")[1]
    assert found["bpb"] == pytest.approx(figures(trained)[0], abs=1e-6)
    for name, key in (("this model", "bpb"), ("5-grams", "fivegrams_bpb"), ("LZMA2", "lzma_bpb")):
        assert f"{found[key]:.3f}" in printed.split(name)[1].splitlines()[0]
    assert printed.index("this model") < printed.index("adapting")
    assert "adapts" not in found


def test_a_model_that_follows_the_text_stands_with_the_compressors(
    main: Main, trained: Path, capsys: pytest.CaptureFixture[str]
):
    main("validate", "--config", "tiny.yaml", *BEST, "--trainer.callbacks+", "DynamicEvaluation")
    (found,) = measured(trained)
    assert (found["split"], found["adapts"]) == ("val", True)
    printed = capsys.readouterr().out.split("bits per byte of the validation text")[1]
    assert printed.index("this model") > printed.index("adapting")


def test_counts_of_another_text_are_not_put_beside_it(main: Main, trained: Path, capsys: pytest.CaptureFixture[str]):
    Path("other.txt").write_text("nobody has trained on this " * 40)
    main("test", "--config", "tiny.yaml", *BEST, "--data.train.path", "other.txt")
    main("test", "--config", "tiny.yaml", *BEST, "--data.train.path", "gone.txt")
    main("test", "--config", "tiny.yaml", *BEST, "--trainer.limit_test_batches", 1)
    assert "bits per byte of" not in capsys.readouterr().out
    assert len(figures(trained)) == 3
    assert measured(trained) == []
