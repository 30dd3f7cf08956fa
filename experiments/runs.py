"""Training a MemoryLM, and reading a text with it block by block in document order.

Shapes: B rows, T positions, N scored tokens.
"""

from __future__ import annotations

import copy
import itertools
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from experiments.statistics import bits_per_byte
from experiments.store import Stopwatch
from experiments.texts import Texts
from lightning_app.data.batch import Batch
from lightning_app.data.token_array import TokenArray
from lightning_app.data.windows import TokenWindows
from lightning_app.errors import InputError
from lightning_app.memory.model import MemoryLM, MemoryStates
from lightning_app.memory.readers.base import TokenContext
from lightning_app.models.losses import IGNORE, cross_entropy, token_nll
from lightning_app.models.matrices import roles_of
from lightning_app.training.groups import Groups
from lightning_app.training.muon import Muon
from lightning_app.training.optim import matrices_of, trained_parameters
from lightning_app.training.optimizer_parts import Entry, OptimizerByParts
from lightning_app.training.precision import has_fast_bf16
from lightning_app.training.schedulers import WarmupCosine

Model = TypeVar("Model", bound=torch.nn.Module)
# options of the Decoder in all experiments
MODEL: dict[str, Any] = {"embedding_dim": 128, "layers": 4, "heads": 4, "dropout": 0.1, "positions": "rotary"}


@dataclass(frozen=True)
class Training:
    """How a model is trained; the same for all arms.

    Attributes:
        block_size: T, in training and evaluation.
        group: blocks of a batch that follow each other in the text: what trime learns to read.
        streams: each row of the batches is a text of its own, block after block: what a memory of a stream learns from.
        steps: at most.
        muon_lr: of Muon for the matrices of the blocks; 0: AdamW has all.
        validations: how often, evenly spread, the best state so far is looked for.
        patience: training ends after so many validations in a row without a better one; 0: it does all steps.
        validation_blocks: of the validation text that are used for that.
    """

    block_size: int = 128
    batch_size: int = 8
    group: int = 4
    streams: bool = False
    steps: int = 800
    lr: float = 2e-3
    muon_lr: float = 0.0
    warmup_steps: int = 100
    weight_decay: float = 0.1
    clip: float = 1.0
    validations: int = 5
    patience: int = 0
    validation_blocks: int = 150


@dataclass(frozen=True)
class Scores:
    """What reading a text gave.

    Attributes:
        nats: (N,) float64 -log p of each token.
        targets: (N,) int64.
        documents: (N,) number of each token's document.
        positions: (N,) of the token before it, within the document.
        in_block: (N,) of the token before it, within its block.
    """

    nats: np.ndarray
    targets: np.ndarray
    documents: np.ndarray
    positions: np.ndarray
    in_block: np.ndarray

    @classmethod
    def of(cls, batches: list[Batch], nats: list[Tensor]) -> Scores:
        """(1, T) nats of each block -> those of the tokens that count."""
        scored = [batch.targets != IGNORE for batch in batches]
        return cls(
            torch.cat([n[s] for n, s in zip(nats, scored, strict=True)]).double().numpy(),
            torch.cat([b.targets[s] for b, s in zip(batches, scored, strict=True)]).numpy(),
            torch.cat([b.document_ids[s] for b, s in zip(batches, scored, strict=True)]).numpy(),
            torch.cat([b.positions[s] for b, s in zip(batches, scored, strict=True)]).numpy(),
            torch.cat([s.nonzero()[:, 1] for s in scored]).numpy(),
        )

    def n_bytes(self, text: TokenArray, token_bytes: Tensor) -> np.ndarray:
        """(N,) bytes of the text that was read which each token covers: its id says others where a tokenizer lost some.

        Args:
            token_bytes: (V,) that the ids say.
        """
        at = text.offsets[self.documents] + self.positions + 1
        return token_bytes.numpy()[self.targets] + text.other_bytes(at)

    def bits_per_byte(self, text: TokenArray, token_bytes: Tensor) -> float:
        return bits_per_byte(self.nats, self.n_bytes(text, token_bytes))


def context_of(batch: Batch, segment_length: int | None = None) -> TokenContext:
    """Where the tokens of a batch are from; all of them are new."""
    ids, targets = batch.input_ids, batch.targets
    T = ids.shape[1]
    return TokenContext.of(
        ids=ids,
        next_ids=targets.where(targets != IGNORE, -1),
        documents=batch.document_keys,
        positions=batch.positions,
        new=batch.attention_mask,
        rows=torch.arange(len(ids)),
        segments=torch.arange(T) // (segment_length or T),
    )


def write(model: MemoryLM, found: MemoryStates, *, training: bool) -> None:
    """What the readers asked for."""
    for reader, output in zip(model.readers, found.reader_outputs, strict=True):
        if output.update is not None:
            reader.bank.write(output.update, training=training)
        if training:
            reader.follow_step(output.distances)


def blocks(tokens: TokenArray, block_size: int, *, every: int = 1, at_most: int | None = None) -> Iterator[Batch]:
    """(1, T) blocks in document order, without overlap: each token is scored once, but the text's first."""
    windows = TokenWindows(tokens, block_size)
    for i in range(0, len(windows), every)[:at_most]:
        yield windows.__getitems__([i])


@torch.no_grad()
def read(model: MemoryLM, batches: list[Batch]) -> Scores:
    """Read a text, writing to copies of the memories, which are empty at first."""
    model.eval()
    written = [reader for reader in model.readers if reader.writes != "never"]  # a datastore need not be copied
    for reader in written:
        reader.bank.begin_evaluation()
        for memory in reader.bank.active:
            memory.reset()
    nats: list[Tensor] = []
    before: Tensor | None = None  # what counts of tokens know of the block before
    for batch in batches:
        found = model.run(batch.input_ids, replace(context_of(batch, model.segment_length), earlier_ids=before))
        before = batch.input_ids
        nats.append(token_nll(found.logits, batch.targets))
        write(model, found, training=False)
    for reader in written:
        reader.bank.end_evaluation()
    return Scores.of(batches, nats)


