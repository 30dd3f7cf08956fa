"""What a model's bits per byte stand beside, with frozen ones and adapting ones apart.

A frozen one is the same at the text's end as at its beginning. One that learns from what it has read is another matter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lightning_app.reports.events import Beside
from lightning_app.reports.parts import html_table, note
from lightning_app.reports.record import Record
from lightning_app.reports.series import events

MODEL = "this model"
GROUPS = (  # name, and what is in it
    ("frozen", "learns nothing from the text; n-grams: counts of the training text, Kneser-Ney's"),
    ("adapting", "learns from what it has read; compressors: after the training text (zpaq -m5, PPMd of order 8)"),
)
NOTE = note(" ".join(f"{name.capitalize()}: {text}." for name, text in GROUPS))
TEXTS = {"val": "the validation text", "test": "the test text"}


@dataclass(frozen=True)
class Needed:
    """Who needs how many bits per byte of a text."""

    who: str
    bits: float
    adapts: bool


def frozen(found: Beside) -> list[Needed]:
    """Counts."""
    each = (("5-grams", found.fivegrams_bpb), ("trigrams", found.trigrams_bpb))
    return [Needed(who, bits, adapts=False) for who, bits in each if bits is not None]


def adapting(found: Beside) -> list[Needed]:
    """Compressors."""
    each = (("zpaq", found.zpaq_bpb), ("PPMd", found.ppmd_bpb), ("LZMA2", found.lzma_bpb))
    return [Needed(who, bits, adapts=True) for who, bits in each if bits is not None]


def models(found: Sequence[Beside]) -> list[Needed]:
    """The model's last figure of each kind, on the text of the last event: on another one counts and LZMA differ."""
    same = [one for one in found if (one.lzma_bpb, one.trigrams_bpb) == (found[-1].lzma_bpb, found[-1].trigrams_bpb)]
    last = {one.adapts: one.model_bpb for one in same}
    return [Needed(MODEL, bits, adapts) for adapts, bits in sorted(last.items()) if bits is not None]


def rows(needed: Iterable[Needed]) -> list[tuple[str, str]]:
    """Name and value, for the terminal."""
    needed = list(needed)
    found: list[tuple[str, str]] = []
    for adapts, head in enumerate(GROUPS):
        of_group = [(f"    {one.who}", f"{one.bits:.3f}") for one in needed if one.adapts == bool(adapts)]
        found += [(f"  {head[0]}", head[1]), *of_group] if of_group else []
    return found


def of_validation(records: Sequence[Record]) -> list[Needed]:
    """The model's figures of the validation text, and what stands beside them."""
    return of([one for one in events(records, Beside) if one.text == "val"])


def tables(records: Sequence[Record]) -> list[str]:
    """For a run's page: one for each text that was measured, with a column for each kind, and a note."""
    found = events(records, Beside)
    by_text = {name: [one for one in found if one.text == name] for name in TEXTS}
    needed = {name: of(of_it) for name, of_it in by_text.items()}
    drawn = [_table(f"Bits per byte of {TEXTS[name]}", some) for name, some in needed.items() if some]
    return [*drawn, NOTE] if drawn else []


def of(found: Sequence[Beside]) -> list[Needed]:
    """The model and what stands beside it, of the events of a split; nothing where nothing does."""
    without = [*frozen(found[-1]), *adapting(found[-1])] if found else []
    return [*models(found), *without] if without else []


def _table(caption: str, needed: Iterable[Needed]) -> str:
    cells = [[one.who, *(f"{one.bits:.3f}" * (one.adapts == kind) for kind in (False, True))] for one in needed]
    return html_table(caption, ("", "frozen", "adapting"), cells, texts=(0,))
