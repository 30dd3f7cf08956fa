"""A Hugging Face directory where a checkpoint is expected: every command takes it, without a fit."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import peft
import pytest
import torch
import transformers
import yaml
from safetensors.torch import save_file

from lightning_app.data.gguf_file import read_gguf
from lightning_app.memory.extension import memory_of
from lightning_app.training.checkpoint import load_module, open_checkpoint
from tests import gguf_files, tokenizers
from tests.advice import LITTLE_TEXT, SHORT, advised
from tests.conftest import Run
from tests.test_model_tokenizer import save_model

TINY = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def directory(folder: Path) -> Path:
    """A LLaMA with random weights and a tokenizer of its own."""
    path = tokenizers.save("smollm2", folder / "tiny-llama")
    tokenizer = tokenizers.made("smollm2")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        num_hidden_layers=2,
        max_position_embeddings=64,
        initializer_range=0.5,
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eot,
        **TINY,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


def logits(path: Path) -> torch.Tensor:
    return transformers.AutoModelForCausalLM.from_pretrained(path)(torch.arange(5, 25)[None]).logits


def test_generate_continues_as_transformers_does(directory: Path, main: Run, capsys: pytest.CaptureFixture[str]):
    main("generate", "--ckpt_path", directory, "--prompt", "A memory", "--temperature", 0, "--max_new_tokens", 8)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    given = tokenizer("A memory", return_tensors="pt").input_ids
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    wanted = model.generate(given, max_new_tokens=8, do_sample=False)[0]
    assert capsys.readouterr().out.rstrip("\n") == tokenizer.decode(wanted, skip_special_tokens=True).rstrip("\n")


def test_the_models_own_sampling_counts_where_nothing_else_is_given(
    directory: Path, main: Run, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    """Greedy text is that of transformers; what it draws otherwise is said, suppressed ids without a text are not."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    given = tokenizer("A memory memory memory", return_tensors="pt").input_ids
    found = {}
    for penalty, suppressed in ((1.0, 5), (0.2, 0)):
        settings = {"repetition_penalty": penalty, "suppress_tokens": [suppressed], "do_sample": True, "top_k": 1}
        (directory / "generation_config.json").write_text(json.dumps(settings))
        caplog.clear()
        main("generate", "--ckpt_path", directory, "--prompt", "A memory memory memory", "--max_new_tokens", 24)
        assert ("suppress_tokens, which has no effect here" in caplog.text) == (suppressed == 5)
        wanted = model.generate(given, max_new_tokens=24, do_sample=False, repetition_penalty=penalty)[0]
        found[penalty] = capsys.readouterr().out.rstrip("\n")
        assert found[penalty] == tokenizer.decode(wanted, skip_special_tokens=True).rstrip("\n")
    assert found[1.0] != found[0.2]
    main("generate", "--ckpt_path", directory, "--prompt", "A memory memory memory", *NO_PENALTY)
    assert capsys.readouterr().out.rstrip("\n") == found[1.0]


NO_PENALTY = ("--max_new_tokens", 24, "--repetition_penalty", 1, "--temperature", 0)


def test_its_module_is_built_once(directory: Path):
    """A second one would be made of random numbers, in as much memory again."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    read, module, tokenizer = open_checkpoint(directory)
    assert torch.equal(torch.get_rng_state(), before)
    assert not module.training
    assert module.end_ids == {tokenizer.eot}
    own = module.state_dict()
    assert {name: tensor.data_ptr() for name, tensor in read["state_dict"].items()} == {
        name: tensor.data_ptr() for name, tensor in own.items()
    }


@pytest.fixture
def talking(directory: Path) -> Path:
    """The directory with a chat template, and a point in its name."""
    (directory / "chat_template.jinja").write_text(
        "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    return directory.rename(directory.with_name("tiny-0.5b"))


def said_by_transformers(path: Path, question: str, *, new: int) -> str:
    """The greedy answer in the model's own template."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    ids = model.generate(**prompt, max_new_tokens=new, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    return str(tokenizer.decode(ids, skip_special_tokens=True))


