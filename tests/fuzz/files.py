"""Every file of a run: what is read of it, damaged, is what was written, or something is said."""

from __future__ import annotations

import random
import shutil
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
import yaml
from torch import Tensor

from lightning_app.cli_checks import check_arguments, given_options, read_configs
from lightning_app.data.corpus import Document
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.data.tokenizers import Tokenizer, load_tokenizer
from lightning_app.reports.compare.command import read_runs
from lightning_app.reports.compare.tables import format_comparison
from lightning_app.reports.series import best_validation
from lightning_app.training.checkpoint_io import AtomicCheckpointIO, read_checkpoint
from lightning_app.training.find_checkpoint import find_checkpoint
from tests.fuzz.damage import damaged
from tests.fuzz.registry import Case, kind

TEXT = "the model learns what the teacher shows. nobody asks what it forgets, and why; pages: 1,024. "
VOCABULARY = 300
MEMORY = "backbone.readers.0.bank.memories.0.vectors"


@cache
def run_folder() -> Path:
    """Of a fit, made once; kinds copy what they damage."""
    from lightning_app.cli import main
    from tests.conftest import CONFIG, merged

    folder = Path(mkdtemp(prefix="fuzz-run-"))
    for name, times in (("train", 40), ("val", 3)):
        (folder / f"{name}.txt").write_text(TEXT * times)
    places = {name: {"path": str(folder / f"{name}.txt")} for name in ("train", "val")}
    vocabulary = {"tokenizer": str(folder / "own.tiktoken"), "vocab_size": VOCABULARY}
    config = merged(CONFIG, {"data": {**places, "test": None, "cache_dir": str(folder / "tokens"), **vocabulary}})
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config))
    with redirect_stdout(StringIO()):
        main(["fit", "--config", str(folder / "tiny.yaml"), "--runs_dir", str(folder / "runs")])
    return folder / "runs/tiny/version_0"


def plain(value: Any) -> Any:
    """What a checkpoint holds, as values that can be compared."""
    if isinstance(value, Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return repr(value)


@kind("checkpoint")
def checkpoint(folder: Path) -> Case:
    path = Path(shutil.copy(run_folder() / "checkpoints/best.ckpt", folder))
    return damaged([path], lambda draw: plain(read_checkpoint(path, mmap=draw.random() < 0.5)))


@kind("last and best")
def last(folder: Path) -> Case:
    shutil.copytree(run_folder() / "checkpoints", folder / "version_0/checkpoints")
    paths = sorted(folder.rglob("*.ckpt"))
    assert len(paths) == 4  # two generations of each

    def read(draw: random.Random) -> list[Any]:
        return [plain(read_checkpoint(find_checkpoint(name, folder), mmap=True)) for name in ("last", "best")]

    return damaged(paths, read)


@kind("side file")
def side_file(folder: Path) -> Case:
    path = folder / "a.ckpt"
    state = {"weight": torch.ones(9), MEMORY: torch.randn(40, 16, generator=torch.Generator().manual_seed(0))}
    AtomicCheckpointIO(side_file_bytes=1000).save_checkpoint({"state_dict": state}, path)
    (side,) = folder.rglob("*.npy")
    return damaged([side], lambda draw: plain(read_checkpoint(path, mmap=draw.random() < 0.5)))


@kind("token cache")
def token_cache(folder: Path) -> Case:
    documents = [Document(TEXT * n, TEXT[: 9 * n], name=f"page {n}") for n in range(1, 6)]
    tokenizer = load_tokenizer("bytes")

    def read(draw: random.Random) -> list[Any]:
        tokens = prepare_tokens(documents, tokenizer, folder, shard_bytes=1000)
        lengths = None if tokens.prompt_lengths is None else tokens.prompt_lengths.tolist()
        return [tokens.ids[:].tolist(), tokens.offsets.tolist(), lengths, tokens.names, repr(tokens.manifest)]

    whole = read(random.Random(0))
    paths = sorted(path for path in folder.rglob("*/*") if path.is_file())
    assert {"manifest.json", "names.jsonl", "offsets.npy", "prompts.npy", "tokens-00001.bin"} <= {p.name for p in paths}
    return damaged(paths, read, expected=whole)


@kind("vocabulary")
def vocabulary(folder: Path) -> Case:
    path = folder / "own.tiktoken"

    def trained() -> Tokenizer:
        return load_tokenizer(str(path), vocab_size=VOCABULARY, training_texts=lambda: [TEXT])

    def read(draw: random.Random) -> str:
        return (trained() if draw.random() < 0.5 else load_tokenizer(str(path))).fingerprint

    expected = trained().fingerprint
    return damaged([path, path.with_name("own.tiktoken.json")], read, expected=expected)


@kind("log")
def log(folder: Path) -> Case:
    shutil.copy(run_folder() / "config.yaml", folder)
    path = Path(shutil.copy(run_folder() / "log.jsonl", folder))

    def read(draw: random.Random) -> str:
        runs = read_runs([folder])
        best_validation(runs[0].records)
        return repr(runs[0].records) + format_comparison(runs)

    return damaged([path], read, other_is_valid=True)


@kind("config")
def config(folder: Path) -> Case:
    shutil.copy(run_folder() / "log.jsonl", folder)
    path = Path(shutil.copy(run_folder() / "config.yaml", folder))

    def read(draw: random.Random) -> str:
        words = ["fit", "--config", str(path)]
        given = given_options(words, read_configs(words))
        check_arguments(given)
        (run,) = read_runs([folder])
        return repr(given) + repr(run.options) + repr(run.prompts)

    return damaged([path], read, other_is_valid=True)
