"""The project's parts for people's own training loops."""

from lightning_app.integrations.hf_trainer import ARTTrainer, load_art

__all__ = ["ARTTrainer", "load_art"]
