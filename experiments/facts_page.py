"""The last section of docs/facts.md, from the results of `experiments.facts`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments import plans, sections, store
from experiments.facts_asked import EXACT
from experiments.statistics import Interval, by_document, change, difference

SECTION = "## What came out"  # the last one of its page
WHOLE, NOTHING = "document in the prompt", "no memory"
EXAMPLES = 6  # questions that are shown with their answers
TARGET, NAMED = 60, 90  # per cent: of what the whole document reaches; of the right answers that name their document
Said = dict[str, Any]


def write(folder: Path, plan: dict[str, Any], out: Path) -> str:
    """The section, which is also printed; what stands before it on the page stays."""
    answers = [record for record in store.records(folder) if record["kind"] == "answers"]
    told = {record["arm"]: record for record in answers if record["stage"] == "told"}
    rules = plans.Rules(**plan["rules"])
    parts = [
        SECTION,
        _setting(plan),
        _arms(told),
        _targets(told),
        _edits(answers),
        _relations(told),
        _examples(told),
        _choices(folder),
        plans.told(folder, rules, list(told)),
    ]
    page = "\n\n".join(parts) + "\n"
    sections.put(out / "facts.md", SECTION, page)
    keep(folder, plan, out / "results")
    return page


def keep(folder: Path, plan: dict[str, Any], out: Path) -> None:
    """The figures without the texts, in facts.jsonl: the plan, its runs, the trials, and each answer as 0 or 1."""
    out.mkdir(parents=True, exist_ok=True)
    lines = [{"plan": plan}, *store.records(folder, plans.RUNS), *map(_figures, store.records(folder))]
    store.write(out, lines, "facts.jsonl")


def _figures(record: store.Record) -> store.Record:
    if "said" not in record:
        return record
    said = record["said"]
    exact = [int(one["right"]) for one in said]
    return {**record, "said": exact, "named": [int(one["named"] == one["document"]) for one in said]}


def _setting(plan: dict[str, Any]) -> str:
    n = plan["documents"]
    return (
        f"Written by `make experiment-facts` at commit {plans.commit()}. {n * plan['asked']} facts of {n} documents "
        f"(seed {plan['seed']}), a {Path(plan['model']).name} that learns nothing. What an arm has to choose is chosen "
        f"on {plan['tuned']} facts of other documents (seed {plan['seed'] + 1000}). {EXACT}"
    )


def _of_documents(said: Sequence[Said], values: Sequence[float]) -> np.ndarray:
    """(1, D) sums of the answers' values, document by document."""
    names = [one["document"] for one in said]
    return by_document(np.array(values, dtype=float), np.unique(names, return_inverse=True)[1])[None]


def _right(record: store.Record) -> np.ndarray:
    return _of_documents(record["said"], [one["right"] for one in record["said"]])


def share(record: store.Record) -> str:
    """Per cent of exact answers, with an interval over documents."""
    right, asked = _right(record), _of_documents(record["said"], [1.0] * record["asked"])
    found = difference(100 * right / asked, 0 * right)
    return f"{found.mean:.1f} [{found.low:.1f}, {found.high:.1f}]"


def named(said: Sequence[Said], *, right: bool) -> str:
    """Per cent of the answers (of the exact ones alone) that name their document; nothing where none names any."""
    some = [one for one in said if one["right"] or not right]
    if not any(one["named"] for one in said):
        return ""
    return f"{100 * np.mean([one['named'] == one['document'] for one in some]):.0f}" if some else "none is exact"


def of_whole(record: store.Record, whole: store.Record) -> Interval | None:
    """Exact answers, per cent of those of the document in the prompt; None where that has none."""
    if not whole["right"]:
        return None
    found = change(_right(record), _right(whole))
    return Interval(found.mean + 100, found.low + 100, found.high + 100, found.seeds)


