"""What a model has stored, in TensorBoard's projector."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lightning_app.callbacks.run_callback import RunCallback
from lightning_app.errors import InputError
from lightning_app.models.art import ART
from lightning_app.models.memory import AssociativeMemory
from lightning_app.models.readers.bank import Bank
from lightning_app.modules.art_gpt2 import ARTRegularizer
from lightning_app.modules.base import LanguageModule
from lightning_app.modules.varda_gpt import VardaGPT
from lightning_app.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Shown:
    """N vectors (N, M), and N rows of `columns` that say what each stands for."""

    vectors: Tensor
    columns: list[str]
    rows: list[list[str]]


class Projector(RunCallback):
    """At the end of a fit TensorBoard's projector gets what the model has stored, with the text that each stands for.

    That is vectors of each memory, and the prototypes of each ART network. Does nothing for a module without either, or
    without a TensorBoard logger.

    Args:
        vectors: at most so many of each, drawn without replacement if there are more.
        seed: of that draw.
    """

    def __init__(self, vectors: int = 2000, seed: int = 0):
        if vectors < 1:
            raise InputError(f"vectors is {vectors}; it must be at least 1")
        self.vectors, self.seed = vectors, seed

    @rank_zero_only
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        if not loggers or not self.has_data:
            return
        for tag, shown in self._all(self.module, self.data.tokenizer):
            for logger in loggers:
                logger.experiment.add_embedding(
                    shown.vectors.cpu(),
                    metadata=shown.rows,
                    metadata_header=shown.columns,
                    global_step=trainer.global_step,
                    tag=tag,
                )

    def _all(self, module: LanguageModule, tokenizer: Tokenizer) -> Iterator[tuple[str, Shown]]:
        """Name and content of all that is not empty."""
        names = module.documents if isinstance(module, VardaGPT) else {}
        for name, bank in module.named_modules():
            for i, memory in enumerate(bank.memories if isinstance(bank, Bank) else []):
                if memory.size():
                    yield f"{name}.{i}", of_memory(memory, self._drawn(memory.size()), tokenizer, names)
        for regularizer in module.regularizers:
            if isinstance(regularizer, ARTRegularizer) and len(regularizer.art):
                yield regularizer.name, of_art(regularizer.art, self._drawn(len(regularizer.art)), tokenizer)

    def _drawn(self, n: int) -> Tensor:
        """Numbers of at most `vectors` of n, in order."""
        order = torch.randperm(n, generator=torch.Generator().manual_seed(self.seed))
        return order[: self.vectors].sort().values


def of_memory(memory: AssociativeMemory, numbers: Tensor, tokenizer: Tokenizer, names: dict[int, str]) -> Shown:
    """Stored vectors; `names` are those of documents."""
    ids = memory.ids()[numbers.to(memory.device)]
    known = memory.payload(ids)
    fields = (known.spans, known.tokens, known.documents, known.positions)
    rows = [
        [_text(tokenizer, span), _text(tokenizer, [token]), names.get(document, f"{document:x}"), str(position)]
        for span, token, document, position in zip(*(field.tolist() for field in fields), strict=True)
    ]
    return Shown(memory[ids], ["text", "next", "document", "position"], rows)


def of_art(art: ART, slots: Tensor, tokenizer: Tokenizer) -> Shown:
    """Prototypes, with the text that matches each best; the age is in inputs."""
    slots = slots.to(art.prototypes.device)
    fields = (art.ids[slots], art.counts[slots], art.seen - art.born[slots])
    rows = [
        [_text(tokenizer, next(iter(art.typical(slot)), [])), *(str(number) for number in numbers)]
        for slot, *numbers in zip(slots.tolist(), *(field.tolist() for field in fields), strict=True)
    ]
    return Shown(art.prototypes[slots], ["text", "category", "inputs", "age"], rows)


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """On one line, as the projector's table asks for; -1 is no token."""
    return repr(tokenizer.decode([i for i in ids if i >= 0]))[1:-1]
