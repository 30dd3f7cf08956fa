"""The training step (forward, loss, backward, optimizer) against HF GPT-2 and litgpt in bare loops."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import Contestant, Row, Run, Table, Timings, check_equal, compare, main, matmul_rate, ratio_row
from benchmarks.same_weights import huggingface_gpt2, litgpt_gpt, seeded_decoder
from lightning_app.models.decoder import Decoder
from lightning_app.models.losses import IGNORE, cross_entropy
from lightning_app.training.allocator import tune_allocator

HF_DROPOUT = 0.1  # GPT2Config's default
LIMIT_SIZE = 2048


@dataclass(frozen=True)
class Shape:
    name: str
    vocab_size: int
    layers: int = 6
    heads: int = 6
    embedding_dim: int = 384
    block_size: int = 256
    batch_size: int = 4

    def decoder_options(self) -> dict[str, Any]:
        return {k: v for k, v in asdict(self).items() if k not in ("name", "batch_size")}

    @property
    def tokens(self) -> int:
        return self.batch_size * self.block_size

    def flops(self) -> int:
        """Of the matmuls of one training step, attention's included (its causal half not discounted)."""
        with torch.device("meta"):
            return Decoder(**self.decoder_options()).flops_per_token(self.block_size) * self.tokens


SMALL = Shape("6 x 384, vocabulary 1,024", 1_024)
WIDE = Shape("6 x 384, vocabulary 50,257", 50_257)
GPT2 = Shape("GPT-2 124M", 50_257, layers=12, heads=12, embedding_dim=768, block_size=128, batch_size=2)
TINY = Shape("2 x 64, vocabulary 300", 300, layers=2, heads=2, embedding_dim=64, block_size=32)


def batches(shape: Shape) -> Iterator[tuple[Tensor, Tensor]]:
    """Random ids with Zipf-like frequencies, and their targets; the last of each row has none, as in HF."""
    generator = torch.Generator().manual_seed(1)
    frequencies = 1 / torch.arange(1, shape.vocab_size + 1)
    while True:
        draws = torch.multinomial(frequencies, shape.tokens, replacement=True, generator=generator)
        ids = draws.view(shape.batch_size, shape.block_size)
        yield ids, torch.cat([ids[:, 1:], torch.full_like(ids[:, :1], IGNORE)], dim=1)


# The sides. Each starts from the same weights and returns the loss of each step.


@dataclass(frozen=True)
class Flags:
    """What both sides of a comparison share, or what their defaults differ in."""

    bf16: bool = False
    matmul: str = "highest"
    fused: bool = True
    tuned: bool = True
    dropout: float = 0.0


def training(side: str, shape: Shape, flags: Flags) -> Run:
    """In its own process: a model and a bare loop; a run is one step and returns its loss."""
    if flags.tuned:
        tune_allocator()
    torch.set_float32_matmul_precision(flags.matmul)
    model, loss_of = SIDES[side](shape, flags)
    optimizer = torch.optim.AdamW(model.train().parameters(), lr=3e-4, fused=flags.fused or None)
    data = batches(shape)

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16, enabled=flags.bf16):
            loss = loss_of(*next(data))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


Side = tuple[nn.Module, Callable[[Tensor, Tensor], Tensor]]


def ours(shape: Shape, flags: Flags, **variant: Any) -> Side:
    model = seeded_decoder(**shape.decoder_options(), dropout=flags.dropout, **variant)
    return model, lambda ids, targets: cross_entropy(model(ids), targets)


def ours_untricked(shape: Shape, flags: Flags) -> Side:
    model, _ = ours(shape, flags, attention_kernel="sdpa")
    return model, lambda ids, targets: F.cross_entropy(model(ids).float().flatten(0, 1), targets.flatten())


def huggingface(shape: Shape, flags: Flags) -> Side:
    model = huggingface_gpt2(seeded_decoder(**shape.decoder_options()), dropout=flags.dropout)
    return model, lambda ids, targets: model(ids, labels=ids).loss  # shifts the labels itself


