"""What an ART network costs of a training step, beside the seed's loop over its prototypes."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.common import Contestant, Row, Run, Table, Timings, compare, main
from benchmarks.memory import GPT2, SMALL, vectors
from benchmarks.same_weights import seeded_decoder
from lightning_app.art.extension import ARTRegularizer
from lightning_app.art.network import ART
from lightning_app.art.rules import Pooling
from lightning_app.models.backbone import HiddenStates
from lightning_app.models.decoder import Decoder
from lightning_app.models.extension import Outputs
from lightning_app.models.losses import cross_entropy

BATCH, BLOCK, VIGILANCE, RATE = 8, 128, 0.8, 0.05
APART, NOISE = 0.3, 0.01  # of a text from its prototype, and of its tokens from each other, in standard deviations
NOVEL = 100  # batches of novel texts
FUZZY_VIGILANCE = 0.9  # with which a text near its prototype is known and one that is not is novel, as 0.8 for cosine


def filled(art: ART, prototypes: Tensor) -> ART:
    """With one category per prototype, as if each had opened it."""
    n = len(prototypes)
    art.prototypes[:n] = art.code(prototypes)
    art.ids[:n] = torch.arange(n)
    art.counts[:n] = 1
    for name in ("size", "seen", "opened"):
        getattr(art, name).fill_(n)
    return art


def texts(prototypes: Tensor, *, novel: bool, tokens: bool = False, seed: int = 3) -> Tensor:
    """(B, T, D) states of texts that lie near a prototype each (or each token of them does), or near none."""
    D, n = prototypes.shape[1], BATCH * BLOCK if tokens else BATCH
    if novel:
        centres = vectors(n, D, seed)
    else:
        centres = prototypes[torch.randint(len(prototypes), (n,), generator=torch.Generator().manual_seed(seed))]
    centres = (centres + APART * vectors(n, D, 6)).view(BATCH, -1, D)
    return (centres + NOISE * vectors(BATCH * BLOCK, D, 4).view(BATCH, BLOCK, D)).requires_grad_()


def outputs_of(states: Tensor, vocab_size: int) -> Outputs:
    ids = torch.randint(vocab_size, (BATCH, BLOCK), generator=torch.Generator().manual_seed(1))
    return Outputs(ids, ids, torch.ones_like(ids, dtype=torch.bool), ids * 0, HiddenStates(states), states.new_empty(0))


def said(loss: Tensor, states: Tensor) -> tuple[float, float]:
    """The loss, and a number in which all of its gradient is."""
    assert states.grad is not None
    return loss.item(), (states.grad * vectors(states.shape[0], states.shape[2], 5)[:, None]).sum().item()


# What is timed. A run returns what it computed in the first of its repetitions.


def step(options: dict[str, int]) -> Run:
    """Forward, loss, backward, clipping and fused AdamW of the model alone."""
    model = seeded_decoder(**options)
    ids = torch.randint(options["vocab_size"], (BATCH, BLOCK + 1), generator=torch.Generator().manual_seed(1))
    return training_step(model, ids)


def training_step(model: Decoder, ids: Tensor) -> Run:
    """(B, T + 1) ids: forward, loss, backward, clipping and fused AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run() -> float:
        loss = cross_entropy(model(ids[:, :-1]), ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    return run


def regularizer(
    options: dict[str, int],
    entries: int,
    repeats: int,
    *,
    kind: str = "cosine",
    novel: bool = False,
    drift: bool = False,
    pooling: Pooling = "mean",
) -> Run:
    """Forward, backward and learning of our regulariser; with `drift` also its averaged model."""
    vigilance = VIGILANCE if kind == "cosine" else FUZZY_VIGILANCE
    ours = ARTRegularizer(
        pooling=pooling,
        kind=kind,
        vigilance=vigilance,
        capacity=entries,
        learning_rate=RATE,
        novelty="drift" if drift else "constant",
    )
    backbone = seeded_decoder(**(options if drift else {**options, "layers": 1}))
    ours.attach(backbone)
    prototypes = vectors(entries, options["embedding_dim"], 0)
    filled(ours.art, prototypes)
    # what was learned is novel no longer, so there is always another batch of novel texts
    batches = [
        texts(prototypes, novel=novel, tokens=pooling == "token", seed=3 + i) for i in range(NOVEL if novel else 1)
    ]
    turn = itertools.cycle([(states, outputs_of(states, options["vocab_size"])) for states in batches])

    def once() -> tuple[float, float]:
        states, outputs = next(turn)
        states.grad = None
        opened = int(ours.art.opened)
        loss = ours.loss(outputs)["art"]
        if loss.requires_grad:
            loss.backward()
        with torch.no_grad():
            ours.learn(outputs.detached())
            ours.after_step()
        assert int(ours.art.opened) - opened == (BATCH if novel else 0), "texts were not as novel as they should be"
        return said(loss, states) if loss.requires_grad else (loss.item(), 0.0)

    return repeated(once, repeats)


def loop(options: dict[str, int], entries: int) -> Run:
    """The seed's: one cosine similarity after the other, here for each text of a batch, over its pooled states."""
    prototypes = vectors(entries, options["embedding_dim"], 0)
    states = texts(prototypes, novel=False)
    known = list(F.normalize(prototypes, dim=-1)[:, None])

    def once() -> tuple[float, float]:
        states.grad = None
        losses, learned = [], []
        for embedding in states.mean(1)[:, None]:
            similarities = torch.cat([F.cosine_similarity(embedding, p) for p in known])
            best = int(similarities.argmax())
            novel = similarities[best] < VIGILANCE
            losses.append(torch.tensor(0.1) if novel else 1 - F.cosine_similarity(embedding, known[best]).mean())
            learned.append((best, embedding.detach()))
        loss = torch.stack(losses).mean()
        loss.backward()
        for best, embedding in learned:
            known[best] = F.normalize(torch.lerp(known[best], F.normalize(embedding, dim=-1), RATE), dim=-1)
        return said(loss, states)

    return repeated(once, 1)


def found_by_matmul(entries: int, width: int, repeats: int) -> Run:
    art, prototypes = ART(width, vigilance=VIGILANCE, capacity=entries), vectors(entries, width, 0)
    filled(art, prototypes)
    queries = texts(prototypes, novel=False).detach().mean(1)
    return repeated(lambda: art.resonate(queries).slots.tolist(), repeats)


def found_by_loop(entries: int, width: int) -> Run:
    prototypes = vectors(entries, width, 0)
    queries = texts(prototypes, novel=False).detach().mean(1)
    known = list(prototypes[:, None])

    def once() -> list[int]:
        return [int(torch.cat([F.cosine_similarity(q, p) for p in known]).argmax()) for q in queries[:, None]]

    return repeated(once, 1)


def repeated(once: Callable[[], Any], repeats: int) -> Run:
    def run() -> Any:
        first = once()
        for _ in range(repeats - 1):
            once()
        return first

    return run


# The tables


def cost_rows(options: dict[str, int], entries: int, rounds: int, repeats: int) -> list[Row]:
    size: dict[str, Any] = {"options": options, "entries": entries}
    kinds: dict[str, dict[str, Any]] = {
        "cosine": {},
        "fuzzy": {"kind": "fuzzy"},
        "novel": {"novel": True},
        "token": {"pooling": "token"},
        "drift": {"novel": True, "drift": True},
    }
    many = {"cosine": repeats, "fuzzy": repeats, "novel": repeats}
    sides = [Contestant("step", step, {"options": options}), Contestant("loop", loop, size)]
    sides += [
        Contestant(name, regularizer, {**size, **own, "repeats": many.get(name, 1)}) for name, own in kinds.items()
    ]
    timings = compare(sides, rounds=rounds, warmup=1)
    ours, theirs = timings.results["cosine"][0], timings.results["loop"][0]
    apart = max(abs(a - b) / abs(b) for a, b in zip(ours, theirs, strict=True))
    assert apart < 1e-3, f"the loop and ours differ: {theirs} and {ours}"
    what = f"ART with {entries:,} prototypes: loss, backward and learning, of a step"

    def row(name: str, of: str, *, at_most: float | None = None) -> Row:
        return share_row(f"{what}: {of}", timings, name, many.get(name, 1), at_most=at_most)

    return [
        row("cosine", "cosine", at_most=1),
        row("fuzzy", "fuzzy", at_most=1),
        row("loop", "a loop over the prototypes (cosine)"),
        row("novel", "cosine, all 8 texts novel, each in place of the least used category"),
        row("token", "cosine, `pooling: token`, at most 256 of the 1,024 learned"),
        row("drift", "cosine, all 8 texts novel, `novelty: drift`: with the averaged model"),
        Row(
            "loss and gradient of the first batch, ours and the loop's: relative difference",
            f"{apart:.1e}",
            "",
            "< 1e-3",
            True,
        ),
    ]


def share_row(what: str, timings: Timings, name: str, repeats: int, *, at_most: float | None) -> Row:
    """CPU time of one repetition, in percent of a step's."""
    pairs = zip(timings.seconds[name], timings.seconds["step"], strict=True)
    shares = [100 * seconds / repeats / of_step for seconds, of_step in pairs]
    middle = statistics.median(shares)
    met = None if at_most is None else middle < at_most
    spread = f"{min(shares):.2f} to {max(shares):.2f} %"
    return Row(what, f"{middle:.2f} %", spread, "" if at_most is None else f"< {at_most:g} %", met)


def search_row(entries: int, width: int, rounds: int, repeats: int) -> Row:
    size = {"entries": entries, "width": width}
    sides = [
        Contestant("matmul", found_by_matmul, {**size, "repeats": repeats}),
        Contestant("loop", found_by_loop, size),
    ]
    timings = compare(sides, rounds=rounds)
    assert timings.results["matmul"] == timings.results["loop"], "the sides found other categories"
    ratios = [ratio * repeats for ratio in timings.ratios("matmul", "loop")]
    what = f"the search for {BATCH} texts among {entries:,} prototypes: loop / one matrix product"
    return Row(what, f"{statistics.median(ratios):.0f} x", f"{min(ratios):.0f} to {max(ratios):.0f}")


NOTES = f"""One thread, fp32. A step is forward, loss, backward, clipping and fused AdamW of GPT-2 small (124 M
parameters), batch {BATCH} x {BLOCK}, and each line says what `ARTRegularizer` adds to one, in percent of its CPU time:
pooling over the tokens, the loss, its backward to the states, and learning. The texts lie near a prototype each unless
they are novel. The loop is the seed's, one cosine similarity after the other, given the same batch; it learns from what
it found."""


def tables(quick: bool = False) -> list[Table]:
    entries, options, rounds, repeats = (200, SMALL, 1, 2) if quick else (10_000, GPT2, 7, 10)
    rows = cost_rows(options, entries, rounds, repeats)
    rows.append(search_row(min(entries, 1_000), options["embedding_dim"], 2 * rounds, 20 * repeats))
    return [Table("ART", rows, NOTES)]


if __name__ == "__main__":
    main(tables)
