"""The parts of a model and their parameters, at the start of a fit."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import ModelSummary
from lightning.pytorch.utilities.model_summary import get_human_readable_count

COLUMNS = ("Name", "Type", "Params")


class ModelTable(ModelSummary):
    """Lightning's summary without what it does not know here: of FLOPs it says 0 without an example of a batch."""

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Print it."""
        columns = [[name, *values] for name, values in summary_data if name in COLUMNS]
        widths = [max(map(len, column)) for column in columns]
        for row in zip(*columns, strict=True):
            print("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())
        trained = get_human_readable_count(trainable_parameters).strip()
        total = get_human_readable_count(total_parameters).strip()
        print(f"{total} parameters ({model_size:,.1f} MB), {trained} of them trained", flush=True)
