"""Which files of lightning_app one batch, one memory write and one pruning event pass: small fits, traced.

A script of its own, which `benchmarks.code_size` starts with the tree that it counts in PYTHONPATH. Prints JSON. It
imports nothing of ours but the entry of the command line, names classes as a YAML does, and finds writes and events by
what changes in the model, so it runs on any tree.

A file is passed when a function of it is called, its own lambdas and a dataclass's `__init__` too. Imports are not.

batch: one step of the run, from the fetching of its batch to the logging of its loss (`advance` of Lightning's training
    loop). `own` leaves out what nothing but the hooks of callbacks passes.
write: of what is called between the end of the optimizer's step and the end of `advance`, the calls in which a buffer
    changes, and our functions that they are called from.
event: `hook` is the outermost calls of our functions in which the model's number of parameters changes: for a callback
    one call of its hook, with the analysis before the pruning and the evaluation after it. `alone` is the innermost
    call in which that number and log.jsonl change, and what it is called from: carried out, proved and logged.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import lightning as L
import torch
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch.optim.optimizer import register_optimizer_step_post_hook

import lightning_app

PACKAGE = Path(lightning_app.__file__).resolve().parent
STEP = 4  # the one of a run that is looked at: memories hold entries by then, and categories are known
TEXT = "the model learns what the teacher shows. nobody asks what it forgets, and why. " * 30
BASE: dict[str, Any] = {
    "seed_everything": 1,
    "save_every_n_steps": 1000,
    "data": {
        "train": {"path": "train.txt"},
        "val": {"path": "val.txt"},
        "tokenizer": "bytes",
        "block_size": 32,
        "dataloader": {"batch_size": 4},
    },
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 6,
        "limit_val_batches": 0,
        "log_every_n_steps": 1,
        "gradient_clip_val": 1.0,
        "enable_model_summary": False,
        "logger": False,  # log.jsonl is written all the same
    },
}
DECODER = {"class_path": "Decoder", "init_args": {"embedding_dim": 16, "layers": 2, "heads": 4}}
READERS = {"segment_length": 8, "readers": [{"class_path": "AttentionReader", "init_args": {"memory_size": 300}}]}
ART = {"class_path": "ARTRegularizer", "init_args": {"normalize": "center", "capacity": 16}}
SCHEDULE = {"cycles": 1, "pruning_level": 0.5, "training_steps": 2, "warmup_steps": 2, "finetuning_steps": 2}
MODELS: dict[str, dict[str, Any]] = {
    "plain": {"class_path": "ArticleGPT", "init_args": {"backbone": DECODER["init_args"]}},
    "memory": {"class_path": "VardaGPT", "init_args": {"backbone": DECODER, **READERS}},
    "art": {"class_path": "ARTGPT2", "init_args": {"backbone": DECODER, "art": {"capacity": 16}}},
    "memory and art": {"class_path": "VardaGPT", "init_args": {"backbone": DECODER, **READERS, "regularizers": [ART]}},
}


@dataclass
class Call:
    """An outermost call of one of our functions while the tracer listens.

    Attributes:
        files: that it passes, with those of our functions it was called from.
        of_callback: whether it is a hook of a Lightning callback.
        before: the state of the model when it began.
        changed: what it changed of that.
    """

    files: set[str]
    of_callback: bool
    before: dict[str, Any]
    changed: set[str] = field(default_factory=set)


class Tracer:
    """Notes the calls of our functions, as a profile function.

    Args:
        root: code of the frame that calls from below are not followed beyond.
    """

    def __init__(self, root: Any) -> None:
        self.root = root
        self.model: L.LightningModule | None = None
        self.calls: list[Call] = []
        self._outermost: FrameType | None = None
        self._importing = 0

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in ("call", "return") or (name := _ours(frame)) is None:
            return
        if frame.f_code.co_name == "<module>":
            self._importing += 1 if event == "call" else -1
        elif event == "call" and not self._importing:
            if self._outermost is None:
                self._begin(frame)
            self.calls[-1].files.add(name)
        elif frame is self._outermost:
            self._end()

    def _begin(self, frame: FrameType) -> None:
        self._outermost = frame
        owner = frame.f_locals.get("self")
        self.calls.append(Call(set(self._callers(frame)), isinstance(owner, L.Callback), self._state()))

    def _end(self) -> None:
        self._outermost = None
        call, after = self.calls[-1], self._state()
        call.changed = {name for name, value in after.items() if call.before[name] != value}

    def _callers(self, frame: FrameType) -> Iterator[str]:
        caller = frame.f_back
        while caller is not None and caller.f_code is not self.root:
            if name := _ours(caller):
                yield name
            caller = caller.f_back

    def _state(self) -> dict[str, Any]:
        if self.model is None:
            return {}
        sizes = sum(parameter.numel() for parameter in self.model.parameters())
        return {"parameters": sizes, "buffers": [(id(x), x._version) for x in self.model.buffers()]}

    def start(self) -> None:
        self.calls, self._outermost, self._importing = [], None, 0
        sys.setprofile(self)


class EventTracer(Tracer):
    """Notes the innermost call in which both the number of parameters and the log change.

    Attributes:
        events: the files that each passed, with those of our functions it was called from.
    """

    def __init__(self, root: Any) -> None:
        super().__init__(root)
        self.events: list[set[str]] = []
        self._log: Path | None = None
        self._open: list[tuple[FrameType, set[str], tuple[int, int]]] = []

    def __call__(self, frame: FrameType, event: str, _: Any) -> None:
        if event not in ("call", "return") or (name := _ours(frame)) is None:
            return
        if event == "call":
            self._open.append((frame, {name}, self._sizes()))
        elif any(frame is one for one, _, _ in self._open):
            while self._open[-1][0] is not frame:  # a generator that was left
                self._leave()
            self._leave()

    def _leave(self) -> None:
        frame, files, before = self._open.pop()
        changed = all(now != then for now, then in zip(self._sizes(), before, strict=True))
        if changed and not self.events:
            self.events.append(files | set(self._callers(frame)))
        if self._open:
            self._open[-1][1].update(files)

    def _sizes(self) -> tuple[int, int]:
        sys.setprofile(None)
        parameters = sum(parameter.numel() for parameter in self.model.parameters()) if self.model else 0
        self._log = self._log or next(Path().rglob("log.jsonl"), None)
        logged = self._log.stat().st_size if self._log else 0
        sys.setprofile(self)
        return parameters, logged

    def start(self) -> None:
        self._open = []
        sys.setprofile(self)


def _ours(frame: FrameType) -> str | None:
    """The file of a frame's function, relative to the package: that of its globals, which generated ones have, too."""
    path = frame.f_globals.get("__file__")
    if path is None or not path.startswith(str(PACKAGE)):
        return None
    return Path(path).relative_to(PACKAGE).as_posix()


