"""What a contestant is asked for: to train within a process of its own, and to be read from what it saved.

Shapes: B rows, T positions, N tokens, V vocabulary.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.peers.vocabulary import Vocabulary, kept, trained

JOB, MODEL = "job.json", "model.pt"
CONTESTANTS = {
    "ours": "benchmarks.peers.ours:Ours",
    "nanogpt": "benchmarks.peers.nanogpt:NanoGPT",
    "nanochat": "benchmarks.peers.nanochat:NanoChat",
    "hugging_face": "benchmarks.peers.hugging_face:HuggingFace",
    "litgpt": "benchmarks.peers.litgpt:LitGPT",
    "counts": "benchmarks.peers.counts:Counts",
}


@dataclass(frozen=True)
class Job:
    """A training of one contestant.

    Attributes:
        folder: what it saves.
        kind: a key of `CONTESTANTS`.
        train: the training text, a file.
        heldout: text that a contestant may choose mixtures on, a file.
        steps: of the optimizer.
        options: of the recipe.
    """

    folder: str
    kind: str
    train: str
    heldout: str
    steps: int
    seed: int
    threads: int
    options: dict[str, Any]

    def write(self) -> None:
        Path(self.folder).mkdir(parents=True, exist_ok=True)
        Path(self.folder, JOB).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: str) -> Job:
        return cls(**json.loads(Path(folder, JOB).read_text(encoding="utf-8")))

    @property
    def training_text(self) -> str:
        return Path(self.train).read_bytes().decode()  # with its line ends


@dataclass(frozen=True)
class Reader:
    """A trained contestant.

    Attributes:
        logits: (B, T) ids -> (B, T, V) logits, or log-probabilities, of the token after each.
        block_size: T at most.
    """

    vocabulary: Vocabulary
    block_size: int
    logits: Callable[[Tensor], Tensor]


class Contestant(ABC):
    """Trains in a process of its own, whose CPU time is counted, and is read in another one."""

    @abstractmethod
    def train(self, job: Job) -> None:
        """All from the text to files in the job's folder."""

    @abstractmethod
    def reader(self, job: Job) -> Reader:
        """What `train` has saved."""


class Recipe(Contestant):
    """A model of PyTorch, a vocabulary of its own, and one way to train."""

    @abstractmethod
    def build(self, options: dict[str, Any], vocab_size: int) -> nn.Module:
        """The untrained model: (B, T) ids -> (B, T, V) logits."""

    @abstractmethod
    def fit(self, model: nn.Module, ids: Tensor, job: Job) -> None:
        """Train on a text (N,)."""

    def train(self, job: Job) -> None:
        torch.manual_seed(job.seed)
        text = job.training_text
        vocabulary = trained(job.options["vocabulary"], text, Path(job.folder))
        model = self.build(job.options, vocabulary.size)
        self.fit(model, vocabulary.encode(text).ids, job)
        torch.save(model.state_dict(), Path(job.folder, MODEL))

    def reader(self, job: Job) -> Reader:
        vocabulary = kept(job.options["vocabulary"], Path(job.folder))
        model = self.build(job.options, vocabulary.size)
        model.load_state_dict(torch.load(Path(job.folder, MODEL), weights_only=True))
        return Reader(vocabulary, job.options["block_size"], model.eval())


def contestant(kind: str) -> Contestant:
    """The contestant of this kind; only its own libraries are imported."""
    module, _, name = CONTESTANTS[kind].partition(":")
    found: Contestant = getattr(import_module(module), name)()
    return found
