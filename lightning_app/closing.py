"""The end of a fit: the loss picture, pages of ideas, samples of the best checkpoint, a table."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger

from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.data.verbatim import verbatim_share
from lightning_app.errors import DamagedError, InputError
from lightning_app.measured import figures, measures_all
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.peers import peers_of
from lightning_app.plugins import here, load
from lightning_app.reports import beside
from lightning_app.reports.events import Closed
from lightning_app.reports.loss_curve import draw_loss
from lightning_app.reports.record import Numbers, Record
from lightning_app.reports.run_folder import RunFolder
from lightning_app.reports.series import best_validation, series
from lightning_app.reports.tables import format_table
from lightning_app.serving.generate import continue_text
from lightning_app.training.callbacks.run_callback import RunContext
from lightning_app.training.callbacks.run_log import JSONLinesLogger, RunLog, run_folder
from lightning_app.training.checkpoint import load_module
from lightning_app.training.checkpoint_io import read_numbers
from lightning_app.training.checkpoint_keys import STEP
from lightning_app.training.find_checkpoint import whole_or_previous
from lightning_app.training.module import LanguageModule
from lightning_app.yaml_file import leaves

SAMPLES = 3
CONTINUED_TOKENS = 60  # of each
SAMPLED_TOKENS = 2_000  # for the share of verbatim runs
SAMPLED_WORK = 5 * 10**10  # of a large model fewer: this many tokens times parameters, some 20 s of one core


@dataclass(frozen=True)
class Sampled:
    """What the best checkpoint writes.

    Attributes:
        continuations: prompt and continuation.
        verbatim: share of the 8-word runs in sampled tokens that stand verbatim in the training text; None
            where that was streamed.
        tokens: how many are sampled for that.
        seconds: that all of them take.
    """

    continuations: list[str]
    verbatim: float | None
    tokens: int
    seconds: float


def close_run(trainer: L.Trainer, *, patience: float = math.inf) -> Sampled | None:
    """Draw, sample, measure and print; on rank 0 after a fit. Without a run folder there is nothing to close.

    Args:
        patience: seconds after which no more tokens are sampled.
    """
    data, folder = trainer.datamodule, run_folder(trainer)
    if folder is None or not isinstance(data, TextDataModule):
        return None
    records = folder.records()
    best = best_validation(records)
    draw_loss(records, folder.loss_picture, title=folder.title)
    _draw_pages(trainer, folder, data)
    sampled = _sample_best(trainer, folder, data, patience) if best else None
    peers = peers_of(data) if measures_all(trainer, "val") else None
    verbatim = sampled.verbatim if sampled else None
    closed = Closed(more=_measures(best), verbatim=verbatim, **figures(trainer, peers))
    rows = _rows(folder, records, best, sampled, closed)
    print("\n" + format_table(rows, title=f"{folder.path}: what was reached"))
    draw_loss([*records, closed], folder.loss_picture, title=folder.title)  # once more, with what needs no model
    _record(trainer, folder, closed)
    return sampled


def close_early(trainer: L.Trainer) -> None:
    """The same without what takes long (samples, the compressor), for a fit that a signal or an error has ended."""
    folder = run_folder(trainer)
    if folder is None or not folder.log_file.is_file():
        return
    records = folder.records()
    draw_loss(records, folder.loss_picture, title=folder.title)
    rows = _rows(folder, records, best_validation(records), None, None)
    title = f"{folder.path}: what was reached by step {trainer.global_step}"
    print("\n" + format_table(rows, title=title), flush=True)


def _draw_pages(trainer: L.Trainer, folder: RunFolder, data: TextDataModule) -> None:
    """Draw the pages of ideas: what each has learned, as it is at the last step."""
    for idea in here():
        if idea.close and isinstance(trainer.lightning_module, LanguageModule):
            load(idea.close)(trainer.lightning_module, data.tokenizer, folder, step=trainer.global_step)


def _sample_best(trainer: L.Trainer, folder: RunFolder, data: TextDataModule, patience: float) -> Sampled | None:
    """None where the checkpoint is not one whole file (sharded strategies)."""
    path = next(iter(folder.checkpoints().values()), None)
    if path is None:
        return None
    module, tokenizer = _opened(path)
    module.to(trainer.strategy.root_device)
    given = RunContext.of(trainer).prompts
    prompts = given.texts if given else [""]
    continuations = []
    for i in range(SAMPLES):
        prompt = prompts[i % len(prompts)]
        new = continue_text(prompt, module, tokenizer, GenerationOptions(CONTINUED_TOKENS, 0.8, 50, seed=i))
        continuations.append(prompt + "".join(new))
    folder.write_samples(continuations, step=None)
    if data.streamed("train"):
        return Sampled(continuations, None, 0, 0.0)
    wanted = sampled_tokens(sum(p.numel() for p in module.backbone.parameters()))
    start = time.monotonic()
    tokens = _sample_tokens(module, tokenizer, wanted, patience)
    seconds = (time.monotonic() - start) * wanted / max(1, len(tokens))
    return Sampled(continuations, verbatim_share(tokenizer.decode(tokens), data.texts("train")), wanted, seconds)


def _opened(path: Path) -> tuple[LanguageModule, Tokenizer]:
    """The best checkpoint, or the one before it where that is damaged or gone; a whole one is read once."""
    try:
        return load_module(path)
    except InputError:
        return load_module(whole_or_previous(path))


def sampled_tokens(parameters: int) -> int:
    """How many tokens a model of this size is asked for."""
    return min(SAMPLED_TOKENS, max(1, SAMPLED_WORK // max(1, parameters)))


def _sample_tokens(module: LanguageModule, tokenizer: Tokenizer, n: int, patience: float) -> list[int]:
    """Tokens drawn from the model as it is (temperature 1), beginning at a document's start."""
    ids, end = torch.tensor([tokenizer.prompt("")], device=module.device), time.monotonic() + patience
    drawn = module.generate(ids, GenerationOptions(n, temperature=1.0))
    return [int(t) for t in takewhile(lambda _: time.monotonic() < end, drawn)]


