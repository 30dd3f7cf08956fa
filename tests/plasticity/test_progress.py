"""What a checkpoint holds of a schedule."""

import dataclasses

import torch

from lightning_app.plasticity.phases import Position
from lightning_app.plasticity.progress import Progress


def test_all_but_scores_comes_back():
    factors = torch.full((2, 2), 1.5)
    progress = Progress(Position("finetuning", 2, 7), started=True, losses=[3.0], ce_at_start=2.5, factors=factors)
    progress.baseline, progress.cost, progress.proved = {"parameters": 9}, {"parameters": 8}, {"dead heads": 1}
    progress.snapshot, progress.scores = {"kept": {}}, {"heads": factors}
    again = Progress()
    again.load_state_dict(progress.state_dict())
    for field in dataclasses.fields(Progress):
        if field.name not in ("scores", "left"):
            assert getattr(again, field.name) is getattr(progress, field.name) or getattr(again, field.name) == getattr(
                progress, field.name
            ), field.name


def test_what_failed_between_two_steps_is_done_again():
    progress = Progress(Position("warmup", 1, 5))
    for phase in ("analysis", "pruning"):
        progress.move(Position(phase, 1))
        assert progress.state_dict()["at"] == ["warmup", 1, 5]
    progress.move(Position("finetuning", 1))
    assert progress.state_dict()["at"] == ["finetuning", 1, 0]
    progress.move(Position("done", 1))
    assert progress.state_dict()["at"] == ["done", 1, 0]
