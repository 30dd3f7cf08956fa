"""A pretrained model with its own tokenizer in the commands, end to end."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_app.data.tokenizers import HuggingFaceTokenizer
from lightning_app.reports.run_folder import RunFolder
from lightning_app.training.checkpoint import load_module
from lightning_app.training.checks import say_if_no_better_than_chance
from tests import tokenizers as kinds
from tests.conftest import Run

LAST = "runs/tiny/version_0/checkpoints/last.ckpt"


def save_model(folder: Path, kind: str, **options: Any) -> Path:
    """A LLaMA with random weights, some spare ids, and a tokenizer of this kind."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = kinds.made(kind)
    sizes: dict[str, Any] = {
        "vocab_size": tokenizer.vocab_size + 5,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "max_position_embeddings": 64,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eot,
    }
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**sizes, **options})).save_pretrained(folder)
    return kinds.save(kind, folder)


@pytest.fixture
def tiny(config: Callable[..., str]) -> str:
    backbone = {"class_path": "PretrainedLM", "init_args": {"pretrained": "own"}}
    scheduler = {"class_path": "WarmupCosine", "init_args": {"warmup_steps": 1}}
    model = {"class_path": "CausalLM", "init_args": {"backbone": backbone, "scheduler": scheduler}}
    path = config({"data": {"tokenizer": "model"}, "trainer": {"max_steps": 2, "val_check_interval": 2}})
    tree = yaml.safe_load(Path(path).read_text())
    Path(path).write_text(yaml.safe_dump({**tree, "model": model}))
    Path("train.txt").write_text(Path("train.txt").read_text() * 4)  # enough for the model's size
    return path


@pytest.mark.slow
def test_it_is_trained_validated_continued_and_exported(
    main: Run,
    tiny: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    save_model(folder / "own", "llama")
    main("fit", "--config", tiny)
    saved = RunFolder(folder / "runs/tiny/version_0").config()
    assert saved is not None
    assert (saved["data"]["tokenizer"], saved["data"]["vocab_size"]) == ("own", kinds.made("llama").vocab_size + 5)
    caplog.clear()
    main("validate", "--config", tiny, "--ckpt_path", LAST)
    main("fit", "--config", tiny, "--ckpt_path", LAST, "--trainer.max_steps", 3)
    assert [record.message for record in caplog.records if "first loss" in record.message] == []  # it has learned
    shutil.rmtree("own")
    module, tokenizer = load_module(LAST)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert tokenizer.fingerprint == kinds.made("llama").fingerprint
    capsys.readouterr()
    main("generate", "--ckpt_path", LAST, "--prompt", "the model", "--max_new_tokens", 5, "--temperature", 0)
    said = capsys.readouterr().out.removesuffix("\n")
    ids = torch.tensor([tokenizer.prompt("the model")])
    new = [int(token) for token in module.generate(ids, _greedy(5), eot=tokenizer.eot)]
    assert said == tokenizer.decode([*ids[0].tolist(), *(i for i in new if i != tokenizer.eot)])
    main("export", "--ckpt_path", LAST, "--output", "exported")
    for name, text in kinds.files_of("llama").items():
        assert (folder / "exported" / name).read_text(encoding="utf-8") == text
    _check_exported(folder / "exported", module, ids)


@pytest.mark.slow
@pytest.mark.parametrize("tokenizer", ["model", "own/tokenizer.json"])
def test_a_run_goes_on_when_the_directory_of_its_model_is_gone(main: Run, tiny: str, folder: Path, tokenizer: str):
    save_model(folder / "own", "llama")
    given = ("--config", tiny, "--data.tokenizer", tokenizer, "--data.vocab_size", kinds.made("llama").vocab_size + 5)
    main("fit", *given)
    config = folder / "runs/tiny/version_0/config.yaml"
    before = yaml.safe_load(config.read_text())
    shutil.rmtree("own")
    main("fit", *given, "--ckpt_path", LAST, "--trainer.max_steps", 3)
    after = yaml.safe_load(config.read_text())
    assert (after["model"], after["data"]) == (before["model"], before["data"])  # the source stays on record
    main("validate", "--config", config, "--ckpt_path", LAST)
    main("fit", *given, "--init_from", LAST)
    steps = [torch.load(last, weights_only=True)["global_step"] for last in sorted(folder.rglob("last.ckpt"))]
    assert steps == [3, 2]


def test_a_run_is_validated_when_the_directory_of_its_model_is_gone(main: Run, tiny: str, folder: Path):
    save_model(folder / "own", "llama")
    main("fit", "--config", tiny, "--trainer.max_steps", 1)
    shutil.rmtree("own")
    dropout = ("--model.init_args.backbone.init_args.options", '{"attention_dropout": 0.1}')
    main("validate", "--config", tiny, *dropout, "--ckpt_path", LAST)


def test_without_a_checkpoint_a_directory_that_is_gone_is_asked_for(fails: Callable[..., str], tiny: str):
    assert "'own'" in fails("validate", "--config", tiny)


def _greedy(n: int) -> Any:
    from lightning_app.models.generation_options import GenerationOptions

    return GenerationOptions(n, temperature=0)


def _check_exported(folder: Path, module: Any, ids: torch.Tensor) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    assert (model.config.bos_token_id, model.config.eos_token_id) == (1, 2)
    assert AutoTokenizer.from_pretrained(folder)("the model")["input_ids"] == ids[0].tolist()
    assert torch.allclose(model(ids).logits, module(ids), atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "unigram", "smollm2"])
