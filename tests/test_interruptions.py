"""All kinds of run, killed and stopped again and again: each ends as the run that was never stopped, bit for bit.

`make test-resume`, or with other moments: RESUME_SEED=7 pytest -m slow tests/test_interruptions.py
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_app.reports.run_folder import with_previous
from lightning_app.training.callbacks.run_log import read_log
from tests.conftest import merged, write_config
from tests.killing import Blow, draw, fit, start, start_ranks, wait
from tests.sameness import assert_same_run

SEED = int(os.environ.get("RESUME_SEED", "0"))
BLOWS = 4  # for each kind of run
RUN = Path("runs/tiny/version_0")
LAST = RUN / "checkpoints/last.ckpt"
TEXT = "the model learns what the teacher shows. nobody asks what it forgets, and why. "
STEPS = 16

STOPPING = {"class_path": "EarlyStopping", "init_args": {"monitor": "val/ce", "patience": 20}}
BY_STEPS = {"class_path": "ModelCheckpoint", "init_args": {"filename": "{step}", "every_n_train_steps": 5}}
BASE: dict[str, Any] = {
    "save_every_n_steps": 3,
    "trainer": {"max_steps": STEPS, "val_check_interval": 4, "log_every_n_steps": 2, "logger": False},
}


def callbacks(*more: dict[str, Any]) -> dict[str, Any]:
    return {"trainer": {"callbacks": [STOPPING, *more]}}


def callback(name: str, **options: Any) -> dict[str, Any]:
    return {"class_path": name, "init_args": options}


SCHEDULE = {
    "cycles": 2,
    "pruning_level": 0.5,
    "targets": ["heads"],
    "training_steps": 4,
    "warmup_steps": 2,
    "finetuning_steps": 3,
    "eval_freq": 2,
    "regrow": 1,
    "sample_batches": 2,
    "sample_batch_size": 2,
}
HEADS = {"model": {"init_args": {"backbone": {"layers": 2, "heads": 4}}}}
MEMORY = {  # instead of the model that all others have
    "class_path": "VardaGPT",
    "init_args": {
        "backbone": {
            "class_path": "Decoder",
            "init_args": {"embedding_dim": 16, "layers": 2, "heads": 4, "dropout": 0.1},
        },
        "segment_length": 8,
        "readers": [
            {
                "class_path": "AttentionReader",
                "init_args": {"memory_size": 300, "num_search_results": 3},
            }
        ],
        "scheduler": None,
    },
}
ART = {"class_path": "ARTRegularizer", "init_args": {"novelty": "drift", "rehearsal": 0.1}}
BY_PARTS = [
    {"match": "matrices", "class_path": "torch.optim.Muon", "init_args": {"lr": 0.02}},
    {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "fused": True}},
]
KINDS: dict[str, dict[str, Any]] = {
    "article": callbacks(BY_STEPS),
    "epochs": {
        "trainer": {"max_steps": -1, "max_epochs": 2, "val_check_interval": 1.0, "check_val_every_n_epoch": 1},
        "data": {"dataloader": {"batch_size": 16}},
    },
    "accumulation": {"trainer": {"accumulate_grad_batches": 2, "callbacks": [STOPPING]}},
    "muon": {"model": {"init_args": {"optimizer": BY_PARTS}}, **callbacks()},
    "average": callbacks(callback("AveragedWeights", decay=0.9)),
    "memory": callbacks(),
    "art": {"model": {"init_args": {"extensions": [ART]}}, **callbacks()},
    "plasticity": {**HEADS, **callbacks(callback("PlasticitySchedule", **SCHEDULE))},
    "controller": {
        **HEADS,
        **callbacks(callback("HeadController", warmup_steps=2, controller_update_freq=2, log_every=1, steps=10)),
    },
}


def prepare(folder: Path, kind: str) -> list[str]:
    """Texts and config in `folder`, and the words that train there."""
    folder.mkdir()
    os.chdir(folder)
    Path("train.txt").write_text(TEXT * 20)
    Path("val.txt").write_text(TEXT * 3)
    name = write_config(merged(BASE, KINDS[kind]))
    if kind == "memory":
        config = yaml.safe_load(Path(name).read_text())
        Path(name).write_text(yaml.safe_dump({**config, "model": MEMORY}))
    return ["fit", "--config", name]


def counts_of_writes() -> dict[str, int]:
    """How many writes of each kind a fit of this size has, roughly."""
    saves = 2 * STEPS // BASE["save_every_n_steps"]
    return {"open": 3 * STEPS, "rename": saves, "half": saves}


def train(words: list[str], said: Path, blow: Blow | None) -> int:
    """One more attempt: from last.ckpt if there is one, else anew."""
    if not with_previous(LAST):
        shutil.rmtree("runs", ignore_errors=True)
    return fit([*words, "--ckpt_path", "last"] if with_previous(LAST) else words, said, blow)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_is_interrupted_again_and_again(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    words, said, began = prepare(tmp_path / "whole", kind), tmp_path / "said.txt", time.monotonic()
    assert fit(words, said) == 0, said.read_text()[-3000:]
    seconds = time.monotonic() - began
    prepare(tmp_path / "parts", kind)
    chance, struck = random.Random(f"{SEED} {kind}"), []
    for _ in range(10 * BLOWS):
        if len(struck) == BLOWS:
            break
        blow = draw(chance, seconds, counts_of_writes())
        code = train(words, said, blow)
        assert code in (0, -9, -15, 130, 143), (blow, code, said.read_text()[-3000:])
        if code == 0:  # it was done before the blow fell: the same run once more
            assert_same_run(RUN, tmp_path / "whole" / RUN)
            shutil.rmtree("runs")
        else:
            struck.append((blow, code))
    assert len(struck) == BLOWS
    assert train(words, said, None) == 0, said.read_text()[-3000:]
    assert "Traceback" not in said.read_text()
    print(kind, struck)
    assert_same_run(RUN, tmp_path / "whole" / RUN)


def steps_logged() -> int:
    log = RUN / "log.jsonl"
    return max((r.get("step") or 0 for r in read_log(RUN)), default=0) if log.exists() else 0


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
@pytest.mark.parametrize("whom", [[0], [1], [0, 1]], ids=["first", "second", "both"])
def test_two_ranks_stop_at_the_same_step(whom: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    said, ranks = tmp_path / "said.txt", ["--trainer.devices", "2", "--trainer.strategy", "ddp"]
    words = [*prepare(tmp_path / "whole", "article"), *ranks, "--trainer.max_steps", "40"]
    assert wait(start_ranks(words, said)) == [0, 0], said.read_text()[-3000:]
    prepare(tmp_path / "parts", "article")
    running = start_ranks(words, said)
    while steps_logged() < 4:
        time.sleep(0.05)
    for rank in whom:
        os.kill(running[rank], signal.SIGTERM)
    assert wait(running) == [143, 0], said.read_text()[-3000:]
    assert "Traceback" not in said.read_text()
    assert said.read_text().count("to go on:") == 1
    assert wait(start_ranks([*words, "--ckpt_path", "last"], said)) == [0, 0], said.read_text()[-3000:]
    assert_same_run(RUN, tmp_path / "whole" / RUN)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_fit_whose_output_nobody_reads_any_more_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    words, pipe = prepare(tmp_path / "run", "article"), tmp_path / "pipe"
    os.mkfifo(pipe)
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    child = start(words, pipe)
    while not RUN.exists():
        time.sleep(0.05)
    os.close(reading)  # as head does
    assert wait([child]) == [0]
    assert read_log(RUN)[-1]["event"] == "closed"
    assert (RUN / "loss.png").is_file()
