"""GGUF files hold the checkpoint's model: as read back here, and in llama.cpp itself where cyllama is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_app.cli import main
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.gguf_file import read_gguf
from lightning_app.data.gguf_tokenizer import gguf_tokenizer
from lightning_app.data.tokenizers import load_tokenizer
from lightning_app.errors import InputError
from lightning_app.export import gguf as exporting
from lightning_app.export import llama_cpp
from lightning_app.export.command import export_gguf
from lightning_app.io import temporary_name
from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import Decoder
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.plasticity.kinds import units_of
from lightning_app.training.checkpoint_io import AtomicCheckpointIO
from lightning_app.training.compositions import ArticleGPT, CausalLM
from tests import tokenizers as kinds
from tests.backbones import shake

SIZES: dict[str, Any] = {"vocab_size": 260, "block_size": 24, "embedding_dim": 48, "layers": 2, "heads": 4}
LLAMA = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu"}
LIKE_LLAMA = {
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
LLAMA31 = {"rope_type": "llama3", "rope_theta": 5e5, "low_freq_factor": 1.0, "high_freq_factor": 4.0} | {
    "original_max_position_embeddings": 8192
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {  # llama.cpp's family, and the options of a Decoder or of a family
    "decoder": ("gpt2", {}),
    "decoder, untied, without biases": ("gpt2", {"tie_weights": False, "bias": False}),
    "decoder like llama": ("llama", LLAMA),
    "decoder like llama, untied, without biases": (
        "llama",
        {**LLAMA, "tie_weights": False, "bias": False, "head_size": 6},
    ),
    "gpt2": ("gpt2", {"n_layer": 2, "n_embd": 64, "n_head": 4}),
    "llama": ("llama", {**LIKE_LLAMA, "head_dim": 24}),
    "llama, positions as LLaMA 3.1": ("llama", {**LIKE_LLAMA, "rope_parameters": {**LLAMA31, "factor": 8.0}}),
    "llama, positions scaled": (
        "llama",
        {**LIKE_LLAMA, "rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    ),
    "mistral": ("llama", {**LIKE_LLAMA, "sliding_window": None}),
    "qwen2": ("qwen2", LIKE_LLAMA),
    "qwen3": ("qwen3", {**LIKE_LLAMA, "head_dim": 32}),
}
KINDS = {"gpt2": "gpt2", "llama": "llama3", "mistral": "mistral", "qwen2": "qwen", "qwen3": "qwen"}  # of tokenizers
IDS = torch.randint(257, (1, 20), generator=torch.Generator().manual_seed(1))
# In half the bits: one that is fast for each way to name tensors.
OFTEN = ("decoder", "decoder like llama, untied, without biases", "llama", "llama, positions as LLaMA 3.1", "qwen3")
FULL = [pytest.param(x, "f32", marks=() if x in OFTEN else pytest.mark.slow) for x in MODELS]
HALVES = [pytest.param(x, "f16", marks=() if x == "llama" else pytest.mark.slow) for x in MODELS]


def made(name: str) -> Backbone:
    """With three ids to spare."""
    torch.manual_seed(0)
    _, options = MODELS[name]
    if name.startswith("decoder"):
        model: Backbone = Decoder(**{**SIZES, **options})
    else:
        family = name.split(",")[0]
        model = PretrainedLM(architecture=family, options=options, vocab_size=ids_of(family), block_size=24)
    shake(model)
    return model


def ids_of(family: str) -> int:
    return 3 + (kinds.made(KINDS[family]).vocab_size if family in KINDS else 257)


def saved(backbone: Backbone, path: Path) -> Path:
    """As a fit does, without one; a family's with a tokenizer of its kind."""
    module = (ArticleGPT if isinstance(backbone, Decoder) else CausalLM)(backbone)
    tokenizer = load_tokenizer("bytes")
    if isinstance(backbone, PretrainedLM) and (kind := KINDS.get(backbone.model.config.model_type)):
        tokenizer = kinds.made(kind)
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict(), "global_step": 7}
    checkpoint[TextDataModule.__qualname__] = {"tokenizer": tokenizer.state(), "fingerprint": tokenizer.fingerprint}
    module.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO(keep_previous=False).save_checkpoint(checkpoint, path)
    return path