def ours_rotary(shape: Shape, flags: Flags) -> Side:
    return ours(shape, flags, positions="rotary", tie_weights=False)


def litgpt(shape: Shape, flags: Flags) -> Side:
    from litgpt.utils import chunked_cross_entropy

    model = litgpt_gpt(seeded_decoder(**shape.decoder_options(), positions="rotary", tie_weights=False))
    return model, lambda ids, targets: chunked_cross_entropy(model(ids), targets, chunk_size=0)


SIDES: dict[str, Callable[[Shape, Flags], Side]] = {
    "ours": ours,
    "untricked": ours_untricked,
    "hf": huggingface,
    "ours, rotary": ours_rotary,
    "litgpt": litgpt,
}


def limit(flags: Flags) -> Run:
    """In its own process: the rate of a plain matmul under the same flags, in FLOP/s."""
    torch.set_float32_matmul_precision(flags.matmul)
    return lambda: matmul_rate(torch.bfloat16 if flags.bf16 else torch.float32, size=LIMIT_SIZE, repeats=1)


# The comparisons


def contest(shape: Shape, sides: dict[str, tuple[str, Flags]], *, quick: bool) -> Timings:
    """Sides by name, "limit" among them, in rotation. The allocator needs about 4 steps until it asks for no more."""
    contestants = [
        Contestant(name, limit, {"flags": flags})
        if side == "limit"
        else Contestant(name, training, {"side": side, "shape": shape, "flags": flags})
        for name, (side, flags) in sides.items()
    ]
    return compare(contestants, rounds=1 if quick else 5, warmup=1 if quick else 4)


def share_row(what: str, timings: Timings, name: str, rate: str, shape: Shape, *, at_least: float) -> Row:
    """Share of the matmul limit: FLOPs of the model's matmuls, over the time of the whole step, over the limit."""
    limits = timings.results[rate][-len(timings.seconds[name]) :]
    seconds = timings.seconds[name]
    shares = [100 * shape.flops() / s / rate for s, rate in zip(seconds, limits, strict=True)]
    return ratio_row(what, shares, at_least=at_least, unit=" %")


def equal_flags(
    shape: Shape, flags: Flags, label: str, *, targets: tuple[float | None, float], quick: bool
) -> list[Row]:
    """Ours / HF / litgpt under the same flags, their losses compared step by step, and our share of the limit.

    Args:
        targets: of ours / HF (None: no target, and litgpt is left out), and of the share in percent.
    """
    sides = ["ours", "hf", "limit"] if targets[0] is None else ["ours", "hf", "ours, rotary", "litgpt", "limit"]
    timings = contest(shape, {side: (side, flags) for side in sides}, quick=quick)
    for pair in (("ours", "hf"), ("ours, rotary", "litgpt")):
        same: dict[str, list[Any]] = {name: timings.results[name] for name in pair if name in timings.results}
        if same:
            check_equal(f"{shape.name}, {label}", same, tolerance=0.05 if flags.bf16 else 1e-3)
    name = f"{shape.name}, {label}"
    rows = [timings.row(f"{name}: ours / HF", "ours", "hf", at_least=targets[0])]
    if "litgpt" in sides:
        rows.append(timings.row(f"{name}: ours / litgpt (rotary)", "ours, rotary", "litgpt", at_least=1.0))
    rows.append(share_row(f"{name}: share of the matmul limit", timings, "ours", "limit", shape, at_least=targets[1]))
    return [*rows, Row(f"{name}: tokens/s", f"{shape.tokens / timings.median('ours'):,.0f}")]


def defaults(shape: Shape, *, bf16_target: float | None, quick: bool) -> list[Row]:
    """Our defaults and options against HF in the loop that one writes first."""
    plain = Flags(fused=False, tuned=False, dropout=HF_DROPOUT)
    fast = Flags(matmul="medium", dropout=HF_DROPOUT)
    mixed = Flags(bf16=True, dropout=HF_DROPOUT)
    sides = {"hf": ("hf", plain), "fp32": ("ours", fast), "bf16": ("ours", mixed)}
    timings = contest(shape, sides, quick=quick)
    return [
        timings.row(f"{shape.name}: ours, fp32", "fp32", "hf", at_least=1.35),
        timings.row(f"{shape.name}: ours, bf16-mixed", "bf16", "hf", at_least=bf16_target),
    ]


