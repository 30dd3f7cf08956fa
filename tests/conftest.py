"""What several tests share: small texts, a config that trains in a second, and the command line in this process."""

from __future__ import annotations

import gc
import importlib
import os
import shutil
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests import library_news  # first: importing a library may warn
from tests.library_news import pytest_configure  # noqa: F401

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before any import of Hugging Face's: no retries without a network
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's calls, not ours

import pytest
import yaml


def hands_out(asked: Namespace) -> bool:
    """Whether this process is the one of xdist that gives tests to others, and runs none."""
    return bool(getattr(asked, "numprocesses", 0)) and not asked.usepdb and "PYTEST_XDIST_WORKER" not in os.environ


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """The first hook that knows who runs tests. The one that runs none starts without torch, which takes 7 s."""
    library_news.pytest_addoption(parser)
    if not hands_out(pluginmanager.get_plugin("pytestconfig").known_args_namespace):
        gc.disable()  # until all is imported: a fifth of the time of the imports
        pluginmanager.register(importlib.import_module("tests.each_process"))


CONFIG: dict[str, Any] = {
    "name": "tiny",
    "seed_everything": 3,
    "data": {
        "train": {"path": "train.txt"},
        "val": {"path": "val.txt"},
        "test": {"path": "val.txt"},
        "tokenizer": "bytes",
        "block_size": 16,
        "dataloader": {"batch_size": 4},
    },
    "model": {
        "class_path": "ArticleGPT",
        "init_args": {
            "backbone": {"embedding_dim": 16, "layers": 1, "heads": 2, "dropout": 0.1},
            "scheduler": {"class_path": "WarmupCosine", "init_args": {"warmup_steps": 2}},
        },
    },
    "trainer": {
        "accelerator": "cpu",
        "max_steps": 6,
        "val_check_interval": 3,
        "check_val_every_n_epoch": None,
        "log_every_n_steps": 1,
        "enable_model_summary": False,
    },
}

Run = Callable[..., None]
CHROMIUM = Path("/usr/bin/chromium")


def merged(base: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    """`base` with `change` laid over it, mappings merged key by key."""
    result = dict(base)
    for key, value in change.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = merged(result[key], value) if both else value
    return result


def write_config(change: dict[str, Any], path: str = "tiny.yaml") -> str:
    Path(path).write_text(yaml.safe_dump(merged(CONFIG, change)))
    return path


WORDS = (
    *("the", "model", "learns", "what", "the", "teacher", "shows"),
    *("and", "forgets", "what", "nobody", "asks", "about", "again"),
)


def write_texts() -> None:
    """`train.txt` and `val.txt` into the working folder."""
    text = " ".join(WORDS[(i * i + i // 7) % len(WORDS)] for i in range(400))
    Path("train.txt").write_text(text + "\n")
    Path("val.txt").write_text(" ".join(reversed(text.split()[:60])) + "\n")


@pytest.fixture
def config(folder: Path) -> Callable[..., str]:
    """`config({...}, "other.yaml")` writes the small config, changed, into the working folder and returns its name."""
    return write_config


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder with two texts and `tiny.yaml`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    write_texts()
    write_config({})
    return tmp_path


PARSERS: dict[str, tuple[Any, list[str]]] = {}  # by command; and which of its options go to the Trainer's method


def keep_parsers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command's parser is the same each time, and takes a tenth of a fit to build."""
    from lightning_app.app import Harness

    build = Harness._prepare_subcommand_parser

    def kept(harness: Harness, klass: type, subcommand: str, **options: Any) -> Any:
        if subcommand not in PARSERS:
            parser = build(harness, klass, subcommand, **options)
            PARSERS[subcommand] = parser, harness._subcommand_method_arguments[subcommand]
        parser, harness._subcommand_method_arguments[subcommand] = PARSERS[subcommand]
        return parser

    monkeypatch.setattr(Harness, "_prepare_subcommand_parser", kept)


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Run:
    """`main("fit", "--config", "tiny.yaml")` is `python main.py fit --config tiny.yaml` in this process, but for what
    takes half of its time at the end: 2,180 sampled tokens, and the loss picture, which is an empty file here. The
    config, which was checked when it was read, is not checked again when it is written (10 % of a fit)."""
    from jsonargparse import ArgumentParser

    from lightning_app import closing
    from lightning_app.cli import main as command

    monkeypatch.setattr(closing, "SAMPLED_TOKENS", 8)
    monkeypatch.setattr(closing, "CONTINUED_TOKENS", 2)
    monkeypatch.setattr(closing, "draw_loss", lambda records, path, title: path.touch())
    keep_parsers(monkeypatch)
    dump = ArgumentParser.dump
    monkeypatch.setattr(ArgumentParser, "dump", lambda *args, **more: dump(*args, **{**more, "skip_validation": True}))

    return lambda *words: command([str(word) for word in words])


@pytest.fixture
def fails(main: Run, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must end with exit code 1 or 2 and without a traceback; returns what it printed to stderr."""

    def run(*words: object) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(*words)
        error = capsys.readouterr().err
        assert stopped.value.code in (1, 2), error
        assert "Traceback" not in error
        return error

    return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a fit of the small config, for what comes after training; read only."""
    from lightning_app import closing
    from lightning_app.cli import main as command

    folder = tmp_path_factory.mktemp("tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(closing, "SAMPLED_TOKENS", 20)
        patch.chdir(folder)
        write_texts()
        command(["fit", "--config", write_config({})])
    return folder / "runs/tiny/version_0"


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_run: Path) -> Path:
    """The best checkpoint of `tiny_run`."""
    return tiny_run / "checkpoints/best.ckpt"


@pytest.fixture
def trained(tiny_run: Path, folder: Path) -> Path:
    """The run of `tiny_run` with its texts and config in the working folder: a copy, which a test may change."""
    shutil.copytree(tiny_run.parents[2], ".", dirs_exist_ok=True)
    return tiny_run.relative_to(tiny_run.parents[2])


@pytest.fixture(scope="session")
def modules_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Code that comes with a directory is copied to a temporary folder, not to the user's cache."""
    from transformers import dynamic_module_utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path])
        patch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: requirements-dev.txt")
    if not CHROMIUM.exists():
        pytest.skip(f"there is no browser at {CHROMIUM}")
    with playwright.sync_playwright() as session:
        browser = session.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def tab(browser: Any) -> Iterator[Any]:
    """The page in which tests of a file open what they look at, one after the other: a new one takes 0.5 s."""
    context = browser.new_context()
    yield context.new_page()
    context.close()


@pytest.fixture
def open_in(tab: Any) -> Iterator[Callable[..., Any]]:
    """`open_in(url, width=400, scheme="dark")` shows it in `tab`, which has kept nothing of what was there before."""

    def run(url: str, *, width: int = 1200, scheme: str = "light") -> Any:
        tab.set_viewport_size({"width": width, "height": 800})
        tab.emulate_media(color_scheme=scheme)
        tab.goto(url)
        return tab

    yield run
    tab.evaluate("localStorage.clear(); sessionStorage.clear()")
    tab.goto("about:blank")
