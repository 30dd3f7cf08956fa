"""Does ART know what is new, and do its categories mean something? `python -m experiments.novelty [--quick] ...`

Models learn three quarters of the first halves of articles. Known is the rest of these halves; new are the other halves
of the same articles, other documents of the same kind, the second domain and noise. Detectors are fitted to what was
learned. Clusters: texts of three domains, of which documents and domains are known. Writes its part of docs/art.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two workers of one thread each

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from torch import Tensor

from experiments import art_page, entry, store
from experiments.arguments import CODE, called, command_of
from experiments.auroc import Scored, auroc, pairs, wins
from experiments.chosen import NETWORK, means
from experiments.clusters import clusters
from experiments.continual import Job, begun, fit, out_of, parsed
from experiments.domains import Domains
from experiments.near import Distances, Part, distances, whole
from experiments.novelty_page import FOLDER
from experiments.runs import training_batches
from lightning_app.art.network import ART
from lightning_app.art.rules import pool
from lightning_app.data.batch import Batch
from lightning_app.data.corpus import read_documents
from lightning_app.data.token_array import TokenArray
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.data.windows import TokenWindows
from lightning_app.errors import InputError
from lightning_app.io import replacing
from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import Decoder
from lightning_app.models.losses import token_nll
from lightning_app.training.compositions import CausalLM

LENGTHS = (128, 64, 16)  # tokens of a sequence; the short ones are harder
SEQUENCES = 600  # of each text, at most
FITTED = 4000  # of the learned text


@dataclass(frozen=True)
class Looked:
    """What a model makes of N sequences.

    Attributes:
        embeddings: (N, D) mean last states.
        loss: (N,) mean nats per token.
        articles: (N,) the number of each one's article, below `n`.
    """

    embeddings: Tensor
    loss: Tensor
    articles: np.ndarray
    n: int

    def scored(self, scores: Tensor) -> Scored:
        return Scored(scores.double().numpy(), self.articles, self.n)


@torch.no_grad()
def look(model: Backbone, part: Part, *, length: int, at_most: int) -> Looked:
    """At whole windows that lie within a document, evenly spread.

    Raises:
        InputError: there are less than four.
    """
    windows = TokenWindows(part.tokens, length, respect_documents=True)
    batches = [windows.__getitems__(list(range(i, min(i + 32, len(windows))))) for i in range(0, len(windows), 32)]
    full = torch.cat([batch.attention_mask.all(-1) for batch in batches]).nonzero()[:, 0].numpy()
    if len(full) < 4:
        raise InputError(f"a text has too few documents of {length} tokens or more: give more, or longer ones")
    chosen = full[np.unique(np.linspace(0, len(full) - 1, min(at_most, len(full))).astype(int))].tolist()
    parts = [_look(model, windows.__getitems__(chosen[i : i + 32])) for i in range(0, len(chosen), 32)]
    embeddings, loss, documents = (torch.cat(column) for column in zip(*parts, strict=True))
    return Looked(embeddings, loss, part.articles[documents.numpy()], part.n)


def _look(model: Backbone, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    states = model.states(batch.input_ids)
    nats = token_nll(model.logits(states.last), batch.targets).mean(-1)
    return pool(states.last, batch.attention_mask, "mean")[0], nats, batch.document_ids[:, 0]


# Detectors

Score = Callable[[Looked], Tensor]  # (N,), higher where it is newer


def detectors(known: Looked, *, seed: int) -> dict[str, tuple[Score, str]]:
    """Score of each, and what it holds. Fitted to learned texts alone."""
    art = ART(known.embeddings.shape[1], **NETWORK)
    order = torch.randperm(len(known.loss), generator=torch.Generator().manual_seed(seed))
    for some in order.split(16):
        art.learn(known.embeddings[some])
    centres = torch.from_numpy(means(known.embeddings, len(art), seed).cluster_centers_).float()
    covariance = LedoitWolf().fit(known.embeddings.double().numpy())
    D = known.embeddings.shape[1]
    return {
        "ART": (lambda looked: -art.resonate(looked.embeddings).match, f"{len(art)} categories"),
        "k-means": (lambda looked: torch.cdist(looked.embeddings, centres).amin(-1), f"{len(centres)} centres"),
        "loss": (lambda looked: looked.loss, ""),
        "Mahalanobis distance": (
            lambda looked: torch.from_numpy(covariance.mahalanobis(looked.embeddings.double().numpy())),
            f"{D} x {D} numbers",
        ),
        "nearest state": (
            lambda looked: torch.cdist(looked.embeddings, known.embeddings).amin(-1),
            f"{len(known.loss):,} states",
        ),
    }


def detected(model: Backbone, texts: Distances, *, seed: int) -> tuple[list[store.Record], dict[str, np.ndarray]]:
    """A record for each detector, length and distance; and how often new ones win, by documents, for intervals."""
    records, won = [], {}
    for length in LENGTHS:
        learned = look(model, texts.learned, length=length, at_most=FITTED)
        known = look(model, texts.known, length=length, at_most=SEQUENCES)
        new = {name: look(model, part, length=length, at_most=SEQUENCES) for name, part in texts.new.items()}
        for name, looked in new.items():
            won[f"{length}, {name}"] = pairs(known.scored(known.loss), looked.scored(looked.loss))
        for detector, (score, holds) in detectors(learned, seed=seed).items():
            of_known = score(known)
            for name, looked in new.items():
                of_new = score(looked)
                won[f"{length}, {name}, {detector}"] = wins(known.scored(of_known), looked.scored(of_new))
                about = {"seed": seed, "length": length, "detector": detector, "new": name, "holds": holds}
                sizes = {"known": len(of_known), "of_new": len(of_new)}
                records.append({"part": FOLDER, **about, **sizes, "auroc": auroc(of_known, of_new)})
    return records, won


# Jobs


def learned_model(job: Job, tokens: TokenArray) -> Backbone:
    """Trained as the model of the first domain is, on less of it; kept."""
    path = job.folder / FOLDER / f"model-{job.seed}.pt"
    torch.manual_seed(job.seed)
    module = CausalLM(Decoder(**job.plan.decoder))
    if path.exists():
        module.backbone.load_state_dict(torch.load(path, weights_only=True))
        return module.backbone.eval()
    for _ in fit(module, training_batches(tokens, job.plan.before, job.seed), job.plan.before, store.Stopwatch()):
        pass
    with replacing(path) as file:
        torch.save(module.backbone.state_dict(), file)
    return module.backbone.eval()


def run_job(job: Job) -> None:
    """All of one seed."""
    folder = job.folder / FOLDER
    if any(record["seed"] == job.seed for record in store.records(folder)):
        return
    domains = begun(job)
    texts = distances(job.plan.train, domains.first.test, domains, job.folder)
    model = learned_model(job, texts.learned.tokens)
    records, won = detected(model, texts, seed=job.seed)
    with replacing(folder / f"wins-{job.seed}.npz") as file:
        np.savez_compressed(file, **won)
    for record in [*records, *_clusters(job, model, domains)]:
        store.append(folder, record)
    print(f"novelty, seed {job.seed}: done", flush=True)


def _clusters(job: Job, model: Backbone, domains: Domains) -> list[store.Record]:
    texts = [domains.first.test, domains.second.test]
    if job.plan.second != CODE:
        texts.append(prepare_tokens(list(read_documents(CODE)), domains.tokenizer, job.folder / "tokens"))
    looked = [look(model, whole(tokens), length=max(LENGTHS), at_most=SEQUENCES) for tokens in texts]
    embeddings = torch.cat([one.embeddings for one in looked])
    return [clusters(embeddings, [one.articles for one in looked], seed=job.seed)]


def main(words: list[str] | None = None) -> None:
    plan, folder, options = parsed(words, prog="python -m experiments.novelty", about=__doc__)
    (folder / FOLDER).mkdir(exist_ok=True)
    jobs = [Job(plan, folder, seed, "plain", "first") for seed in plan.seeds]
    measured = bool(store.records(folder, entry.GAINS))  # by experiments.continual
    if not measured or entry.proceed(folder, plan.rules, quick=options.quick):
        store.do_all(run_job, jobs, workers=options.workers, folder=folder)
    print(art_page.write(folder, asdict(plan), out_of(options, folder), command=command_of("experiment-art", options)))


if __name__ == "__main__":
    called(main)
