"""What a log says of the heads that were chosen; whole cycles run in test_schedule.py."""

import torch

from lightning_app.plasticity.cycle import ranked


def test_ranks_are_counted_among_the_living():
    scores = torch.tensor([[0.5, 0.1], [0.2, 0.3]])
    alive = torch.tensor([[True, False], [True, True]])
    assert ranked([(1, 0), (0, 0)], scores, alive) == {
        "heads": [[1, 0], [0, 0]],
        "scores": [float(scores[1, 0]), 0.5],
        "reasons": ["number 1 of 3 from below", "number 3 of 3 from below"],
    }
