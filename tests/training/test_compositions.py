"""CausalLM through the command line and without it, with backbones of Hugging Face's and ours."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.sources import Source
from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import Decoder
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.models.registry import describe
from lightning_app.training.callbacks.run_log import read_log
from lightning_app.training.checkpoint import Checkpoint, load_module
from lightning_app.training.checkpoint_io import read_checkpoint
from lightning_app.training.compositions import CausalLM

OPT = {"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "ffn_dim": 32, "word_embed_proj_dim": 8}
GPT2 = {"n_layer": 1, "n_embd": 16, "n_head": 2}
CHECKPOINT = Path("runs/tiny/version_0/checkpoints/last.ckpt")
Main = Callable[..., None]
Config = Callable[..., str]


def model(class_path: str = "PretrainedLM", **init_args: Any) -> dict[str, Any]:
    """The `model` part of a config; it replaces the small Decoder of tests/conftest.py."""
    scheduler = {"class_path": "WarmupCosine", "init_args": {"warmup_steps": 2}}
    backbone = {"class_path": class_path, "init_args": init_args}
    return {
        "class_path": "CausalLM",
        "init_args": {"backbone": backbone, "scheduler": scheduler},
    }


@pytest.fixture
def tiny(config: Config) -> Callable[..., str]:
    """`tiny(architecture="gpt2", ...)` writes the small config with a CausalLM of these options."""

    def write(path: str = "causal.yaml", **init_args: Any) -> str:
        full = yaml.safe_load(Path(config({})).read_text())
        Path(path).write_text(yaml.safe_dump(full | {"model": model(**init_args)}))
        return path

    return write


def fitted(backbone: Backbone, *, lr: float) -> CausalLM:
    """Two steps without the command line, saved as python.ckpt."""
    data = TextDataModule(train=Source("train.txt"), block_size=16)
    module = CausalLM(backbone, optimizer=lambda p: torch.optim.SGD(p, lr=lr), scheduler=None)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    quiet |= {"enable_checkpointing": False}
    trainer = L.Trainer(max_steps=2, accelerator="cpu", use_distributed_sampler=False, **quiet)
    trainer.fit(module, datamodule=data)
    trainer.save_checkpoint("python.ckpt")
    return module


@pytest.fixture
def source(folder: Path) -> Path:
    """A directory with a GPT-2 that knows bytes, as Hugging Face's `save_pretrained` writes it."""
    torch.manual_seed(7)
    PretrainedLM(architecture="gpt2", options=GPT2, vocab_size=257, block_size=32).model.save_pretrained("source")
    return folder / "source"


@pytest.mark.slow
def test_the_checkpoint_needs_no_source(main: Main, tiny: Callable[..., str], source: Path, capsys: Any):
    main("fit", "--config", tiny(pretrained="source"))
    fitted(PretrainedLM(pretrained="source", vocab_size=257, block_size=16), lr=0.1)
    shutil.rmtree(source)
    losses = [row["val/ce"] for row in read_log(CHECKPOINT.parent.parent) if "val/ce" in row]
    assert losses[-1] < losses[0]
    module, tokenizer = load_module(CHECKPOINT)
    assert isinstance(module, CausalLM)
    assert isinstance(module.backbone, PretrainedLM)
    assert module.backbone.max_length == 32  # the source's, data.block_size is 16
    saved = read_checkpoint(CHECKPOINT)
    model = Checkpoint.of(saved).model
    assert all(torch.equal(x, saved["state_dict"][name]) for name, x in module.state_dict().items())
    assert model == describe(module) == Checkpoint.of(read_checkpoint("python.ckpt")).model
    assert "source" not in json.dumps(model)
    texts = [
        tokenizer.decode([int(t) for t in module.generate(torch.tensor([[97, 98]]), GenerationOptions(use_cache=on))])
        for on in (True, False)
    ]
    assert texts[0] == texts[1]
    capsys.readouterr()
    main("generate", "--ckpt_path", CHECKPOINT, "--prompt", "the model", "--max_new_tokens", 40)
    assert capsys.readouterr().out.startswith("the model")


def test_a_fit_begins_with_the_weights_of_the_source(source: Path):
    """Without a learning rate it ends with them too: nothing initialises or loads them anew on the way."""
    expected = PretrainedLM(pretrained="source").state_dict()
    module = fitted(PretrainedLM(pretrained="source"), lr=0.0)
    found = module.backbone.state_dict()
    assert len(expected) > 10
    assert all(torch.equal(found[name], x) for name, x in expected.items())
    moved = fitted(PretrainedLM(pretrained="source"), lr=0.1).backbone.state_dict()
    assert not torch.equal(moved["model.lm_head.weight"], expected["model.lm_head.weight"])


SIZES: dict[str, int] = {"vocab_size": 257, "block_size": 16}
BACKBONES: dict[str, Callable[[], Backbone]] = {
    "gpt2": lambda: PretrainedLM(architecture="gpt2", options=GPT2, **SIZES),
    "opt_350m": lambda: PretrainedLM(architecture="opt", options=OPT, **SIZES),
    "decoder": lambda: Decoder(embedding_dim=16, layers=1, heads=2, **SIZES),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_any_backbone_is_trained_saved_and_loaded(name: str, folder: Path):
    backbone = BACKBONES[name]()
    module = fitted(backbone, lr=0.1)
    loaded = load_module("python.ckpt")[0]
    assert type(loaded.backbone) is type(backbone)
    assert loaded.backbone.config() == backbone.config()
    ids = torch.arange(16)[None]
    assert torch.equal(loaded(ids), module.eval()(ids))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data.vocab_size", 300), "data.vocab_size is 300, but 'source' has 257 ids"),
        (("--data.pad_vocab_to", 64), "data.vocab_size is 320, but 'source' has 257 ids"),
        (("--data.block_size", 33), "data.block_size is 33, but 'source' holds at most 32 positions"),
    ],
)
def test_sizes_that_do_not_fit_end_with_one_line(
    options: tuple[Any, ...], message: str, fails: Callable[..., str], tiny: Callable[..., str], source: Path
):
    error = fails("fit", "--config", tiny(pretrained="source"), *options)
    assert message in error


def test_no_network_ends_with_one_line(fails: Callable[..., str], tiny: Callable[..., str]):
    error = fails("fit", "--config", tiny(pretrained="gpt2"))
    assert "error: 'gpt2' could not be loaded" in error
    assert "a fresh model" in error.splitlines()[-1]
