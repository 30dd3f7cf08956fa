"""Each logger, through the command line: what a run leaves is in its folder, whoever logs."""

import csv
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from lightning_app.training.callbacks.run_log import read_log
from lightning_app.training.loggers import UNNAMED, keep_ids, placed

ROOT = Path(__file__).parent.parent.parent
RUN = Path("runs/tiny/version_0")
SAMPLES = {
    "class_path": "Samples",
    "init_args": {"prompts": ["the"], "max_new_tokens": 3},
}
PLASTICITY = {
    "class_path": "PlasticitySchedule",
    "init_args": {
        "cycles": 1,
        "pruning_level": 0.5,
        "training_steps": 2,
        "warmup_steps": 1,
        "finetuning_steps": 2,
        "sample_batches": 1,
        "sample_batch_size": 2,
    },
}
ART = {"class_path": "ARTRegularizer", "init_args": {"vigilance": 0.9}}
PLAIN: dict[str, Any] = {"trainer": {"callbacks": [SAMPLES]}}
WITH_ALL = {"trainer": {"callbacks": [SAMPLES, PLASTICITY]}, "model": {"init_args": {"extensions": [ART]}}}
KEPT = {"config.yaml", "log.jsonl", "loss.png", "checkpoints/best.ckpt", "checkpoints/last.ckpt", "samples/best.txt"}

Main = Callable[..., None]


def files(run: Path) -> set[str]:
    return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def records(stored: Path) -> bytes:
    """Of a file in blocks of 32 KiB (LevelDB's log), the first of which begins as each record does, with 7 bytes."""
    content, block = stored.read_bytes(), 2**15
    return b"".join(content[start + 7 : start + block] for start in range(0, len(content), block))


def written(stored: Path, last: bytes) -> bytes:
    """wandb's own process may write the last block of 32 KiB after `finish` has returned."""
    end = time.monotonic() + 20
    while last not in records(stored) and time.monotonic() < end:
        time.sleep(0.1)
    return records(stored)


def overlay(name: str) -> tuple[str, Path]:
    return "--config", ROOT / "configs" / "overlays" / f"{name}.yaml"


@pytest.mark.slow
def test_without_a_logger_a_run_has_its_folder_all_the_same(
    main: Main, config: Callable[..., str], capsys: pytest.CaptureFixture[str]
):
    name = config(PLAIN)
    for _ in range(2):
        main("fit", "--config", name, "--trainer.logger", "false")
    assert sorted(path.name for path in Path("runs/tiny").iterdir()) == ["version_0", "version_1"]
    for run in Path("runs/tiny").iterdir():
        assert files(run) >= KEPT
        assert not any("tfevents" in file for file in files(run))
        assert yaml.safe_load((run / "config.yaml").read_text())["trainer"]["logger"] is False
    assert "bits per byte" in capsys.readouterr().out
    assert {path.name for path in Path().iterdir()} >= {"runs", "tiny.yaml"}
    assert not Path("config.yaml").exists()
    assert not Path("checkpoints").exists()
    main("fit", "--config", name, "--trainer.logger", "false", "--trainer.max_steps", 9, "--ckpt_path", "last")
    assert [r["step"] for r in read_log("runs/tiny/version_1") if "val/ce" in r and "event" not in r] == [3, 6, 9]


@pytest.mark.slow  # each alone: the tests of its part
def test_a_table_beside_tensorboard_with_plasticity_and_art(main: Main, config: Callable[..., str]):
    name = config(WITH_ALL)
    main("fit", "--config", name, *overlay("csv_logger"))
    assert files(RUN) >= {*KEPT, "csv/version_0/metrics.csv", "dashboard.html"}
    assert any("tfevents" in file for file in files(RUN))
    table = rows(RUN / "csv/version_0/metrics.csv")
    logged = {r["step"]: r["train/ce"] for r in read_log(RUN) if "train/ce" in r}
    found = {int(row["step"]) + 1: float(row["train/ce"]) for row in table if row["train/ce"]}
    assert found == pytest.approx(logged)
    assert len(found) == 6
    assert any(row["plasticity/sample_ce"] for row in table)
    assert any(row["best/val/ce"] for row in table)
    main("fit", "--config", name, *overlay("csv_logger"), "--trainer.max_steps", 8, "--ckpt_path", "last")
    assert rows(RUN / "csv/version_0/metrics.csv") == table  # Lightning's would be deleted
    again = rows(RUN / "csv/version_1/metrics.csv")
    assert [int(row["step"]) + 1 for row in again if row["train/ce"]] == [7, 8]


