"""What the Trainer is given: loader, checkpoint writer, schedule, allocator."""

from lightning_app.training.schedulers import WarmupCosine

__all__ = ["WarmupCosine"]
