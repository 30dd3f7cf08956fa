"""A run with neural plasticity, simulated: three cycles over 4 layers of 3 heads; and a browser without a network."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lightning_app.reports.events import parsed
from lightning_app.reports.record import Record

LAYERS, HEADS = 4, 3
Log = list[dict[str, Any]]  # lines, as they stand in the file


def typed(log: Log) -> list[Record]:
    """The lines of a log as pages get them."""
    return [parsed(record) for record in log]


@pytest.fixture
def simulate() -> Callable[..., Log]:
    """`simulate(regrowth=True, rollback=True)` is the log of such a run."""
    return simulated


@pytest.fixture
def visit(tab: Any, open_in: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """`visit(file, width=400)` opens it without a network; afterwards nothing may have gone wrong in it."""
    complaints: list[str] = []
    asked: list[str] = []
    heard: dict[str, Callable[[Any], None]] = {
        "console": lambda message: complaints.append(message.text),
        "pageerror": lambda error: complaints.append(str(error)),
        "request": lambda request: asked.append(request.url),
    }
    tab.context.set_offline(True)
    for name, hear in heard.items():
        tab.on(name, hear)
    yield lambda file, **more: open_in(file.as_uri(), **more)
    for name, hear in heard.items():
        tab.remove_listener(name, hear)
    assert complaints == []
    assert asked
    assert [url for url in asked if not url.startswith(("file:", "data:", "blob:"))] == []


class _Run:
    """Writes records as a run would."""

    def __init__(self, every: int):
        self.draw = random.Random(5)
        self.records: Log = []
        self.step, self.cycle, self.ce, self.every = 0, 0, 7.0, every
        self.alive = [[1] * HEADS for _ in range(LAYERS)]

    def event(self, name: str, **fields: Any) -> None:
        self.records.append({"time": 1.0, "event": name, "step": self.step, "epoch": 0, **fields})

    def phase(self, name: str, reason: str) -> None:
        self.event("phase_transition", phase=name, cycle=self.cycle, reason=reason)

    def train(self, steps: int, towards: float) -> None:
        for i in range(1, steps + 1):
            self.step += 1
            self.ce += (towards - self.ce) * 4 / steps
            if i % self.every == 0:
                self.records.append({"time": 1.0, "step": self.step, **self.numbers()})
            if i % (steps // 5) == 0:
                val = self.ce + 0.08 + self.draw.gauss(0, 0.01)
                self.records.append({"time": 1.0, "step": self.step, "val/ce": val, "val/ppl": math.exp(val)})

    def numbers(self) -> dict[str, float]:
        count = sum(map(sum, self.alive))
        ce = self.ce + self.draw.gauss(0, 0.03)
        return {
            "train/loss": ce,
            "train/ce": ce,
            "lr": 3e-4 * min(1, self.step / 100),
            "tokens_per_s": 9e4,
            "plasticity/sparsity": 1 - count / (LAYERS * HEADS),
            "plasticity/active_heads": count,
            "plasticity/total_heads": LAYERS * HEADS,
            "plasticity/cycle": self.cycle,
        }

    def matrix(self, low: float, high: float) -> list[list[float | None]]:
        return [[self.draw.uniform(low, high) if alive else None for alive in row] for row in self.alive]

    def evaluate(self, stage: str) -> None:
        ce, count = self.ce + 0.05, sum(map(sum, self.alive))
        self.event("evaluation", cycle=self.cycle, stage=stage, ce=ce, ppl=math.exp(ce), sparsity=1 - count / 12)

    def cost(self, stage: str) -> None:
        share = 1 - 0.35 * (1 - sum(map(sum, self.alive)) / (LAYERS * HEADS))
        fields: dict[str, Any] = {
            "parameters": round(1_556_160 * share),
            "bytes": 4 * round(1_556_160 * share),
            "flops_per_token": round(3_400_000 * share),
            "latency_ms": 8.2 * (1 + share) / 2,
            "latency_spread": [8.0 * (1 + share) / 2, 8.9 * (1 + share) / 2],
        }
        more = {} if stage == "baseline" else {"ceiling": 1 / share, "measured": 2 / (1 + share)}
        self.event("cost", stage=stage, **fields, **more)

    def samples(self, stage: str) -> None:
        ends = (" the model learns what the teacher shows", " what nobody asks about again, and forgets it\nat once.")
        texts = [
            {"prompt": p, "text": p + self.draw.choice(ends)} for p in ("Backpropagation is", "A head that <i>dies</i>")
        ]
        self.event("text_samples", stage=stage, texts=texts)

    def set_alive(self, heads: list[list[int]], value: int) -> None:
        self.alive = [row.copy() for row in self.alive]
        for layer, head in heads:
            self.alive[layer][head] = value


def simulated(*, regrowth: bool = False, rollback: bool = False, controller: bool = False, every: int = 10) -> Log:
    run = _Run(every)
    run.event("data", splits=[])
    run.event("started", parameters=1_556_160, world_size=1, precision="32-true")
    run.event(
        "plasticity_started",
        shape=[LAYERS, HEADS],
        targets=["heads"],
        strategy="combined",
        surgery="remove",
        cycles=3,
        pruning_level=0.15,
        head_parameters_share=0.35,
    )
    run.phase("training", "the run begins")
    run.train(200, 3.0)
    run.event("evaluation", cycle=0, stage="baseline", ce=run.ce + 0.05, ppl=math.exp(run.ce + 0.05), sparsity=0.0)
    run.cost("baseline")
    run.samples("baseline")
    for cycle in (1, 2, 3):
        _cycle(run, cycle, regrowth=regrowth and cycle == 2, rollback=rollback and cycle == 3, controller=controller)
    run.phase("done", "three cycles")
    run.event("ended")
    return run.records


def _cycle(run: _Run, cycle: int, *, regrowth: bool, rollback: bool, controller: bool) -> None:
    run.cycle = cycle
    run.phase("warmup", f"cycle {cycle} begins")
    began = run.step
    run.train(150, 3.0 - 0.1 * cycle)
    losses = [run.ce + run.draw.gauss(0, 0.02) for _ in range(20)]
    run.event(
        "stabilised",
        cycle=cycle,
        rule="slope",
        window=20,
        statistic=-0.0004 * cycle,
        losses=losses,
        after=run.step - began,
        stable=cycle != 2,
        **({} if cycle != 2 else {"reason": "the time was up"}),
    )
    run.phase("analysis", "the loss is stable")
    run.evaluate("before")
    run.event(
        "analysis",
        cycle=cycle,
        strategy="combined",
        alive=run.alive,
        entropy=run.matrix(0.2, 3.5),
        gradient=run.matrix(1e-5, 4e-3),
        importance=run.matrix(0, 1),
    )
    run.phase("pruning", "analysed")
    heads = [[cycle, 0], [0, cycle - 1]] if cycle < 3 else [[3, 0], [0, 2]]
    before = run.alive
    run.set_alive(heads, 0)
    scores = [round(run.draw.uniform(0, 0.1), 4) for _ in heads]
    reasons = [f"importance {score} is among the lowest 15 %" for score in scores]
    run.event(
        "pruning_event",
        cycle=cycle,
        target="heads",
        heads=heads,
        scores=scores,
        reason="lowest importance",
        reasons=reasons,
        alive=run.alive,
    )
    run.ce += 0.3
    run.evaluate("pruned")
    run.samples(f"pruned, cycle {cycle}")
    run.event("proof", cycle=cycle, checks={"dead heads have no gradient": True, "largest difference": 1.5e-7})
    if regrowth:
        run.phase("regrowth", "a head was missed")
        run.set_alive([[1, 0]], 1)
        run.event(
            "regrowth_event",
            cycle=cycle,
            heads=[[1, 0]],
            scores=[0.4],
            how="undo",
            reason="gradient above the median",
            alive=run.alive,
        )
        run.ce -= 0.1
        run.evaluate("regrown")
    run.phase("finetuning", "pruned")
    groups = [{"name": "layer 0", "lr": 3e-4, "factor": 1.0}, {"name": "layer 1", "lr": 6e-4, "factor": 2.0}]
    run.event("learning_rates", groups=groups)
    for _ in range(5):
        run.train(50, 2.75 + (2.0 if rollback else 0.05 * cycle))
        if controller:
            run.event(
                "controller_update",
                gates=run.matrix(0, 1),
                entropy=run.matrix(0.2, 3),
                gradient=run.matrix(0, 1e-2),
                active=sum(map(sum, run.alive)),
                total=12,
            )
    run.evaluate("recovered")
    if rollback:
        run.alive = before
        run.event(
            "rollback", cycle=cycle, ce=run.ce + 0.05, limit=2.9, reason="the loss is above its limit", alive=before
        )
        run.ce = 2.8
    else:
        run.cost(f"after cycle {cycle}")
        run.samples(f"fine-tuned, cycle {cycle}")
