"""What a checkpoint gives, and what a run's log says: compared between the code that wrote them and today's.

Of the parts of `lightning_app` this file alone is imported from: when they move, nothing else here changes.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_app.art.network import ART
from lightning_app.memory.store import AssociativeMemory
from lightning_app.training.checkpoint import load_module
from tests.golden.runner import OF_TIME

HERE = Path(__file__).parent
RUNS = HERE / "runs"
CHECKPOINT = Path("checkpoints/last.ckpt")  # in a run's folder
AGAIN = Path("runs/again")  # what starts from it
TEXT = "the boat"  # as many tokens as the shortest context has
APART = 1e-3  # distances that are searched for, so that no other CPU's rounding changes their order

Record = dict[str, Any]


def place(name: str, folder: Path) -> Path:
    """Lay a run and its texts into a folder as they lay when it was made -> the run's folder, relative to that."""
    run = Path("runs") / name / "version_0"
    shutil.copytree(HERE / "text", folder / "text", dirs_exist_ok=True)
    shutil.copytree(RUNS / name / "version_0", folder / run)
    return run


def outputs_of(checkpoint: Path, queries: list[list[list[float]]]) -> Record:
    """Logits, size, memories and categories of the model of a checkpoint.

    Args:
        queries: (N, D) for each memory.
    """
    module, tokenizer = load_module(checkpoint)
    networks = [art for art in module.modules() if isinstance(art, ART)]
    return {
        "trained": sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad),
        "logits": logits_of(module, torch.tensor([tokenizer.encode(TEXT)])),
        "memories": [found(*both) for both in zip(_memories(module), queries, strict=True)],
        "categories": [art.counts[: len(art)].tolist() for art in networks],
    }


def queries_for(checkpoint: Path) -> list[list[list[float]]]:
    """Two queries (2, D) for each memory, of many drawn, whose nearest entries have clearly different distances."""
    return [_queries(memory) for memory in _memories(load_module(checkpoint)[0])]


def _queries(memory: AssociativeMemory) -> list[list[float]]:
    drawn = torch.tensor(rounded(torch.randn(1000, memory.memory_dim, generator=torch.Generator().manual_seed(0))))
    distances = memory.search(drawn, 4)[1]
    clear = (distances.diff(dim=-1) > APART).all(-1) & distances.isfinite().all(-1)
    return rounded(drawn[clear][:2])


def _memories(module: nn.Module) -> list[AssociativeMemory]:
    return [memory for memory in module.modules() if isinstance(memory, AssociativeMemory)]


@torch.no_grad()
def logits_of(model: nn.Module, ids: Tensor) -> list[list[float]]:
    """(T, T): after each of the tokens (1, T), the logit of each of them."""
    given = model(ids)
    logits: Tensor = getattr(given, "logits", given)
    return rounded(logits[0][:, ids[0]])


def found(memory: AssociativeMemory, queries: list[list[float]]) -> Record:
    """What is nearest to each query, and the tokens that followed it."""
    ids, distances = memory.search(torch.tensor(queries), 3)
    return {
        "size": len(memory),
        "ids": ids.tolist(),
        "distances": rounded(distances),
        "tokens": memory.payload(ids).tokens.tolist(),
    }


def rounded(values: Tensor) -> Any:
    """Nested lists, of 7 digits."""
    return json.loads(json.dumps(values.double().tolist()), parse_float=lambda x: float(f"{float(x):.7g}"))


def records(log: Path) -> list[Record]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def steps(log: list[Record]) -> dict[int, Record]:
    """The numbers of each training step, and of the validation at its end."""
    found: dict[int, Record] = {}
    for record in log:
        if "event" not in record:
            found[record["step"]] = found.get(record["step"], {}) | numbers(record)
    return found


def numbers(record: Record) -> dict[str, float]:
    """Without what no run repeats."""
    return {name: x for name, x in record.items() if isinstance(x, int | float) and name not in OF_TIME}
