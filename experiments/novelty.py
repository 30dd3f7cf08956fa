"""Does ART know what is new, and do its categories mean something? `python -m experiments.novelty [--quick] ...`

Looks at the models that have learned the first domain in experiments.continual. Novelty: texts of that domain that were
not trained on, against the second domain, source code and random bytes. Clusters: texts of three domains, of which
documents and domains are known. Writes its part of docs/art.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two workers of one thread each

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.covariance import LedoitWolf
from sklearn.metrics import normalized_mutual_info_score, roc_auc_score
from sklearn.metrics.cluster import contingency_matrix
from torch import Tensor

from experiments import art_page, entry, store
from experiments.arguments import CODE, called, command_of
from experiments.continual import Job, Plan, domains_of, learn_first, out_of, parsed, state_of
from experiments.domains import Domains
from lightning_app.art.network import ART
from lightning_app.art.rules import pool
from lightning_app.data.batch import Batch
from lightning_app.data.corpus import Document, read_documents
from lightning_app.data.token_array import TokenArray
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.data.windows import TokenWindows
from lightning_app.errors import InputError
from lightning_app.models.decoder import Decoder
from lightning_app.models.losses import token_nll

LENGTHS = (128, 16)  # tokens of a sequence; the short ones are harder
SEQUENCES = 400  # of each kind, at most
BYTES = 300_000
RECALL = 0.95
FINE = {"none": 0.97, "center": 0.8, "whiten": 0.5}  # vigilance with many categories
FOLDER = "novelty"


@dataclass(frozen=True)
class Looked:
    """What a model makes of N sequences.

    Attributes:
        embeddings: (N, D) mean last states.
        inner: (N, D) mean states of the first layer.
        loss: (N,) mean nats per token.
        documents: (N,) the number of each one's document.
    """

    embeddings: Tensor
    inner: Tensor
    loss: Tensor
    documents: Tensor

    def half(self, which: int) -> Looked:
        """The first (0) or the second of the two in which these lie one behind the other."""
        middle = len(self.loss) // 2
        at = slice(middle) if which == 0 else slice(middle, None)
        return Looked(self.embeddings[at], self.inner[at], self.loss[at], self.documents[at])


@torch.no_grad()
def look(model: Decoder, tokens: TokenArray, *, length: int, at_most: int | None) -> Looked:
    """At whole windows of a text, evenly spread.

    Raises:
        InputError: it has less than four.
    """
    windows = TokenWindows(tokens, length)
    whole = len(windows) - 1
    if whole < 4:
        raise InputError(f"a text has {tokens.n_tokens:,} tokens, too few for four sequences of {length}: give more")
    chosen = np.unique(np.linspace(0, whole - 1, min(at_most or whole, whole)).astype(int)).tolist()
    parts = [_look(model, windows.__getitems__(chosen[i : i + 32])) for i in range(0, len(chosen), 32)]
    return Looked(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _look(model: Decoder, batch: Batch) -> tuple[Tensor, ...]:
    states = model.states(batch.input_ids, layers=[0])
    nats = token_nll(model.logits(states.last), batch.targets).mean(-1)
    last, inner = (pool(some, batch.attention_mask, "mean")[0] for some in (states.last, states.layers[0]))
    return last, inner, nats, batch.document_ids[:, 0]


def learned(embeddings: Tensor, *, seed: int, **options: Any) -> ART:
    """ART that has seen embeddings once, in random order."""
    art = ART(embeddings.shape[1], **options)
    order = torch.randperm(len(embeddings), generator=torch.Generator().manual_seed(seed))
    for some in order.split(16):
        art.learn(embeddings[some])
    return art


def variants(embeddings: Tensor, *, seed: int) -> Iterator[tuple[str, ART]]:
    """Cosine ART with each normalisation, with a quantile and with a fixed vigilance."""
    for normalize, vigilance in FINE.items():
        for kind, options in (("quantile 0.05", {"vigilance_quantile": 0.05}), ("fine", {"vigilance": vigilance})):
            yield f"{normalize}, {kind}", learned(embeddings, seed=seed, normalize=normalize, **options)


# Novelty

Score = Callable[[Looked], Tensor]  # (N,), higher where it is newer


def detectors(known: Looked, *, seed: int) -> dict[str, tuple[Score, str]]:
    """Score of each, and a remark. Fitted to known texts alone."""
    found: dict[str, tuple[Score, str]] = {}
    for name, art in variants(known.embeddings, seed=seed):
        found[f"ART, {name}"] = (_mismatch(art), f"{len(art)} categories")
    first = learned(known.inner, seed=seed, vigilance=FINE["none"])
    found["ART, none, fine, first layer"] = (
        (lambda looked: -first.resonate(looked.inner).match),
        f"{len(first)} categories",
    )
    fuzzy = learned(known.embeddings, seed=seed, kind="fuzzy", normalize="center", vigilance_quantile=0.05)
    found["Fuzzy ART, center, quantile 0.05"] = _mismatch(fuzzy), f"{len(fuzzy)} categories"
    covariance = LedoitWolf().fit(known.embeddings.double().numpy())
    stored = known.embeddings
    found["loss"] = (lambda looked: looked.loss), ""
    found["Mahalanobis distance"] = (
        lambda looked: torch.from_numpy(covariance.mahalanobis(looked.embeddings.double().numpy())),
        f"{known.embeddings.shape[1]} x {known.embeddings.shape[1]} numbers",
    )
    found["nearest stored state"] = (
        lambda looked: torch.cdist(looked.embeddings, stored).amin(-1),
        f"{len(stored):,} states",
    )
    return found


def _mismatch(art: ART) -> Score:
    return lambda looked: -art.resonate(looked.embeddings).match


def auroc(known: Tensor, new: Tensor) -> float:
    """Chance that a new one has the higher score than a known one."""
    labels = np.concatenate([np.zeros(len(known)), np.ones(len(new))])
    return float(roc_auc_score(labels, torch.cat([known, new]).numpy()))


def false_alarms(known: Tensor, new: Tensor) -> float:
    """Share of the known that score as high as the `RECALL` newest of the new do."""
    threshold = np.quantile(new.double().numpy(), 1 - RECALL)
    return float((known.double().numpy() >= threshold).mean())


def kinds(plan: Plan, domains: Domains, folder: Path) -> dict[str, TokenArray]:
    """Texts that are new to a model of the first domain."""
    noise = np.random.default_rng(0).integers(0, 256, BYTES).astype(np.uint8).tobytes().decode("latin-1")

    def encoded(documents: Sequence[Document]) -> TokenArray:
        return prepare_tokens(documents, domains.tokenizer, folder / "tokens")

    code = {} if plan.second == CODE else {"source code": encoded(list(read_documents(CODE)))}
    return {
        "second domain": domains.second.train,
        **code,
        "random bytes": encoded([Document(noise, name="random bytes")]),
    }


def novelty(model: Decoder, domains: Domains, new: dict[str, TokenArray], *, seed: int) -> list[store.Record]:
    """A record for each detector and length: scored on the second half of each new text and of the known one's test
    text; `auroc_to_choose` is of the other halves."""
    results = []
    for length in LENGTHS:
        known = look(model, domains.first.train, length=length, at_most=None if length == max(LENGTHS) else 4000)
        familiar = [
            look(model, text, length=length, at_most=SEQUENCES) for text in (domains.first.val, domains.first.test)
        ]
        others = {name: look(model, tokens, length=length, at_most=2 * SEQUENCES) for name, tokens in new.items()}
        for detector, (score, remark) in detectors(known, seed=seed).items():
            to_choose, to_score = (
                (score(familiar[i]), {name: score(looked.half(i)) for name, looked in others.items()}) for i in (0, 1)
            )
            results.append(
                {
                    "part": FOLDER,
                    "seed": seed,
                    "length": length,
                    "detector": detector,
                    "remark": remark,
                    "auroc_to_choose": {name: auroc(to_choose[0], theirs) for name, theirs in to_choose[1].items()},
                    "auroc": {name: auroc(to_score[0], theirs) for name, theirs in to_score[1].items()},
                    "false_alarms": {name: false_alarms(to_score[0], theirs) for name, theirs in to_score[1].items()},
                    "sequences": len(to_score[0]),
                }
            )
    return results


# Clusters


def purity(labels: np.ndarray, clusters: np.ndarray) -> float:
    """Share of the texts whose label is the most frequent one of their cluster."""
    return float(contingency_matrix(labels, clusters).max(0).sum() / len(labels))


def clusters(model: Decoder, domains: Domains, new: dict[str, TokenArray], *, seed: int) -> list[store.Record]:
    """ART's categories of texts of three domains, and k-means with as many clusters, against what is known of them."""
    texts = [domains.first.test, *(tokens for name, tokens in new.items() if name != "random bytes")]
    looked = [look(model, tokens, length=max(LENGTHS), at_most=SEQUENCES) for tokens in texts]
    embeddings = torch.cat([one.embeddings for one in looked])
    domain = np.concatenate([np.full(len(one.loss), i) for i, one in enumerate(looked)])
    document = np.concatenate([1000 * i + one.documents.numpy() for i, one in enumerate(looked)])
    centred = (embeddings - embeddings.mean(0)).double().numpy()
    results = []
    for name, art in variants(embeddings, seed=seed):
        mine = art.ids[art.resonate(embeddings).slots].numpy()
        n = len(np.unique(mine))
        theirs = KMeans(n, n_init=3, random_state=seed).fit_predict(centred)
        results.append(
            {
                "part": "clusters",
                "seed": seed,
                "art": name,
                "clusters": n,
                **_agreement("art", mine, domain, document),
                **_agreement("kmeans", theirs, domain, document),
                "texts": len(domain),
            }
        )
    return results


