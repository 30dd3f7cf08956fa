"""Readers that learn on a text of their own, behind a model that stays as it is."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_app.data.batch import Batch
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.sources import Source
from lightning_app.errors import InputError
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.readers import CacheReader, GatedMixture, NGramReader, PointerReader
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.training.callbacks.exact_resume import ExactResume, RandomState
from lightning_app.training.checkpoint import load_module, start_from
from lightning_app.training.module import LanguageModule
from tests.conftest import Run
from tests.memory.test_extension import IDS, decoder, fit

ROWS = 4


def text(name: str) -> TextDataModule:
    return TextDataModule(
        train=Source(f"{name}.txt"), block_size=16, order="streams", dataloader={"batch_size": ROWS, "drop_last": True}
    )


def followers() -> list[Any]:
    """What reads the stream, in a fit too."""
    stream: dict[str, Any] = {"memory_size": 40, "streams": ROWS, "writes": "always", "forgetfulness_factor": 0.05}
    return [CacheReader(lam=0.1, theta=0.05, **stream), PointerReader(lam=0.2, theta=0.05, **stream), GatedMixture()]


def readers_behind(counts: NGramReader) -> VardaGPT:
    return VardaGPT(decoder(dropout=0.2), [counts, *followers()], freeze=True)


@pytest.fixture
def counted(folder: Path) -> dict[str, Any]:
    """A checkpoint of a model that has learned train.txt, with its counts."""
    module = VardaGPT(decoder(), [NGramReader(order=3)])
    trainer = fit(module, text("train"))
    trainer.strategy.connect(module)
    trainer.save_checkpoint("model.ckpt")
    return dict(torch.load("model.ckpt", weights_only=True))


def test_the_model_and_its_counts_stay_and_the_readers_learn(counted: dict[str, Any]):
    module = readers_behind(NGramReader(order=3))
    start_from(module, counted)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    trainer = fit(module, text("val"), max_steps=6)
    stays = {name for name in before if name.startswith(("backbone.backbone.", "backbone.readers.0."))}
    after = module.state_dict()
    assert any("bank.text" in name for name in stays)
    assert all(torch.equal(after[name], before[name]) for name in stays)
    assert all(torch.equal(counted["state_dict"][name], after[name]) for name in stays)
    learned = [name for name, p in module.named_parameters() if p.requires_grad]
    assert len(learned) == 7 + 4
    assert all(not torch.equal(after[name], before[name]) for name in learned)
    assert module.backbone.readers[2].bank.memories[0].size() >= 30
    metrics = trainer.callback_metrics
    assert 0 < metrics["train/memory3_gate1"] < 1
    assert metrics["train/loss"] == pytest.approx(float(metrics["train/ce"] + metrics["train/memory3_mixture"]))

    module.train()  # without dropout, though it trains
    batch = Batch.of(torch.arange(17)[None])
    assert torch.equal(module.outputs(batch).logits, module.outputs(batch).logits)


def test_counts_of_nothing_are_told(folder: Path):
    """As with `freeze`, and without the checkpoint to start from."""
    with pytest.warns(UserWarning, match="NGramReader has counted nothing"):
        fit(readers_behind(NGramReader(order=3)), text("val"), max_steps=2)


def test_a_mixture_over_counts_that_are_made_anew_is_refused(folder: Path):
    with pytest.raises(InputError, match="learns on a text that is not counted"):
        fit(VardaGPT(decoder(), [NGramReader(order=3), *followers()]), text("train"))


@pytest.mark.parametrize("behind", [0, 1], ids=["pointer", "mixture"])
def test_a_model_that_trains_beside_them_trains_as_without(folder: Path, behind: int):
    weights = []
    for readers in ([], followers()[1 - behind : 2 + behind]):
        module = VardaGPT(decoder(dropout=0.2), readers)
        fit(module, text("train"), max_steps=3)
        weights.append([weight.detach().clone() for weight in module.backbone.core.parameters()])
    assert [type(reader) for reader in readers][-1] == (GatedMixture if behind else PointerReader)
    assert all(torch.equal(x, y) for x, y in zip(*weights, strict=True))


def test_a_resumed_run_is_the_uninterrupted_one(counted: dict[str, Any], tmp_path: Path):
    def run(**options: Any) -> LanguageModule:
        module = readers_behind(NGramReader(order=3))
        start_from(module, counted)
        callbacks: list[L.Callback] = [RandomState(), ExactResume()]
        if not options:
            callbacks.append(
                ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=3, save_top_k=-1)
            )
        fit(module, text("val"), *callbacks, max_steps=6, **options)
        return module

    whole, resumed = run(), run(ckpt_path=tmp_path / "saved" / "step=3.ckpt")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)
    alone, _ = load_module(tmp_path / "saved" / "step=6.ckpt")
    options = GenerationOptions(max_new_tokens=20)
    said = [torch.cat(list(module.eval().generate(IDS, options))) for module in (alone, whole, resumed)]
    assert torch.equal(said[0], said[1])
    assert torch.equal(said[1], said[2])
    assert not any(p.requires_grad for p in alone.backbone.core.parameters())


@pytest.mark.slow
def test_the_config_in_the_documents_runs(main: Run, config: Callable[..., str]):
    """Behind a run with counts, in small."""
    page = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()
    (block,) = re.findall(r"```yaml\n(# gate.yaml\n.*?)```", page, flags=re.DOTALL)
    Path("gate.yaml").write_text(block)
    Path("kept.txt").write_text(" ".join(sorted(Path("train.txt").read_text().split())))
    counts = [{"class_path": "NGramReader", "init_args": {"order": 5}}]
    first = config({"model": {"init_args": {"extensions": counts}}})
    main("fit", "--config", first)
    best = "runs/tiny/version_0/checkpoints/best.ckpt"
    main("fit", "--config", first, "--config", "gate.yaml", "--init_from", best)
    before, after = (load_module(path)[0].backbone for path in (best, "runs/gate/version_0/checkpoints/last.ckpt"))
    assert [type(reader) for reader in after.readers] == [NGramReader, CacheReader, PointerReader, GatedMixture]
    assert torch.equal(after.readers[0].bank.text, before.readers[0].bank.text)
    assert bool(after.readers[3].gate.outer.weight.any())
    assert all(torch.equal(x, y) for x, y in zip(before.core.parameters(), after.core.parameters(), strict=True))
