"""What a ModelCheckpoint remembers of its files, in a checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_app.errors import DamagedError, InputError
from lightning_app.reports.run_folder import with_previous
from lightning_app.training.checkpoint_io import read_checkpoint, read_numbers
from lightning_app.training.checkpoint_keys import CALLBACKS, STEP
from lightning_app.training.find_checkpoint import whole_or_previous
from lightning_app.training.lightning_internals.callbacks import worst

State = dict[str, Any]  # of a ModelCheckpoint
NO_FILES: State = {"best_k_models": {}, "best_model_path": "", "last_model_path": ""}


def watched_scores(checkpoint: Mapping[str, Any]) -> dict[str | None, Tensor | None]:
    """What each ModelCheckpoint of a run watched, and its score when the checkpoint was written. Seen in
    Lightning 2.6.6."""
    states = [state for key, state in checkpoint.get(CALLBACKS, {}).items() if key.startswith(ModelCheckpoint.__name__)]
    return {state.get("monitor"): state.get("current_score") for state in states}


def relocated(state: State, dirpath: str, *, key: str, mode: str) -> State:
    """A ModelCheckpoint's state with the paths that its files have in `dirpath`, as far as they are there.

    Lightning 2.6.6 forgets the scores where `dirpath` is not spelt as it was, and the next validation then overwrites
    the best checkpoint with whatever the model is.

    Args:
        state: as a checkpoint has it.
        dirpath: where the files lie now.
        key: under which a checkpoint keeps this state.
        mode: "min" or "max", which scores are better.
    """
    state = _of_later_file(state, dirpath, key)
    here = {path: _here(path, state["dirpath"], dirpath) for path in _paths(state)}
    recorded: Mapping[str, Tensor] = {here[path]: score for path, score in state["best_k_models"].items() if here[path]}
    own = {path: _own_score(path, key, otherwise=score) for path, score in recorded.items()}
    scores = {path: score for path, score in own.items() if score is not None}
    first_of, last_of = (min, max) if mode == "min" else (max, min)
    first = first_of(scores, key=scores.__getitem__, default="")
    kth = last_of(scores, key=scores.__getitem__, default="")
    without_scores = here.get(state["best_model_path"], "") if not state["best_k_models"] else ""
    return {
        **state,
        "dirpath": dirpath,
        "best_k_models": scores,
        "best_model_path": first or without_scores,
        "best_model_score": scores.get(first),
        "kth_best_model_path": kth,
        "kth_value": scores.get(kth, worst(mode)),
        "last_model_path": here.get(state["last_model_path"], ""),
    }


def _paths(state: State) -> list[str]:
    return [*state["best_k_models"], state["best_model_path"], state["last_model_path"]]


def _of_later_file(state: State, dirpath: str, key: str) -> State:
    """The state of the newest file that replaced one of `state`'s, or `state` itself.

    A kill between such a save and the next last.ckpt leaves a last.ckpt that names a file which was removed.
    """
    lost = any(path and not _here(path, state["dirpath"], dirpath) for path in _paths(state))
    later = (own for path in Path(dirpath).glob("*.ckpt") if (own := _own_state(path, key))) if lost else ()
    return max(later, key=lambda found: found[0], default=(0, state))[1]


def _own_state(path: Path, key: str) -> tuple[int, State] | None:
    """(step, state under `key`) of a file which that state names; None for any other."""
    try:
        numbers = read_numbers(path)
        state = numbers.get(CALLBACKS, {}).get(key, {})
        if path.name not in {Path(named).name for named in _paths({**NO_FILES, **state})}:
            return None
        return numbers[STEP], _copied(read_checkpoint(path, mmap=True)[CALLBACKS][key])
    except InputError:  # damaged, or nothing that is read
        return None


def _copied(part: Any) -> Any:
    """With tensors that do not lie in the file."""
    if isinstance(part, dict):
        return {name: _copied(value) for name, value in part.items()}
    return part.clone() if isinstance(part, Tensor) else part


def _here(path: str, old: str | None, new: str) -> str:
    """Where a file of the folder `old` lies in `new`; "" if it does not."""
    if not path or not old:
        return ""
    found = os.path.join(new, os.path.relpath(path, old))  # spelt as Lightning spells it: it compares the words
    return found if with_previous(Path(found)) else ""


def _own_score(path: str, key: str, *, otherwise: Tensor) -> Tensor | None:
    """The score in a checkpoint, or where it is damaged in the previous file; None where both are damaged.

    One without callbacks' states or in shards says nothing.
    """
    try:
        checkpoint = read_checkpoint(whole_or_previous(Path(path)), mmap=True)
    except DamagedError:
        return None
    except InputError:
        return otherwise
    score = checkpoint.get(CALLBACKS, {}).get(key, {}).get("current_score")
    return otherwise if score is None else score.clone()
