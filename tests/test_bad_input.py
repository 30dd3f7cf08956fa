"""What a user gets wrong ends with the value and the remedy named, exit code 1 or 2, and nothing written or lost."""

import errno
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_app.art.extension import ARTRegularizer
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.sources import Source
from lightning_app.errors import InputError
from lightning_app.models.decoder import Decoder
from lightning_app.training.checkpoint import load_module, start_from
from lightning_app.training.checkpoint_io import read_checkpoint
from lightning_app.training.compositions import ArticleGPT
from lightning_app.training.module import LanguageModule

Fails = Callable[..., str]
Config = Callable[..., str]


@pytest.fixture
def fit_fails(fails: Fails, config: Config) -> Callable[..., str]:
    """Fit the small config, changed, with further words: the error text. No run may have been begun."""

    def run(change: dict[str, Any], *words: object) -> str:
        error = fails("fit", "--config", config(change), *words)
        assert not list(Path("runs").rglob("*.ckpt"))
        return error

    return run


def data_refuses(**options: Any) -> str:
    """What is said of the text or its tokenizer, by what reads them."""
    options = {"train": Source("train.txt"), "tokenizer": "bytes", "block_size": 16, **options}
    with pytest.raises(InputError) as refused:
        read(TextDataModule(**options))
    return str(refused.value)


def read(data: TextDataModule) -> None:
    data.prepare_data()
    data.setup("fit")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ("broken.txt", "no such file")),
        (b"", ("broken.txt", "empty")),
        (b"   \n ", ("broken.txt", "empty")),
        (b"text\0text", ("broken.txt", "binary", "4")),
        ("nicht ganz: \xe4".encode("latin1"), ("broken.txt", "UTF-8", "12")),
        (b"short", ("6", "17", "block_size")),
    ],
    ids=["missing", "empty", "blank", "binary", "not UTF-8", "shorter than one window"],
)
def test_text(folder: Path, content: bytes | None, words: tuple[str, ...]):
    if content is not None:
        Path("broken.txt").write_bytes(content)
    error = data_refuses(train=Source("broken.txt"))
    assert all(word in error for word in words), error


def test_a_bad_line_of_jsonl_is_named(folder: Path):
    Path("pairs.jsonl").write_text('{"prompt": "a", "target": "b"}\n{"prompt": "a", "targ\n')
    assert "pairs.jsonl:2" in data_refuses(train=Source("pairs.jsonl"))


def test_unknown_tokenizer(folder: Path):
    error = data_refuses(tokenizer="gpt9")
    assert "gpt9" in error
    assert "r50k_base" in error


def test_no_network_names_the_cache_folder_and_the_offline_choice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    import tiktoken_ext.openai_public
    from tiktoken import load, registry

    def no_network(blobpath: str) -> bytes:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(load, "read_file", no_network)
    monkeypatch.setattr(registry, "ENCODINGS", {})
    assert tiktoken_ext.openai_public.ENCODING_CONSTRUCTORS
    error = data_refuses(tokenizer="r50k_base")
    assert all(word in error for word in ("r50k_base", "TIKTOKEN_CACHE_DIR", "bytes"))


def test_damaged_tiktoken_file(folder: Path):
    Path("own.tiktoken").write_text("IQ== 0\nno base64\n")
    error = data_refuses(tokenizer="own.tiktoken")
    assert "own.tiktoken" in error
    assert "2" in error


def test_prefetch_without_workers(folder: Path):
    error = data_refuses(dataloader={"prefetch_factor": 2})
    assert "prefetch_factor" in error
    assert "num_workers" in error


def test_a_text_that_is_not_there_ends_a_command(fit_fails: Fails):
    error = fit_fails({"data": {"train": {"path": "broken.txt"}}})
    assert "broken.txt" in error
    assert "no such file" in error


def test_misspelt_keys_and_unknown_classes(fit_fails: Fails):
    assert "max_step" in fit_fails({"trainer": {"max_step": 3}})
    assert "max_epoch" in fit_fails({}, "--trainer.max_epoch=3")  # no abbreviations
    assert "heds" in fit_fails({"model": {"init_args": {"backbone": {"heds": 3}}}})
    assert "NoSuchGPT" in fit_fails({"model": {"class_path": "NoSuchGPT"}})
    assert "nowhere.yaml" in fit_fails({}, "--config", "nowhere.yaml")


def test_impossible_sizes(fit_fails: Fails):
    error = fit_fails({"model": {"init_args": {"backbone": {"heads": 3}}}})
    assert "16" in error
    assert "heads" in error
    with pytest.raises(InputError, match="token_noise is -1"):
        ArticleGPT(decoder(), token_noise=-1)