def test_chat_answers_as_transformers_does(
    talking: Path, main: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    lines = iter(["What is a memory?", "/history", "/quit"])
    monkeypatch.setattr("builtins.input", lambda *_: next(lines))
    main("chat", "--ckpt_path", talking, "--temperature", 0, "--max_new_tokens", 6)
    wanted = said_by_transformers(talking, "What is a memory?", new=6).strip()
    assert wanted
    assert f"user: What is a memory?\nassistant: {wanted}" in capsys.readouterr().out


def listens(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


def test_serve_answers_as_transformers_does(talking: Path, main: Run):
    """The command itself, which a thread asks and then ends as systemd would."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    asked: dict[str, Any] = {"messages": [{"role": "user", "content": "What?"}], "max_tokens": 6, "temperature": 0}
    answers: list[Any] = []

    def ask() -> None:
        while not ended.is_set() and not listens(port):
            time.sleep(0.02)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            name = client.get("/v1/models").json()["data"][0]["id"]  # the server has begun, and heeds signals
            try:
                answers.extend([name, client.post("/v1/chat/completions", json=asked | {"model": name}).json()])
            finally:
                os.kill(os.getpid(), signal.SIGTERM)

    before, ended, client = signal.getsignal(signal.SIGTERM), threading.Event(), threading.Thread(target=ask)
    client.start()
    try:
        main("serve", "--ckpt_path", talking, "--port", port)
    finally:
        ended.set()
        client.join()
        signal.signal(signal.SIGTERM, before)
    assert answers[0] == "tiny-0.5b"
    said = answers[1]["choices"][0]["message"]["content"]
    assert said == said_by_transformers(talking, "What?", new=6).lstrip()


def test_a_model_with_ids_to_spare_is_evaluated_too(folder: Path, main: Run, capsys: pytest.CaptureFixture[str]):
    save_model(folder / "own", "llama")
    main("validate", "--ckpt_path", "own", "--data.val.path", "val.txt", "--data.block_size", 32)
    assert "val/bpb" in capsys.readouterr().out


def test_another_models_tokenizer_is_noticed_without_a_fit(folder: Path, main: Run, caplog: pytest.LogCaptureFixture):
    tokenizer = tokenizers.made("llama")
    save_model(folder / "own", "llama", eos_token_id=7, vocab_size=2 * tokenizer.vocab_size)
    main("generate", "--ckpt_path", "own", "--prompt", "a", "--max_new_tokens", 1)
    said = [line for line in caplog.messages if "do they belong together" in line]
    assert len(said) == 2
    assert "trained with 7 as its eos id, and 'own' has 2" in said[0]
    assert f"the model has {2 * tokenizer.vocab_size} ids, and 'own' only {tokenizer.vocab_size}" in said[1]
    caplog.clear()
    (folder / "own" / "model.safetensors").write_bytes(b"")  # they are said before the weights are read
    with pytest.raises(SystemExit):
        main("generate", "--ckpt_path", "own", "--prompt", "a")
    assert [line for line in caplog.messages if "do they belong together" in line] == said
    caplog.clear()
    settings = {"bos_token_id": 1, "eos_token_id": [2, 9]}  # as LLaMA 3 has its second end
    (folder / "own" / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(SystemExit):
        main("generate", "--ckpt_path", "own", "--prompt", "a")
    assert [line for line in caplog.messages if "do they belong together" in line] == said[1:]


@pytest.mark.slow
def test_validate_and_predict_need_no_config(directory: Path, main: Run, capsys: pytest.CaptureFixture[str]):
    main("validate", "--ckpt_path", directory, "--data.val.path", "val.txt", "--data.block_size", 32)
    printed = capsys.readouterr()
    assert "val/bpb" in printed.out
    assert "the config builds it" not in printed.out + printed.err
    main("predict", "--ckpt_path", directory, "--data.predict.path", "val.txt", "--data.block_size", 32)


@pytest.mark.slow
def test_a_config_with_a_like_model_takes_its_weights(directory: Path, main: Run, capsys: pytest.CaptureFixture[str]):
    fresh = {"architecture": "llama", "options": {**TINY, "num_hidden_layers": 2}}
    model = {"class_path": "CausalLM", "init_args": {"backbone": {"class_path": "PretrainedLM", "init_args": fresh}}}
    Path("fresh.yaml").write_text(yaml.safe_dump({"model": model}))
    data = ("--data.val.path", "val.txt", "--data.block_size", 32, "--data.tokenizer", directory)
    found = []
    for words in (("--config", "fresh.yaml", *data), data):
        main("validate", *words, "--ckpt_path", directory)
        found.append([line for line in capsys.readouterr().out.splitlines() if "val/ce" in line])
    assert found[0] == found[1]


def test_a_fit_starts_from_it_and_resumes_nothing(directory: Path, main: Run, fails: Callable[..., str]):
    words = ("--data.train.path", "train.txt", "--data.val.path", "val.txt", "--data.block_size", 32)
    model = ("--model", "CausalLM", "--model.backbone", "PretrainedLM", "--model.backbone.pretrained", directory)
    fit = (
        "fit",
        *model,
        "--data.tokenizer",
        "model",
        *words,
        "--trainer.max_steps",
        2,
        "--trainer.log_every_n_steps",
        1,
    )
    assert f"--init_from {directory}" in fails(*fit, "--ckpt_path", directory)
    with advised(LITTLE_TEXT, SHORT):
        main(*fit, "--init_from", directory)


def test_export_writes_it_again(directory: Path, main: Run):
    main("export", "--ckpt_path", directory, "--output", "again")
    assert torch.allclose(logits(Path("again")), logits(directory), atol=1e-5)
    written = json.loads(Path("again/tokenizer.json").read_text())
    assert written["model"]["vocab"] == json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]


def test_a_memory_is_built_for_it_and_measured(folder: Path, main: Run, capsys: pytest.CaptureFixture[str]):
    directory = save_model(folder / "own", "smollm2")  # with ids to spare
    main(
        "memory",
        "build",
        "--ckpt_path",
        directory,
        "--text",
        "train.txt",
        "--tune",
        "val.txt",
        "--output",
        "with_memory.ckpt",
    )
    memory = memory_of(load_module("with_memory.ckpt")[0])
    assert memory is not None
    assert len(memory.readers) == 1
    words = ("--config", "with_memory.yaml", "--ckpt_path", "with_memory.ckpt", "--data.block_size", 32)
    main("validate", *words, "--data.val.path", "val.txt")
    assert "val/bpb" in capsys.readouterr().out


def test_a_gguf_file_is_taken_as_a_directory_is(folder: Path, main: Run, capsys: pytest.CaptureFixture[str]):
    """By every command; its tokenizer, template and stop tokens are in it."""
    file = gguf_files.write(folder / "tiny.gguf", gguf_files.llama())
    main("generate", "--ckpt_path", file, "--prompt", "hello", "--temperature", 0, "--max_new_tokens", 4)
    assert capsys.readouterr().out.startswith("hello")
    main("validate", "--ckpt_path", file, "--data.val.path", "val.txt", "--data.block_size", 32)
    assert "val/bpb" in capsys.readouterr().out
    main("export", "--ckpt_path", file, "--output", "directory")
    assert json.loads(Path("directory/config.json").read_text())["model_type"] == "llama"
    main("export", "--ckpt_path", "directory", "--format", "gguf", "--dtype", "f32", "--output", "again.gguf")
    first, again = (read_gguf(path) for path in (file, Path("again.gguf")))
    assert again.metadata["tokenizer.ggml.tokens"] == first.metadata["tokenizer.ggml.tokens"]
    assert again.metadata["tokenizer.chat_template"] == first.metadata["tokenizer.chat_template"]
    assert all((again.tensors[name].data == first.tensors[name].data).all() for name in again.tensors)


# Adapters of peft


@pytest.fixture
def adapters(directory: Path) -> tuple[Path, torch.Tensor]:
    """A folder of adapters for the directory, as peft writes it, and the logits of the adapted model."""
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by an old name
        made = peft.get_peft_model(model, peft.LoraConfig(r=4, init_lora_weights=False))
    made.save_pretrained("adapters")
    return Path("adapters"), made.eval()(torch.arange(5, 25)[None]).logits


def test_adapters_are_merged_into_their_model(
    adapters: tuple[Path, torch.Tensor], directory: Path, main: Run, capsys: pytest.CaptureFixture[str]
):
    folder, expected = adapters
    main("export", "--ckpt_path", folder, "--output", "merged")
    assert torch.allclose(logits(Path("merged")), expected, atol=1e-4)
    assert not torch.allclose(logits(directory), expected, atol=1e-1)
    written = json.loads(Path("merged/tokenizer.json").read_text())
    assert written["model"]["vocab"] == json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
    capsys.readouterr()
    said = []
    for path in (folder, "merged"):
        main("validate", "--ckpt_path", path, "--data.val.path", "val.txt", "--data.block_size", 32)
        said.append([line for line in capsys.readouterr().out.splitlines() if "val/ce" in line])
    assert said[0] == said[1]
    assert len(said[0]) == 1


def test_adapters_without_their_model_or_weights(
    adapters: tuple[Path, torch.Tensor], directory: Path, fails: Callable[..., str]
):
    folder, _ = adapters
    for name in ("org/somewhere", None):
        settings = json.loads((folder / "adapter_config.json").read_text())
        (folder / "elsewhere").mkdir(exist_ok=True)
        (folder / "elsewhere/adapter_config.json").write_text(json.dumps({**settings, "base_model_name_or_path": name}))
        for command in ("generate", "validate"):
            error = fails(command, "--ckpt_path", folder / "elsewhere")
            assert f"has adapters of peft for {name!r}, which is not a directory here: write where" in error
    weights = folder / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "adapter_model.safetensors is truncated or damaged" in fails("generate", "--ckpt_path", folder)
    weights.unlink()
    assert "lacks its adapters: there is no adapter_model" in fails("generate", "--ckpt_path", folder)


def test_a_prompt_of_peft_is_refused(directory: Path, fails: Callable[..., str]):
    options = peft.PromptTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=2, base_model_name_or_path=str(directory)
    )
    options.save_pretrained("prompt")
    save_file({"prompt_embeddings": torch.zeros(2, 32)}, "prompt/adapter_model.safetensors")
    error = fails("generate", "--ckpt_path", "prompt")
    assert "prompt holds a PROMPT_TUNING, which cannot be merged into a model" in error


def test_a_wrong_path_says_what_it_is(folder: Path, directory: Path, fails: Callable[..., str]):
    Path("nothing").mkdir()
    assert "a folder without a model" in fails("generate", "--ckpt_path", "nothing")
    Path("downloaded").mkdir()
    gguf_files.write(Path("downloaded/tiny.gguf"), gguf_files.llama())
    shutil.copy("downloaded/tiny.gguf", "blob")
    meant = {
        "downloaded": "give the file itself, downloaded/tiny.gguf",
        "blob": "let it end in .gguf",
        "tiny-llama/model.safetensors": "give the directory, tiny-llama",
        "missing": "there is no",
    }
    for path, said in meant.items():
        assert said in fails("generate", "--ckpt_path", path)
        assert said in fails("validate", f"--ckpt_path={path}", "--data.val.path", "val.txt")
    assert "give its run's config, too (--config)" in fails("validate", "--ckpt_path", "val.txt")
    assert "give the run's config, too (--config)" in fails("test", "--ckpt_path", "last")


def test_the_ending_of_a_gguf_file_is_read_in_any_case(folder: Path, main: Run, capsys: pytest.CaptureFixture[str]):
    gguf_files.write(folder / "TINY.GGUF", gguf_files.llama())
    main("generate", "--ckpt_path", "TINY.GGUF", "--prompt", "hello", "--temperature", 0, "--max_new_tokens", 4)
    assert capsys.readouterr().out.startswith("hello")


# What does not belong together, before the weights are read


def test_a_tokenizer_with_more_ids_than_the_model(directory: Path, fails: Callable[..., str]):
    (directory / "model.safetensors").unlink()
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"vocab_size": 700}))
    error = fails("generate", "--ckpt_path", directory, "--prompt", "A memory")
    assert (
        f"the tokenizer in {directory} has {tokenizers.made('smollm2').vocab_size} ids, and the model's embedding 700"
        in error
    )
    assert "do not belong together" in error


def test_a_tokenizer_that_does_not_say_what_ends_a_text(directory: Path, fails: Callable[..., str]):
    (directory / "model.safetensors").unlink()
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        text = (directory / name).read_text().replace("<|endoftext|>", "<|stop|>").replace("eos_token", "its_token")
        (directory / name).write_text(text)
    error = fails("generate", "--ckpt_path", directory, "--prompt", "A memory")
    assert "does not say which token ends a text: name one of its tokens as eos_token" in error


def test_a_package_that_its_tokenizer_needs(
    directory: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    for name in ("model.safetensors", "tokenizer.json"):
        (directory / name).unlink()
    (directory / "tokenizer.model").write_bytes(b"\n\x0e\n\x05<unk>\x15\x00\x00\x00\x00\x18\x02")
    said = (
        f"{directory / 'tokenizer.model'} is a file of SentencePiece's, and the package that reads it is missing: pip"
    )
    assert f"{said} install sentencepiece" in fails("generate", "--ckpt_path", directory, "--prompt", "A memory")
    assert f"{said} install sentencepiece" in fails("validate", "--ckpt_path", directory, "--data.val.path", "val.txt")
    (directory / "tokenizer.model").write_bytes(b"IQ== 0\n")  # tiktoken's
    assert "pip install" not in fails("generate", "--ckpt_path", directory, "--prompt", "A memory")


def test_no_weights_or_half_of_them(directory: Path, fails: Callable[..., str]):
    weights = directory / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    assert "model.safetensors is truncated or damaged: it has 5,000 of" in fails("validate", "--ckpt_path", directory)
    weights.unlink()
    assert "lacks its weights: there is no model.safetensors" in fails(
        "export", "--ckpt_path", directory, "--output", "x"
    )


def test_another_models_tokenizer_is_warned_of(directory: Path, main: Run, caplog: pytest.LogCaptureFixture):
    tokenizers.save("unigram", directory)
    main("generate", "--ckpt_path", directory, "--prompt", "A memory", "--max_new_tokens", 1)
    said = [record.message for record in caplog.records if "belong together" in record.message]
    assert len(said) == 2
    assert "as its eos id" in said[0]
    assert "only 300: do they belong together?" in said[1]
