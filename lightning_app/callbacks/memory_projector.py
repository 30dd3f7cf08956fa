"""Stored vectors in TensorBoard's projector."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_app.errors import InputError
from lightning_app.models.memory import AssociativeMemory
from lightning_app.models.readers.bank import Bank
from lightning_app.modules.varda_gpt import VardaGPT
from lightning_app.text.datamodule import TextDataModule
from lightning_app.text.tokenizer import Tokenizer

COLUMNS = ["text", "next", "document", "position"]


class MemoryProjector(L.Callback):
    """At the end of a fit TensorBoard's projector gets stored vectors, with the text that each stands for.

    Does nothing for a module without a memory, or without a TensorBoard logger.

    Args:
        vectors: at most so many of each memory, drawn without replacement if there are more.
        seed: of that draw.
    """

    def __init__(self, vectors: int = 2000, seed: int = 0):
        if vectors < 1:
            raise InputError(f"vectors is {vectors}; it must be at least 1")
        self.vectors, self.seed = vectors, seed

    @rank_zero_only
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
        data = trainer.datamodule
        first = next(callback for callback in trainer.callbacks if isinstance(callback, MemoryProjector))
        if not loggers or not isinstance(data, TextDataModule) or self is not first:  # a YAML's stands before ours
            return
        names = pl_module.documents if isinstance(pl_module, VardaGPT) else {}
        banks = {name: bank for name, bank in pl_module.named_modules() if isinstance(bank, Bank)}
        for name, bank in banks.items():
            for i, memory in enumerate(bank.memories):
                if memory.size():
                    shown = self._shown(memory, data.tokenizer, names)
                    for logger in loggers:
                        logger.experiment.add_embedding(
                            **shown, tag=f"{name}.{i}", global_step=trainer.global_step, metadata_header=COLUMNS
                        )

    def _shown(self, memory: AssociativeMemory, tokenizer: Tokenizer, names: dict[int, str]) -> dict[str, Any]:
        """Vectors (N, M), and N rows of `COLUMNS`."""
        order = torch.randperm(memory.size(), generator=torch.Generator().manual_seed(self.seed))[: self.vectors]
        ids = memory.ids()[order.sort().values.to(memory.device)]
        known = memory.payload(ids)
        columns = zip(
            known.spans.tolist(),
            known.tokens.tolist(),
            known.documents.tolist(),
            known.positions.tolist(),
            strict=True,
        )
        labels = [
            [_text(tokenizer, span), _text(tokenizer, [token]), names.get(document, f"{document:x}"), str(position)]
            for span, token, document, position in columns
        ]
        return {"mat": memory[ids].cpu(), "metadata": labels}


def _text(tokenizer: Tokenizer, ids: list[int]) -> str:
    """On one line, as the projector's table asks for; -1 is no token."""
    return repr(tokenizer.decode([i for i in ids if i >= 0]))[1:-1]
