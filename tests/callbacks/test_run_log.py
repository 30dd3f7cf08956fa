import json
from collections.abc import Callable
from pathlib import Path

from lightning_app.callbacks.run_log import JSONLinesLogger, read_log


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
    art = {"class_path": "lightning_app.modules.ARTRegularizer", "init_args": {"novelty": "drift"}}
    for regularizers in ([], [art]):
        name = config({"model": {"init_args": {"regularizers": regularizers}}, "trainer": {"max_steps": 3}})
        main("fit", "--config", name, "--trainer.limit_val_batches", 0)
    started = [r for i in (0, 1) for r in read_log(f"runs/tiny/version_{i}") if r.get("event") == "started"]
    assert len(started) == 2
    assert started[0]["parameters"] == started[1]["parameters"] > 1000
