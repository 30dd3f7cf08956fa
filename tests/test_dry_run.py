"""`fit --dry_run` leaves nothing, and what it says of steps, epochs and tokens is so."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import CONFIG

ROOT = Path(__file__).parent.parent


def tree(*folders: Path) -> dict[Path, tuple[int, bytes]]:
    files = [path for folder in folders for path in folder.rglob("*")]
    return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"") for path in files}


@pytest.fixture
def said(main, capsys):
    """Runs `fit --dry_run` and returns the rows that it prints."""

    def run(*words: object) -> dict[str, str]:
        capsys.readouterr()
        main("fit", "--config", "tiny.yaml", "--dry_run", *words)
        out = capsys.readouterr().out
        lines = out[out.index("dry run of") :].splitlines()[2:]
        return dict(re.split(r" {2,}", line, maxsplit=1) for line in lines)

    return run


def test_nothing_below_runs_dir_is_touched(trained: Path, said):
    before = tree(Path("runs"))
    assert len(before) > 8  # a finished run
    said("--trainer.max_steps", 100)
    assert tree(Path("runs")) == before
    assert sorted(path.name for path in Path().iterdir()) == [".cache", "runs", "tiny.yaml", "train.txt", "val.txt"]
    assert [path for path in Path(".cache").rglob("*") if "short_run" in path.name] == []
    assert len(list(Path(".cache/tokens").iterdir())) > 0


def test_no_folder_is_made_and_memory_and_disk_are_there(folder: Path, said):
    rows = said()
    assert not Path("runs").exists()
    size, unit, *_ = rows["peak memory"].split()
    assert float(size) * {"MB": 1, "GB": 1_000}[unit] > 100
    assert re.match(r"\d+\.\d MB: 4 checkpoints of", rows["disk"])


@pytest.mark.slow
def test_steps_epochs_tokens_and_validations_are_those_of_the_fit(folder: Path, config, said, main):
    config({"trainer": {"max_steps": 40, "accumulate_grad_batches": 2, "val_check_interval": 30}})
    rows = said()
    main("fit", "--config", "tiny.yaml")
    (log,) = Path("runs").rglob("log.jsonl")
    logged = [json.loads(line) for line in log.read_text().splitlines()]
    (tokens,) = [line["tokens"] for line in logged if line.get("event") == "trained"]
    validations = sum("val/loss" in line and "event" not in line for line in logged)
    assert rows["steps"] == "40 (max_steps)"
    assert rows["tokens"] == f"128 a step, {tokens:,} in all"
    assert rows["epochs"] == "2.11 of 37 batches"  # 19 steps an epoch; 2 steps are 4 batches of the third
    assert validations == 3
    assert ", 3 validations of" in rows["time to the end"]


def test_epochs_end_a_fit(folder: Path, said):
    rows = said("--trainer.max_steps", -1, "--trainer.max_epochs", 3)
    assert rows["steps"] == "111 (max_epochs)"
    assert rows["epochs"] == "3.00 of 37 batches"


def test_a_resume_has_the_rest(trained: Path, said):
    before = tree(Path("runs"))
    rows = said("--trainer.max_steps", 30, "--ckpt_path", trained / "checkpoints/last.ckpt")
    assert rows["steps"] == "24, after 6 that are done (max_steps)"
    assert rows["tokens"] == "64 a step, 1,536 in all"
    assert rows["epochs"] == "0.65 of 37 batches, from 0.16 on"
    assert tree(Path("runs")) == before


@pytest.mark.slow
def test_time_alone_may_end_a_fit(folder: Path, said):
    rows = said("--trainer.max_steps", -1, "--trainer.max_time", "00:01:00:00", "--model.init_args.scheduler", "null")
    steps, limit = rows["before max_time"].split(" steps in ")
    assert limit == "1:00:00"
    assert rows["steps"] == f"{steps} (max_time)"
    assert int(steps.replace(",", "")) > 1000


def test_what_a_fit_refuses_is_refused(folder: Path, fails):
    assert "max_steps is 0" in fails("fit", "--config", "tiny.yaml", "--dry_run", "--trainer.max_steps", 0)
    assert "heads" in fails("fit", "--config", "tiny.yaml", "--dry_run", "--model.init_args.backbone.heads", 3)
    assert not Path("runs").exists()


def test_only_a_fit_has_one(folder: Path, fails):
    for command in ("validate", "prepare", "export"):
        assert "--dry_run is for fit" in fails(command, "--config", "tiny.yaml", "--dry_run")
    assert "fast_dev_run" in fails("fit", "--config", "tiny.yaml", "--dry_run", "--trainer.fast_dev_run", "true")


def test_what_would_be_written_elsewhere_is_not(folder: Path, config, said):
    config(
        {
            "trainer": {
                "logger": [{"class_path": "CSVLogger", "init_args": {"save_dir": "csv", "name": "mine"}}],
                "callbacks": [
                    {"class_path": "ModelCheckpoint", "init_args": {"dirpath": "kept", "every_n_train_steps": 1}},
                    {"class_path": "Samples", "init_args": {"prompts": ["the"], "every_n_validations": 3}},
                ],
                "profiler": {"class_path": "SimpleProfiler", "init_args": {"dirpath": "profile", "filename": "fit"}},
            }
        }
    )
    said()
    assert sorted(path.name for path in Path().iterdir()) == [".cache", "tiny.yaml", "train.txt", "val.txt"]


def test_a_checkpoint_of_the_end_leaves_nothing_to_do(trained: Path, said):
    assert said("--ckpt_path", trained / "checkpoints/last.ckpt") == {
        "steps": "0: the checkpoint is the end of its fit"
    }


@pytest.mark.slow
def test_the_end_of_a_schedule_is_not_warned_of(folder: Path, said, recwarn):
    schedule = {"class_path": "PlasticitySchedule", "init_args": {"cycles": 1, "pruning_level": 0.5}}
    rows = said("--trainer.max_steps", 2000, "--trainer.callbacks+", json.dumps(schedule))
    assert rows["steps"] == "2,000 (max_steps)"
    assert re.search(r", PlasticitySchedule [\d.]+ m?s, start and end", rows["time to the end"])
    assert "not foretold" not in rows
    assert [str(warning.message) for warning in recwarn if "the run ended in" in str(warning.message)] == []


@pytest.mark.slow
def test_padding_of_pairs_counts_as_tokens(folder: Path, said):
    rows = [{"prompt": "ask " * (i % 3 + 1), "target": "say"} for i in range(100)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = said("--data.train.path", "pairs.jsonl", "--data.val.path", "pairs.jsonl")
    assert found["tokens"] == "64 a step, 384 in all"  # as the fit logs them
    assert found["epochs"] == "0.24 of 25 batches"


@pytest.mark.slow
@pytest.mark.parametrize("run", sorted((ROOT / "tests/golden/runs").glob("*.yaml")), ids=lambda path: path.stem)
def test_each_idea_and_callback_goes_through(run: Path, folder: Path, said):
    shutil.copytree(ROOT / "tests/golden/text", "text")
    shutil.copy(ROOT / "tests/golden/base.yaml", "tiny.yaml")
    rows = said("--config", run)
    assert rows["steps"] == "40 (max_steps)"
    assert ", 4 validations of" in rows["time to the end"]
    assert not Path("runs").exists()


@pytest.mark.slow
def test_adapters_go_through(folder: Path, said):
    options = {"n_embd": 16, "n_layer": 1, "n_head": 2}
    adapters = {"r": 2, "target_modules": ["c_attn"]}
    backbone = {"architecture": "gpt2", "options": options, "lora": adapters}
    model = {"class_path": "CausalLM", "init_args": {"backbone": {"class_path": "PretrainedLM", "init_args": backbone}}}
    model["init_args"]["scheduler"] = None
    Path("tiny.yaml").write_text(yaml.safe_dump({**CONFIG, "model": model}))
    with pytest.warns(UserWarning, match="lora trains adapters beside random weights"):
        rows = said()
    assert rows["steps"] == "6 (max_steps)"


@pytest.mark.slow
def test_two_ranks_learn_twice_as_many_tokens(folder: Path):
    ranks = ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    argv = [sys.executable, ROOT / "main.py", "fit", "--config", "tiny.yaml", "--dry_run", *ranks]
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert re.search(r"^tokens +128 a step, 768 in all$", done.stdout, re.MULTILINE), done.stdout
    assert re.search(r"^epochs +0.32 of 19 batches$", done.stdout, re.MULTILINE)
    assert sorted(path.name for path in Path().iterdir()) == [".cache", "tiny.yaml", "train.txt", "val.txt"]
    assert [path for path in Path(".cache").rglob("*") if "short_run" in path.name] == []