def _agreement(who: str, found: np.ndarray, domain: np.ndarray, document: np.ndarray) -> dict[str, float]:
    return {
        f"{who}_{measure}_{name}": float(of(labels, found))
        for name, labels in (("domain", domain), ("document", document))
        for measure, of in (("purity", purity), ("nmi", normalized_mutual_info_score))
    }


def run_job(job: Job) -> None:
    """Both parts, of one seed."""
    if any(record["seed"] == job.seed for record in store.records(job.folder / FOLDER)):
        return
    torch.set_num_threads(1)
    domains = domains_of(job.plan, job.folder)
    model = Decoder(**job.plan.decoder)
    model.load_state_dict(torch.load(state_of(job), weights_only=True)["state"])
    model.eval()
    new = kinds(job.plan, domains, job.folder)
    found = novelty(model, domains, new, seed=job.seed) + clusters(model, domains, new, seed=job.seed)
    for record in found:
        store.append(job.folder / FOLDER, record)
    print(f"novelty, seed {job.seed}: done", flush=True)


def main(words: list[str] | None = None) -> None:
    plan, folder, options = parsed(words, prog="python -m experiments.novelty", about=__doc__)
    (folder / FOLDER).mkdir(exist_ok=True)
    jobs = [Job(plan, folder, seed, "plain", None) for seed in plan.seeds]
    store.do_all(learn_first, jobs, workers=options.workers, folder=folder)
    if entry.proceed(folder, plan.rules, quick=options.quick):
        store.do_all(run_job, jobs, workers=options.workers, folder=folder)
    print(art_page.write(folder, asdict(plan), out_of(options, folder), command=command_of("experiment-art", options)))


if __name__ == "__main__":
    called(main)
