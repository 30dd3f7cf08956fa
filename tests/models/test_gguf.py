"""GGUF files as models: every weight is the package's own dequantisation, and what cannot be read says so at once."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader, dequantize

from lightning_app.errors import InputError
from lightning_app.models.pretrained import PretrainedLM
from tests.gguf_files import OTHERS, V, gpt2, llama, other, tensors, write

MODELS = {
    "llama": llama,
    "llama untied": lambda: llama(tied=False),
    "llama with biases": lambda: llama(bias=True),
    "gpt2": gpt2,
    **{name: partial(other, name) for name in OTHERS},
}


def dequantised(path: Path) -> dict[str, torch.Tensor]:
    """By the package alone."""
    return {t.name: torch.from_numpy(np.copy(dequantize(t.data, t.tensor_type))) for t in GGUFReader(path).tensors}


@pytest.mark.parametrize(
    "kind", [pytest.param("f32", marks=pytest.mark.slow), pytest.param("f16", marks=pytest.mark.slow), "q8_0"]
)
@pytest.mark.parametrize("family", MODELS)
def test_every_weight_is_the_packages_own_dequantisation(family: str, kind: str, tmp_path: Path):
    source = MODELS[family]()
    path = write(tmp_path / "model.gguf", source, kind=kind)
    loaded = PretrainedLM(pretrained=str(path))
    expected, found = dequantised(path), tensors(loaded.model)
    assert set(found) == set(expected)
    assert len(found) >= 15
    for name, weight in found.items():
        assert torch.equal(weight, expected[name]), name
    if kind == "f32":
        ids = torch.arange(20)[None] % V
        torch.testing.assert_close(loaded.eval()(ids), source(ids).logits, rtol=0, atol=1e-6)


def test_no_bar_is_drawn(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    path = write(tmp_path / "model.gguf", llama())
    capfd.readouterr()
    PretrainedLM(pretrained=str(path))
    printed = capfd.readouterr()
    assert "GGUF" not in printed.out + printed.err
    assert "%" not in printed.out + printed.err


def test_a_directory_and_the_name_of_its_file(tmp_path: Path):
    path = write(tmp_path / "model.gguf", llama())
    loaded = PretrainedLM(pretrained=str(tmp_path), gguf_file=path.name, options={"attention_dropout": 0.5})
    assert loaded.model.config.attention_dropout == 0.5
    with pytest.raises(InputError, match=r"is a folder with model.gguf: give the file itself, .*/model.gguf"):
        PretrainedLM(pretrained=str(tmp_path))
    with pytest.raises(InputError, match=r"'llama' has no option 'atention_dropout'; did you mean attention_dropout"):
        PretrainedLM(pretrained=str(path), options={"atention_dropout": 0.5})
    with pytest.raises(InputError, match=r"gguf_file is 'model.gguf' without pretrained"):
        PretrainedLM(architecture="gpt2", gguf_file="model.gguf")


def test_it_trains_and_is_saved_as_any_other(tmp_path: Path):
    loaded = PretrainedLM(pretrained=str(write(tmp_path / "model.gguf", llama(), kind="q8_0")))
    loaded(torch.arange(8)[None]).sum().backward()
    assert all(weight.grad is not None for weight in loaded.parameters())
    loaded.model.save_pretrained(tmp_path / "saved")
    again = PretrainedLM(pretrained=str(tmp_path / "saved"))
    assert torch.equal(again.eval()(torch.arange(8)[None]), loaded.eval()(torch.arange(8)[None]))
    rebuilt = PretrainedLM(**loaded.config())
    assert rebuilt.state_dict().keys() == loaded.state_dict().keys()


# What cannot be read


@pytest.mark.parametrize("share", [0.0001, 0.01, 0.3, 0.9, 0.9999])
def test_a_truncated_file_says_so(share: float, tmp_path: Path):
    path = write(tmp_path / "model.gguf", llama())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(InputError, match=r"model.gguf (cannot be read .* it is truncated|is not a GGUF file)"):
        PretrainedLM(pretrained=str(path))


def test_other_files_say_what_they_are(tmp_path: Path):
    with pytest.raises(InputError, match=r"none.gguf is not a file"):
        PretrainedLM(pretrained=str(tmp_path / "none.gguf"))
    (tmp_path / "text.gguf").write_text("no model")
    with pytest.raises(InputError, match=r"text.gguf is not a GGUF file: it does not begin with GGUF"):
        PretrainedLM(pretrained=str(tmp_path / "text.gguf"))


def changed(path: Path, old: bytes, new: bytes) -> Path:
    data = path.read_bytes()
    assert old in data
    assert len(old) == len(new)
    path.write_bytes(data.replace(old, new))
    return path


def test_an_unknown_family_is_refused(tmp_path: Path):
    path = write(tmp_path / "model.gguf", llama())
    with pytest.raises(InputError, match=r"could not be loaded .*architecture lxxma is not supported"):
        PretrainedLM(pretrained=str(changed(path, b"llama", b"lxxma")))


@pytest.mark.parametrize(("number", "name"), [(15, "Q8_K"), (77, "77")])
def test_an_unknown_quantisation_is_refused(number: int, name: str, tmp_path: Path):
    """Its number stands behind a tensor's sizes."""
    path = write(tmp_path / "model.gguf", llama())
    sizes = b"blk.0.attn_norm.weight" + (1).to_bytes(4, "little") + (64).to_bytes(8, "little")
    changed(path, sizes + (0).to_bytes(4, "little"), sizes + number.to_bytes(4, "little"))
    with pytest.raises(InputError, match=name):
        PretrainedLM(pretrained=str(path))


def test_layers_that_differ_are_refused(tmp_path: Path):
    path = write(tmp_path / "model.gguf", llama(), settings={"attention.head_count": [4, 2]})
    with pytest.raises(InputError, match=r"its layers differ \(attention.head_count is \[4, 2\]\)"):
        PretrainedLM(pretrained=str(path))


@pytest.mark.parametrize(
    ("settings", "more", "message"),
    [
        ({}, {"rope_freqs.weight": torch.linspace(1, 8, 8)}, r"positions otherwise than LLaMA 3.1"),
        ({"rope.scaling.type": "yarn"}, {}, r"scales its rotary positions as 'yarn', which is not read here"),
    ],
)
def test_positions_that_would_be_wrong_are_refused(settings: Any, more: Any, message: str, tmp_path: Path):
    path = write(tmp_path / "model.gguf", llama(), settings=settings, more=more)
    with pytest.raises(InputError, match=message):
        PretrainedLM(pretrained=str(path))


@pytest.mark.parametrize("name", ["blk.0.attn_sinks.weight", "blk.0.ffn_up_exps.weight"])
def test_a_tensor_that_would_be_dropped_is_refused(name: str, tmp_path: Path):
    path = write(tmp_path / "model.gguf", llama(), more={name: torch.ones(4)})
    with pytest.raises(InputError, match=rf"1 tensors that the library does not read, such as {name}"):
        PretrainedLM(pretrained=str(path))
