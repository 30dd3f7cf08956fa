"""What a Trainer's strategy means for what goes beside the training."""

from __future__ import annotations

from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy


def shards_parameters(strategy: Strategy) -> bool:
    """Whether no rank has whole parameters. One that runs the model waits for the others, so all must have as many
    batches, in evaluation too."""
    return isinstance(strategy, FSDPStrategy | ModelParallelStrategy | DeepSpeedStrategy)
