"""The options of a memory: what is refused, and what follows from them."""

import pytest

from lightning_app.errors import InputError
from lightning_app.memory.options import MemoryOptions


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"memory_size": 0}, "memory_size is 0"),
        ({"index_type": "ivf", "num_clusters": 30}, "num_clusters 30 is more than memory_size 20"),
        ({"index_type": "ivf", "num_clusters": 4, "nprobe": 5}, "nprobe 5 is more than num_clusters 4"),
        ({"index_type": "ivfpq", "num_clusters": 4, "nprobe": 1, "pq_m": 4}, "pq_m 4 does not divide memory_dim 6"),
        (
            {"index_type": "ivfpq", "num_clusters": 4, "nprobe": 1, "pq_m": 3},
            "pq_bits is 8: give at most 12, .* at most 4",
        ),
        ({"nprobe": 0}, "nprobe is 0"),
        ({"forgetfulness_factor": 1.0}, r"forgetfulness_factor is 1.0"),
        ({"forgetfulness_factor": -0.1}, r"forgetfulness_factor is -0.1"),
        ({"fading": float("nan")}, "fading is nan"),
        ({"fading": float("inf")}, "fading is inf"),
        ({"index_type": "tree"}, "index_type is 'tree': choose one of flat, ivf, ivfpq, hnsw"),
        ({"eviction": "first"}, "eviction is 'first'"),
        ({"metric": "l1"}, "metric is 'l1'"),
        ({"dtype": "bfloat16"}, "dtype is 'bfloat16'"),
    ],
)
def test_contradictory_options(options, message):
    with pytest.raises(InputError, match=message):
        MemoryOptions(**{"memory_size": 20, "memory_dim": 6, **options})


@pytest.mark.parametrize(
    ("options", "clusters", "enough"),
    [
        ({}, 0, 1),
        ({"index_type": "hnsw"}, 0, 1),
        ({"index_type": "ivf", "num_clusters": 10}, 10, 390),
        ({"index_type": "ivf", "num_clusters": 100}, 100, 500),
        ({"index_type": "ivf", "num_clusters": 900}, 900, 900),
        ({"index_type": "ivfpq", "num_clusters": 10, "pq_bits": 9, "pq_m": 2}, 512, 512),
    ],
)
def test_vectors_that_an_index_needs(options, clusters, enough):
    found = MemoryOptions(1000, 6, **options)
    assert (found.clusters, found.enough) == (clusters, enough)
