"""Golden runs: small fits, started from YAML and read from what they leave on disk, so that they run on any commit.

`python tests/golden/runner.py FOLDER [NAME ...]` writes what each run gives to FOLDER/NAME.json; PYTHONPATH says whose
code it is. Nothing of ours is imported but the entry of the command line.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JSONARGPARSE_DEPRECATION_WARNINGS", "off")

import torch
import yaml
from lightning.pytorch.cli import LightningCLI

if __package__:
    from tests.golden import shipped
else:  # as a script
    import shipped

HERE = Path(__file__).parent

NAMES = sorted(path.stem for path in (HERE / "runs").glob("*.yaml"))
LIBRARIES = ("torch", "lightning", "transformers", "numpy")
OF_TIME = ("tokens_per_s", "model_tflops", "peak_share", "train_flops", "time", "epoch", "crc")  # what no run repeats
RESUMED_AT = 20
DIGITS = 9

Record = dict[str, Any]
Result = dict[str, Any]


def run(name: str, *, config: Mapping[str, Any] | None = None) -> Result:
    """Fit one run in a folder of its own -> what it gave.

    Args:
        config: laid over the run's, as a further --config.
    """
    words = ["fit", "--config", str(HERE / "base.yaml"), "--config", str(HERE / "runs" / f"{name}.yaml")]
    with _working_folder() as folder:
        shutil.copytree(HERE / "text", folder / "text")
        if config is not None:
            (folder / "change.json").write_text(json.dumps(config), encoding="utf-8")
            words += ["--config", "change.json"]
        words += ["--name", name]
        return fit(words, folder / "runs" / name / "version_0" / "log.jsonl")


def run_shipped(name: str) -> Result:
    """20 steps of a shipped config or overlay."""
    with _working_folder() as folder:
        return fit(shipped.words(name, folder), folder / "runs" / name / "version_0" / "log.jsonl")


def fit(words: Sequence[str], log: Path) -> Result:
    """Carry out a fit, and where it left a checkpoint of step 20 another one from there on."""
    _command(words)
    result = _result(log)
    if "averaged weights" in result["events"]:
        result["events"]["validations of the average"] = _validated(words, log)
    halfway = log.parent / "checkpoints" / f"step={RESUMED_AT}.ckpt"
    if halfway.is_file():
        done = len(_records(log))
        _command([*words, "--ckpt_path", str(halfway)])
        result["resumed"] = _result(log, skip=done)
    return result


def _validated(words: Sequence[str], log: Path) -> int:
    """1 where the last validation was one of the weights that the checkpoint holds: the average."""
    during = [record["val/ce"] for record in _records(log) if "val/ce" in record][-1]
    _command(["validate", *words[1:], "--ckpt_path", str(log.parent / "checkpoints" / "last.ckpt")])
    after = [record["val/ce"] for record in _records(log) if record.get("event") == "validate"][-1]
    return int(abs(after - during) < 1e-6 * during)


@contextmanager
def _working_folder() -> Iterator[Path]:
    before, threads = Path.cwd(), torch.get_num_threads()
    torch.set_num_threads(1)
    os.environ.pop("PL_GLOBAL_SEED", None)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            yield Path(folder)
        finally:
            os.chdir(before)
            torch.set_num_threads(threads)


def _command(words: Sequence[str]) -> None:
    """One command, by Lightning's own hook: readers that are about to delete, and nothing of what follows a fit."""
    from lightning_app.cli import main

    whole = LightningCLI._run_subcommand

    def only(self: Any, subcommand: str) -> None:
        self.after_fit = None  # samples and pictures take longer than 40 small steps
        _open_deletions(self.model)
        whole(self, subcommand)

    LightningCLI._run_subcommand = only  # type: ignore[method-assign]
    try:
        main(words)
    finally:
        LightningCLI._run_subcommand = whole  # type: ignore[method-assign]


@torch.no_grad()
def _open_deletions(model: torch.nn.Module) -> None:
    """Readers start with a bias of -4.5 against deletions, against which 40 steps teach nothing; found by its value."""
    for parameter in model.parameters():
        if parameter.dim() == 1 and torch.all(parameter == -4.5):
            parameter.fill_(0.5)


# What a run leaves on disk


def _records(log: Path) -> list[Record]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def _result(log: Path, *, skip: int = 0) -> Result:
    records = _records(log)[skip:]
    numbers = [record for record in records if "event" not in record]
    checkpoint = torch.load(log.parent / "checkpoints" / "last.ckpt", weights_only=True)
    data = yaml.safe_load((log.parent / "config.yaml").read_text(encoding="utf-8"))["data"]
    tensors = [x for x in checkpoint["state_dict"].values() if x.is_floating_point()]
    return {
        "events": events(records, checkpoint, data["dataloader"]["batch_size"] * data["block_size"]),
        "steps": _table(record for record in numbers if "val/ce" not in record),
        "validations": _table(record for record in numbers if "val/ce" in record),
        "weights": [_rounded(squares) for squares in sorted(map(_squares, tensors)) if squares > 0],
        "machine": machine(),
        "checksum": _checksum(tensors),
    }