# What is run


def traced(
    config: dict[str, Any], steps: range, *, after_optimizer: bool = False, tracer: Tracer | None = None
) -> list[list[Call]]:
    """The calls of each of these steps of a fit; with `after_optimizer` from the end of the optimizer's step on."""
    advance = _TrainingEpochLoop.advance
    found: list[list[Call]] = []
    tracer = tracer or Tracer(advance.__code__)

    def watched(loop: Any, fetcher: Any) -> None:
        if loop.trainer.global_step not in steps:
            advance(loop, fetcher)
            return
        tracer.model = loop.trainer.lightning_module
        hook = register_optimizer_step_post_hook(lambda *_: tracer.start()) if after_optimizer else None
        if hook is None:
            tracer.start()
        try:
            advance(loop, fetcher)
        finally:
            sys.setprofile(None)
        if hook is not None:
            hook.remove()
        found.append(tracer.calls)

    _TrainingEpochLoop.advance = watched  # type: ignore[method-assign, assignment]
    try:
        fit(config)
    finally:
        _TrainingEpochLoop.advance = advance  # type: ignore[method-assign]
    return found


def fit(config: dict[str, Any]) -> None:
    """`main.py fit` in a new folder, without what follows a fit."""
    from lightning_app.cli import main

    run = LightningCLI._run_subcommand

    def only(self: Any, subcommand: str) -> None:
        self.after_fit = None
        run(self, subcommand)

    LightningCLI._run_subcommand = only  # type: ignore[method-assign]
    try:
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            for name in ("train.txt", "val.txt"):
                Path(name).write_text(TEXT, encoding="utf-8")
            Path("config.json").write_text(json.dumps(config), encoding="utf-8")
            main(["fit", "--config", "config.json"])
    finally:
        LightningCLI._run_subcommand = run  # type: ignore[method-assign]


def batch(kind: str) -> dict[str, list[str]]:
    (calls,) = traced({**BASE, "model": MODELS[kind]}, range(STEP, STEP + 1))
    return {"all": passed(calls), "own": passed(calls, lambda call: not call.of_callback)}


def write() -> list[str]:
    (calls,) = traced({**BASE, "model": MODELS["memory"]}, range(STEP, STEP + 1), after_optimizer=True)
    return passed(calls, lambda call: "buffers" in call.changed)


def event() -> dict[str, list[str]]:
    trainer = {**BASE["trainer"], "callbacks+": [{"class_path": "PlasticitySchedule", "init_args": SCHEDULE}]}
    tracer = EventTracer(_TrainingEpochLoop.advance.__code__)
    config = {**BASE, "model": MODELS["plain"], "trainer": trainer}
    steps = traced(config, range(10))
    hook = passed([call for calls in steps for call in calls], lambda call: "parameters" in call.changed)
    traced(config, range(10), tracer=tracer)
    assert tracer.events, "no event that was looked for"
    return {"hook": hook, "alone": sorted(tracer.events[0])}


def passed(calls: list[Call], holds: Callable[[Call], bool] = lambda call: True) -> list[str]:
    files = {file for call in calls if holds(call) for file in call.files}
    assert files, "no call that was looked for"
    return sorted(files)


def main() -> None:
    torch.set_num_threads(1)
    with contextlib.redirect_stdout(sys.stderr):
        found = {"batch": {kind: batch(kind) for kind in MODELS}, "write": write(), "event": event()}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
