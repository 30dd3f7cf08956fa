"""FSDP2: two processes with half of the parameters each learn as one, and leave checkpoints that one can use."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml
from torch.multiprocessing import ProcessRaisedException

from lightning_app.errors import InputError
from lightning_app.training.callbacks.run_log import read_log
from lightning_app.training.checkpoint import load_module
from lightning_app.training.compositions import ArticleGPT
from tests.ddp_cases import CASES, STEPS
from tests.test_ddp import ROOT, run, trained

SHARDED = ["article", "art, tokens", "by parts"]
OVERLAY = ROOT / "configs" / "overlays" / "model_parallel.yaml"


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(SHARDED, tmp_path_factory.mktemp("sharded"), sharded=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARDED)
def test_two_shards_learn_as_one_process(name: str, found: dict[str, Any]):
    alone, one, two = found["alone"][name], *(rank[name] for rank in found["ranks"])
    assert len(alone["losses"]) == STEPS
    assert one["losses"] == two["losses"]
    assert alone["losses"] == pytest.approx(one["losses"], rel=0, abs=2e-6)
    torch.testing.assert_close(one["state"], alone["state"], rtol=0, atol=1e-5)
    torch.testing.assert_close(one["state"], two["state"], rtol=0, atol=0)


@pytest.mark.slow
def test_its_checkpoint_is_that_of_any_run(found: dict[str, Any]):
    module, tokenizer = load_module(found["folder"] / "article.ckpt")
    assert type(module) is ArticleGPT
    torch.testing.assert_close(dict(module.state_dict()), found["ranks"][0]["article"]["state"], rtol=0, atol=0)
    assert tokenizer.vocab_size == 257


def mesh(data: int, tensor: int) -> dict[str, SimpleNamespace]:
    sizes = {"data_parallel": data, "tensor_parallel": tensor}
    return {name: SimpleNamespace(size=lambda n=n: n) for name, n in sizes.items()}


@pytest.mark.parametrize(
    ("name", "sizes", "message"),
    [
        ("article", (2, 4), "data_parallel_size: 8 and tensor_parallel_size: 1"),
        ("art", (2, 1), "novelty: drift and rehearsal keep: use the strategy ddp"),
        ("varda", (2, 1), "backbone.readers.0.log_scale is a single number"),
    ],
)
def test_what_cannot_be_sharded_is_refused(name: str, sizes: tuple[int, int], message: str):
    module = CASES[name].module()
    module._device_mesh = cast(Any, mesh(*sizes))
    with pytest.raises(InputError, match=message):
        module.configure_model()


@pytest.mark.slow
def test_muon_is_refused(tmp_path: Path):
    with pytest.raises(ProcessRaisedException, match="Muon needs whole matrices, and the strategy gives each process"):
        trained(["muon"], tmp_path, sharded=True)


@pytest.mark.slow
def test_a_folder_of_shards_is_resumed_and_made_one_file(
    config: Callable[..., str], main: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    optimizer = yaml.safe_load(OVERLAY.read_text())["model"]["init_args"]["optimizer"]
    plain: dict[str, Any] = {"model": {"init_args": {"backbone": {"dropout": 0.0}, "optimizer": optimizer}}}
    main("fit", "--config", config({**plain, "name": "one"}, "one.yaml"))
    two = config({**plain, "name": "two", "data": {"dataloader": {"batch_size": 2}}}, "two.yaml")
    folder = "--trainer.strategy.init_args.save_distributed_checkpoint"
    words = [ROOT / "main.py", "fit", "--config", two, "--config", OVERLAY, "--trainer.accelerator", "cpu"]
    last = Path("runs/two/version_0/checkpoints/last.ckpt")
    schedule = ["--model.init_args.scheduler.init_args.total_steps", 6]
    run(*words, folder, "true", *schedule, "--trainer.max_steps", 3)
    assert {path.name for path in last.iterdir()} >= {"__0_0.distcp", "__1_0.distcp", "meta.pt"}
    run(*words, folder, "true", *schedule, "--ckpt_path", last)
    sized = ["--trainer.max_steps", -1, "--fit_in", "30 seconds"]
    assert "trainer.max_steps is 6, as in the checkpoint's run" in run(*words, *sized, "--ckpt_path", last)
    consolidate = "lightning.fabric.utilities.consolidate_checkpoint"
    run("-m", consolidate, last, "--output_file", "whole.ckpt")
    whole, _ = load_module("whole.ckpt")
    alone, _ = load_module("runs/one/version_0/checkpoints/last.ckpt")
    torch.testing.assert_close(dict(whole.state_dict()), dict(alone.state_dict()), rtol=0, atol=1e-5)
    losses = [
        [r["train/loss"] for r in read_log(Path(f"runs/{name}/version_0")) if "train/loss" in r and "event" not in r]
        for name in ("one", "two")
    ]
    assert len(losses[0]) == 6
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    capsys.readouterr()
    main("generate", "--ckpt_path", "whole.ckpt", "--prompt", "the model", "--max_new_tokens", 5)
    assert capsys.readouterr().out.startswith("the model")
