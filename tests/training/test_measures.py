import math

import pytest
import torch

from lightning_app.models.losses import IGNORE
from lightning_app.training.measures import LanguageMeasures

TOKEN_BYTES = torch.tensor([1, 2, 3, 0])


def batch(rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, 5, 4, generator=generator)
    targets = torch.randint(4, (rows, 5), generator=generator)
    targets[0, :3] = IGNORE
    return logits, targets


def bytes_of(targets: torch.Tensor) -> torch.Tensor:
    return TOKEN_BYTES[targets.clamp_min(0)]


def measured(size: int, fill: int = 0) -> dict[str, float]:
    """Over 6 rows in batches of `size`; `fill` rows of padding in between."""
    measures = LanguageMeasures(4)
    logits, targets = batch(6)
    for start in range(0, 6, size):
        part = targets[start : start + size]
        measures.update(logits[start : start + size], part, bytes_of(part))
        if fill:
            padding = torch.full((fill, 5), IGNORE)
            measures.update(torch.randn(fill, 5, 4), padding, bytes_of(padding))
    return {name: float(value) for name, value in measures.compute().items()}


def test_values_by_hand():
    logits, targets = batch(6)
    real = targets != IGNORE
    nll = -logits.log_softmax(-1)[real].gather(1, targets[real][:, None]).double().sum().item()
    found = measured(6)
    assert found["ce"] == pytest.approx(nll / 27)
    assert found["ppl"] == pytest.approx(math.exp(nll / 27))
    assert found["bpb"] == pytest.approx(nll / math.log(2) / TOKEN_BYTES[targets[real]].sum().item())
    assert found["acc"] == pytest.approx((logits.argmax(-1) == targets)[real].double().mean().item())


def test_macro_f1_by_hand():
    measures = LanguageMeasures(4)
    logits = torch.nn.functional.one_hot(torch.tensor([[0, 0, 1, 2]]), 4).float()
    measures.update(logits, torch.tensor([[0, 1, 1, IGNORE]]))
    # class 0: 1 hit, 2 guesses, 1 actual; class 1: 1 hit, 1 guess, 2 actual; classes 2 and 3 do not occur
    assert float(measures.compute()["f1"]) == pytest.approx((2 / 3 + 2 / 3) / 2)


@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_the_batch_size_does_not_matter(size: int):
    assert measured(size) == pytest.approx(measured(6), rel=1e-6)


def test_padding_does_not_count():
    assert measured(2, fill=3) == pytest.approx(measured(6), rel=1e-6)


def test_without_bytes_there_are_no_bits_per_byte():
    measures = LanguageMeasures(4)
    measures.update(*batch(2))
    assert "bpb" not in measures.compute()
