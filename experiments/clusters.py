"""ART's categories of texts of several domains, and as many clusters of k-means, against what is known of the texts.

Shapes: N texts, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor

from experiments.chosen import NETWORK, means
from experiments.store import Record
from lightning_app.art.network import ART


def purity(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Share of the texts whose label is the most frequent one of their cluster."""
    return float(contingency_matrix(labels, clusters).max(0).sum() / len(labels))


def clusters(embeddings: Tensor, documents: Sequence[np.ndarray], *, seed: int) -> Record:
    """
    Args:
        embeddings: (N, D) of all domains, one behind the other.
        documents: of each domain the numbers of the documents of its texts.
    """
    domain = np.repeat(np.arange(len(documents)), [len(some) for some in documents])
    document = np.concatenate([1_000_000 * i + some for i, some in enumerate(documents)])
    art = ART(embeddings.shape[1], **NETWORK)
    for some in torch.randperm(len(embeddings), generator=torch.Generator().manual_seed(seed)).split(16):
        art.learn(embeddings[some])
    mine = art.resonate(embeddings).slots.numpy()
    n = len(np.unique(mine))
    theirs = means(embeddings, n, seed).labels_
    found = {"art": mine, "kmeans": theirs}
    agreement = {
        f"{who}_{measure}_{name}": float(of(labels, labelled))
        for who, labelled in found.items()
        for name, labels in (("domain", domain), ("document", document))
        for measure, of in (("purity", purity), ("nmi", normalized_mutual_info_score))
    }
    return {"part": "clusters", "seed": seed, "clusters": n, **agreement, "texts": len(domain)}