def _table(records: Iterable[Record]) -> dict[str, list[Any]]:
    """A row for each step, None where a step has no such number."""
    rows: dict[int, Record] = {}
    for record in records:
        rows.setdefault(record["step"], {}).update(record)
    columns = ["step", *sorted({name for row in rows.values() for name in row} - {"step", *OF_TIME})]
    return {"columns": columns, "rows": [[_rounded(row.get(name)) for name in columns] for row in rows.values()]}


def _rounded(x: float | None) -> float | None:
    return x if x is None or isinstance(x, int) else float(f"{x:.{DIGITS}g}")


def _squares(x: torch.Tensor) -> float:
    return float(x[x.isfinite()].double().square().sum())


def _checksum(tensors: Sequence[torch.Tensor]) -> str:
    """Of all weights, whatever their order and names."""
    each = sorted(hashlib.sha256(x.numpy().tobytes()).digest() for x in tensors)
    return hashlib.sha256(b"".join(each)).hexdigest()


def machine() -> dict[str, str]:
    """Where the last bit of a sum may be another one."""
    return {"cpu": torch.backends.cpu.get_cpu_capability(), **{name: version(name) for name in LIBRARIES}}


# What happened


def events(records: Sequence[Record], checkpoint: Mapping[str, Any], tokens_per_batch: int) -> dict[str, int]:
    """How often each thing that a run is there for has happened; what has not is left out."""
    steps = [record for record in records if "event" not in record and "val/ce" not in record]
    counts = {
        "optimizer steps": len({record["step"] for record in steps}),
        "resumed": sum(record.get("event") == "resumed" and record["step"] == RESUMED_AT for record in records),
        **_of_art(steps),
        **_of_memories([record for record in records if "event" not in record]),
        **_of_heads(records),
        "accumulated steps": _accumulated(steps, tokens_per_batch),
        "averaged weights": _averaged(checkpoint),
    }
    return {name: count for name, count in counts.items() if count}


def _sum(records: Sequence[Record], name: str) -> int:
    return round(sum(record.get(name, 0) for record in records))


def _positive(records: Sequence[Record], name: str) -> int:
    return sum(record.get(name, 0) > 0 for record in records)


def _of_art(steps: Sequence[Record]) -> dict[str, int]:
    drifting = [record for record in steps if record.get("train/novel_known") == 0]  # nothing but novel texts
    return {
        "categories born": _sum(steps, "train/art_births"),
        "steps with a match": _positive(steps, "train/art_known"),
        "steps with drift": _positive(drifting, "train/novel"),
        "steps of rehearsal": _positive(steps, "train/art_rehearsal"),
    }


def _of_memories(records: Sequence[Record]) -> dict[str, int]:
    """Of each reader, by its place in the list; a read is a step or validation that found an entry."""
    names = sorted({name for record in records for name in record if "/memory" in name})
    counts: dict[str, int] = {}
    for reader in sorted({name.split("/")[1].split("_")[0] for name in names}):
        counts[f"{reader} reads"] = sum(
            any(record.get(f"{stage}/{reader}_hit_distance", 0) != 0 for stage in ("train", "val"))
            for record in records
        )
        for what in ("writes", "evictions", "deletions"):
            counts[f"{reader} {what}"] = _sum(records, f"train/{reader}_{what}")
    return counts


def _of_heads(records: Sequence[Record]) -> dict[str, int]:
    def of(event: str) -> list[Record]:
        return [record for record in records if record.get("event") == event]

    alive = [record["alive"] for record in of("controller_update")]
    if alive:
        alive = [[[1] * len(row) for row in alive[0]], *alive]  # all of them at the start
    neurons = [sum(record["removed"]) for record in of("pruning_event") if record.get("target") == "neurons"]
    return {
        "heads pruned": sum(len(record.get("heads", [])) for record in of("pruning_event")),
        "neurons pruned": sum(neurons),
        "heads regrown": sum(len(record["heads"]) for record in of("regrowth_event")),
        "updates that switched a head": sum(before != after for before, after in pairwise(alive)),
    }


def _accumulated(steps: Sequence[Record], tokens_per_batch: int) -> int:
    """Steps that saw the tokens of several batches; of the first one it is not known."""
    totals = pairwise(record["tokens"] for record in steps)
    return sum(after - before > tokens_per_batch for before, after in totals)


def _averaged(checkpoint: Mapping[str, Any]) -> int:
    """Tensors whose average, which is what was validated, is not the trained one."""
    current = checkpoint.get("current_model_state", {})
    return sum(not torch.equal(x, checkpoint["state_dict"][name]) for name, x in current.items())


# The files


def write(result: Result, path: Path) -> None:
    """As JSON, a row of numbers a line."""
    path.write_text(_json(result) + "\n", encoding="utf-8")


def _json(value: Any) -> str:
    if isinstance(value, dict) and any(isinstance(x, dict | list) for x in value.values()):
        return "{\n" + ",\n".join(f"{json.dumps(key)}: {_json(x)}" for key, x in value.items()) + "\n}"
    if isinstance(value, list) and value and isinstance(value[0], list):
        return "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
    return json.dumps(value)


def main(folder: str, *names: str) -> None:
    """Names of shipped configs begin with `shipped/`."""
    for name in names or NAMES:
        path = Path(folder) / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write(run_shipped(path.stem) if name.startswith("shipped/") else run(name), path)


if __name__ == "__main__":
    main(*sys.argv[1:])