@pytest.fixture
def without_llama_cpp(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where cyllama is not installed: it takes a second for each file."""
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: False)


@torch.no_grad()
def logits_of(backbone: Backbone) -> Tensor:
    logits = backbone.eval()(IDS)
    assert logits.std() > 0.3  # else nothing could differ
    return logits


@pytest.mark.usefixtures("without_llama_cpp")
@pytest.mark.parametrize(("name", "dtype"), FULL + HALVES)
def test_a_file_is_the_checkpoints_model(name: str, dtype: Any, tmp_path: Path):
    backbone = made(name)
    done = export_gguf(saved(backbone, tmp_path / "some.ckpt"), tmp_path / "out.gguf", dtype=dtype)
    assert (done.architecture, done.dtype, done.llama_difference) == (MODELS[name][0], dtype, None)
    assert done.difference < {"f32": 1e-5, "f16": 1e-2}[dtype]
    found = logits_of(PretrainedLM(pretrained=str(done.file)))
    torch.testing.assert_close(found, logits_of(backbone), rtol=0, atol={"f32": 1e-5, "f16": 1e-2}[dtype])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.gguf", "some.ckpt"]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_computes_the_same(name: str, dtype: Any, tmp_path: Path):
    pytest.importorskip("cyllama")
    if dtype == "q8_0" and name.startswith("decoder"):
        pytest.skip("its rows are not multiples of 32")
    backbone = made(name)
    done = export_gguf(saved(backbone, tmp_path / "some.ckpt"), tmp_path / "out.gguf", dtype=dtype)
    found = torch.tensor(llama_cpp.logits(done.file, IDS[0].tolist()))
    difference = float((found - logits_of(backbone)[0]).abs().max())
    tolerance = {"f32": 2e-3 if done.architecture == "gpt2" else 1e-5, "f16": 1e-2, "q8_0": 0.2}[dtype]
    assert difference < tolerance
    assert done.llama_difference is not None
    assert done.llama_difference < tolerance


@pytest.mark.usefixtures("without_llama_cpp")
def test_q8_0_is_as_near_as_its_steps(tmp_path: Path):
    backbone = made("llama")
    done = export_gguf(saved(backbone, tmp_path / "some.ckpt"), tmp_path / "out.gguf", dtype="q8_0")
    kinds = {tensor.tensor_type.name for tensor in read_gguf(done.file).tensors.values()}
    assert kinds == {"Q8_0", "F32"}
    assert 1e-4 < done.difference < 0.2


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["f32", "f16"])
@pytest.mark.parametrize("name", ["llama", "llama, positions as LLaMA 3.1", "mistral"])
def test_layers_that_differ_are_written_for_llama_cpp(
    name: str, dtype: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """As its `deci`, with numbers of heads and neurons of their own; llama.cpp alone can say that it is right."""
    pytest.importorskip("cyllama")
    backbone = removed(made(name), every_layer=False)
    neurons = units_of(backbone, "neurons")
    dead = torch.zeros(neurons.shape, dtype=torch.bool)
    dead[1, :20] = True
    neurons.remove(dead)
    checkpoint = saved(backbone, tmp_path / "some.ckpt")
    written = ["--format", "gguf", "--dtype", dtype, "--output", f"{tmp_path}/out.gguf"]
    main(["export", "--ckpt_path", str(checkpoint), *written])
    assert "transformers has no family whose layers differ" in capsys.readouterr().out
    file = read_gguf(tmp_path / "out.gguf")
    assert file.architecture == "deci"
    assert file.about("attention.head_count") == [2, 4]
    assert file.about("attention.head_count_kv") == [1, 2]
    assert file.about("feed_forward_length") == [96, 76]
    found = torch.tensor(llama_cpp.logits(file.path, IDS[0].tolist()))
    assert float((found - logits_of(backbone)[0]).abs().max()) < {"f32": 1e-5, "f16": 1e-2}[dtype]


# The tokenizer


@pytest.mark.usefixtures("without_llama_cpp")
def test_the_tokenizer_and_the_chat_template_are_in_the_file(tmp_path: Path):
    (tmp_path / "template.jinja").write_text("{{ messages[0].content }}", encoding="utf-8")
    checkpoint = saved(made("decoder"), tmp_path / "some.ckpt")
    done = export_gguf(checkpoint, tmp_path / "out.gguf", chat_template=tmp_path / "template.jinja")
    file = read_gguf(done.file)
    assert file.metadata["tokenizer.ggml.tokens"][-4:] == ["<|endoftext|>", "[PAD257]", "[PAD258]", "[PAD259]"]
    assert file.metadata["tokenizer.ggml.token_type"][-4:] == [3, 5, 5, 5]
    tokenizer = gguf_tokenizer(file)
    text = "naïve 42\n\n  日本"
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert tokenizer.eos_token_id == 256
    assert tokenizer.chat_template == "{{ messages[0].content }}"


# What is refused


def removed(backbone: Backbone, *, every_layer: bool) -> Backbone:
    units = units_of(backbone, "heads")
    dead = torch.zeros(units.shape, dtype=torch.bool)
    dead[: None if every_layer else 1, 1] = True
    units.remove(dead)
    return backbone


@pytest.mark.usefixtures("without_llama_cpp")
def test_layers_that_differ_need_dense(tmp_path: Path):
    backbone = removed(made("decoder"), every_layer=False)
    checkpoint = saved(backbone, tmp_path / "some.ckpt")
    with pytest.raises(InputError, match=r"1 heads are removed, so that layers differ.*--dense"):
        export_gguf(checkpoint, tmp_path / "out.gguf")
    assert [file.name for file in tmp_path.iterdir()] == ["some.ckpt"]
    done = export_gguf(checkpoint, tmp_path / "out.gguf", dense=True, dtype="f32")
    found = logits_of(PretrainedLM(pretrained=str(done.file)))
    torch.testing.assert_close(found, logits_of(backbone), rtol=0, atol=1e-5)


def test_rows_that_are_not_whole_blocks_are_refused(tmp_path: Path):
    checkpoint = saved(made("decoder"), tmp_path / "some.ckpt")
    with pytest.raises(
        InputError, match=r"rows of multiples of 32, but those of token_embd.weight have 48 .*--dtype f16"
    ):
        export_gguf(checkpoint, tmp_path / "out.gguf", dtype="q8_0")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("bloom", {"n_layer": 2, "hidden_size": 16, "n_head": 4}, r"'bloom' cannot be written as GGUF"),
        ("llama", {**LIKE_LLAMA, "hidden_act": "gelu"}, r"'llama' with hidden_act 'silu', and this model has 'gelu'"),
        ("gpt2", {**MODELS["gpt2"][1], "activation_function": "relu"}, r"activation_function 'gelu_new'.* has 'relu'"),
        ("mistral", {**LIKE_LLAMA, "sliding_window": 8}, r"sliding_window None, and this model has 8"),
        (
            "llama",
            {**LIKE_LLAMA, "rope_parameters": {"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}},
            r"rotary positions scaled as 'yarn' cannot be written as GGUF",
        ),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(name: str, options: Any, message: str, tmp_path: Path):
    backbone = PretrainedLM(architecture=name, options=options, vocab_size=ids_of(name), block_size=24)
    with pytest.raises(InputError, match=message):
        export_gguf(saved(backbone, tmp_path / "some.ckpt"), tmp_path / "out.gguf")


@pytest.mark.usefixtures("without_llama_cpp")
def test_a_weight_too_large_for_f16_is_refused(tmp_path: Path):
    backbone = made("llama")
    with torch.no_grad():
        next(backbone.parameters())[3, 3] = 1e5
    with pytest.raises(InputError, match=r"token_embd.weight has a weight of 1e\+05, .*--dtype f32"):
        export_gguf(saved(backbone, tmp_path / "some.ckpt"), tmp_path / "out.gguf")
    assert [file.name for file in tmp_path.iterdir()] == ["some.ckpt"]


@pytest.mark.usefixtures("without_llama_cpp")
def test_a_file_that_computes_otherwise_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As if the rotary pairs were forgotten: every tensor is what was written."""
    monkeypatch.setattr(exporting, "_pairs", lambda weight, _heads: weight)
    with pytest.raises(InputError, match=r"computes other logits in transformers than the checkpoint"):
        export_gguf(saved(made("llama"), tmp_path / "some.ckpt"), tmp_path / "out.gguf")
    assert [file.name for file in tmp_path.iterdir()] == ["some.ckpt"]


def test_places_that_hold_something_else_are_left_alone(tmp_path: Path):
    checkpoint = saved(made("decoder"), tmp_path / "some.ckpt")
    (tmp_path / "text.gguf").write_text("mine")
    (tmp_path / "folder.gguf").mkdir()
    for name, overwrite, message in [
        ("out", False, r"ends in .gguf"),
        ("folder.gguf", True, r"is a directory"),
        ("text.gguf", False, r"which is there: give another file, or --overwrite"),
        ("text.gguf", True, r"is not a GGUF file: it is not overwritten"),
    ]:
        with pytest.raises(InputError, match=message):
            export_gguf(checkpoint, tmp_path / name, overwrite=overwrite)
    assert (tmp_path / "text.gguf").read_text() == "mine"
    assert not temporary_name(tmp_path / "out.gguf").exists()


@pytest.mark.usefixtures("without_llama_cpp")
def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    checkpoint = saved(made("llama"), tmp_path / "some.ckpt")
    arguments = ["export", "--ckpt_path", str(checkpoint), "--output", f"{tmp_path}/out.gguf", "--format", "gguf"]
    main([*arguments, "--dtype", "q8_0"])
    out = capsys.readouterr().out
    assert "as                llama, q8_0" in out
    assert "llama.cpp         not asked: pip install lightning_app[gguf]" in out
    with pytest.raises(InputError, match=r"--onnx has no effect on --format gguf"):
        main([*arguments, "--onnx", "--debug"])
    with pytest.raises(InputError, match=r"--dtype has no effect on --format hf"):
        main([*arguments[:5], "--dtype", "f16", "--debug"])
