"""Does a model answer questions about texts that it has only in its memory? `make experiment-facts [SEED=0]`

Invented facts in documents of prose, each with a question in other words. A pretrained model is asked: without a
memory, with each reader that needs no training, and with the text before the question, as it is given and as a search
finds it. Then half of the documents are deleted and the others changed, by `main.py memory`. What an arm has to choose
is chosen on facts of another seed, among as many settings for each. Results are kept setting by setting and arm by arm,
and an interrupted run goes on from there. Writes the last section of docs/facts.md, and docs/results/facts.jsonl.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from experiments import facts_page, plans, store
from experiments.arguments import called
from experiments.facts_arms import ARMS, SINGLE, Answer, Setting, mixed_settings
from experiments.facts_asked import exact
from experiments.facts_library import Library
from experiments.facts_world import Article, Fact, World, world

ROOT = Path(__file__).parent.parent
RULES = plans.read("facts")
MIXTURE = "n-grams + cache + knn"
EDITED = {"knn": "KNNReader", "prompt": "PromptReader"}  # arms whose memories are edited
TRIAL, ANSWERS = "trial", "answers"


@dataclass(frozen=True)
class Plan:
    """All that decides the results.

    Attributes:
        model: a directory of Hugging Face's.
        seed: of the invented facts.
        documents: half of them are deleted, and half changed.
        asked: facts of each document that are asked for.
        tuned: facts of the other seed on which each setting is tried.
    """

    model: str
    seed: int
    documents: int = 40
    asked: int = 5
    tuned: int = 20
    trials: int = 9
    rules: plans.Rules = RULES

    @property
    def other_seed(self) -> int:
        return self.seed + 1000

    @property
    def fingerprint(self) -> str:
        return plans.fingerprint(self)


def quick(plan: Plan) -> Plan:
    """In small."""
    return replace(plan, documents=4, asked=1, tuned=2, trials=2)


class Experiment:
    """The two worlds, and what is kept of them."""

    def __init__(self, plan: Plan, folder: Path):
        self.plan, self.folder = plan, folder
        self.world = world(plan.seed, documents=plan.documents)
        self.other = world(plan.other_seed, documents=plan.documents)

    def library(self, name: str, made: World) -> Library:
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return Library(self.plan.model, folder, made.articles)

    @cached_property
    def tuning(self) -> Library:
        return self.library("tuning", self.other)

    @cached_property
    def told(self) -> Library:
        return self.library("told", self.world)

    def records(self, kind: str) -> list[store.Record]:
        return [record for record in store.records(self.folder) if record["kind"] == kind]

    def once(self, kind: str, key: dict[str, Any], work: Callable[[], dict[str, Any]]) -> store.Record:
        """A record that has these values, or what the work gives."""
        for record in self.records(kind):
            if all(record.get(name) == value for name, value in key.items()):
                return record
        with store.counted(self.folder):
            made = {"kind": kind, **key, **work()}
        store.append(self.folder, made)
        print(f"{kind}: {json.dumps(key)}, {made['right']} of {made['asked']}", flush=True)
        return made

    # Settings, on facts of another seed

    def settings(self, arm: str) -> Sequence[Setting]:
        if arm == MIXTURE:
            return mixed_settings({name: self.chosen(name) for name in SINGLE})[: self.plan.trials]
        return ARMS[arm].settings[: self.plan.trials]

    def chosen(self, arm: str) -> Setting:
        """The one with most exact answers, the first of equal ones; an empty one where there is nothing to choose."""
        settings = self.settings(arm)
        if not settings:
            return {}
        tried = [
            self.once(TRIAL, {"arm": arm, "setting": dict(one)}, lambda one=one: self._try(arm, one))
            for one in settings
        ]
        return max(tried, key=lambda record: record["right"])["setting"]

    def _try(self, arm: str, setting: Setting) -> dict[str, Any]:
        answer = ARMS[arm].make(self.tuning, setting)
        facts = _spread(self.tuning.articles, self.plan.tuned)
        right = sum(exact(answer(article, fact).text, fact.answer) for article, fact in facts)
        return {"right": right, "asked": len(facts)}

    # Answers

    def ask(self, arm: str, stage: str, library: Library, articles: Sequence[Article]) -> None:
        """All facts of these documents; `document` says whether the right one was named."""
        setting = self.chosen(arm)

        def work() -> dict[str, Any]:
            answer = ARMS[arm].make(library, setting)
            said = [
                self._said(answer, article, fact) for article in articles for fact in article.facts[: self.plan.asked]
            ]
            return {
                "setting": dict(setting),
                "right": sum(one["right"] for one in said),
                "asked": len(said),
                "said": said,
            }

        self.once(ANSWERS, {"arm": arm, "stage": stage}, work)

    def _said(self, answer: Answer, article: Article, fact: Fact) -> dict[str, Any]:
        said = answer(article, fact)
        return {
            "document": article.name,
            "relation": fact.relation,
            "question": fact.question,
            "answer": fact.answer,
            "said": said.text,
            "right": exact(said.text, fact.answer),
            "named": said.document,
            "seconds": round(said.seconds, 3),
        }

    @property
    def half(self) -> int:
        return self.plan.documents // 2

    def edit(self) -> None:
        """Half of the documents are deleted, then the others changed: in the memories of both arms."""
        parts, articles = list(EDITED.values()), self.world.articles
        if self._done("changed"):
            return
        with store.counted(self.folder):
            names = [article.name for article in articles[: self.half]]
            deleted = self.told.without(names, parts, "deleted")
        for arm in EDITED:
            self.ask(arm, "deleted", deleted, articles)
        with store.counted(self.folder):
            changed = deleted.changed(self.world.changed[self.half :], parts, "changed")
        deleted.drop()
        for arm in EDITED:
            self.ask(arm, "changed", changed, self.world.changed[self.half :])
        changed.drop()

    def _done(self, stage: str) -> bool:
        return {record["arm"] for record in self.records(ANSWERS) if record["stage"] == stage} == {*EDITED}


def _spread(articles: Sequence[Article], n: int) -> list[tuple[Article, Fact]]:
    """So many facts, of as many documents as there are."""
    facts = [(article, fact) for i in range(5) for article in articles for fact in article.facts[i : i + 1]]
    return facts[:n]


def run(plan: Plan, folder: Path) -> None:
    """Every arm that is not done yet."""
    experiment = Experiment(plan, folder)
    for arm in ARMS:
        experiment.ask(arm, "told", experiment.told, experiment.world.articles)
    experiment.tuning.drop()
    experiment.edit()
    experiment.told.drop()


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.facts", description=__doc__)
    parser.add_argument("--seed", type=int, default=RULES.seeds[0], help="of the invented facts")
    parser.add_argument("--model", default="models/smollm2", help="a directory of Hugging Face's")
    parser.add_argument("--quick", action="store_true", help="in small: few facts and settings")
    parser.add_argument("--work", default=str(ROOT / "runs" / "experiment_facts"), help="where results are kept")
    parser.add_argument("--out", default=None, help="folder of the page; docs, or with --quick WORK")
    plans.add_allowance(parser)
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    plan = Plan(options.model, options.seed)
    plan = quick(plan) if options.quick else plan
    folder = Path(options.work) / plan.fingerprint
    plans.begin_as(options, folder, plan.rules)
    (folder / "plan.json").write_text(json.dumps(asdict(plan), indent=1), encoding="utf-8")
    run(plan, folder)
    out = Path(options.out) if options.out else (folder if options.quick else ROOT / "docs")
    print(facts_page.write(folder, asdict(plan), out))


if __name__ == "__main__":
    called(main)
