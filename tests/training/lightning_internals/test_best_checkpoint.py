"""What a ModelCheckpoint remembers; tests/training/test_kept_best.py goes on with whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_app.training.lightning_internals.best_checkpoint import relocated, watched_scores
from tests.training.lightning_internals.small import Small, trainer

KEY = "callback"


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a fit whose second of three validations found the least, and the state of its ModelCheckpoint."""
    folder = tmp_path / "first"
    save = ModelCheckpoint(dirpath=folder, monitor="val", filename="{step}", save_top_k=2)
    each = {"val_check_interval": 1, "check_val_every_n_epoch": None, "max_steps": 3}
    trainer(save, enable_checkpointing=True, **each).fit(Small(val=(3.0, 1.0, 2.0)))
    return folder, save.state_dict()


def test_a_real_state_has_what_is_relocated(saved: tuple[Path, dict[str, Any]]):
    """Where nothing has moved it stays as it was."""
    folder, state = saved
    assert state.keys() == state_of(folder, {"a": 1.0}).keys()
    kept = relocated(state, str(folder), key=ModelCheckpoint(monitor="val").state_key, mode="min")
    assert kept == state
    assert Path(kept["best_model_path"]).name == "step=2.ckpt"
    assert sorted(float(score) for score in kept["best_k_models"].values()) == [1.0, 2.0]


def test_lightning_goes_on_from_a_relocated_state_and_forgets_another(saved: tuple[Path, dict[str, Any]]):
    folder, state = saved
    there = folder.rename(folder.with_name("second"))
    forgetful, knowing = (ModelCheckpoint(dirpath=there, monitor="val", save_top_k=2) for _ in range(2))
    with pytest.warns(UserWarning, match="The dirpath has changed"):
        forgetful.load_state_dict(state)
    assert forgetful.best_model_score is None
    knowing.load_state_dict(relocated(state, str(there), key=knowing.state_key, mode="min"))
    assert float(knowing.best_model_score) == 1.0  # type: ignore[arg-type]
    assert Path(knowing.best_model_path) == there / "step=2.ckpt"
    assert {Path(path).parent for path in knowing.best_k_models} == {there}


def test_the_scores_in_a_real_checkpoint(saved: tuple[Path, dict[str, Any]]):
    """The best one was written at the validation that found 1.0."""
    best = torch.load(saved[1]["best_model_path"], weights_only=True)
    assert {name: float(score) for name, score in watched_scores(best).items() if score is not None} == {"val": 1.0}
    assert watched_scores({}) == {}


def state_of(folder: Path, scores: dict[str, float]) -> dict[str, Any]:
    paths = {str(folder / name): torch.tensor(score) for name, score in scores.items()}
    first = min(paths, key=paths.__getitem__)
    return {
        "monitor": "val/ce",
        "dirpath": str(folder),
        "best_k_models": paths,
        "best_model_path": first,
        "best_model_score": paths[first],
        "kth_best_model_path": max(paths, key=paths.__getitem__),
        "kth_value": max(paths.values()),
        "last_model_path": "",
        "current_score": torch.tensor(0.0),
    }


def test_of_several_those_that_are_there_count(tmp_path: Path):
    """With the score that each has of itself."""
    for name, score in {"a": 2.5, "b": 1.0}.items():
        torch.save({"callbacks": {KEY: {"current_score": torch.tensor(score)}}}, tmp_path / f"{name}.ckpt")
    state = state_of(Path("gone"), {"a.ckpt": 2.0, "b.ckpt": 3.0, "c.ckpt": 1.5})
    kept = relocated(state, str(tmp_path), key=KEY, mode="min")
    a, b = (str(tmp_path / f"{name}.ckpt") for name in "ab")
    assert kept["best_k_models"] == {a: torch.tensor(2.5), b: torch.tensor(1.0)}
    assert (kept["best_model_path"], kept["best_model_score"]) == (b, 1.0)
    assert (kept["kth_best_model_path"], kept["kth_value"]) == (a, 2.5)
    assert relocated(state, str(tmp_path), key=KEY, mode="max")["best_model_path"] == a


def test_none_is_there(tmp_path: Path):
    kept = relocated(state_of(Path("gone"), {"a.ckpt": 2.0}), str(tmp_path), key=KEY, mode="min")
    assert (kept["best_k_models"], kept["best_model_path"], kept["best_model_score"]) == ({}, "", None)
    assert kept["kth_value"] == float("inf")


