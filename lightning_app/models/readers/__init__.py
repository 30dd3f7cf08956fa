"""Ways to read from an associative memory, chosen by YAML as `lightning_app.models.readers.<name>`."""

from lightning_app.models.readers.attention import AttentionReader
from lightning_app.models.readers.base import Reader
from lightning_app.models.readers.concat import ConcatReader
from lightning_app.models.readers.distribution import CacheReader, KNNReader, TrimeReader

__all__ = ["AttentionReader", "CacheReader", "ConcatReader", "KNNReader", "Reader", "TrimeReader"]
