"""Kneser-Ney's counts of the training text: no training, and nothing adapts."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.peers.contestant import MODEL, Contestant, Job, Reader
from benchmarks.peers.vocabulary import kept, trained
from lightning_app.models.ngrams import UNKNOWN, NGramCounts

BLOCK = 512  # a window: what is read at once


class Counts(Contestant):
    def train(self, job: Job) -> None:
        text = job.training_text
        vocabulary = trained(job.options["vocabulary"], text, Path(job.folder))
        ids = vocabulary.encode(text).ids
        NGramCounts.of(ids, order=job.options["order"], vocab_size=vocabulary.size)
        torch.save(ids, Path(job.folder, MODEL))  # as a checkpoint of NGramReader keeps the text: counts are made of it

    def reader(self, job: Job) -> Reader:
        vocabulary = kept(job.options["vocabulary"], Path(job.folder))
        ids = torch.load(Path(job.folder, MODEL), weights_only=True)
        before = job.options["order"] - 1
        counts = NGramCounts.of(ids, order=job.options["order"], vocab_size=vocabulary.size)

        def log_p(rows: Tensor) -> Tensor:
            contexts = F.pad(rows, (before - 1, 0), value=UNKNOWN).unfold(1, before, 1)  # (B, T, n - 1)
            return counts.distribution(contexts.flatten(0, 1)).log().unflatten(0, rows.shape)

        return Reader(vocabulary, BLOCK, log_p)