def decoder(**options: Any) -> Decoder:
    """That of the small config."""
    sizes = {"vocab_size": 257, "block_size": 16, "embedding_dim": 16, "layers": 1, "heads": 2}
    return Decoder(**{**sizes, **options})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"vigilance": 1.5}, ("vigilance is 1.5", "[-1, 1]")),
        ({"vigilance": 0.7, "vigilance_quantile": 0.1}, ("vigilance is 0.7", "vigilance_quantile 0.1")),
        ({"lambda_art": -0.5}, ("lambda_art is -0.5", "at least 0")),
    ],
)
def test_options_of_art(options: dict[str, Any], words: tuple[str, ...]):
    with pytest.raises(InputError) as refused:
        ArticleGPT(decoder(), extensions=[ARTRegularizer(**options)])
    assert all(word in str(refused.value) for word in words)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"normalise": "center"}, "normalise"), pytest.param({"layer": 4}, "layer is 4", marks=pytest.mark.slow)],
)
def test_an_option_of_art_in_a_config(fit_fails: Fails, options: dict[str, Any], words: str):
    art = {"class_path": "ARTRegularizer", "init_args": options}
    assert words in fit_fails({"model": {"init_args": {"extensions": [art]}}})


def assert_refused(module: LanguageModule, raw: dict[str, Any], *words: str) -> None:
    """By a resume, and by --init_from."""
    for take in (module.on_load_checkpoint, partial(start_from, module)):
        with pytest.raises(InputError) as refused:
            take(raw)
        assert all(word in str(refused.value) for word in words)


def test_a_checkpoint_with_art_of_another_width_or_capacity():
    def with_art(width: int, capacity: int) -> ArticleGPT:
        return ArticleGPT(decoder(embedding_dim=width), extensions=[ARTRegularizer(capacity=capacity)])

    raw: dict[str, Any] = {"state_dict": (module := with_art(16, 30)).state_dict()}
    module.on_save_checkpoint(raw)
    assert_refused(with_art(32, 30), raw, "16)", "32)")
    assert_refused(with_art(16, 40), raw, "(30, 16)", "(40, 16)")


def test_a_dataloader_at_the_top_is_sent_to_its_place(fit_fails: Fails):
    assert "data.dataloader" in fit_fails({"dataloader": {"batch_size": 2}})


@pytest.mark.parametrize("name", ["vocab_size", "block_size"])
def test_a_size_given_twice_is_refused_with_both_numbers(fit_fails: Fails, name: str):
    error = fit_fails({"data": {"block_size": 16}, "model": {"init_args": {"backbone": {name: 77}}}})
    assert "77" in error
    assert f"data.{name}" in error
    assert "16" in error or name == "vocab_size"
    assert "77" in fit_fails({}, f"--model.init_args.backbone.{name}", "77")


def test_checkpoints_that_are_missing_or_damaged(fails: Fails, trained: Path):
    assert "none.ckpt" in fails("fit", "--config", "tiny.yaml", "--init_from", "none.ckpt")
    assert "last.ckpt" in fails("fit", "--config", "tiny.yaml", "--name", "other", "--ckpt_path", "last")
    whole = trained / "checkpoints/last.ckpt"
    Path("half.ckpt").write_bytes(whole.read_bytes()[:5000])
    Path("no.ckpt").write_text("hello")
    for path in ("half.ckpt", "no.ckpt"):
        for opened in (read_checkpoint, load_module):
            with pytest.raises(InputError, match=path):
                opened(Path(path))
    assert "half.ckpt" in fails("validate", "--config", "tiny.yaml", "--ckpt_path", "half.ckpt")
    assert "half.ckpt" in fails("fit", "--config", "tiny.yaml", "--init_from", "half.ckpt")
    assert "not both" in fails("fit", "--config", "tiny.yaml", "--init_from", whole, "--ckpt_path", whole)


def test_a_checkpoint_of_another_vocabulary_or_shape(fails: Fails, config: Config, trained: Path):
    checkpoint = trained / "checkpoints/last.ckpt"
    raw = read_checkpoint(checkpoint)
    assert_refused(ArticleGPT(decoder(embedding_dim=32)), raw, "16", "32")
    assert_refused(ArticleGPT(decoder(vocab_size=260)), raw, "257", "260")
    assert_refused(ArticleGPT(decoder(heads=4)), raw, "has heads 2, this one 4")  # all matrices have the same shapes
    wider = config({"model": {"init_args": {"backbone": {"embedding_dim": 32}}}})
    same_size = config({"data": {"tokenizer": "w.tiktoken", "vocab_size": 257}}, "same.yaml")
    error = fails("fit", "--config", wider, "--ckpt_path", checkpoint)
    assert "16" in error
    assert "32" in error
    error = fails("fit", "--config", same_size, "--init_from", checkpoint)
    assert "w.tiktoken" in error
    assert "bytes" in error