def test_a_file_that_says_nothing_of_itself_keeps_the_recorded_score(tmp_path: Path):
    torch.save({"state_dict": {}}, tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").mkdir()  # shards
    torch.save({"callbacks": {}}, tmp_path / "c.ckpt")
    state = state_of(Path("gone"), {"a.ckpt": 2.0, "b.ckpt": 3.0, "c.ckpt": 1.5})
    kept = relocated(state, str(tmp_path), key=KEY, mode="min")
    assert sorted(score.item() for score in kept["best_k_models"].values()) == [1.5, 2.0, 3.0]


def test_of_a_damaged_file_the_generation_before_it_counts(tmp_path: Path):
    """A model that is worse than that does not become the best; where both are damaged any does."""
    (tmp_path / "a.ckpt").write_bytes(b"half")
    torch.save({"callbacks": {KEY: {"current_score": torch.tensor(2.5)}}}, tmp_path / "a-previous.ckpt")
    (tmp_path / "b.ckpt").write_bytes(b"half")
    state = state_of(Path("gone"), {"a.ckpt": 2.0, "b.ckpt": 1.0})
    kept = relocated(state, str(tmp_path), key=KEY, mode="min")
    assert kept["best_k_models"] == {str(tmp_path / "a.ckpt"): torch.tensor(2.5)}


def test_a_file_that_was_replaced_after_the_checkpoint_has_its_successor(tmp_path: Path):
    """As a kill leaves them: step 10 was removed when step 15 was saved, and last.ckpt is older."""
    state = state_of(tmp_path, {"step=10.ckpt": 2.0})
    newer = state_of(tmp_path, {"step=15.ckpt": 1.0})
    newer["current_score"] = torch.tensor(1.0)
    torch.save({"global_step": 15, "callbacks": {KEY: newer}}, tmp_path / "step=15.ckpt")
    torch.save({"global_step": 20, "callbacks": {"another": newer}}, tmp_path / "step=20.ckpt")
    torch.save({"global_step": 12, "callbacks": {KEY: state}}, tmp_path / "last.ckpt")
    assert relocated(state, str(tmp_path), key=KEY, mode="min") == newer


PEAK = Path("/proc/self/clear_refs")  # of this process's memory; Linux alone has it


@pytest.mark.skipif(not PEAK.exists(), reason="the peak of memory cannot be asked for here")
def test_a_successor_is_not_read_into_memory(tmp_path: Path):
    """Nor does what is taken from it lie in the file."""
    state, newer = state_of(tmp_path, {"step=10.ckpt": 2.0}), state_of(tmp_path, {"step=15.ckpt": 1.0})
    path = tmp_path / "step=15.ckpt"
    weights = {"w": torch.zeros(30_000_000)}  # 120 MB
    torch.save({"global_step": 15, "state_dict": weights, "callbacks": {KEY: {**newer, "current_score": None}}}, path)
    del weights
    PEAK.write_text("5")
    before = _peak()
    kept = relocated(state, str(tmp_path), key=KEY, mode="min")
    assert _peak() - before < 60
    path.write_bytes(b"")
    assert kept["best_k_models"] == {str(path): torch.tensor(1.0)}


def _peak() -> float:
    """MB."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1000


@pytest.mark.parametrize("monitor", [None, "val"])
@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")  # Lightning's
def test_a_step_that_is_saved_again_gets_no_second_file(tmp_path: Path, monitor: str | None):
    """After a kill between that save and the next last.ckpt."""
    options: dict[str, Any] = {"monitor": monitor, "filename": "{step}", "every_n_train_steps": 2}
    first, again = (ModelCheckpoint(dirpath=tmp_path, **options) for _ in range(2))

    def fit(callback: ModelCheckpoint, steps: int) -> list[str]:
        each = {"val_check_interval": 2, "check_val_every_n_epoch": None, "enable_checkpointing": True}
        trainer(callback, max_steps=steps, **each).fit(Small(val=(2.0, 1.0)))
        return sorted(path.name for path in tmp_path.iterdir())

    fit(first, 2)
    before = first.state_dict()
    assert fit(first, 4) == ["step=4.ckpt"]
    again.load_state_dict(relocated(before, str(tmp_path), key=again.state_key, mode="min"))
    assert fit(again, 4) == ["step=4.ckpt"]
