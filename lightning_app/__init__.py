"""lightning_app: one PyTorch Lightning harness for experiments with GPT-like language models."""

__version__ = "0.1.0"