@pytest.mark.parametrize(
    "interval",
    [
        pytest.param(1, id="validation sees it", marks=pytest.mark.slow),
        pytest.param(3, id="the next step sees it"),
    ],
)
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(fails: Fails, trained: Path, interval: int):
    checkpoint = trained / "checkpoints/last.ckpt"
    before = checkpoint.read_bytes()
    spoilt = torch.load(checkpoint, weights_only=True)
    spoilt["optimizer_states"][0]["param_groups"][0]["lr"] = float("nan")
    spoilt["lr_schedulers"][0]["_last_lr"] = [float("nan")] * 2
    torch.save(spoilt, "spoilt.ckpt")
    more = ("--trainer.max_steps", 20, "--trainer.val_check_interval", interval, "--trainer.limit_val_batches", 1)
    error = fails("fit", "--config", "tiny.yaml", *more, "--ckpt_path", "spoilt.ckpt")
    assert {1: "the weights are not finite after step 7", 3: "the loss is nan at step 7"}[interval] in error
    assert checkpoint.read_bytes() == before
    records = [json.loads(line) for line in Path("runs/tiny/version_1/log.jsonl").read_text().splitlines()]
    assert records[-1]["event"] == "failed"
    for path in Path("runs/tiny").rglob("*.ckpt"):
        weights = torch.load(path, weights_only=True)["state_dict"]
        assert all(tensor.isfinite().all() for tensor in weights.values()), path


def test_weights_that_are_not_finite_are_never_saved(fails: Fails, config: Config, monkeypatch: pytest.MonkeyPatch):
    def spoil(module: ArticleGPT, *args: Any, **kwargs: Any) -> None:
        LanguageModule.optimizer_step(module, *args, **kwargs)
        if module.trainer.global_step == 3:
            torch.nn.init.constant_(module.backbone.lm_head.weight, float("inf"))

    monkeypatch.setattr(ArticleGPT, "optimizer_step", spoil)
    name = config({"trainer": {"limit_val_batches": 0}})
    error = fails("fit", "--config", name, "--save_every_n_steps", 1)
    assert "not finite" in error
    weights = torch.load("runs/tiny/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_a_full_disk_while_the_token_cache_is_written(fit_fails: Fails, monkeypatch: pytest.MonkeyPatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    error = fit_fails({"data": {"cache_dir": "cache"}})
    assert "cache" in error
    assert [p for p in Path("cache").rglob("*") if p.is_file() and not p.name.endswith(".lock")] == []


def test_generate(fails: Fails, tiny_checkpoint: Path):
    command = ("generate", "--ckpt_path", tiny_checkpoint)
    assert "temperature is -1" in fails(*command, "--temperature", "-1")
    assert "num_samples is 0" in fails(*command, "--num_samples", "0")
    assert "--prompt_text" in fails(*command, "--prompt_text", "x")


PLASTICITY = {"training_steps": 1, "warmup_steps": 1, "finetuning_steps": 1, "cycles": 2}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"pruning_level": 1.0}, ("level of heads is 1.0", "[0, 1)"), marks=pytest.mark.slow),
        # the others of this kind: tests/plasticity/test_schedule.py
        pytest.param(
            {"pruning_level": 0.6, "keep_per_layer": 2},
            ("level 0.6 takes 1 of 2", "keeps at least 2"),
            marks=pytest.mark.slow,
        ),
        ({"cycles": 9}, ("9 cycles of 1 + 1 steps after 1 take 19 steps", "the run has 6", "trainer.max_steps")),
        pytest.param(
            {"targets": ["neurons"], "neuron_strategy": "EntropyImportance"},
            ("cannot score neurons",),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_options_of_plasticity(fit_fails: Fails, options: dict[str, Any], words: tuple[str, ...]):
    """Refused before any training."""
    options = {**PLASTICITY, **options}
    if "neuron_strategy" in options:
        path = f"lightning_app.plasticity.importance.{options['neuron_strategy']}"
        options["neuron_strategy"] = {"class_path": path}
    schedule = {"class_path": "PlasticitySchedule", "init_args": options}
    error = fit_fails({"trainer": {"callbacks": [schedule]}})
    assert all(word in error for word in words), error
    assert not any('"phase"' in path.read_text() for path in Path("runs").rglob("log.jsonl"))
