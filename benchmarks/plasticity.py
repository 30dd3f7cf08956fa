"""What looking at heads costs of a training, what gates cost of a step, and what removal saves, beside its ceiling."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.art import training_step
from benchmarks.common import Contestant, Row, Run, Table, Timings, compare, main, ratio_row
from benchmarks.memory import GPT2, SMALL
from benchmarks.same_weights import seeded_decoder
from lightning_app.data.batch import Batch
from lightning_app.models.decoder import Decoder
from lightning_app.models.losses import token_nll
from lightning_app.models.modes import evaluated
from lightning_app.plasticity.importance import Sample, gate_gradients, mean_entropy
from lightning_app.plasticity.kinds import units_of
from lightning_app.plasticity.layout import Kind
from lightning_app.plasticity.pruning import as_mask, choose, choose_widths

BATCH, SAMPLE = 8, 8  # sequences of a step, and batches of as many in the sample: the defaults
STEPS, EVAL_FREQ, CONTROLLER_FREQ = 500, 25, 10  # of the default schedule; steps of a cycle
BLOCKS = (128, 512, 1024)
REMOVED: dict[str, dict[Kind, float]] = {
    "30 % of heads": {"heads": 0.3},
    "50 % of heads": {"heads": 0.5},
    "30 % of neurons": {"neurons": 0.3},
    "50 % of heads, 30 % of neurons": {"heads": 0.5, "neurons": 0.3},
}


def pruned(options: dict[str, int], levels: dict[Kind, float]) -> Decoder:
    """Units drawn at random are gone."""
    model = seeded_decoder(**options)
    for kind, level in levels.items():
        units = units_of(model, kind)
        drawn = torch.rand(units.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        n = round(level * drawn.numel())
        if kind == "heads":
            dead = as_mask(choose(drawn, units.mask, n), units.shape)
        else:
            dead = choose_widths(drawn, units.mask, n)
        units.remove(dead, keep=False)
    return model


def ids_of(options: dict[str, int], rows: int) -> Tensor:
    shape = (rows, options["block_size"] + 1)
    return torch.randint(options["vocab_size"], shape, generator=torch.Generator().manual_seed(1))


def forward(options: dict[str, int], levels: dict[Kind, float]) -> Run:
    """Of one sequence, without gradients."""
    model, ids = pruned(options, levels).eval(), ids_of(options, 1)[:, :-1]

    @torch.no_grad()
    def run() -> float:
        return float(model(ids).mean())

    return run


def step(options: dict[str, int], rows: int, *, gates: bool = False) -> Run:
    """Forward, loss, backward, clipping and fused AdamW."""
    model, ids = seeded_decoder(**options), ids_of(options, rows)
    heads = units_of(model, "heads")
    if gates:
        heads.open_gates()
        heads.set_gates(torch.ones(heads.shape), gradient=True)
    return training_step(model, ids)


def analysis(options: dict[str, int], what: str) -> Run:
    """What the schedule does with each batch of its sample, or a controller at each of its updates."""
    model = seeded_decoder(**options)
    heads = units_of(model, "heads")

    def loss(batch: Batch) -> Tensor:
        return token_nll(model(batch.input_ids), batch.targets).mean(-1)

    batch = Batch.of(ids_of(options, BATCH))
    sample = Sample([batch], loss)
    do: dict[str, Callable[[], Any]] = {
        "gradients": lambda: gate_gradients(heads, sample),
        "entropy": lambda: mean_entropy(heads, sample),
        "evaluation": sample.mean_loss,
        "controller": lambda: heads.entropy(batch.input_ids[:2]),
    }

    def run() -> None:
        with evaluated(model):
            do[what]()

    return run


# The tables


def saved_rows(options: dict[str, int], blocks: tuple[int, ...], rounds: int) -> list[Row]:
    rows = []
    for block in blocks:
        sized = {**options, "block_size": block}
        sides = [Contestant(name, forward, {"options": sized, "levels": levels}) for name, levels in REMOVED.items()]
        timings = compare([Contestant("whole", forward, {"options": sized, "levels": {}}), *sides], rounds=rounds)
        whole = seeded_decoder(**sized).flops_per_token(block)
        for name, levels in REMOVED.items():
            ceiling = whole / pruned(sized, levels).flops_per_token(block)
            what = f"block {block}, {name} removed: whole / pruned, forward"
            ratios = timings.ratios(name, "whole")
            rows.append(ratio_row(f"{what} (FLOPs allow {ceiling:.3f} x)", ratios))
            rows.append(
                ratio_row(f"{what}: share of what FLOPs allow", [r / ceiling for r in ratios], at_least=0.9, unit="")
            )
    return rows


def share(name: str, part: Timings, of: str, *, times: float, at_most: float | None = None) -> Row:
    """`times` runs of a side, in percent of one of another."""
    shares = sorted(100 * times / ratio for ratio in part.ratios(name, of))
    middle = shares[len(shares) // 2]
    target = "" if at_most is None else f"<= {at_most:g} %"
    met = None if at_most is None else middle <= at_most
    return Row(name, f"{middle:.2f} %", f"{shares[0]:.2f} to {shares[-1]:.2f} %", target, met)


def cost_rows(options: dict[str, int], rounds: int) -> list[Row]:
    names = ("gradients", "entropy", "evaluation", "controller")
    looks = [Contestant(name, analysis, {"options": options, "what": name}) for name in names]
    plain = Contestant("step", step, {"options": options, "rows": BATCH})
    gated = Contestant("gated", step, {"options": options, "rows": BATCH, "gates": True})
    timings = compare([plain, gated, *looks], rounds=rounds, warmup=1)
    rows = []
    for name, times, said, at_most in (
        ("gradients", SAMPLE / STEPS, "gradients at the gates, once in a cycle", None),
        ("entropy", SAMPLE / STEPS, "entropy of 16 query rows, once in a cycle", None),
        ("evaluation", SAMPLE / EVAL_FREQ, f"cross-entropy on the sample, each {EVAL_FREQ} steps", None),
        (
            "controller",
            1 / CONTROLLER_FREQ,
            f"a controller's entropy of 2 sequences, each {CONTROLLER_FREQ} steps",
            5.0,
        ),
    ):
        row = share(name, timings, "step", times=times, at_most=at_most)
        rows.append(Row(f"of a training: {said}", row.value, row.spread, row.target, row.met))
    both = [
        100 * SAMPLE * (g + e) / s / STEPS
        for g, e, s in zip(*(timings.seconds[name] for name in ("gradients", "entropy", "step")), strict=True)
    ]
    both.sort()
    middle = both[len(both) // 2]
    spread = f"{both[0]:.2f} to {both[-1]:.2f} %"
    rows.append(Row("of a training: entropy and gradients together", f"{middle:.2f} %", spread, "<= 5 %", middle <= 5))
    more = sorted(100 * (1 / ratio - 1) for ratio in timings.ratios("gated", "step"))
    middle, spread = more[len(more) // 2], f"{more[0]:.2f} to {more[-1]:.2f} %"
    rows.append(Row("gates that take a gradient: more of a step", f"{middle:.2f} %", spread, "< 3 %", middle < 3))
    return rows


def tables(quick: bool) -> list[Table]:
    options, rounds = (SMALL, 1) if quick else (GPT2, 5)
    notes = (
        "One thread, fp32, GPT-2 small. A step is forward, loss, backward, clipping and fused AdamW, batch 8 x 128;\n"
        f"the sample has {SAMPLE} batches as large. A cycle of the default schedule has {STEPS} steps. The ceiling is\n"
        "the ratio of the FLOPs (`Backbone.flops_per_token`): removal cannot save more, as embeddings and head stay."
    )
    blocks = (BLOCKS[0],) if quick else BLOCKS
    rows = cost_rows(options, min(rounds, 3)) + saved_rows(options, blocks, rounds)
    return [Table("Plasticity", rows, notes)]


if __name__ == "__main__":
    main(tables)
