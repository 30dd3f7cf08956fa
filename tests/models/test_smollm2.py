"""SmolLM2 as `make smollm2` leaves it: the file's own weights, and an answer. Skipped where it has not run."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import dequantize
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_app.data.chat_tokens import prompt_ids
from lightning_app.data.gguf_file import read_gguf
from lightning_app.export import llama_cpp
from lightning_app.export.gguf import gguf_tensors
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.models.smollm2 import FILE
from lightning_app.serving.chat import Conversation
from lightning_app.serving.turns import take_turns
from lightning_app.training.checkpoint import load_module
from tests.conftest import Run

MODELS = Path(__file__).parents[2] / "models"
TEXTS = Path(__file__).parents[2] / "data/articles/val"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smollm2() -> tuple[Any, Any]:
    """Model and tokenizer."""
    if not (MODELS / "smollm2").is_dir():
        pytest.skip("`make smollm2` has not run")
    model = AutoModelForCausalLM.from_pretrained(MODELS / "smollm2", dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(MODELS / "smollm2")


def test_every_weight_is_the_packages_own_dequantisation(smollm2: tuple[Any, Any]):
    if not (MODELS / FILE).is_file():
        pytest.skip(f"{FILE} was removed")
    found = dict(gguf_tensors(smollm2[0], "llama"))
    file = read_gguf(MODELS / FILE)
    assert set(found) == set(file.tensors)
    assert len(found) == 272
    for name, tensor in file.tensors.items():
        assert torch.equal(found[name], torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type)))), name


def asked(smollm2: tuple[Any, Any], question: str = "What is the capital of France?") -> torch.Tensor:
    model, tokenizer = smollm2
    messages = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    return model.generate(**prompt, do_sample=False, max_new_tokens=20)


def test_it_names_paris(smollm2: tuple[Any, Any]):
    text = smollm2[1].decode(asked(smollm2)[0])
    assert text.endswith("<|im_start|>assistant\nThe capital of France is Paris.<|im_end|>")


def test_chat_has_the_ids_of_transformers(smollm2: tuple[Any, Any]):
    module, tokenizer = load_module(MODELS / "smollm2")
    talk = Conversation(module, tokenizer, take_turns(module, tokenizer), GenerationOptions(20, temperature=0))
    answers = []
    for question in ("What is the capital of France?", "What is 17 + 25?", "Name the largest planet."):
        talk.messages[:] = [{"role": "user", "content": question}]
        prompt = prompt_ids(talk.prompt(), tokenizer)
        drawn = module.generate(torch.tensor([prompt]), talk.options, eot=module.end_ids)
        expected = asked(smollm2, question)[0]
        assert [*prompt, *(int(token) for token in drawn)] == expected.tolist()
        answers.append("".join(talk.answer()))
        assert answers[-1] == smollm2[1].decode(expected[len(prompt) :], skip_special_tokens=True)
    assert answers[0] == "The capital of France is Paris."
    assert len(set(answers)) == 3


def test_validate_finds_it_trained(smollm2: tuple[Any, Any], tmp_path: Path, main: Run, monkeypatch, capsys):
    """Bits per byte of this repository's own texts, of which it has seen none; 8 is a model that knows nothing."""
    monkeypatch.chdir(tmp_path)
    words = ("--data.val.path", TEXTS, "--data.block_size", 512, "--data.dataloader.batch_size", 1)
    main("validate", "--ckpt_path", MODELS / "smollm2", *words)
    found = re.search(r"val/bpb\D+([\d.]+)", capsys.readouterr().out)
    assert found is not None
    assert float(found[1]) == pytest.approx(1.287, abs=0.02)


@torch.no_grad()
def test_its_export_answers_in_llama_cpp(smollm2: tuple[Any, Any], tmp_path: Path, main: Run, capsys):
    """Each id of the answer is the likeliest there too, and llama.cpp reads the tokenizer as it was."""
    pytest.importorskip("cyllama")
    tokenizer = smollm2[1]
    file = tmp_path / "smollm2.gguf"
    main("export", "--ckpt_path", MODELS / "smollm2", "--format", "gguf", "--output", file)
    assert re.search(r"llama.cpp +logits differ by at most 0\.0", capsys.readouterr().out)
    assert read_gguf(file).metadata["tokenizer.ggml.pre"] == "smollm"
    assert read_gguf(file).metadata["tokenizer.chat_template"] == tokenizer.chat_template
    answer = asked(smollm2)
    theirs = torch.tensor(llama_cpp.logits(file, answer[0].tolist()))
    answered = slice(answer.shape[1] - 9, answer.shape[1] - 1)  # "The capital of France is Paris." and its end
    assert torch.equal(theirs[answered].argmax(-1), answer[0, 1:][answered])
    text = "In 1995, naïve 日本 cats  ate 42\n\n\tmice."
    assert llama_cpp.token_ids(file, [text]) == [tokenizer(text)["input_ids"]]
