"""Ways to read from an associative memory, chosen by YAML as `lightning_app.memory.readers.<name>`."""

from lightning_app.memory.readers.attention import AttentionReader
from lightning_app.memory.readers.base import Reader
from lightning_app.memory.readers.concat import ConcatReader
from lightning_app.memory.readers.distribution import CacheReader, KNNReader, TrimeReader
from lightning_app.memory.readers.mixture import GatedMixture
from lightning_app.memory.readers.ngram import NGramReader
from lightning_app.memory.readers.pointer import PointerReader
from lightning_app.memory.readers.prompt import PromptReader

__all__ = [
    "AttentionReader",
    "CacheReader",
    "ConcatReader",
    "GatedMixture",
    "KNNReader",
    "NGramReader",
    "PointerReader",
    "PromptReader",
    "Reader",
    "TrimeReader",
]
