"""`python main.py fit` on a streamed text: from YAML to a checkpoint, resumed in the middle, and refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_app.training.callbacks.run_log import read_log
from lightning_app.training.module import LanguageModule
from tests.test_ddp import ROOT, run

Config = Callable[..., str]
Main = Callable[..., None]
RUN = Path("runs/tiny/version_0")
STREAMED: dict[str, Any] = {
    "data": {
        "train": {"path": "hf:json:rows/*.jsonl", "streaming": True, "shuffle_buffer": 12},
        "val": {"path": "val.txt"},
    }
}


@pytest.fixture(autouse=True)
def rows(folder: Path) -> None:
    words = (folder / "train.txt").read_text().split()
    (folder / "rows").mkdir()
    for i in range(2):
        lines = [json.dumps({"text": " ".join(words[j : j + 9])}) for j in range(i * 200, i * 200 + 200, 10)]
        (folder / "rows" / f"{i}.jsonl").write_text("\n".join(lines))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """The ids of each training batch."""
    found: list[torch.Tensor] = []
    step = LanguageModule.training_step

    def noting(self: LanguageModule, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        found.append(batch.input_ids.clone())
        return step(self, batch, batch_idx)

    monkeypatch.setattr(LanguageModule, "training_step", noting)
    return found


class StopAfter(L.Callback):
    """Ends a run within the schedule of a longer one."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        trainer.should_stop = trainer.global_step >= self.steps


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize(
    "change",
    [
        {},
        pytest.param({"order": "streams"}, marks=pytest.mark.slow),
        pytest.param({"dataloader": {"shuffle": False}}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_run_resumed_in_the_middle_is_the_run_that_was_not_stopped(
    main: Main, config: Config, seen: list[torch.Tensor], change: dict[str, Any]
):
    """40 documents of some 50 bytes are about 30 batches; 9 steps need 18 of them, and 4 end within a round."""
    data = {**STREAMED["data"], **change, "dataloader": {"batch_size": 4, **change.get("dataloader", {})}}
    limits = {"max_steps": 9, "accumulate_grad_batches": 2, "val_check_interval": 6}
    main("fit", "--config", config({"data": data, "trainer": limits, "save_every_n_steps": 4}))
    whole, expected = [*seen], weights(RUN / "checkpoints/last.ckpt")
    assert len(whole) == 18
    assert len({str(ids.tolist()) for ids in whole}) == 18
    seen.clear()
    stop = {"class_path": f"{__name__}.StopAfter", "init_args": {"steps": 4}}
    stopped = config({"name": "stopped", "data": data, "trainer": {**limits, "callbacks": [stop]}}, "stopped.yaml")
    main("fit", "--config", stopped)
    first = len(seen)
    assert first == 8
    resumed = config({"name": "stopped", "data": data, "trainer": limits}, "resumed.yaml")
    main("fit", "--config", resumed, "--ckpt_path", "last", "--seed_everything", "3")
    assert len(seen) == 18
    assert all(torch.equal(a, b) for a, b in zip(seen, whole, strict=True))
    found = weights(Path("runs/stopped/version_0/checkpoints/last.ckpt"))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_two_processes_with_workers_go_on_with_their_own_parts(config: Config):
    train = {**STREAMED["data"]["train"], "shuffle_buffer": 4}
    streamed = {**STREAMED["data"], "train": train, "dataloader": {"batch_size": 2, "num_workers": 1}}
    for name in ("whole", "parts"):
        config({"name": name, "data": streamed}, f"{name}.yaml")
    overlay = ROOT / "configs" / "overlays" / "ddp.yaml"
    words = ["--config", overlay, "--trainer.accelerator", "cpu"]
    words += ["--model.init_args.scheduler.init_args.total_steps", 6]
    run(ROOT / "main.py", "fit", "--config", "whole.yaml", *words)
    run(ROOT / "main.py", "fit", "--config", "parts.yaml", *words, "--trainer.max_steps", 3)
    stopped = torch.load("runs/parts/version_0/checkpoints/last.ckpt", weights_only=True)
    loader = stopped["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
    assert loader["ranks"].keys() == {0, 1}
    assert str(loader["ranks"][0]) != str(loader["ranks"][1])  # each has read what is its own
    run(ROOT / "main.py", "fit", "--config", "parts.yaml", *words, "--ckpt_path", "last")
    whole, parts = (weights(Path(f"runs/{name}/version_0/checkpoints/last.ckpt")) for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_what_a_run_says_of_a_streamed_text(main: Main, config: Config, capsys: pytest.CaptureFixture[str]):
    main("fit", "--config", config(STREAMED))
    printed = capsys.readouterr().out
    assert "compressors" in printed
    assert "not computed" in printed
    assert "verbatim" not in printed
    records = read_log(RUN)
    (data,) = [record for record in records if record.get("event") == "data"]
    assert [split["split"] for split in data["splits"]] == ["val"]
    assert [record["step"] for record in records if "val/ce" in record and "event" not in record] == [3, 6]
    rates = [record["lr"] for record in records if "lr" in record]
    assert rates[-1] < max(rates)  # the schedule knows where the run ends
    assert len([path for path in Path(".cache/tokens").iterdir() if path.is_dir()]) == 1  # of val.txt
    main("prepare", "--config", config(STREAMED))
    assert "train is streamed from hf:json:rows/*.jsonl" in capsys.readouterr().out


def test_mistakes_are_named(config: Config, fails: Callable[..., str]):
    for change, said in [
        ({"trainer": {"max_steps": -1, "max_epochs": 2}}, r"set trainer\.max_steps \(now -1\)"),
        ({"data": {"train": {"path": "train.txt"}}}, r"'train\.txt' is no Hugging Face dataset"),
        ({"data": {"train": {"text_field": "words"}}}, r"'words' is None, not a text \(fields: text\)"),
        ({"data": {"train": {"path": "hf:json:missing.jsonl"}}}, r"cannot load the dataset 'json:missing\.jsonl'"),
        ({"data": {"val": {"path": "hf:json:rows/0.jsonl", "streaming": True}}}, r"only the training text"),
    ]:
        data = {name: {**STREAMED["data"][name], **change.get("data", {}).get(name, {})} for name in ("train", "val")}
        error = fails("fit", "--config", config({"data": data, "trainer": change.get("trainer", {})}))
        assert re.search(said, error), error