def same_curve(*, quick: bool) -> list[Row]:
    """Loss after each of 50 steps, with all tricks and with none."""
    shape = Shape("", 1_024, layers=3, heads=4, embedding_dim=128, block_size=64, batch_size=8)
    rows = []
    for bf16, tolerance, unit in ((False, 1e-4, " nats"), (True, 1.0, " %")):
        sides = {
            "with": ("ours", Flags(bf16=bf16, matmul="medium")),
            "without": ("untricked", Flags(bf16=bf16, fused=False, tuned=False)),
        }
        contestants = [Contestant(n, training, {"side": s, "shape": shape, "flags": f}) for n, (s, f) in sides.items()]
        losses = compare(contestants, rounds=5 if quick else 50, warmup=0).results
        pairs = zip(losses["with"], losses["without"], strict=True)
        worst = max(abs(a - b) * (100 / b if bf16 else 1) for a, b in pairs)
        name = f"largest difference in the loss, {'bf16' if bf16 else 'fp32'}"
        rows.append(Row(name, f"{worst:.1g}{unit}", "", f"<= {tolerance:g}{unit}", worst <= tolerance))
    return rows


EQUAL = """Tokens per second, ours over theirs, at equal flags: the same initial weights and batches, dropout 0, fused
AdamW, tuned allocator, one thread, each side in a process of its own. The losses agree at every step (fp32 within
1e-3). "medium" is `float32_matmul_precision` for all sides. The share: FLOPs of the model's matmuls, over the time of
the whole step, over the rate of a plain 2048-cubed matmul between the steps."""
DEFAULTS = """HF: its own defaults in a bare loop (dropout 0.1, fp32, `torch.optim.AdamW`, glibc's allocator as it is).
Ours: dropout 0.1, fused AdamW, `tune_allocator`, and in fp32 `float32_matmul_precision: medium`. Each side in a fresh
process. What the options cost: the allocator up to 10 % more resident memory; "medium" nothing on a CPU without AMX
(another library computes the same, largest error 4e-6 instead of 2e-6), accuracy on AMX and CUDA; bf16 its rounding."""
CURVE = """3 x 128, 50 steps, dropout 0: our cross-entropy and attention kernel, "medium", fused AdamW and allocator,
against F.cross_entropy, SDPA and none of the others."""


def equal_rows(*, quick: bool) -> list[Row]:
    small, wide, large = (TINY, TINY, TINY) if quick else (SMALL, WIDE, GPT2)
    rows = equal_flags(small, Flags(), "fp32", targets=(1.2, 70), quick=quick)
    if not quick:
        rows += equal_flags(wide, Flags(), "fp32", targets=(1.2, 70), quick=quick)
        rows += equal_flags(large, Flags(), "fp32", targets=(None, 70), quick=quick)
        rows += equal_flags(small, Flags(matmul="medium"), "fp32 medium", targets=(None, 70), quick=quick)
        for shape in (small, wide):
            rows += equal_flags(shape, Flags(bf16=True), "bf16", targets=(None, 60), quick=quick)
    return rows


def default_rows(*, quick: bool) -> list[Row]:
    rows = defaults(TINY if quick else GPT2, bf16_target=2.0, quick=quick)
    if not quick:
        rows += defaults(SMALL, bf16_target=None, quick=quick) + defaults(WIDE, bf16_target=2.2, quick=quick)
    return rows


def tables(quick: bool = False) -> Iterator[Table]:
    """One at a time, so that each is written as soon as it is measured."""
    yield Table("The same loss with every trick", same_curve(quick=quick), CURVE)
    yield Table("Training step, our defaults against HF's", default_rows(quick=quick), DEFAULTS)
    yield Table("Training step, equal flags", equal_rows(quick=quick), EQUAL)


if __name__ == "__main__":
    main(tables)
