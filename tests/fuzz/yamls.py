"""Mutants of the shipped configs and of the tests' small one: a fit takes them, or says in one line what is wrong."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import os
import random
import shutil
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.strategies.launchers import multiprocessing, subprocess_script

from lightning_app import closing
from lightning_app.cli import main
from tests.conftest import CONFIG, merged
from tests.fuzz.files import TEXT
from tests.fuzz.odd import places, spoil, typo
from tests.fuzz.registry import ACCEPTED, REFUSED, TRACEBACK, UNCLEAR, Case, Outcome, kind
from tests.golden.shipped import CHANGES, FRESH, NAMES, OVERLAYS, SCHEDULES, SMALL

CONFIGS = Path(__file__).parents[2] / "configs"
TRAINED = 0.1  # share of the cases that train for real, two steps
TWO_STEPS = ["--trainer.max_steps", "2", "--trainer.limit_val_batches", "1"]
RUN = {  # laid over each config
    "tune_allocator": False,
    "data": {
        "train": {"path": "train.txt"},
        "val": {"path": "val.txt", "stride": None},
        "test": None,
        "tokenizer": "bytes",
        "vocab_size": None,
        "pad_vocab_to": 1,
        "block_size": 32,
        "dataloader": {"batch_size": 2},
    },
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "precision": "32-true",
        "max_steps": 20,
        "max_time": None,
        "val_check_interval": 20,
        "check_val_every_n_epoch": None,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_model_summary": False,
    },
}
TINY = {**SMALL, "embedding_dim": 16, "head_size": 8}
TINY_HF = {"n_layer": 2, "n_embd": 16, "n_head": 2}
FEW = {"num_workers": 2, "memory_size": 200}  # by key: what would take long or much, and says nothing more


class BeganError(BaseException):
    """Training would begin now."""


@kind("yaml", share=0.1)
@contextlib.contextmanager
def mutants(folder: Path) -> Iterator[Case]:
    bases = [small(name) for name in sorted({*NAMES} - {"streaming"})] + [merged(CONFIG, {})] * 5
    here = Path.cwd()

    def case(draw: random.Random) -> Outcome:
        work = folder / "work"
        work.mkdir()
        (work / "train.txt").write_text(TEXT * 40)
        (work / "val.txt").write_text(TEXT[::-1] * 9)
        os.chdir(work)
        try:
            note, text = mutant(copy.deepcopy(draw.choice(bases)), draw)
            Path("mutant.yaml").write_text(text, encoding="utf-8", errors="surrogatepass")
            found = fitted(note, trains=draw.random() < TRAINED)
            return Outcome(found.name, f"{found.note}\n{text}")
        finally:
            os.chdir(here)
            shutil.rmtree(work)

    with in_this_process():
        yield case


def small(name: str) -> dict[str, Any]:
    """A shipped config, or one with an overlay, as one tree that is small."""
    tree = _read(CONFIGS / f"{OVERLAYS.get(name, name)}.yaml")
    if name in OVERLAYS:
        overlay = _read(CONFIGS / f"overlays/{name}.yaml")
        more = overlay.get("trainer", {}).pop("callbacks+", [])
        overlay.get("trainer", {}).pop("logger+", None)
        if name in SCHEDULES:
            options = more[0]["init_args"]
            for key, value in SCHEDULES[name].items():
                (rare if key in (rare := options.get("advanced", {})) else options)[key] = value
        tree = merged(tree, overlay)
        tree["trainer"]["callbacks"] = [*tree["trainer"].get("callbacks", []), *more]
    for change in [RUN, *(change for change in CHANGES.get(name, []) if name != "streaming")]:
        tree = merged(tree, change)
    backbone = tree["model"]["init_args"]["backbone"]
    if "PretrainedLM" in backbone.get("class_path", ""):
        backbone["init_args"] |= {**FRESH, "options": TINY_HF}
    else:
        backbone.get("init_args", backbone).update(TINY)
    return tree


def _read(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def mutant(tree: dict[str, Any], draw: random.Random) -> tuple[str, str]:
    """What was done to it, and its text."""
    notes = [tree["name"], *(spoil(tree, draw) for _ in range(draw.choice((0, 1, 1, 1, 1, 1, 1, 2, 2, 3))))]
    for parent, key in places(tree):
        if key in FEW and isinstance(parent[key], int | float) and parent[key] > FEW[key]:
            parent[key] = FEW[key]
    text = yaml.safe_dump(tree, sort_keys=False, allow_unicode=draw.random() < 0.5)
    if draw.random() < 0.1:
        lines = text.splitlines()
        i = draw.randrange(len(lines))
        lines[i] = draw.choice(
            (" " + lines[i], lines[i].lstrip(), "\t" + lines[i], typo(lines[i], draw), lines[i] + ":")
        )
        notes.append(f"line {i} is now {lines[i]!r}")
        text = "\n".join(lines)
    return ", ".join(notes), text


def fitted(note: str, *, trains: bool) -> Outcome:
    """What comes of a fit of mutant.yaml in the working folder, up to where it would begin to train."""
    words = ["fit", "--config", "mutant.yaml", *(TWO_STEPS if trains else [])]
    loop = contextlib.nullcontext() if trains else mock.patch.object(_FitLoop, "run", _begin)
    said = io.StringIO()
    try:
        with loop, contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said), quiet():
            main(words)
    except BeganError:
        return Outcome(ACCEPTED, note)
    except SystemExit as ended:
        lines = [line for line in said.getvalue().split("\n") if line.startswith("error: ")]
        clear = ended.code in (1, 2) and len(lines) == 1 and len(lines[0]) > 20 and "Traceback" not in said.getvalue()
        clear = clear and said.getvalue().rstrip().endswith(lines[0].rstrip())
        return Outcome(REFUSED if clear else UNCLEAR, f"{note}: exit code {ended.code}, {said.getvalue()[-500:]}")
    except KeyboardInterrupt:
        raise
    except BaseException:
        return Outcome(TRACEBACK, f"{note}\n{traceback.format_exc()}")
    return Outcome(ACCEPTED, note)


def _begin(*arguments: Any, **options: Any) -> None:
    raise BeganError


@contextlib.contextmanager
def in_this_process() -> Iterator[None]:
    """No further processes; a short text at the end."""
    launchers = (subprocess_script._SubprocessScriptLauncher, multiprocessing._MultiProcessingLauncher)
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(closing, "SAMPLED_TOKENS", 20))
        for launcher in launchers:
            stack.enter_context(mock.patch.object(launcher, "launch", _begin))
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what Lightning says of a run, and what is warned of a mutant."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(record=True):
            warnings.simplefilter("always")
            yield
    finally:
        logging.disable(disabled)