def test_bits_per_byte_are_those_of_the_library(kind: str, main: Run, tiny: str, folder: Path):
    """One document in one window: the begin token is given, and the end of the text is to be predicted."""
    from transformers import AutoModelForCausalLM

    text = "The ﬁrst\x01 model"
    Path("val.txt").write_text(text, encoding="utf-8")
    save_model(folder / "own", kind)
    tokenizer = kinds.made(kind)
    ids = torch.tensor([[*([] if tokenizer.bos is None else [tokenizer.bos]), *tokenizer.encode(text), tokenizer.eot]])
    size = ("--data.block_size", ids.shape[1] - 1, "--data.clean", "false")
    main("predict", "--config", tiny, *size, "--data.predict.path", "val.txt")
    row = _predicted(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "own")
    with torch.no_grad():
        nats = float(model(ids, labels=ids).loss) * (ids.shape[1] - 1)
    measured = tokenizer.measured(text)
    assert measured.n_bytes is not None  # the ligature is normalised
    first = 0 if tokenizer.bos is not None else int(measured.n_bytes[0])
    assert row["bytes"] == len(text.encode()) - first
    assert row["bpb"] == pytest.approx(nats / math.log(2) / row["bytes"], rel=1e-5)


def _predicted(folder: Path) -> dict[str, Any]:
    found = list(folder.rglob("predictions*.jsonl"))
    assert len(found) == 1
    return dict(json.loads(found[0].read_text().splitlines()[0]))


# What does not belong together


@pytest.mark.parametrize("data", [[], 0.5, None])
def test_data_that_is_no_mapping_is_refused_in_one_line(fails: Callable[..., str], folder: Path, data: object):
    Path("odd.yaml").write_text(yaml.safe_dump({**yaml.safe_load(Path("tiny.yaml").read_text()), "data": data}))
    assert fails("fit", "--config", "odd.yaml").startswith("error: ")


def test_only_a_pretrained_model_has_one(fails: Callable[..., str], config: Callable[..., str]):
    error = fails("fit", "--config", config({"data": {"tokenizer": "model"}}))
    assert "data.tokenizer is model" in error
    assert "pretrained is not given" in error


def test_a_vocabulary_larger_than_the_embedding_is_refused_before_the_weights_are_read(
    fails: Callable[..., str], tiny: str, folder: Path
):
    save_model(folder / "own", "llama", vocab_size=700)
    (folder / "own" / "model.safetensors").unlink()
    error = fails("fit", "--config", tiny)
    assert f"data.vocab_size is 700, but tokenizer 'own' has {kinds.made('llama').vocab_size} ids" in error
    assert "do not belong together" in error
    kinds.save("gpt2", folder / "another")
    error = fails("fit", "--config", tiny, "--data.tokenizer", "another")
    assert "data.vocab_size is 900, but 'own' has 700 ids" in error
    assert "data.tokenizer: model" in error


@pytest.mark.parametrize("command", ["fit", "validate", "predict"])
def test_a_bad_row_is_named_before_the_weights_are_read(
    fails: Callable[..., str], tiny: str, folder: Path, command: str
):
    save_model(folder / "own", "llama")
    (folder / "own" / "model.safetensors").unlink()
    said = {"role": "assistant", "content": "yes"}
    rows = [{"messages": [said]}] * 3 + [{"messages": [{"role": "bot", "content": "no"}, said]}]
    Path("chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = {"predict": "test"}.get(command, "val")  # predict has none of its own here
    error = fails(command, "--config", tiny, f"--data.{split}.path", "chats.jsonl")
    assert "chats.jsonl:4, message 1 has the role 'bot'" in error


def test_other_special_ids_and_a_loss_of_chance_are_said(
    main: Run, tiny: str, folder: Path, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING)
    save_model(folder / "own", "llama", eos_token_id=[7, 8])
    main("fit", "--config", tiny)
    said = [record.message for record in caplog.records if "own" in record.message]
    assert len(said) == 2
    assert "trained with 7 or 8 as its eos id, and 'own' has 2" in said[0]
    assert "the first loss of 'own' is 6." in said[1]  # random weights, as good as another's
    caplog.clear()
    main("validate", "--config", tiny)
    assert len([record.message for record in caplog.records if "first loss" in record.message]) == 1


def test_weights_that_know_their_ids_say_nothing(caplog: pytest.LogCaptureFixture):
    for ce, said in ((math.log(100) - 0.51, 0), (math.log(100) - 0.49, 1), (9.0, 1)):
        caplog.clear()
        say_if_no_better_than_chance(ce, ids=100, source="own")
        assert len(caplog.records) == said
