"""The core starts without the ideas, and each idea can be taken out."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from lightning_app.cli import main
from lightning_app.plugins import IDEAS

ROOT = Path(__file__).parent.parent
BEFORE = ROOT / "tests" / "before" / "runs"
OF_IDEAS = tuple(f"lightning_app.{idea.name}" for idea in IDEAS)
HEAVY = ("faiss", "peft", "fastapi", "plotly")


def loaded(*steps: list[str]) -> list[set[str]]:
    """Names of what one fresh process has imported after each step, a list of modules to import."""
    code = """import gc, importlib, json, sys
gc.disable()
for step in json.loads(sys.argv[1]):
    for name in step: importlib.import_module(name)
    print(*sys.modules)"""
    words, environment = [sys.executable, "-c", code, json.dumps(steps)], {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [set(line.split()) for line in done.stdout.splitlines()]
    assert all({*step} <= names for step, names in zip(steps, found, strict=True))
    return found


def loaded_again(*steps: list[str]) -> list[set[str]]:
    """The same in a copy of this process that has forgotten the package and HEAVY: torch need not be imported anew."""
    receive, send = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_load_again, args=(steps, send))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
        child.start()
    found = receive.recv()
    child.join()
    return found


def _load_again(steps: Sequence[list[str]], send: Connection) -> None:
    forgotten = ("lightning_app", *HEAVY)
    for name in of(set(sys.modules), *forgotten):
        del sys.modules[name]
    found = []
    for step in steps:
        for name in step:
            importlib.import_module(name)
        found.append(of(set(sys.modules), *forgotten))
    send.send(found)


def of(found: set[str], *packages: str) -> set[str]:
    return {name for name in found for package in packages if name == package or name.startswith(f"{package}.")}


@pytest.mark.parametrize("load", [loaded_again, pytest.param(loaded, marks=pytest.mark.slow)])
def test_the_core_imports_no_idea_and_pruning_no_faiss(load: Callable[..., list[set[str]]]):
    core = ("training", "training.module", "training.checkpoint", "models.registry", "data.datamodule", "reports")
    first, then = load([f"lightning_app.{name}" for name in core], ["lightning_app.plasticity.schedule"])
    assert "lightning_app.plasticity.schedule" in then - first
    assert of(first, *OF_IDEAS, *HEAVY) == set()
    assert of(then, "faiss", "lightning_app.memory", "lightning_app.art") == set()


def test_sections_and_events_of_ideas_import_no_torch():
    places = [place.partition(":")[0] for idea in IDEAS for place in (idea.sections, idea.events) if place]
    assert len(places) == 2
    (found,) = loaded(["lightning_app.reports.dashboard", "lightning_app.reports.compare.command", *places])
    assert of(found, "torch", "lightning", "transformers", *HEAVY) == set()


# Without one of them


@pytest.fixture
def without(tmp_path: Path) -> Callable[[str], Path]:
    """`without("art")` is a folder with a copy of the package that lacks this idea."""

    def copied(idea: str) -> Path:
        gone = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / "lightning_app", tmp_path / "lightning_app", ignore=gone)
        shutil.rmtree(tmp_path / "lightning_app" / idea)
        (tmp_path / "lightning_app" / idea / "__pycache__").mkdir(parents=True)  # as git leaves it
        return tmp_path

    return copied


SCRIPT = """import json, sys
from lightning_app.cli import main
for words in json.loads(sys.argv[1]):
    try:
        code = main(words)
    except SystemExit as stop:
        code = stop.code
    for stream in (sys.stdout, sys.stderr):
        print(f"{int(code or 0)}--end of a command--", file=stream, flush=True)
"""


ABOVE = "import lightning_app.export.command, lightning_app.serving.explain, lightning_app.serving.server.app"


def run(folder: Path, *commands: list[str], then: str = "") -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of commands of the package in a folder, all in one fresh process."""
    words = [sys.executable, "-c", SCRIPT + then, json.dumps(commands)]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONUTF8": "1"}
    done = subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    outs, errors = (stream.split("--end of a command--\n")[:-1] for stream in (done.stdout, done.stderr))
    return [(int(out[-1]), out[:-1], error[:-1]) for out, error in zip(outs, errors, strict=True)]


def test_the_page_of_a_run_of_an_idea_that_is_gone_says_so(without: Callable[[str], Path]):
    folder = without("plasticity")
    version = shutil.copytree(BEFORE / "pruned" / "version_0", folder / "version_0")
    assert '"plasticity_started"' in (version / "log.jsonl").read_text()
    ((code, _, error),) = run(folder, ["report", str(version)])
    assert (code, error) == (0, "")
    page = (version / "dashboard.html").read_text()
    assert "Not drawn: the idea &#x27;plasticity&#x27; is not here: put its folder lightning_app/plasticity" in page
    assert "plasticity_started" not in page
    assert '<th scope="row" class="text">closed</th>' in page  # the rest is there


NEEDS = {"memory": "varda_gpt", "art": "art_gpt2", "plasticity": "pruned"}  # runs whose checkpoints need an idea
COMMANDS = {"memory": "memory", "art": "categories"}


@pytest.mark.parametrize("idea", sorted(NEEDS))
def test_a_checkpoint_whose_idea_is_gone_is_refused_in_one_line(
    idea: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """In this process, to which the folder looks gone; below it is gone."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == f"lightning_app.{idea}" else find(name)
    )
    checkpoint = BEFORE / NEEDS[idea] / "version_0/checkpoints/last.ckpt"
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "--ckpt_path", str(checkpoint), "--prompt", "a"])
    which, line = capsys.readouterr().err.splitlines()
    assert which.startswith(f"checkpoint: {checkpoint}")
    assert stopped.value.code == 1
    assert line.startswith("error: ")
    assert line.endswith(f"the idea {idea!r} is not here: put its folder lightning_app/{idea} back")


@pytest.mark.slow
@pytest.mark.parametrize("idea", sorted(NEEDS))
def test_all_else_works_without_an_idea(
    idea: str, without: Callable[[str], Path], folder: Path, config: Callable[..., str]
):
    without(idea)
    name = config({"trainer": {"max_steps": 4, "val_check_interval": 2}})
    last, needs = "runs/tiny/version_0/checkpoints/last.ckpt", BEFORE / NEEDS[idea] / "version_0/checkpoints/last.ckpt"
    works = [
        ["--help"],
        ["fit", "--config", name],
        ["validate", "--config", name, "--ckpt_path", last],
        ["generate", "--ckpt_path", last, "--prompt", "the model", "--max_new_tokens", "4"],
        ["report", "runs/tiny/version_0"],
    ]
    refused = [["generate", "--ckpt_path", str(needs), "--prompt", "a"]]
    refused += [[COMMANDS[idea], "--help"]] if idea in COMMANDS else []
    done = run(folder, *works, *refused, then=ABOVE)
    assert [code for code, _, _ in done] == [0] * len(works) + [1] * len(refused), done
    words = ("fit", "what was reached", "val/ce", "the model", "page: ")
    assert [word for word, (_, out, _) in zip(words, done, strict=False) if word not in out] == []
    for _, _, error in done[len(works) :]:
        (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
        assert line.endswith(f"the idea {idea!r} is not here: put its folder lightning_app/{idea} back")
        assert "Traceback" not in error
