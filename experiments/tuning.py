"""How the model without memory was chosen: `python -m experiments.tuning [--train PATH --heldout PATH [--test PATH]]`

Trains some variants for one seed, and prints the bits per byte of each on the text to choose on. No other is scored.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from experiments.arguments import add_texts, take_texts
from experiments.memory import Plan, new_model
from experiments.runs import train
from experiments.texts import prepare
from lightning_app.training.allocator import tune_allocator

VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # changes to the model's options, and the training's
    "as it is": ({}, {}),
    "lr 4e-3": ({}, {"lr": 4e-3}),
    "dropout 0.2": ({"dropout": 0.2}, {}),
    "dropout 0": ({"dropout": 0.0}, {}),
    "lr 1e-3": ({}, {"lr": 1e-3}),
    "3 layers of 192": ({"embedding_dim": 192, "layers": 3}, {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.tuning", description=__doc__)
    add_texts(parser)
    options = take_texts(parser.parse_args())
    torch.set_num_threads(1)
    tune_allocator()
    plan = Plan(options.train, options.heldout, options.test)
    with tempfile.TemporaryDirectory() as folder:
        texts = prepare(plan.train, plan.heldout, plan.test, vocab_size=plan.vocab_size, folder=Path(folder))
        for name, (of_model, of_training) in VARIANTS.items():
            changed = replace(plan, model=plan.model | of_model, training=replace(plan.training, **of_training))
            torch.manual_seed(0)
            facts = train(new_model("no memory", changed), texts, changed.training, seed=0)
            print(
                f"| {name} | {facts['val_bpb']:.4f} | {facts['best_step']} | {facts['train_seconds']:.0f} |", flush=True
            )


if __name__ == "__main__":
    main()
