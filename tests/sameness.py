"""Whether a run that was stopped and went on is the run that was never stopped: checkpoints, scores and log."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lightning_app.training.callbacks.run_log import read_log

TIMED = ("time", "tokens_per_s", "model_tflops", "peak_share", "elapsed", "seconds")
OF_PROCESSES = ("started", "resumed", "data", "interrupted", "failed", "ended", "closed")  # events, one or more each
MEASURED = ("latency_ms", "latency_spread", "measured", "time_elapsed")  # by a clock
PARTS = ("state_dict", "current_model_state", "optimizer_states", "lr_schedulers", "callbacks", "global_step", "epoch")


def leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key and value of everything in nested dicts and lists; a path by its name alone."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else None
    if pairs is None:
        yield key, Path(value).name if isinstance(value, str) and "/" in value else value
        return
    for name, part in pairs:
        if name not in MEASURED:
            plain = Path(name).name if isinstance(name, str) and ".ckpt" in name else name
            yield from leaves(part, f"{key}.{plain}")


def checkpoint(path: Path) -> dict[str, Any]:
    found = torch.load(path, weights_only=True)
    return dict(leaves({part: found[part] for part in PARTS if part in found}))


def log(run: Path) -> list[dict[str, Any]]:
    """What was learned and measured, one record for each step or event, without what a clock has measured."""
    records: list[dict[str, Any]] = []
    for record in read_log(run):
        if record.get("event") not in OF_PROCESSES:
            record = {name: value for name, value in record.items() if name not in TIMED}
            if record.get("event") == "trained":  # the epoch is closed by then, but not where no batch was left
                del record["epoch"]
            plain = dict(leaves(record))
            records.append({name.removeprefix("."): value for name, value in plain.items()})
    return records


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return one.shape == two.shape and torch.equal(one, two)
    return type(one) is type(two) and (one == two or one != one)


def differences(one: dict[str, Any], two: dict[str, Any]) -> list[str]:
    return [key for key in one.keys() | two.keys() if key not in one or key not in two or not same(one[key], two[key])]


def assert_same_run(run: Path, whole: Path) -> None:
    """Two folders of runs: equal bit for bit in all that does not depend on the time or on where they lie."""
    for name in ("last", "best"):
        one, two = (checkpoint(folder / f"checkpoints/{name}.ckpt") for folder in (run, whole))
        assert len(two) > 20
        assert not differences(one, two), f"{name}.ckpt differs in {sorted(differences(one, two))[:8]}"
    ours, theirs = log(run), log(whole)
    assert [(r.get("step"), r.get("event")) for r in ours] == [(r.get("step"), r.get("event")) for r in theirs]
    for one, two in zip(ours, theirs, strict=True):
        assert not differences(one, two), (one, two)
