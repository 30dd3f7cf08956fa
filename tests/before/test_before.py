"""What runs of earlier code have left works with this code: see CONTRIBUTING.md, "Earlier runs"."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.cli import LightningCLI
from transformers import AutoModelForCausalLM

from lightning_app.cli import main as command
from tests.before.make import EXPORTED, LARGEST
from tests.before.measured import (
    AGAIN,
    CHECKPOINT,
    HERE,
    RUNS,
    TEXT,
    logits_of,
    numbers,
    outputs_of,
    place,
    records,
    steps,
)
from tests.conftest import Run, keep_parsers

NAMES = sorted(path.name for path in RUNS.iterdir())
WEIGHTS = "backbone.transformer.wte.weight"
SINCE = "_distinct"  # what these runs did not log
each = pytest.mark.parametrize("name", NAMES)


def often(*names: str) -> pytest.MarkDecorator:
    """A command takes half a second: that of the other runs in slow tests."""
    return pytest.mark.parametrize(
        "name", [pytest.param(n, marks=() if n in names else pytest.mark.slow) for n in NAMES]
    )


def expected(name: str) -> dict[str, Any]:
    return json.loads((RUNS / name / "expected.json").read_text(encoding="utf-8"))


def assert_close(found: Any, wanted: Any, *, within: float) -> None:
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), rtol=within, atol=within)


def assert_same_numbers(found: dict[str, float], wanted: dict[str, float], *, within: float = 1e-4) -> None:
    found = {name: x for name, x in found.items() if not name.endswith(SINCE)}
    assert found.keys() == wanted.keys()
    assert found == pytest.approx(wanted, rel=within, abs=within)


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Run:
    """A command, without what follows a fit: samples and pictures take longer than a few small steps."""
    whole = LightningCLI._run_subcommand

    def only(self: Any, subcommand: str) -> None:
        self.after_fit = None
        whole(self, subcommand)

    monkeypatch.setattr(LightningCLI, "_run_subcommand", only)
    keep_parsers(monkeypatch)
    return lambda *words: command([str(word) for word in words])


@pytest.fixture
def run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run, beside its texts, in the working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    return place(name, tmp_path)


@each
def test_a_checkpoint_gives_what_it_gave(name: str, run: Path):
    before = expected(name)
    wanted, found = before["outputs"], outputs_of(run / CHECKPOINT, before["queries"])
    assert_close(found.pop("logits"), wanted.pop("logits"), within=1e-5)
    for ours, theirs in zip(found["memories"], wanted["memories"], strict=True):
        assert_close(ours.pop("distances"), theirs.pop("distances"), within=1e-5)
    assert found == wanted


# article_gpt has what averaging has, varda_gpt and art_gpt2 what all_three has
@often("all_three", "lora", "pruned", "varda_side_files")
def test_it_is_resumed(name: str, run: Path, main: Run):
    """The steps behind the checkpoint, and the validation at their end, are those that the run itself has done."""
    log = records(run / "log.jsonl")
    main("fit", "--config", run / "config.yaml", "--ckpt_path", run / CHECKPOINT)
    wanted, found = steps(log), steps(records(run / "log.jsonl")[len(log) :])
    assert list(found) == list(wanted)[6:]
    for step in found:
        assert_same_numbers(found[step], wanted[step])


@often("averaging")
def test_it_is_validated(name: str, run: Path, main: Run):
    main("validate", "--config", run / "config.yaml", "--ckpt_path", run / CHECKPOINT)
    (validated,) = [record for record in records(run / "log.jsonl") if record.get("event") == "validate"]
    assert_same_numbers(numbers(validated), expected(name)["validation"])


@often("all_three")
def test_another_run_starts_from_it(name: str, run: Path, main: Run):
    main("fit", "--config", run / "config.yaml", "--init_from", run / CHECKPOINT, "--name", AGAIN.name)
    found = steps(records(AGAIN / "version_0/log.jsonl"))
    assert_same_numbers(found[1], expected(name)["started"])
    assert len(found) == len(steps(records(run / "log.jsonl")))


@pytest.mark.usefixtures("modules_cache")
@pytest.mark.parametrize("name", EXPORTED)
def test_an_export_gives_what_its_checkpoint_gave(name: str, tmp_path: Path):
    shutil.unpack_archive(RUNS / name / "export.tar.xz", tmp_path, filter="data")
    model = AutoModelForCausalLM.from_pretrained(tmp_path, trust_remote_code=True).eval()
    assert_close(
        logits_of(model, torch.tensor([list(TEXT.encode())])), expected(name)["outputs"]["logits"], within=1e-5
    )


def test_each_kind_is_there_and_small():
    assert sorted(path.stem for path in (HERE / "kinds").glob("*.yaml")) == sorted([*NAMES, "base"])
    files = [path for path in RUNS.rglob("*") if path.is_file()]
    assert len(files) > 4 * len(NAMES)
    assert {str(path): path.stat().st_size for path in files if path.stat().st_size > LARGEST} == {}


def test_each_kind_is_what_it_is_there_for():
    """As the code of its time spells it: these files do not change."""
    kept = {name: torch.load(RUNS / name / "version_0" / CHECKPOINT, weights_only=True) for name in NAMES}
    names = {name: " ".join(checkpoint["state_dict"]) for name, checkpoint in kept.items()}
    gave = {name: expected(name)["outputs"] for name in NAMES}
    assert kept["article_gpt"]["spikes"]["seen"]["loss"]
    for name in ("article_gpt", "averaging", "controller", "lora"):
        assert {"exp_avg", "exp_avg_sq"} <= kept[name]["optimizer_states"][0]["state"][0].keys()
    for name in ("varda_gpt", "pruned"):
        assert "momentum_buffer" in kept[name]["optimizer_states"][0]["state"][0]
    left = {name: kept[name]["units"] for name in NAMES if "units" in kept[name]}
    assert [len(left["pruned"][kind]["present"][0]) for kind in ("heads", "neurons")] == [3, 32]
    assert len(left["all_three"]["heads"]["present"][0]) == 1
    assert [len(left[name]["heads"]["masked"][0]) for name in ("controller", "regularizers")] == [3, 1]
    assert not torch.equal(*(kept["averaging"][of][WEIGHTS] for of in ("state_dict", "current_model_state")))
    assert "lora_A" in names["lora"]
    assert all("average" in names[name] for name in ("art_gpt2", "regularizers", "all_three"))
    assert len(kept["varda_side_files"]["side_files"]) == 4
    assert [memory["size"] for memory in gave["varda_gpt"]["memories"]] == [32, 48]
    assert all(len(gave[name]["categories"][-1]) >= 4 for name in ("art_gpt2", "regularizers", "all_three"))
