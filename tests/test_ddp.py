"""Two processes learn and evaluate as one with batches of twice the size."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_app.training.callbacks.run_log import read_log
from tests.ddp_cases import CASES, MARK, STEPS, train, train_both, write_texts

ROOT = Path(__file__).parent.parent
FAST = ["varda"]
SLOW = [name for name in CASES if name not in (*FAST, "by parts")]
OWN = ("article", "art", "plasticity", "plasticity, masks", "spikes")  # slow ones with tests of their own
State = dict[str, Tensor]


def run(*words: object, folder: Path | None = None) -> str:
    """Python in a process of its own, which starts its other ranks; what it printed to stderr."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=folder, capture_output=True, text=True, env=environment, timeout=280
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


def trained(names: list[str], folder: Path, *, sharded: bool = False) -> dict[str, Any]:
    """What one process (`alone`), both ranks (`ranks`) and what these warned of (`said`) gave."""
    write_texts(folder)
    before = Path.cwd()
    os.chdir(folder)
    try:
        said = train_both(names, sharded=sharded)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            alone = {name: train(name, 1) for name in names}
    finally:
        os.chdir(before)
    ranks = [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]
    return {"alone": alone, "ranks": ranks, "said": said, "folder": folder}


@pytest.fixture(scope="module")
def fast(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(FAST, tmp_path_factory.mktemp("ddp"))


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(SLOW, tmp_path_factory.mktemp("ddp"))


def check_equal(name: str, found: dict[str, Any]) -> tuple[State, State, State]:
    """Losses of both ranks together and weights are those of one process; the three states."""
    alone, one, two = found["alone"][name], *(rank[name] for rank in found["ranks"])
    assert len(alone["losses"]) >= STEPS
    assert one["losses"] == two["losses"]  # each says that of all ranks
    # fp32 numbers of this size lie 4.8e-7 apart, and where tensors happen to lie in memory decides the last bits
    assert alone["losses"] == pytest.approx(one["losses"], rel=1e-6)
    assert alone["losses"][0] - alone["losses"][-1] > 0.3
    torch.testing.assert_close(one["state"], alone["state"], rtol=0, atol=1e-5)
    return alone["state"], one["state"], two["state"]


@pytest.mark.slow  # with a memory besides: fast
def test_article_gpt_learns_as_one_process(slow: dict[str, Any]):
    _, one, two = check_equal("article", slow)
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def memory(state: State, reader: int, stream: int = 0) -> State:
    prefix = f"backbone.readers.{reader}.bank.memories.{stream}."
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}


def test_varda_gpt_learns_as_one_process_with_the_same_entries_in_the_same_order(fast: dict[str, Any]):
    _, one, two = check_equal("varda", fast)
    marked = two["backbone.readers.0.bank.memories.0.strengths"]
    assert marked[-1] == MARK  # a free slot changed on one rank stays so: memories are not sent around at each step
    marked[-1] = 0
    torch.testing.assert_close(one, two, rtol=0, atol=0)  # the other buffer that was marked is as on rank 0 again
    sizes = [int((memory(one, 1, stream)["slot_ids"] >= 0).sum()) for stream in range(8)]
    assert min(sizes) >= 30
    assert 100 < int((memory(one, 0)["slot_ids"] >= 0).sum()) < int(memory(one, 0)["next_id"])  # some were removed


@pytest.mark.slow
def test_art_gpt2_learns_as_one_process_with_the_same_categories(slow: dict[str, Any]):
    alone, one, two = check_equal("art", slow)
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    assert any(".average." in name for name in one)
    for name in ("ids", "counts", "born", "used", "texts", "seen"):
        assert torch.equal(alone[f"regularizers.0.art.{name}"], one[f"regularizers.0.art.{name}"])
    assert int(one["regularizers.0.art.size"]) > 3
    assert int(one["regularizers.0.steps"]) == STEPS
    assert "1 of 4 embeddings are not finite" in slow["said"]


@pytest.mark.slow
def test_ranks_leave_out_the_same_steps(slow: dict[str, Any]):
    alone, one, two = slow["alone"]["spikes"], *(rank["spikes"] for rank in slow["ranks"])
    assert [found["skipped"] for found in (alone, one, two)] == [1, 1, 1]
    torch.testing.assert_close(one["state"], two["state"], rtol=0, atol=0)
    torch.testing.assert_close(one["state"], alone["state"], rtol=0, atol=1e-5)


def check_surgery(name: str, found: dict[str, Any]) -> None:
    """The same heads and neurons go and come, in the same order, and each rank's proof is that of the others."""
    _, one, two = check_equal(name, found)
    torch.testing.assert_close(one, two, rtol=0, atol=0)
    runs = [read_log(found["folder"] / "runs" / f"{name}, {ranks}" / "version_0") for ranks in (1, 2)]
    for event, field in (("pruning_event", "heads"), ("regrowth_event", "heads"), ("pruning_event", "widths")):
        alone, together = ([r.get(field) for r in records if r.get("event") == event] for records in runs)
        assert alone == together
        assert any(alone)
    proofs = [r["checks"] for r in runs[1] if r.get("event") == "proof"]
    assert len(proofs) == 6
    assert all(checks["ranks with the same weights"] == 2 for checks in proofs)


@pytest.mark.slow
def test_what_is_pruned_learns_as_one_process(slow: dict[str, Any]):
    check_surgery("plasticity", slow)


@pytest.mark.slow
def test_what_is_masked_learns_as_one_process(slow: dict[str, Any]):
    check_surgery("plasticity, masks", slow)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in SLOW if name not in OWN])
def test_other_orders_and_options_learn_as_one_process(name: str, slow: dict[str, Any]):
    _, one, two = check_equal(name, slow)
    torch.testing.assert_close(one, two, rtol=0, atol=0)


@pytest.mark.slow
def test_the_overlay_learns_and_measures_what_one_process_does(config: Callable[..., str], main: Callable[..., None]):
    overlay = ROOT / "configs" / "overlays" / "ddp.yaml"
    plain = {"data": {"val": {"max_samples": 7}}, "model": {"init_args": {"backbone": {"dropout": 0.0}}}}
    one = config({**plain, "name": "one"}, "one.yaml")
    plain["data"]["dataloader"] = {"batch_size": 2}
    two = config({**plain, "name": "two"}, "two.yaml")
    main("fit", "--config", one)
    run(ROOT / "main.py", "fit", "--config", two, "--config", overlay, "--trainer.accelerator", "cpu")
    found = []
    for name in ("one", "two"):
        folder = Path(f"runs/{name}/version_0")
        # 7 windows: 4 on one rank, 3 on the other
        measures = [r for r in read_log(folder) if "val/ce" in r and "event" not in r]
        found.append((torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True), measures))
    (checkpoint, alone), (other, together) = found
    torch.testing.assert_close(checkpoint["state_dict"], other["state_dict"], rtol=0, atol=1e-6)
    for measure in ("val/ce", "val/bpb", "val/acc", "val/f1"):
        assert [r[measure] for r in alone] == pytest.approx([r[measure] for r in together], rel=1e-6), measure
    started = next(r for r in read_log(Path("runs/two/version_0")) if r.get("event") == "started")
    assert started["world_size"] == len(other["callbacks"]["RandomState"]["ranks"]) == 2