def _arms(told: dict[str, store.Record]) -> str:
    head = [
        "| arm | exact, % [95 %] | per cent of the document in the prompt [95 %] | names its document, % of exact ones "
        "| of all answers | CPU s per answer |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rows = [_row(arm, record, told.get(WHOLE)) for arm, record in told.items()]
    note = (
        "Intervals: bootstrap over documents; one seed. n-grams name none. `word overlap` is BM25 with the same "
        "passages to choose from as `prompt`. CPU seconds with the search, without what fills the memory."
    )
    return "\n".join(["### Arms", "", *head, *rows, "", note])


def _row(arm: str, record: store.Record, whole: store.Record | None) -> str:
    found = None if whole is None else of_whole(record, whole)
    ratio = "" if found is None or arm == WHOLE else f"{found.mean:.0f} [{found.low:.0f}, {found.high:.0f}]"
    said = record["said"]
    seconds = np.mean([one["seconds"] for one in said])
    cells = [arm, share(record), ratio, named(said, right=True), named(said, right=False), f"{seconds:.1f}"]
    return f"| {' | '.join(cells)} |"


def _targets(told: dict[str, store.Record]) -> str:
    """Whether a memory reaches what was aimed at."""
    rows = []
    for arm, record in told.items():
        if arm in (NOTHING, WHOLE) or WHOLE not in told:
            continue
        found, sources = of_whole(record, told[WHOLE]), _named_share(record)
        met = (
            "undecided"
            if found is None
            else "yes"
            if found.low >= TARGET
            else "no"
            if found.high < TARGET
            else "undecided"
        )
        rows.append(f"| {arm} | {met} | {'' if sources is None else 'yes' if sources >= NAMED else 'no'} |")
    head = [
        f"| arm | {TARGET} % of the document in the prompt | {NAMED} % of its exact answers name the right document |",
        "| --- | --- | --- |",
    ]
    return "\n".join(["### Targets", "", *head, *rows])


def _named_share(record: store.Record) -> float | None:
    some = [one for one in record["said"] if one["right"]]
    if not some or not any(one["named"] for one in record["said"]):
        return None
    return float(100 * np.mean([one["named"] == one["document"] for one in some]))


def _edits(answers: Sequence[store.Record]) -> str:
    """What became of the answers when documents were deleted and changed."""
    by = {(record["arm"], record["stage"]): record for record in answers}
    rows = []
    for arm in dict.fromkeys(arm for arm, stage in by if stage == "changed"):
        told, deleted, changed = (by[arm, stage]["said"] for stage in ("told", "deleted", "changed"))
        kept = {one["document"] for one in changed}
        cells = [
            _count(one for one in told if one["document"] not in kept),
            _count(one for one in deleted if one["document"] not in kept),
            _count(one for one in told if one["document"] in kept),
            _count(one for one in deleted if one["document"] in kept),
            _count(changed),
        ]
        rows.append(f"| {arm} | {' | '.join(cells)} |")
    if not rows:
        return "### Deleted and changed\n\nNot run."
    head = [
        "| arm | deleted: exact before | after | the others: before | after | changed: the new answer |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    note = (
        "Half of the documents are deleted by `main.py memory delete`; the other half is then deleted, and added with "
        "other answers, by `memory add`. A deleted fact that is still answered is a guess, such as a colour."
    )
    return "\n".join(["### Deleted and changed", "", *head, *rows, "", note])


def _count(said: Any) -> str:
    rights = [one["right"] for one in said]
    return f"{sum(rights)} of {len(rights)}"


def _relations(told: dict[str, store.Record]) -> str:
    """Where the model reads what it is given, and where it does not."""
    arms = [arm for arm in (WHOLE, "prompt", "knn") if arm in told]
    relations = sorted({one["relation"] for arm in arms for one in told[arm]["said"]})
    rows = []
    for relation in relations:
        own = [[one for one in told[arm]["said"] if one["relation"] == relation] for arm in arms]
        rows.append(f"| {relation} | {' | '.join(map(_count, own))} |")
    head = [f"| asked for | {' | '.join(arms)} |", "| --- |" + " --- |" * len(arms)]
    return "\n".join(["### By what was asked", "", *head, *rows])


def _examples(told: dict[str, store.Record]) -> str:
    """What some arms say to the first question of some documents."""
    arms = [arm for arm in (NOTHING, "knn", "prompt", WHOLE) if arm in told]
    first = {one["document"]: i for i, one in reversed([*enumerate(told[arms[0]]["said"])])}
    rows = []
    for i in sorted(first.values())[:EXAMPLES]:
        own = [told[arm]["said"][i] for arm in arms]
        cells = [own[0]["question"], own[0]["answer"], *(one["said"] for one in own)]
        rows.append(f"| {' | '.join(' '.join(cell.replace('|', ' ').split()) for cell in cells)} |")
    head = [f"| question | answer | {' | '.join(arms)} |", "| --- | --- |" + " --- |" * len(arms)]
    return "\n".join(["### The first questions", "", *head, *rows])


def _choices(folder: Path) -> str:
    """The trials of all arms."""
    trials = [record for record in store.records(folder) if record["kind"] == "trial"]
    rows = []
    for arm in dict.fromkeys(record["arm"] for record in trials):
        own = [record for record in trials if record["arm"] == arm]
        best = max(own, key=lambda record: record["right"])
        tried = ", ".join(str(record["right"]) for record in own)
        rows.append(f"| {arm} | {_told(best['setting'])} | {best['right']} of {best['asked']} | {tried} |")
    head = ["| arm | chosen | exact | exact with each setting |", "| --- | --- | --- | --- |"]
    return "\n".join(["### Choices", "", *head, *rows])


def _told(setting: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} ({_told(value)})" if isinstance(value, dict) else f"{name} {value:.4g}"
        for name, value in setting.items()
    )
