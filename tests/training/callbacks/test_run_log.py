import json
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_app.training.callbacks.run_log import JSONLinesLogger, read_log
from lightning_app.training.checkpoint_io import AtomicCheckpointIO
from lightning_app.training.module import LanguageModule


def write(folder: Path, *records: dict) -> None:
    lines = [json.dumps(record) for record in records]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")


def test_numbers_of_a_step_are_one_line_and_nan_is_null(tmp_path: Path):
    logger = JSONLinesLogger(tmp_path / "name" / "version_3" / "log.jsonl")
    logger.log_metrics({"train/ce": 2.5, "grad_norm": float("nan")}, step=4)
    (record,) = read_log(tmp_path / "name" / "version_3")
    assert record.pop("time") > 0
    assert record == {"step": 5, "train/ce": 2.5, "grad_norm": None}
    assert (logger.name, logger.version) == ("name", "version_3")


def test_what_was_logged_after_the_checkpoint_of_a_resume_does_not_count(tmp_path: Path):
    write(
        tmp_path,
        {"event": "started", "step": 0},
        {"step": 5, "train/ce": 3.0},
        {"step": 10, "train/ce": 2.0},
        {"event": "resumed", "step": 5},
        {"step": 10, "train/ce": 2.5},
    )
    assert [(r["step"], r.get("train/ce")) for r in read_log(tmp_path) if "event" not in r] == [(5, 3.0), (10, 2.5)]


def test_a_resume_knows_the_lines_that_its_checkpoint_had_seen(tmp_path: Path):
    """A validation at the checkpoint's own step comes again; evaluations in between belong to no step and stay."""
    write(
        tmp_path,
        {"event": "started", "step": 0},
        {"step": 5, "train/ce": 3.0},  # the checkpoint is written here
        {"step": 5, "val/ce": 3.5},
        {"event": "passages", "step": 5},
        {"event": "test", "test/ce": 3.2},
        {"event": "resumed", "step": 5, "lines": 2},
        {"step": 5, "val/ce": 3.5},
    )
    found = [tuple(r.items())[-1] for r in read_log(tmp_path)]
    assert found == [("step", 0), ("train/ce", 3.0), ("test/ce", 3.2), ("lines", 2), ("val/ce", 3.5)]


def test_lines_are_counted_from_what_is_there(tmp_path: Path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2, "tr')
    logger = JSONLinesLogger(tmp_path / "log.jsonl")
    assert logger.lines == 2
    logger.log_metrics({"train/ce": 2.0}, step=4)
    assert logger.lines == len((tmp_path / "log.jsonl").read_text().splitlines()) == 3


def test_what_was_written_early_is_not_written_again(tmp_path: Path):
    logger = JSONLinesLogger(tmp_path / "log.jsonl")
    logger.log_early({"train/ce": 2.0, "lr": 0.1}, step=4)
    logger.log_metrics({"train/ce": 2.0, "lr": 0.1}, step=4)
    logger.log_early({"train/ce": 1.0}, step=5)
    logger.log_metrics({"train/ce": 1.0, "late": 7.0}, step=5)
    logger.log_metrics({"train/ce": 1.0}, step=6)
    found = [{name: x for name, x in record.items() if name != "time"} for record in read_log(tmp_path)]
    step_6 = [{"step": 6, "train/ce": 1.0}, {"step": 6, "late": 7.0}]
    assert found == [{"step": 5, "train/ce": 2.0, "lr": 0.1}, *step_6, {"step": 7, "train/ce": 1.0}]


def test_the_line_of_a_step_is_written_before_its_checkpoint_and_once(
    folder: Path, main: Callable[..., None], config: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    save, run, seen = AtomicCheckpointIO.save_checkpoint, "runs/tiny/version_0", {}
    log, logged = LanguageModule.log, []

    def spy(io: AtomicCheckpointIO, checkpoint: dict, path: Path, storage_options: object = None) -> None:
        numbers = [r for r in read_log(run) if "event" not in r]
        seen[checkpoint["global_step"]] = [r["step"] for r in numbers if {"train/ce", "lr", "tokens_per_s"} <= r.keys()]
        save(io, checkpoint, path, storage_options)

    def count(module: LanguageModule, name: str, value: object, **options: object) -> None:
        logged.append(name)
        log(module, name, value, **options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", spy)
    monkeypatch.setattr(LanguageModule, "log", count)
    trainer = {"max_steps": 4, "log_every_n_steps": 2, "limit_val_batches": 0, "logger": False}
    main("fit", "--config", config({"trainer": trainer, "save_every_n_steps": 1}))
    assert seen == {1: [], 2: [2], 3: [2], 4: [2, 4]}
    assert logged.count("lr") == logged.count("grad_norm") == 2  # though a callback asks early for what is logged
    assert [r["step"] for r in read_log(run) if "event" not in r] == [2, 4]


def test_a_line_that_a_crash_cut_is_left_out_and_spoils_no_other(tmp_path: Path):
    (tmp_path / "log.jsonl").write_text('{"step": 1}\n{"step": 2, "tr')
    assert read_log(tmp_path) == [{"step": 1}]
    JSONLinesLogger(tmp_path / "log.jsonl").log_metrics({"train/ce": 2.0}, step=4)
    assert [record["step"] for record in read_log(tmp_path)] == [1, 5]


def test_numbers_of_an_evaluation_belong_to_no_step(tmp_path: Path):
    JSONLinesLogger(tmp_path / "log.jsonl", event="test").log_metrics({"test/ce": 2.0}, step=0)
    (record,) = read_log(tmp_path)
    assert record["event"] == "test"
    assert "step" not in record


def test_a_regularisers_copy_of_the_model_is_not_counted_among_its_parameters(
    folder: Path, main: Callable[..., None], config: Callable[..., str]
):
    art = {"class_path": "ARTRegularizer", "init_args": {"novelty": "drift"}}
    for regularizers in ([], [art]):
        name = config({"model": {"init_args": {"extensions": regularizers}}, "trainer": {"max_steps": 3}})
        main("fit", "--config", name, "--trainer.limit_val_batches", 0)
    started = [r for i in (0, 1) for r in read_log(f"runs/tiny/version_{i}") if r.get("event") == "started"]
    assert len(started) == 2
    assert started[0]["parameters"] == started[1]["parameters"] > 1000
