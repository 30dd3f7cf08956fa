"""What an associative memory may be like, in words. No torch is imported here."""
# Pure mathematics: see tests/test_layering.py.

from __future__ import annotations

from typing import Literal

Metric = Literal["l2", "inner_product", "cosine"]
IndexType = Literal["flat", "ivf", "ivfpq", "hnsw"]
Eviction = Literal["oldest", "least_recently_used", "least_useful", "random", "least_surprising", "lowest_score"]
Storage = Literal["float32", "float16"]
