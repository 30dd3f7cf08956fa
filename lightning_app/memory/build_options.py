"""What `memory build` may be asked for. Nothing heavy is imported here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cyclopts import Parameter

from lightning_app.errors import InputError
from lightning_app.memory.kinds import IndexType, Storage

Filled = Literal["KNNReader", "PromptReader"]  # what `memory build` fills
OF_PROMPTS = ("passages", "passage_length")
OF_WEIGHT = ("lam", "temperature", "tune")


@Parameter(name="*")
@dataclass(frozen=True)
class BuildOptions:
    """What is stored, and how it is searched.

    Args:
        text: file, folder, pattern, JSONL file or hf:name; the run's training text without it.
        output: where the result goes; beside the checkpoint, with `-memory` in its name, without it.
        reader: PromptReader puts what it finds before a prompt, as text.
        tune: text that lam and temperature are tuned on; the run's validation text without it.
        stride: tokens between two windows; half of the block without it.
        memory_size: most entries; as many as the text has without it.
        num_search_results: k of each token's search; without it 256, and 16 of a PromptReader.
        index_type: flat is exact.
        num_clusters: of ivf and ivfpq; without it one for every 39 vectors, 1024 at most.
        nprobe: clusters that a query looks into; without it a sixteenth, 8 at least.
        dtype: of the stored vectors.
        span_length: tokens of text kept with each entry.
        passages: that a PromptReader puts before a prompt; 1 without it.
        passage_length: tokens of one; 256 without it.
        lam: weight of the memory, from 0 to 1, instead of tuning (with --temperature).
        temperature: of the distances, instead of tuning (with --lam).

    Raises:
        InputError: options that the reader does not have, or that contradict each other.
    """

    text: str | None = None
    output: Path | None = None
    reader: Filled = "KNNReader"
    tune: str | None = None
    stride: int | None = None
    memory_size: int | None = None
    num_search_results: int | None = None
    index_type: IndexType = "flat"
    num_clusters: int | None = None
    nprobe: int | None = None
    dtype: Storage = "float32"
    span_length: int = 16
    passages: int | None = None
    passage_length: int | None = None
    lam: float | None = None
    temperature: float | None = None

    @property
    def of_prompts(self) -> bool:
        """Whether the reader has passages, and no weight."""
        return self.reader == "PromptReader"

    def __post_init__(self) -> None:
        foreign = OF_WEIGHT if self.of_prompts else OF_PROMPTS
        if wrong := [name for name in foreign if getattr(self, name) is not None]:
            flags = " and ".join(f"--{name}" for name in wrong)
            lacks = "passages: --reader PromptReader has"
            if self.of_prompts:
                lacks = "lam and no temperature to give or tune"
            raise InputError(f"a {self.reader} has no {lacks}; leave out {flags}")
        given = [self.lam is not None, self.temperature is not None]
        if any(given) and (self.tune is not None or not all(given)):
            raise InputError(
                f"lam is {self.lam}, temperature {self.temperature} and tune {self.tune}: "
                "give both numbers without --tune, or neither"
            )
