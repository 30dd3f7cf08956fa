"""`make speedrun`, or `python -m benchmarks.speedrun`: the runs that are not done yet, then docs/speedrun.md.

Each finished run is a line of docs/results/speedrun.jsonl, and an interrupted speedrun goes on from there.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.speedrun import page
from benchmarks.speedrun.plan import Plan
from benchmarks.speedrun.results import Results
from benchmarks.speedrun.runner import Runner
from benchmarks.speedrun.texts import ARTICLES, ROOT, Text, known_texts
from lightning_app.errors import InputError


def main(words: list[str] | None = None) -> int:
    options = _parser().parse_args(words)
    try:
        return _run(options)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    torch.set_num_threads(options.threads)
    work = Path(options.work)
    known, plan = _texts(options, work), _plan(options)
    texts = _wanted(known, options)
    trial_text = texts[0].name if options.quick else next(iter(known))
    out = Path(options.out or (tempfile.mkdtemp(prefix="speedrun-") if options.quick else ROOT / "docs"))
    results = Results(out / "results")
    names = [text.name for text in texts]
    whole = Plan.read(quick=options.quick)
    whole = replace(whole, budgets=plan.budgets, sooner=plan.sooner) if options.quick else whole

    def write_page() -> None:
        page.write(results, whole, out, threads=options.threads, text_names=_in_order(results, names))

    failed = (
        [] if options.page else Runner(plan, texts, trial_text, results, work, options.threads, write_page).run_all()
    )
    write_page()
    print(f"{out / 'speedrun.md'}: {len(failed)} of the runs failed")
    return 1 if failed else 0


def _in_order(results: Results, names: list[str]) -> list[str]:
    """These texts, and what else has results."""
    return [*names, *sorted({result.key.text for result in results} - set(names))]


def _texts(options: argparse.Namespace, work: Path) -> dict[str, Text]:
    """The user's own text, or those that are there; the first one is that of the trials.

    Raises:
        InputError: a part of it is missing.
    """
    three = [options.train, options.heldout, options.test]
    if any(three):
        if not all(three):
            raise InputError("--train, --heldout and --test belong together: give all three files, and a --name")
        return {options.name: Text.given(options.name, *three)}
    return known_texts(work, Path(options.shared))


def _wanted(known: dict[str, Text], options: argparse.Namespace) -> list[Text]:
    """Those that are asked for; where none is, all of them, but the articles beside others: they are for a quick run.

    Raises:
        InputError: a name is unknown.
    """
    quick = options.quick and ARTICLES in known
    others = [name for name in known if name != ARTICLES]
    wanted = options.texts or ([ARTICLES] if quick or not others else others)
    if unknown := [name for name in wanted if name not in known]:
        raise InputError(f"{unknown[0]} is not one of the texts: {', '.join(known)} (--shared says where to look)")
    return [known[name] for name in wanted]


def _plan(options: argparse.Namespace) -> Plan:
    plan = Plan.read(quick=options.quick)
    plan = plan.only(options.only) if options.only else plan
    if options.seeds is not None:
        plan = replace(plan, seeds=options.seeds, seeds_of_first=options.seeds)
    trials = plan.trials if options.trials is None else options.trials
    given = {"budgets": options.budgets, "sooner": []} if options.budgets else {}
    return replace(plan, trials=trials, **given)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speedrun", description=__doc__, allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="small budgets, the articles, into a temporary folder")
    parser.add_argument("--only", nargs="+", metavar="CONTESTANT", help="these contestants of plan.yaml")
    parser.add_argument("--texts", nargs="+", help="of those that are there")
    parser.add_argument("--train", help="a text of your own, with --heldout, --test and --name")
    parser.add_argument("--heldout", help="what recipes are chosen by")
    parser.add_argument("--test", help="what is scored")
    parser.add_argument("--name", default="own text")
    parser.add_argument("--shared", default="../shared/data", help="where wikitext-2 and tinyshakespeare may lie")
    parser.add_argument("--budgets", nargs="+", type=float, help="CPU seconds; the first one is that of the trials")
    parser.add_argument("--trials", type=int, help="of each contestant")
    parser.add_argument("--seeds", type=int, help="of each chosen recipe")
    parser.add_argument("--threads", type=int, default=2, help="of each run; CPU seconds are those of all of them")
    parser.add_argument("--out", help="where the page and the results are written: docs without it")
    parser.add_argument("--work", default=str(ROOT / "runs" / "speedrun"), help="where models lie")
    parser.add_argument("--page", action="store_true", help="write the page alone")
    return parser


if __name__ == "__main__":
    sys.exit(main())
