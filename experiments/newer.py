"""Does a memory of a text help that is newer than the model? `python -m experiments.newer [--commit COMMIT]`

A datastore of two thirds of this project's docs and source at a commit, for a pretrained model that has not seen them;
the last third is scored, without the tokens that share a run of 8 words with the other two. Beside it: nothing, a
longer context, and caches. Weights and temperatures are chosen on files set aside within the two thirds, for all arms
among as many. Each arm's results are kept once it is done, and an interrupted run goes on from there. Prints a table.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments import baselines, newer_arms, newer_page, newer_texts, plans, store
from experiments.arguments import called
from experiments.newer_states import Read, read_once, windows_of
from lightning_app.data.token_array import TokenArray
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.data.tokenizers import load_tokenizer
from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers.distribution import DistributionReader
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.peers import token_ids

ROOT = Path(__file__).parent.parent
COMMIT = "5c06773"  # whose files are read: the figures of docs/models.md are of this one
COUNTS, ALONE = "n-grams", "n-grams alone"
MIXTURES = (  # of the model with these
    (COUNTS,),
    (COUNTS, "cache"),
    ("cache",),
    ("cache of all texts",),
    ("memory",),
    ("memory", "cache"),
    ("memory", COUNTS, "cache"),
)
RULES = plans.read("newer")
Result = tuple[Tensor, dict[str, Any]]  # (N,) nats of the scored text, and what else is known of an arm


@dataclass(frozen=True)
class Plan:
    """All that decides the results.

    Attributes:
        model: a directory of Hugging Face's.
        block: tokens that the model sees at once.
        long_block: the same, of the arm with a longer context.
    """

    model: str
    choice: newer_texts.Choice
    rules: plans.Rules = RULES
    block: int = 512
    long_block: int = 2048

    @property
    def fingerprint(self) -> str:
        return plans.fingerprint(self)


@dataclass(frozen=True)
class Expert:
    """A cache, a datastore, or counts.

    Attributes:
        p_tuned, p_scored: (N,) its probability of each token of these files; the model's own where it found nothing.
        temperature, lam: chosen on the first of these; counts have no temperature.
        seconds: CPU time to look up the second.
    """

    p_tuned: Tensor
    p_scored: Tensor
    temperature: float | None
    lam: float
    seconds: float


class Experiment:
    """The texts as the model reads them, each computed when it is first needed, and the arms."""

    def __init__(self, plan: Plan, folder: Path):
        self.plan, self.folder = plan, folder
        self._experts: dict[str, Expert] = {}
        self.tokenizer = load_tokenizer(plan.model)
        self.documents = newer_texts.parts(plan.choice, self.tokenizer)
        for name, documents in self.documents.items():
            newer_texts.write(folder / "texts" / name, documents)

    @cached_property
    def backbone(self) -> PretrainedLM:
        return PretrainedLM(pretrained=self.plan.model, freeze=True).eval()

    def tokens(self, part: str) -> TokenArray:
        return prepare_tokens(self.documents[part], self.tokenizer, self.folder / "tokens")

    def read(self, part: str, name: str = "", **options: Any) -> Read:
        """A part, its documents one by one as `memory build` reads them, or in one as `validate` does."""
        path = self.folder / f"{name or part}.pt"
        given = {"block": self.plan.block, "by_document": part != "scored", **options}
        return read_once(path, lambda: self.backbone, self.tokens(part), **given)

    @cached_property
    def built(self) -> Read:
        return self.read("built")

    @cached_property
    def tuned(self) -> Read:
        return self.read("tuned")

    @cached_property
    def scored(self) -> Read:
        return self.read("scored")

    @cached_property
    def n_bytes(self) -> np.ndarray:
        """Bytes of all tokens of the scored text."""
        return newer_texts.bytes_of(self.tokens("scored"), self.tokenizer)

    @cached_property
    def new(self) -> np.ndarray:
        """Bool of all tokens of the scored text: what shares no run of 8 words with the other parts."""
        known, offsets = self.documents["built"] + self.documents["tuned"], self.tokens("scored").offsets
        return newer_texts.new_tokens(self.documents["scored"], known, n_bytes=self.n_bytes, offsets=offsets)

    def entries(self, *texts: Read) -> int:
        return sum(len(text.nats) for text in texts)

    # Experts, and the arms that are mixtures of them with the model

    def reader(self, kind: str, texts: Sequence[Read]) -> DistributionReader:
        """`memory`, `cache` or `cache of all texts`: of these texts or as large as they are."""
        if kind == "memory":
            return newer_arms.datastore(texts, self.backbone.vocab_size)
        before = [] if kind == "cache" else texts
        size, width = self.entries(*texts), texts[0].width
        return newer_arms.cache(size, self.backbone.vocab_size, before=before, width=width)

    def expert(self, kind: str) -> Expert:
        if kind not in self._experts:
            self._experts[kind] = self._counts() if kind == COUNTS else self._tuned_expert(kind)
        return self._experts[kind]

    def _tuned_expert(self, kind: str) -> Expert:
        """Its temperature chosen on the tuning files with what was built without them, then with all."""
        small = self.reader(kind, [self.built])
        temperatures = newer_arms.temperatures_of(small, self.tuned)
        looked = newer_arms.look(small, self.tuned, temperatures)
        best = newer_arms.chosen(looked, self.tuned)
        whole = self.reader(kind, [self.built, self.tuned])
        temperature = temperatures[best.number]
        found = newer_arms.look(whole, self.scored, [temperature])
        return Expert(looked.p[:, best.number], found.p[:, 0], temperature, best.lam, found.seconds)

    def _counts(self) -> Expert:
        """Of what was built for the tuning files, and of both for the text to score."""
        built, tuned, scored = (token_ids(self.tokens(part)) for part in ("built", "tuned", "scored"))
        vocab_size, start = self.backbone.vocab_size, time.process_time()
        p_tuned = newer_arms.p_of_counts(built, tuned, self.tuned, self.tokens("tuned"), vocab_size)
        middle = time.process_time()
        p_scored = newer_arms.p_of_counts(
            torch.cat([built, tuned]), scored, self.scored, self.tokens("scored"), vocab_size
        )
        lam = float(newer_arms.weights_of([self.tuned.p, p_tuned])[1])
        print(f"{COUNTS}: {middle - start:.0f} CPU s to choose their weight", flush=True)
        return Expert(p_tuned, p_scored, None, lam, time.process_time() - middle)

    def alone(self) -> Result:
        found = self.expert(COUNTS)
        return -found.p_scored.log(), {"seconds": found.seconds, "seconds_before": 0.0}

    def dynamic(self) -> Result:
        """The model that learns what it has read, as fast as is best on the tuning files."""
        model = MemoryLM(PretrainedLM(pretrained=self.plan.model), [])
        tuning, scored = (
            windows_of(self.tokens(part), block=self.plan.block, by_document=part != "scored")
            for part in ("tuned", "scored")
        )
        record, scores = baselines.dynamic(model, tuning, scored)
        seconds = record["seconds_per_token"] * len(scores.nats)
        return torch.from_numpy(scores.nats), {"seconds": seconds, "lr": record["lr"]}

    def plain(self) -> Result:
        return self.scored.nats, {"seconds": float(self.scored.seconds)}

    def long(self) -> Result:
        text = self.read("scored", "long", block=self.plan.long_block, keep_states=False)
        return text.nats, {"seconds": float(text.seconds)}

    def mixed(self, *kinds: str) -> Result:
        """The model with some experts; a single one's weight is that of its grid."""
        experts = [self.expert(kind) for kind in kinds]
        weights = torch.tensor([1 - experts[0].lam, experts[0].lam], dtype=torch.float64)
        if len(experts) > 1:
            weights = newer_arms.weights_of([self.tuned.p, *(one.p_tuned for one in experts)])
        p = torch.stack([self.scored.p, *(one.p_scored for one in experts)], dim=1) @ weights
        return -p.log(), {
            "seconds": float(self.scored.seconds) + sum(one.seconds for one in experts),
            "seconds_before": float(self.built.seconds + self.tuned.seconds) if {*kinds} - {"cache", COUNTS} else 0.0,
            "entries": self.entries(self.built, self.tuned),
            "weights": weights.tolist(),
            "temperatures": [one.temperature for one in experts],
        }

    def arms(self) -> dict[str, Callable[[], Result]]:
        mixtures = {" + ".join(kinds): partial(self.mixed, *kinds) for kinds in MIXTURES}
        lengths = (self.plan.block, self.plan.long_block)
        names = [f"{length:,} tokens of context" for length in lengths]
        return {
            names[0]: self.plain,
            ALONE: self.alone,
            baselines.DYNAMIC: self.dynamic,
            **mixtures,
            names[1]: self.long,
        }


