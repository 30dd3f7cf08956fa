"""What a Trainer's strategy means for those who deal out batches."""

from __future__ import annotations

from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy


def shards_parameters(strategy: Strategy) -> bool:
    """Whether a rank that runs the model waits for the others: all must have as many batches, in evaluation too."""
    return isinstance(strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy)
