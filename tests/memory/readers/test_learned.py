"""What learned readers share: the running quantile of distances that deletions are compared with."""

import pytest
import torch

from lightning_app.errors import InputError
from lightning_app.memory.readers.attention import AttentionReader
from lightning_app.memory.readers.learned import AdvancedReader, DeletionThreshold


def test_the_threshold_follows_the_quantile_of_the_distances():
    threshold = DeletionThreshold(0.25, momentum=0.5)
    assert threshold.nearness(torch.tensor([3.0, 1e9])).tolist() == [1, 1]  # none yet: the decision alone counts
    threshold.follow(threshold.of(torch.zeros(0)))
    assert threshold.value.isinf()
    threshold.follow(threshold.of(torch.arange(5.0)))
    assert threshold.value == 1
    threshold.follow(torch.tensor(4.0))
    assert threshold.value == 2.5
    nearness = threshold.nearness(torch.tensor([0.0, 2.5, 9.0]))
    assert (nearness > 0.5).tolist() == [True, False, False]
    assert nearness[1] == 0.5


def test_a_quantile_outside_of_0_to_1_is_refused():
    with pytest.raises(InputError, match=r"delete_quantile is 1"):
        AttentionReader(advanced=AdvancedReader(delete_quantile=1.0))


def test_a_price_is_a_number_from_0_on():
    for cost in (-1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="store_cost is"):
            AttentionReader(store_cost=cost)


def test_a_search_for_more_than_fits_is_refused_before_the_fit():
    with pytest.raises(InputError, match="num_search_results is 5 and memory_size 3"):
        AttentionReader(memory_size=3).build(width=8, vocab_size=9)
