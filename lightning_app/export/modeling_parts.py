"""The classes that a backbone's description may name. An exported directory has those that its model needs."""

from __future__ import annotations

from typing import Any

from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers import AttentionReader, CacheReader, ConcatReader, KNNReader, TrimeReader
from lightning_app.models.decoder import Decoder
from lightning_app.models.pretrained import PretrainedLM

PARTS: dict[str, Any] = {
    f"{part.__module__}.{part.__qualname__}": part
    for part in (Decoder, PretrainedLM, MemoryLM, AttentionReader, ConcatReader, KNNReader, CacheReader, TrimeReader)
}