def run(plan: Plan, folder: Path) -> str:
    """Every arm that is not done yet -> the table of all."""
    experiment, done = Experiment(plan, folder), {record["arm"] for record in store.records(folder)}
    for number, (name, arm) in enumerate(experiment.arms().items()):
        if name not in done:
            with store.counted(folder):
                nats, record = arm()
            np.save(folder / f"{number}.npy", nats.numpy())
            store.append(folder, {"arm": name, "number": number, **record})
            print(f"{name}: done", flush=True)
    text = experiment.scored
    documents = text.documents.numpy()
    at = experiment.tokens("scored").offsets[documents] + text.positions.numpy() + 1  # of what is predicted
    return newer_page.table(folder, documents, experiment.n_bytes[at], experiment.new[at])


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.newer", description=__doc__)
    parser.add_argument("--commit", default=COMMIT, help="whose files are read")
    parser.add_argument("--tokens", type=int, default=newer_texts.Choice.tokens, help="of all files together, at most")
    parser.add_argument("--model", default="models/smollm2", help="a directory of Hugging Face's")
    parser.add_argument("--work", default=str(ROOT / "runs" / "experiment_newer"), help="where results are kept")
    plans.add_allowance(parser)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    plan = Plan(options.model, newer_texts.Choice(options.commit, options.tokens))
    folder = Path(options.work) / plan.fingerprint
    plans.begin(folder, plan.rules, quick=False, allow_uncommitted=options.allow_uncommitted)
    print(run(plan, folder))
    print(plans.told(folder, plan.rules, [record["arm"] for record in store.records(folder)]))


if __name__ == "__main__":
    called(main)