@pytest.mark.slow
def test_weights_and_biases_without_a_network(
    main: Main, config: Callable[..., str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    for variable in ("WANDB_DIR", "WANDB_RUN_ID", "WANDB_SERVICE"):
        monkeypatch.delenv(variable, raising=False)
    name = config(WITH_ALL)
    for i in range(2):
        main("fit", "--config", name, *overlay("wandb"))
        run = Path(f"runs/tiny/version_{i}")
        assert files(run) >= KEPT
        (folder,) = (run / "wandb").glob("offline-run-*")
        (stored,) = folder.glob("run-*.wandb")
        content = written(stored, b"best/val/ce")
        for key in (b"train/ce", b"best/val/ce", b"plasticity/sample_ce", b"samples", b"trainer.max_steps"):
            assert key in content, key
        media = {path.suffix for path in (folder / "files" / "media").rglob("*") if path.is_file()}
        assert media == {".png", ".json"}  # maps of the heads, and the table of samples
    main("fit", "--config", name, *overlay("wandb"), "--trainer.max_steps", 8, "--ckpt_path", "last")
    each = [sorted(Path(f"runs/tiny/version_{i}/wandb").glob("offline-run-*")) for i in range(2)]
    ids = [{folder.name.rpartition("-")[2] for folder in folders} for folders in each]
    assert [len(folders) for folders in each] == [1, 2]
    assert [len(found) for found in ids] == [1, 1]
    assert ids[0] != ids[1]
    assert "Weights & Biases" in capsys.readouterr().out
    assert not Path("wandb").exists()


def test_a_run_of_weights_and_biases_has_the_same_id_whenever_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pytest.importorskip("wandb")
    for variable in ("WANDB_RUN_ID", "WANDB_SWEEP_ID"):
        monkeypatch.delenv(variable, raising=False)

    def version(name: str, keep: bool = False, **options: Any) -> str | None:
        options = {"save_dir": ".", "offline": True, **options}
        (made,) = placed([WandbLogger(**options)], [options], tmp_path / "tiny" / name)
        assert not (tmp_path / "tiny" / name / "wandb_id.txt").exists() or name == "version_0"  # not before training
        if keep:
            keep_ids([made], tmp_path / "tiny" / name)
        return str(made.version)

    first = version("version_0", keep=True)
    assert len(first or "") == 12
    assert version("version_0") == version("version_0", save_dir=str(tmp_path)) == first
    assert version("version_1") != first
    assert version("version_0", id="mine") == version("version_2", version="mine") == "mine"
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    assert version("version_0") == "None"


def test_weights_and_biases_without_a_key_is_one_line_before_training(
    fails: Callable[..., str], config: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """And not a question on the terminal."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("HOME", str(tmp_path))  # where a key may lie
    for variable in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_SERVICE", "NETRC"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("wandb.errors.term.can_use_terminput", lambda: sys.stdin.isatty())
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    error = fails("fit", "--config", config({"trainer": {"logger": {"class_path": "WandbLogger"}}}))
    assert "error: WandbLogger cannot begin (" in error
    assert "set WANDB_MODE=offline" in error
    assert not (RUN / "log.jsonl").exists()


@pytest.mark.slow
def test_two_overlays_of_loggers_go_together(main: Main, config: Callable[..., str]):
    mine = {"class_path": "CSVLogger", "init_args": {"save_dir": "elsewhere", "name": "mine"}}
    events = {"class_path": "TensorBoardLogger", "init_args": {"save_dir": "runs"}}
    Path("mine.yaml").write_text(yaml.safe_dump({"trainer": {"logger+": [events, mine]}}))
    main("fit", "--config", config(PLAIN), "--config", "mine.yaml", *overlay("csv_logger"))
    assert rows(RUN / "csv/version_0/metrics.csv")
    assert rows(Path("elsewhere/mine/version_0/metrics.csv"))


def test_a_folder_gets_tensorboard_once(tmp_path: Path):
    options: list[dict[str, Any]] = [{"save_dir": "runs", "name": UNNAMED}] * 2 + [
        {"save_dir": "elsewhere", "name": "mine"}
    ]
    loggers = placed([TensorBoardLogger(**given) for given in options], options, tmp_path / "tiny" / "version_0")
    assert [Path(logger.log_dir or "") for logger in loggers] == [
        tmp_path / "tiny" / "version_0",
        Path("elsewhere/mine/version_0"),
    ]


def test_a_logger_with_a_name_keeps_its_place_and_evaluations_go_to_the_log_alone(
    main: Main, config: Callable[..., str]
):
    logger = [{"class_path": "CSVLogger", "init_args": {"save_dir": "elsewhere", "name": "mine"}}]
    name = config({"trainer": {"logger": logger}})
    main("fit", "--config", name)
    table = Path("elsewhere/mine/version_0/metrics.csv")
    before = table.read_bytes()
    main("validate", "--config", name, "--ckpt_path", "best")
    assert files(RUN) >= KEPT - {"samples/step_000003.txt"}
    assert table.read_bytes() == before
    assert [path.name for path in Path("elsewhere/mine").iterdir()] == ["version_0"]
    assert "validate" in [record.get("event") for record in read_log(RUN)]