def seconds_per_token(model: MemoryLM, batches: list[Batch], *, warmup: int = 20) -> float:
    """CPU seconds of this thread per token, reading and writing a text after some blocks of warm-up."""
    read(model, batches[:warmup])
    start = time.process_time()
    read(model, batches)
    return (time.process_time() - start) / sum(batch.input_ids.numel() for batch in batches)


def training_batches(tokens: TokenArray, options: Training, seed: int) -> Iterator[Batch]:
    """Without end: `batch_size / group` places of the text, drawn at random, with `group` blocks in a row at each; or
    `batch_size` streams. Each epoch cuts the text elsewhere.
    """
    windows = TokenWindows(tokens, options.block_size, shift=True)
    if options.streams:
        yield from _stream_batches(windows, options, seed)
    side_by_side = np.arange(options.group)
    places = len(windows) // options.group
    at_once = options.batch_size // options.group
    if options.batch_size % options.group or places < at_once:
        raise InputError(
            f"batches of {options.batch_size} in groups of {options.group} blocks, of which the training text has "
            f"{len(windows)}: give a group that divides the batch, or more text"
        )
    epoch = 0
    while True:
        windows.set_epoch(epoch, seed)
        order = np.random.default_rng((seed, epoch, 1)).permutation(places) * options.group
        for start in range(0, places - at_once + 1, at_once):
            chosen = order[start : start + at_once, None] + side_by_side  # (batch_size / group, group)
            yield windows.__getitems__(chosen.flatten().tolist())
        epoch += 1


def _stream_batches(windows: TokenWindows, options: Training, seed: int) -> Iterator[Batch]:
    """Each row goes through its share of the text, and in each epoch through another share."""
    length = len(windows) // options.batch_size
    if not length:
        raise InputError(
            f"{options.batch_size} streams, but the training text has {len(windows)} blocks: give more text"
        )
    for epoch in itertools.count():
        windows.set_epoch(epoch, seed)
        rows = np.random.default_rng((seed, epoch, 2)).permutation(options.batch_size) * length
        for at in range(length):
            yield windows.__getitems__((rows + at).tolist())


def train(model: MemoryLM, texts: Texts, options: Training, *, seed: int) -> dict[str, float]:
    """Train in `fast_precision`, and leave the model in its best state by validation.

    Returns: bits per byte on the blocks of the validation text at the best state, its step, the last step, and CPU
        seconds of training alone. Where the best step is the last one the model might have become better.
    """
    torch.manual_seed(seed)
    optimizer = new_optimizer(model, options)
    schedule = WarmupCosine(optimizer, warmup_steps=options.warmup_steps, total_steps=options.steps, min_ratio=0.05)
    validation = list(blocks(texts.val, options.block_size, at_most=options.validation_blocks))
    best: tuple[float, int, dict[str, Tensor]] = (math.inf, 0, {})
    watch, worse, every = Stopwatch(), 0, max(1, options.steps // options.validations)
    batches = training_batches(texts.train, options, seed)
    for step in range(1, options.steps + 1):
        with watch:
            _step(model.train(), next(batches), optimizer, options.clip)
            schedule.step()
        if step % every == 0 or step == options.steps:
            bpb = read(model, validation).bits_per_byte(texts.val, texts.token_bytes)
            print(f"step {step}: {bpb:.4f} bits per byte on validation, {watch.seconds:.0f} CPU s", flush=True)
            worse = 0 if bpb < best[0] else worse + 1
            if not worse:
                best = bpb, step, copy.deepcopy(model.state_dict())
            if options.patience and worse >= options.patience:
                break
    model.load_state_dict(best[2])
    return {"val_bpb": best[0], "best_step": best[1], "last_step": step, "train_seconds": watch.seconds}


def fast_precision() -> torch.autocast:
    """bf16 where this CPU has instructions for it, float32 elsewhere: there bf16 takes some ten times as long."""
    return torch.autocast("cpu", torch.bfloat16, enabled=has_fast_bf16())


def frozen_copy(model: Model) -> Model:
    """That learns nothing."""
    return copy.deepcopy(model).eval().requires_grad_(False)


def new_optimizer(model: torch.nn.Module, options: Training) -> torch.optim.Optimizer:
    """AdamW, without decay of vectors; Muon for the matrices of the blocks where the options have a rate for it."""
    roles = roles_of(model, model.blocks if isinstance(model, MemoryLM) else ())
    groups = Groups(trained_parameters(model), matrices_of(model), roles)
    adamw = partial(torch.optim.AdamW, lr=options.lr, betas=(0.9, 0.95), weight_decay=options.weight_decay, fused=True)
    if not options.muon_lr:
        return adamw(groups)
    muon = partial(Muon, lr=options.muon_lr, momentum=0.95, weight_decay=options.weight_decay, ns_steps=3)
    return OptimizerByParts(groups, [Entry(muon, "matrices"), Entry(adamw)])


def _step(model: MemoryLM, batch: Batch, optimizer: torch.optim.Optimizer, clip: float) -> None:
    with fast_precision():
        found = model.run(batch.input_ids, context_of(batch, model.segment_length))
        loss = cross_entropy(found.logits, batch.targets)
    for output in found.reader_outputs:
        for weight, term in output.terms.values():
            loss = loss + weight * term
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    optimizer.zero_grad()
    write(model, found, training=True)
