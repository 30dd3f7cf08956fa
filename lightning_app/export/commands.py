"""`python main.py export`: its options, before anything heavy is imported."""

from __future__ import annotations

from lightning_app.export.options import ExportOptions
from lightning_app.training.command_options import CheckpointOptions


def export(*, model: CheckpointOptions, written: ExportOptions) -> None:
    """Write a trained model as a Hugging Face directory or a GGUF file, and compare it with what it was made from."""
    from lightning_app.export.command import export_model

    export_model(model, written)