def _rows(
    folder: RunFolder,
    records: Sequence[Record],
    best: Numbers | None,
    sampled: Sampled | None,
    closed: Closed | None,
) -> list[tuple[str, str]]:
    """Name and value of each line of the table."""
    rows: list[tuple[str, str]] = []
    if best is not None:
        rows += [
            ("best at step", f"{best.step}"),
            ("val loss", f"{best.values['val/ce']:.4f} nats per token"),
            ("perplexity", f"{best.values['val/ppl']:.2f}"),
            ("bits per byte", f"{best.values['val/bpb']:.3f}" if "val/bpb" in best.values else "unknown"),
        ]
    if closed is not None:
        rows += beside.rows(beside.of([closed])) or [("  compressors", "not computed")]
    if best is not None:
        rows += [("accuracy", f"{best.values['val/acc']:.3f}"), ("macro F1", f"{best.values['val/f1']:.3f}")]
    rates = series(records, "tokens_per_s")[1]
    unknown = "not measured: fewer steps than log_every_n_steps"
    rows.append(("speed", f"{statistics.median(rates):,.0f} tokens/s" if rates else unknown))
    if sampled is not None and sampled.verbatim is not None:
        runs = f"{sampled.verbatim:.1%} of the 8-word runs in {sampled.tokens:,} sampled tokens"
        rows.append(("verbatim", f"{runs} stand in the training text"))
    if sampled is not None:
        rows += [(f"sample {i + 1}", text) for i, text in enumerate(sampled.continuations)]
    rows += [(f"{name} checkpoint", f"{file}{_noted(name, file, best)}") for name, file in folder.checkpoints().items()]
    pages = {"categories": folder.categories, "dashboard": folder.dashboard}
    rows += [
        ("loss picture", str(folder.loss_picture)),
        *((name, str(page)) for name, page in pages.items() if page.is_file()),
        ("config", str(folder.config_file)),
        ("log", f"{folder.log_file}  {folder.damage()}".rstrip()),
    ]
    if folder.samples_folder.is_dir():
        rows.append(("samples", str(folder.samples_folder)))
    return [*rows, *((name, str(file)) for name, file in folder.of_loggers().items())]


def _noted(name: str, path: Path, best: Numbers | None) -> str:
    """The step of a best checkpoint that is not of the log's best validation: a run that went back keeps the better."""
    if name != "best" or best is None or not path.is_file():
        return ""
    try:
        step = read_numbers(path).get(STEP)
    except DamagedError:
        return "  (damaged)"
    return "" if step == best.step else f"  (of step {step})"


def _measures(best: Numbers | None) -> dict[str, float | None]:
    return {name: x for name, x in (best.values if best else {}).items() if name.startswith("val/")}


def _record(trainer: L.Trainer, folder: RunFolder, closed: Closed) -> None:
    """Into the log as an event, and into the loggers' tables of hyperparameters."""
    RunLog.event(trainer, closed)
    if config := folder.config():
        given = [(key, value) for key, value in leaves(config) if value is not None]
        flat = {key: value if isinstance(value, int | float | str) else str(value) for key, value in given}
        for logger in trainer.loggers:
            if not isinstance(logger, JSONLinesLogger):
                best_values = {f"best/{name}": x for name, x in closed.more.items() if x is not None}
                _tell(logger, flat, best_values, step=trainer.global_step)


def _tell(logger: Logger, options: dict[str, Any], measures: dict[str, float], *, step: int) -> None:
    """The options of a run and what it reached, and an end: the fit has closed the logger before."""
    if isinstance(logger, TensorBoardLogger):
        logger.log_hyperparams(options, measures)
    else:
        logger.log_hyperparams(options)
        logger.log_metrics(measures, step)
    logger.finalize("success")
    if isinstance(logger, WandbLogger):  # else the next run of this process would write into this one
        logger.experiment.finish()
