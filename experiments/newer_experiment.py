"""The documents of `experiments.newer` as the model reads them, and its arms, seed by seed.

Shapes: N tokens of all documents, Q of those asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from experiments import arguments, baselines, newer_arms, newer_experts, newer_pointer, newer_states, newer_texts, plans
from experiments.arguments import name_of
from experiments.newer_arms import ALONE, CACHE, COUNTS, MIXTURES, POINTER, Expert, Mixed, Rows
from experiments.newer_experts import Counts, Near
from experiments.newer_pointer import Start
from experiments.newer_states import Columns, Read
from experiments.newer_texts import Choice, Split
from experiments.runs import Scores
from experiments.statistics import helped_and_hurt
from lightning_app.data.compressors import ppmd_size
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.data.tokenizers import load_tokenizer
from lightning_app.memory.model import MemoryLM
from lightning_app.models.pretrained import PretrainedLM

RULES = plans.read("newer")


@dataclass(frozen=True)
class Plan:
    """All that decides the results.

    Attributes:
        model: a directory of Hugging Face's.
        seeds: of the splits.
        block, long_block: tokens that the model sees at once.
        rates: of dynamic evaluation, tried on the first `rate_blocks` windows of the documents to choose on.
        pointer: how it is taught.
        dynamic_seeds: how many of the seeds it is done for; it takes as long as all else.
    """

    model: str
    choice: Choice = Choice()  # noqa: RUF009
    rules: plans.Rules = RULES
    seeds: tuple[int, ...] = RULES.seeds
    block: int = 512
    long_block: int = 2048
    rates: tuple[float, ...] = (1e-5, 3e-5, 1e-4)
    rate_blocks: int = 6
    dynamic_seeds: int = 1
    pointer: newer_pointer.Options = newer_pointer.Options()  # noqa: RUF009

    @property
    def fingerprint(self) -> str:
        return plans.fingerprint(self, newer_states.digest_of(self.model), texts=self.choice.given)


class Experiment:
    """The documents as the model reads them, each computed when it is first needed, and the arms."""

    def __init__(self, plan: Plan, folder: Path):
        self.plan, self.folder = plan, folder
        self.tokenizer = load_tokenizer(plan.model)
        self.texts = newer_texts.chosen(plan.choice, self.tokenizer)
        self.tokens = prepare_tokens(self.texts.documents, self.tokenizer, folder / "tokens")

    @cached_property
    def backbone(self) -> PretrainedLM:
        return PretrainedLM(pretrained=self.plan.model, freeze=True).eval()

    @cached_property
    def short(self) -> Read:
        return self._read(self.plan.block)

    @cached_property
    def long(self) -> Read:
        return self._read(self.plan.long_block)

    def _read(self, block: int) -> Read:
        """Shared by all runs: `folder` is that of one plan."""
        folder = self.folder.parent / "states" / f"{newer_states.digest_of(self.plan.model)}-{block}"
        return newer_states.read(self.tokens, lambda: self.backbone, block=block, folder=folder)

    @cached_property
    def near(self) -> dict[bool, Near]:
        """With the longer context, and without."""
        storable, asked = self.texts.storable, self.texts.asked
        return {
            long: newer_experts.near(
                self.long if long else self.short,
                storable=storable,
                asked=asked,
                folder=self.folder / f"near-{long}",
            )
            for long in (False, True)
        }

    # Tokens

    @cached_property
    def n_bytes(self) -> np.ndarray:
        """(N,) of each token that is predicted."""
        return newer_texts.bytes_of(self.tokens, self.tokenizer)[self._at]

    @cached_property
    def new(self) -> np.ndarray:
        """(N,) whether it shares no run of 8 words with another document."""
        n_bytes = newer_texts.bytes_of(self.tokens, self.tokenizer)
        found = newer_texts.new_tokens(self.texts.documents, n_bytes=n_bytes, offsets=self.tokens.offsets)
        return found[self._at]

    @property
    def _at(self) -> np.ndarray:
        return self.tokens.offsets[self.short.documents.numpy()] + self.short.positions.numpy() + 1

    @cached_property
    def scored(self) -> list[int]:
        """Numbers of the documents that are scored by each seed."""
        return sorted(i for split in self.texts.splits(self.plan.seeds[0]) for i in split.scored)

    def rows(self, documents: Sequence[int]) -> Tensor:
        return torch.cat([torch.arange(len(self.short.nats))[self.short.of(i)] for i in documents])

    def _rows(self, split: Split) -> Rows:
        stored = torch.isin(self.short.documents, torch.tensor(split.stored))
        return Rows(self.rows(split.tuned), self.rows(split.scored), stored)

    def sums(self, values: np.ndarray) -> list[float]:
        """(N,) -> of each document that is scored."""
        sums = np.bincount(self.short.documents.numpy(), weights=values, minlength=len(self.texts.documents))
        return [round(float(x), 2) for x in sums[self.scored]]

    def record(self, nats: Tensor) -> dict[str, Any]:
        """Sums by document of the new tokens and of all, and how many of the new ones are helped and hurt."""
        rows = self.rows(self.scored).numpy()
        of_all, plain = np.nan_to_num(nats.numpy()), self.short.nats.numpy()
        rows = rows[self.new[rows]]
        helped, hurt = helped_and_hurt(of_all[rows], plain[rows])
        return {
            "nats": self.sums(of_all * self.new),
            "nats_of_all": self.sums(of_all),
            "helped": helped,
            "hurt": hurt,
        }

    # Experts, and the arms that are mixtures of them with the model

    def mixtures(self, seed: int) -> dict[str, dict[str, Any]]:
        """Records of all of these arms."""
        nats = {arm: torch.full_like(self.short.nats, torch.nan) for arm in (*MIXTURES, ALONE)}
        chosen: dict[str, list[Mixed]] = {arm: [] for arm in MIXTURES}
        for number, split in enumerate(self.texts.splits(seed)):
            rows = self.rows(split.scored)
            experts = {long: self.experts(split, long=long) for long in (False, True)}
            experts[False][POINTER] = self.pointer(split, experts[False][CACHE], f"{seed}-{number}", seed)
            nats[ALONE][rows] = -experts[False][COUNTS].scored.p.log()
            for arm, mixture in MIXTURES.items():
                some = [experts[mixture.long][kind] for kind in ("", *mixture.kinds)]
                mixed = newer_arms.mixed(some, gated=mixture.gated)
                nats[arm][rows] = mixed.nats
                chosen[arm].append(mixed)
            print(f"seed {seed}, split {number + 1}: done", flush=True)
        return {arm: self.record(nats[arm]) | _chosen(chosen.get(arm, [])) for arm in nats}

    def experts(self, split: Split, *, long: bool) -> dict[str, Expert]:
        """By name; the model has none."""
        read, rows = self.long if long else self.short, self._rows(split)
        counts = Counts(self.tokens, read, split.stored, self.tokenizer.vocab_size)
        return {
            "": newer_arms.of_model(read, rows),
            COUNTS: newer_arms.of_counts(counts, split.tuned, split.scored),
            **newer_arms.of_states(read, self.near[long], rows),
        }

    def pointer(self, split: Split, cache: Expert, name: str, seed: int) -> Expert:
        """Beside the cache that it begins as; what it says is kept."""

        def made(start: Start) -> Columns:
            taught = newer_pointer.taught(
                self.short, on=split.stored, chosen_on=split.tuned, start=start, options=self.plan.pointer, seed=seed
            )
            return newer_pointer.says(taught, self.short, (*split.tuned, *split.scored))

        def make(start: Start) -> Columns:
            return newer_states.kept(self.folder / POINTER / f"{name}.pt", partial(made, start))

        return newer_arms.of_pointer(self.short, cache, self._rows(split), make)

    # The other arms

    def ppmd(self, seed: int) -> dict[str, dict[str, Any]]:
        """Of whole documents, each after what is stored: it knows no tokens."""
        bits = np.zeros(len(self.texts.documents))
        texts = [document.text.encode() for document in self.texts.documents]
        for split in self.texts.splits(seed):
            stored = b"".join(texts[i] + b"\n" for i in split.stored)
            before = ppmd_size(stored)
            for i in split.scored:
                bits[i] = 8 * (ppmd_size(stored + texts[i]) - before)
        return {baselines.PPMD: {"nats_of_all": [round(float(bits[i] * np.log(2)), 2) for i in self.scored]}}

    def dynamic(self, seed: int) -> dict[str, dict[str, Any]]:
        """The model that learns what it has read of the documents to score, at the rate that is best on others."""
        nats, rates = torch.full_like(self.short.nats, torch.nan), []
        for number, split in enumerate(self.texts.splits(seed)):
            path = self.folder / "dynamic" / f"{seed}-{number}.pt"
            found = newer_states.kept(path, partial(self._adapted, split))
            nats[self.rows(split.scored)] = found["nats"]
            rates.append(float(found["rate"]))
            print(f"{baselines.DYNAMIC}, split {number + 1}: done", flush=True)
        return {baselines.DYNAMIC: self.record(nats) | {"rates": rates}}

    def _adapted(self, split: Split) -> dict[str, Tensor]:
        windows = list(newer_states.by_document(self.tokens, block=self.plan.block))
        tuned, scored = ([one for i in some for one in windows[i]] for some in (split.tuned, split.scored))
        best, *others = self.plan.rates
        if others:
            some = tuned[: self.plan.rate_blocks]
            tried = {rate: float(baselines.adapted(self.learning, some, rate).nats.mean()) for rate in self.plan.rates}
            best = min(tried, key=lambda rate: tried[rate])
        scores = baselines.adapted(self.learning, scored, best)
        return {"nats": torch.from_numpy(scores.nats), "rate": torch.tensor(best)}

    @cached_property
    def learning(self) -> MemoryLM:
        return MemoryLM(PretrainedLM(pretrained=self.plan.model), [])

    def told(self) -> dict[str, Any]:
        """For the page: the documents and their bytes, and CPU seconds of a token."""
        choice, texts = self.plan.choice, self.texts
        what = f"this project's docs and source at `{choice.commit}`" if choice.train is None else name_of(choice.train)
        if texts.shared_out:
            how = (
                f"A seed shares them out to {newer_texts.FOLDS} parts, of which 3 are stored, one is chosen on and one "
                "is scored, each of them in turn: so every document is scored once by each seed."
            )
        else:
            chosen_on, scored = arguments.told({"heldout": choice.heldout, "test": choice.test})
            how = (
                f"A seed draws four fifths of it to store, and four fifths of {chosen_on} to choose on; scored is "
                f"{scored}."
            )
        near = self.near
        asked = int((near[False].cache[:, 0] >= 0).sum())
        return {
            "model": name_of(self.plan.model),
            "what": what,
            "how": how,
            "documents": len(texts.documents),
            "tokens": sum(texts.sizes),
            "names": [texts.documents[i].name for i in self.scored],
            "bytes": self.sums(self.n_bytes * self.new),
            "bytes_of_all": self.sums(self.n_bytes),
            "seconds": [
                self.short.seconds / len(self.short.nats),
                self.long.seconds / len(self.long.nats),
                near[False].seconds / asked,
            ],
            "bytes_of_a_token": self.short.states.shape[1] * self.short.states.element_size(),
        }

    def scores(self) -> Scores:
        """Of the documents to choose on, of the first split."""
        rows = self.rows(self.texts.splits(self.plan.seeds[0])[0].tuned)
        columns = (self.short.targets, self.short.documents, self.short.positions)
        targets, documents, positions = (column[rows].numpy() for column in columns)
        return Scores(self.short.nats[rows].numpy(), targets, documents, positions, positions % self.plan.block)


def _chosen(each: Sequence[Mixed]) -> dict[str, Any]:
    """Means over the splits, and every temperature."""
    if not each:
        return {}
    return {
        "tuning_nats": float(np.mean([mixed.tuning_nats for mixed in each])),
        "weights": np.mean([mixed.weights for mixed in each], axis=0).tolist(),
        "temperatures": [mixed.temperatures for mixed in each],
    }
