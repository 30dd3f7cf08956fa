"""From the results of experiments.continual to its part of the last section of docs/art.md.

Shapes: P points of a training, S seeds, D documents.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments import continual_lora_page, entry, novelty_page, plans, sections, store, untrained
from experiments.arguments import name_of, told
from experiments.arms import (
    ARMS,
    EWC_ARM,
    FASTER,
    FROZEN,
    IN_BATCH,
    LIVE,
    LWF,
    ON_TOP,
    OWN,
    PLAIN,
    PROTOTYPES,
    SAMPLES,
    TEXTS,
)
from experiments.chosen import AT_RANDOM, BY_ART, BY_KMEANS
from experiments.forgetting import Continual, Records, novel_shares, untold, with_spread
from experiments.levels import LEVEL, best, inside, tried, tuning_level
from experiments.plans import commit
from experiments.statistics import HOW, Interval
from experiments.tables import table

SECTION = "## Do the promises hold?"  # the last one of its page
PICTURE = "images/forgetting.png"
RESULTS = "results/art.jsonl"
LESS = 50.0  # per cent that is to be forgotten less than by plain fine-tuning, without stored text
CATEGORIES = "categories"  # name of the margin in the plan


# The page


def write(folder: Path, plan: dict[str, Any], out: Path, *, command: str) -> str:
    """The last section of `out`/art.md, which is also printed; the picture lies in `out`/images."""
    rules = plans.Rules(**plan["rules"])
    ran = {record["arm"]: None for record in store.records(folder) if record["trial"] is None}
    continual = _continual(folder, plan, rules, out) if PLAIN in ran else []
    parts = [
        SECTION,
        _setting(plan, command),
        entry.told(folder, rules),
        *continual,
        *novelty_page.parts(folder),
        *continual_lora_page.parts(folder),
        plans.told(folder, rules, list(ran)),
    ]
    page = "\n\n".join(part for part in parts if part) + "\n"
    sections.put(out / "art.md", SECTION, page)
    plans.publish(folder, rules, out / RESULTS, [novelty_page.FOLDER])
    return page


def _continual(folder: Path, plan: dict[str, Any], rules: plans.Rules, out: Path) -> list[str]:
    found, seconds, records = Continual.of(folder), Continual.of(folder, "seconds"), store.records(folder)
    (out / PICTURE).parent.mkdir(parents=True, exist_ok=True)
    draw(found, out / PICTURE)
    return [
        _targets(found, records, rules.margins[CATEGORIES]),
        _arms(found, probes=plan["probes"]),
        f"![What is forgotten of the first domain against what is learned of the second]({PICTURE})",
        _choices(found),
        _split(found),
        _novel(records),
        _equal_seconds(seconds),
        untrained.told(folder),
        _trials(records),
    ]


def _setting(plan: dict[str, Any], command: str) -> str:
    first, second = name_of(plan["train"]), name_of(plan["second"])
    (chosen, scored), before = told(plan), plan["before"]
    return (
        f"Written by `{command}` at commit {commit()}. A decoder with {plan['model']} and a BPE of "
        f"{plan['vocab_size']:,}, trained on {first}, learned that text from scratch in {before['steps']} steps of "
        f"{before['batch_size']} x {before['block_size']} tokens, and then {second} in {plan['steps']} of them. All "
        f"arms of a seed start from the same model and see the same batches in the same order. Everything is chosen on "
        f"{chosen}, and on the first half of the last fifth of {second}; nothing is chosen on what is scored, "
        f"{plan['blocks']} blocks, evenly spread, of {scored}, and as many of the last tenth of "
        f"{second}. Seeds: {', '.join(map(str, plan['seeds']))}."
    )


# Continual learning


def _targets(found: Continual, records: Records, margin: float) -> str:
    """Told as met or missed, of arms that were chosen on the text for it."""
    rows, said = [], []
    free = best_of(found, records, lambda arm: not ARMS[arm].stores_text)
    if free is not None:
        less = found.less(free, PLAIN)
        name = f"without stored text at least {LESS:g} % less forgotten than by plain fine-tuning"
        rows.append([name, free, *_judged(less, less is not None and less.mean >= LESS and less.low > 0)])
    for where, fits in KINDS.items():
        mine, other = (best_of(found, records, _with_categories(fits, has)) for has in (True, False))
        if mine is None or other is None:
            continue
        less = found.less(mine, other)
        name = f"the best arm with categories{where} at most {margin:g} % worse than the best one without: forgets less"
        rows.append([name, f"{mine} against {other}", *_judged(less, less is not None and less.low > -margin)])
        if less is None or less.low <= 0:
            said.append(f"**ART adds nothing here{where}: {mine} does not forget less than {other}.**")
    note = "The arms are those that forgot least in the trials, on the text to choose on."
    return "\n\n".join(["### Targets", table(["target", "arm", "per cent [95 %]", ""], rows), note, *said])


Fits = Callable[[str], bool]
KINDS: dict[str, Fits] = {"": lambda arm: True, " without stored text": lambda arm: not ARMS[arm].stores_text}


def _with_categories(fits: Fits, has: bool) -> Fits:
    return lambda arm: fits(arm) and ARMS[arm].has_categories == has


def best_of(found: Continual, records: Records, fits: Fits) -> str | None:
    """Of some arms the one that forgot least in the trials."""
    worths = {arm: min(tried(arm, records).values()) for arm in found.by_arm if arm != PLAIN and fits(arm)}
    return min(worths, key=lambda arm: worths[arm]) if worths else None


def _judged(less: Interval | None, met: bool) -> list[str]:
    return ["never at the level" if less is None else str(less), "met" if met else "**missed**"]


def _arms(found: Continual, *, probes: int) -> str:
    head = [
        *("arm", "keeps text", "keeps", "learning rate, strength", "first domain: before", "at the level"),
        *("forgets less than plain, % [95 %]", "at the end", "second domain: before", "at the end"),
        *("drift of the probes", "CPU s", "before it, CPU s"),
    ]
    note = (
        "Bits per byte of the texts to score, means over the seeds; behind ± half of a 95 % interval over them "
        f"(Student's t). The level: {LEVEL}, interpolated between the points at which it was scored. {HOW} Documents "
        f"are the first domain's articles. Drift of probes: mean 1 - cosine of the mean last states of {probes} texts "
        "of the first domain, less their common mean, from before to the end. CPU s: of the training; and of what is "
        f"computed of the first domain before it. `{IN_BATCH}`: one row of each batch is of the first domain; "
        f"`{ON_TOP}`: one row more than other arms have. `{LWF}`: T² KL(the model before || model) on the new text. "
        "Prototypes, own samples and rehearsed texts (4 of 32 tokens a step, or one sample of a whole row) are held to "
        f"what the model before said, or its average with decay 0.9999; `{FASTER}` to one with 0.999, `{OWN}` to the "
        f"texts' own next tokens. `{LIVE}`: as the product does it; its categories learn the new text, too, and it "
        "draws by how long a category has had none."
    )
    return "\n\n".join(["### Continual learning", table(head, (_row(found, arm) for arm in found.by_arm)), note])


def _row(found: Continual, arm: str) -> list[str]:
    record, first = found.by_arm[arm][0], found.mean(arm, "first")
    forgotten, less = found.forgotten(arm), found.less(arm, PLAIN)
    return [
        arm,
        "yes" if ARMS[arm].stores_text else "",
        _kept(found, arm),
        f"{record['lr']:g}" + (f", {record['strength']:g}" if record["strength"] else ""),
        f"{first[0]:.3f}",
        "never there" if forgotten is None else f"{first[0] + forgotten.mean(0).sum() / found.scale():.3f}",
        "" if arm == PLAIN or less is None else str(less),
        with_spread(found.ends(arm, "first")),
        f"{found.mean(arm, 'second')[0]:.3f}",
        with_spread(found.ends(arm, "second")),
        f"{float(found.mean(arm, 'drift')):.3f}",
        f"{float(found.mean(arm, 'train_seconds')):.0f}",
        f"{float(found.mean(arm, 'setup_seconds')):.0f}",
    ]


def _kept(found: Continual, arm: str) -> str:
    """How many, the mean over the seeds."""
    n = float(np.mean([record["holds"] for record in found.by_arm[arm]]))
    return f"{n:.0f} {'texts' if ARMS[arm].kind == 'live' else ARMS[arm].kind}" if n else ""


def _choices(found: Continual) -> str:
    """The same with ART, with k-means and at random; and what the texts are held to."""
    kept = {"texts": TEXTS, "own samples": SAMPLES, "prototypes": PROTOTYPES}
    pairs = {
        f"{what}: ART against {other}": (names[BY_ART], names[other])
        for what, names in kept.items()
        for other in (BY_KMEANS, AT_RANDOM)
    } | {
        "texts: the averaged model's predictions against their own tokens": (TEXTS[BY_ART], OWN),
        "texts: average with decay 0.9999 against 0.999": (TEXTS[BY_ART], FASTER),
        "texts of ART: drawn evenly, against categories that go on to learn": (FASTER, LIVE),
        f"{IN_BATCH} against {ON_TOP}": (IN_BATCH, ON_TOP),
    }
    note = "As many texts, samples or prototypes on both sides, so as many bytes."
    rows = [[name, _less(found, *pair)] for name, pair in pairs.items()]
    return "\n\n".join(["### What does the choosing?", table(["", "forgets less, % [95 %]"], rows), note])


def _less(found: Continual, arm: str, base: str) -> str:
    less = found.less(arm, base)
    return "not at the level" if less is None else str(less)


def _split(found: Continual) -> str:
    """By frozen or free output matrix, and by tokens that the new text does not have."""
    rows = [_split_row(found, arm) for arm in (PLAIN, FROZEN, EWC_ARM, LWF) if arm in found.by_arm]
    share = 100 * float(found.by_arm[PLAIN][0]["absent_tokens"])
    note = (
        "Bits per byte of the first domain at the end above those before; `with the old matrix`: the states of the "
        "model at the end, read by the output matrix before. It is the embedding, too: where it is frozen both are. "
        "Absent: tokens that the second domain's training text does not have; they are "
        f"{share:.1f} % of the tokens that are scored."
    )
    head = ["arm", "forgotten", "with the old matrix", "of it on absent tokens", "on the others", "on absent tokens, %"]
    return "\n\n".join(["### Where is it forgotten?", table(head, rows), note])


def _split_row(found: Continual, arm: str) -> list[str]:
    first, absent = found.mean(arm, "first"), found.mean(arm, "absent").sum(-1) / found.scale()
    all_of_it, of_absent = first[-1] - first[0], absent[-1] - absent[0]
    old = float(found.mean(arm, "old_matrix")) - first[0]
    share = f"{100 * of_absent / all_of_it:.0f}" if all_of_it > 0 else ""
    return [arm, *(f"{x:.3f}" for x in (all_of_it, old, of_absent, all_of_it - of_absent)), share]


def _novel(records: Records) -> str:
    """The share of novel texts, and whether anything is said of the terms that they have."""
    shares, hidden = novel_shares(records), untold(records)
    if not shares:
        return ""
    rows = [[arm, f"{100 * share:.1f}"] for arm, share in shares.items()]
    note = (
        "The vigilance was calibrated on the first domain's text to choose on, so that 5 % of it is novel, before the "
        "second domain came, and stayed; so did the categories."
    )
    no_word = f"**Fewer than half of the new texts were novel to {', '.join(hidden)}: nothing is said of them.**"
    parts = ["### Novel texts", table(["arm", "novel among the new texts, %"], rows), note]
    return "\n\n".join([*parts, *([no_word] if hidden else [])])


def _equal_seconds(found: Continual) -> str:
    if len(found.by_arm) < 2:
        return ""
    head = ["arm", "steps", "forgets less than plain, % [95 %]", "first domain at the end", "second at the end"]
    rows = [
        [
            arm,
            f"{float(found.mean(arm, 'steps')):.0f}",
            "" if arm == PLAIN else _less(found, arm, PLAIN),
            with_spread(found.ends(arm, "first")),
            with_spread(found.ends(arm, "second")),
        ]
        for arm in found.by_arm
    ]
    note = (
        "As many steps as fit into the CPU seconds of plain fine-tuning, less those of what is computed of the first "
        "domain before; the learning rate falls over these steps."
    )
    return "\n\n".join(["### Equal CPU seconds", table(head, rows), note])


def _trials(records: Records) -> str:
    """How many there were, and which was chosen."""
    trials = [record for record in records if record["trial"] is not None]
    if not trials:
        return ""
    rows = []
    for arm in dict.fromkeys(record["arm"] for record in trials if record["arm"] not in untold(records)):
        found = tried(arm, trials)
        one, (never, first) = best(found), found[best(found)]
        there = "never at the level" if never else f"{first:.3f}"
        lies = "yes" if inside(found) else "no"
        rows.append([arm, str(len(found)), f"{one.lr:g}", f"{one.strength:g}" if one.strength else "", there, lies])
    head = ["arm", "trials", "learning rate", "strength", "first domain at the level", "between others"]
    level = tuning_level(trials)
    note = (
        f"On the texts to choose on, one seed; the level is {level:.3f} bits per byte of the second domain. Trials "
        f"walk from the first one to its neighbours; {EWC_ARM} goes on until its best lies between others. All are "
        f"in [art.jsonl]({RESULTS})."
    )
    return "\n\n".join(["### Trials", table(head, rows), note])


def draw(found: Continual, path: Path) -> None:
    """What an arm has forgotten when it has learned so much: down and to the right is better."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # a second of import, only where a picture is drawn

    figure = Figure(figsize=(11, 6), layout="constrained")
    axes, colours = figure.add_subplot(), colormaps["tab20"]
    for i, arm in enumerate(found.by_arm):
        first, second = found.mean(arm, "first"), found.mean(arm, "second")
        style = {"marker": "o" if i < 20 else "s", "linestyle": "--" if ARMS[arm].has_categories else "-"}
        axes.plot(second[1:], first[1:] - first[0], color=colours(i % 20), markersize=4, label=arm, **style)
    level = float(np.mean([found.level(record["seed"]) for record in found.by_arm[PLAIN]]))
    axes.axvline(level, color="#999999", linestyle=":", linewidth=1)
    axes.text(level, axes.get_ylim()[1], "level of the table ", ha="right", va="top", fontsize=8, color="#777777")
    axes.invert_xaxis()
    axes.set(
        title="What is forgotten for what is learned: down and to the right is better (dashed: with categories)",
        xlabel="second domain, bits per byte (learned more: to the right)",
        ylabel="first domain, bits per byte above those before",
    )
    axes.grid(alpha=0.25)
    axes.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=120)
