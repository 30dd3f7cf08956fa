"""Does a memory of a text help that is newer than the model? `python -m experiments.newer [--quick] [--train PATH ...]`

A pretrained model stays as it is, and each document is read once. Splits decide which documents are stored, which ones
the weights and temperatures are chosen on, and which are scored: of this project's docs and source at a commit, of
TRAIN, or of TRAIN, HELDOUT and TEST. What the model made of a document, what is near to its states, and the results of
each arm are kept, and an interrupted run goes on from there. Writes a section of docs/memory.md and
docs/results/memory_smollm2.jsonl (with `--quick` into the folder of the results).
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch

import argparse
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from experiments import baselines, entry, newer_page, own_texts, plans, store
from experiments.arguments import ROOT, add_seeds, add_texts, called, command_of
from experiments.newer_arms import ALONE, MIXTURES
from experiments.newer_experiment import RULES, Experiment, Plan
from experiments.newer_texts import Choice
from lightning_app.errors import InputError


def quick(plan: Plan) -> Plan:
    """In small, to see that it runs."""
    small = replace(plan.choice, tokens=8000, most=6000)
    return replace(plan, choice=small, seeds=plan.seeds[:1], rates=plan.rates[1:2])


def run(plan: Plan, folder: Path, *, quick: bool = False) -> None:
    """Every arm and seed that is not done yet."""
    with store.counted(folder):
        experiment = Experiment(plan, folder)
        first = experiment.texts.splits(plan.seeds[0])[0]
        for part, numbers in asdict(first).items():
            own_texts.write(folder / "texts" / part, [experiment.texts.documents[i] for i in numbers])
        entry.keep(folder, 0, entry.context_gain(experiment.scores()))
    if not entry.proceed(folder, plan.rules, quick=quick):
        return
    with store.counted(folder):
        (folder / newer_page.TEXTS).write_text(json.dumps(experiment.told()), encoding="utf-8")
    for seed in plan.seeds:
        _do(folder, seed, (*MIXTURES, ALONE), experiment.mixtures)
        if importlib.util.find_spec("pyppmd"):
            _do(folder, seed, (baselines.PPMD,), experiment.ppmd)
    for seed in plan.seeds[: plan.dynamic_seeds]:
        _do(folder, seed, (baselines.DYNAMIC,), experiment.dynamic)


def _do(folder: Path, seed: int, arms: Sequence[str], make: Callable[[int], dict[str, dict[str, Any]]]) -> None:
    """What of these is not there yet."""
    done = {(record["arm"], record["seed"]) for record in store.records(folder)}
    missing = [arm for arm in arms if (arm, seed) not in done]
    if not missing:
        return
    with store.counted(folder):
        found = make(seed)
    for arm in missing:
        store.append(folder, {"arm": arm, "seed": seed, **found[arm]})
    print(f"{', '.join(missing)}, seed {seed}: done", flush=True)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.newer", description=__doc__)
    add_texts(parser, default="this project's docs and source")
    add_seeds(parser, RULES.seeds)
    parser.add_argument("--quick", action="store_true", help="in small: one seed, few tokens")
    parser.add_argument("--workers", help="of the other part of `make experiment-memory`; here one process does all")
    parser.add_argument("--commit", default=own_texts.COMMIT, help="whose docs and source are read without texts")
    parser.add_argument("--tokens", type=int, default=Choice.tokens, help="of all documents together, at most")
    parser.add_argument("--model", default="models/smollm2", help="a directory of Hugging Face's")
    parser.add_argument("--work", default=str(ROOT / "runs" / "experiment_newer"), help="where results are kept")
    parser.add_argument("--out", default=None, help="folder of the page; docs, or with --quick WORK")
    plans.add_allowance(parser)
    plans.add_go_on(parser)
    options = parser.parse_args(words)
    if not Path(options.model).is_dir():
        print(f"{options.model} is missing, so the part on a pretrained model is left out: `make smollm2` brings it")
        return
    if options.train is None and (options.heldout, options.test) != (None, None):
        raise InputError("--heldout and --test need --train (make: TRAIN): the text to store")
    torch.set_num_threads(1)
    choice = Choice(options.train, options.heldout, options.test, options.commit, options.tokens)
    plan = Plan(options.model, choice, seeds=tuple(options.seeds or RULES.seeds))
    plan = quick(plan) if options.quick else plan
    folder = Path(options.work) / plan.fingerprint
    plans.begin_as(options, folder, plan.rules)
    run(plan, folder, quick=options.quick)
    out = Path(options.out) if options.out else (folder if options.quick else ROOT / "docs")
    print(newer_page.write(folder, plan.rules, out, command=command_of("experiment-memory", options)))


if __name__ == "__main__":
    called(main)
