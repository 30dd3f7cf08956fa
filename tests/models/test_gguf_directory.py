"""A GGUF file as a Hugging Face directory: the same logits, a tokenizer with llama.cpp's ids, all stop tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from lightning_app.errors import InputError
from lightning_app.models import smollm2
from lightning_app.models.gguf_directory import convert_gguf
from lightning_app.models.pretrained import PretrainedLM
from tests.gguf_files import TEMPLATE, V, llama, write

IDS = torch.arange(20)[None] % V


def test_the_directory_is_the_file(tmp_path: Path):
    path = write(tmp_path / "model.gguf", llama(bias=True), kind="q8_0")
    before = torch.get_num_threads()
    convert_gguf(path, tmp_path / "model")
    assert torch.get_num_threads() == before
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded(IDS).logits, PretrainedLM(pretrained=str(path)).eval()(IDS))
    assert "quantization_config" not in loaded.config.to_dict()
    assert GenerationConfig.from_pretrained(tmp_path / "model").eos_token_id == [0, 2]  # <|endoftext|>, <|im_end|>
    assert len({file.stat().st_mode for file in (tmp_path / "model").iterdir()}) == 1  # others may read the weights too
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model", "model.gguf"]


def test_the_tokenizer_splits_digits_and_has_the_template(tmp_path: Path):
    """Two digits are one token of the vocabulary, which the file's pre-tokenizer does not let through."""
    convert_gguf(write(tmp_path / "model.gguf", llama()), tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("hello the 42")["input_ids"])
    assert tokens == ["hello", "Ġthe", "Ġ", "4", "2"]
    assert tokenizer.chat_template == TEMPLATE
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|im_end|>",
    )
    assert tokenizer.model_max_length == 64


def test_a_damaged_file_leaves_nothing(tmp_path: Path):
    path = write(tmp_path / "model.gguf", llama())
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"it is truncated"):
        convert_gguf(path, tmp_path / "model")
    assert [file.name for file in tmp_path.iterdir()] == ["model.gguf"]


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path):
    path = write(tmp_path / "model.gguf", llama())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    for place in ("mine", "model.gguf"):
        with pytest.raises(InputError, match=rf"{place} is there and not an empty folder"):
            convert_gguf(path, tmp_path / place)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    convert_gguf(path, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").is_file()


def test_another_file_is_not_taken_for_smollm2(tmp_path: Path):
    (tmp_path / smollm2.FILE).write_bytes(b"another")
    with pytest.raises(InputError, match=r"has the SHA-256 .*: remove it and run `make smollm2` again"):
        smollm2.main(tmp_path)


def test_smollm2_is_converted_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "smollm2").mkdir()
    (tmp_path / "smollm2" / "config.json").write_bytes(b" " * 2_000_000)
    smollm2.main(tmp_path)
    assert capsys.readouterr().out == f"{tmp_path}/smollm2: 2 MB, licence Apache 2.0\n"
