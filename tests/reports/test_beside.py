"""Frozen figures and adapting ones stand apart, in the terminal and on a page."""

from __future__ import annotations

from lightning_app.reports.beside import GROUPS, of, of_validation, rows, tables
from lightning_app.reports.compare.tables import peers
from lightning_app.reports.events import Closed, Measured
from lightning_app.reports.groups import cautions, groups_of
from lightning_app.reports.runs import Run
from tests.reports.test_dashboard import Page

FOUND = {"lzma_bpb": 2.3, "trigrams_bpb": 2.1, "fivegrams_bpb": 2.0, "zpaq_bpb": 1.8}
CLOSED = Closed(more={"val/bpb": 1.9}, verbatim=None, **FOUND)
FROZEN = Measured(split="test", bpb=1.85, **FOUND)
ADAPTING = Measured(split="test", bpb=1.75, adapts=True, **FOUND)


def test_a_compressor_that_is_not_here_has_no_row():
    assert [(name.strip(), value) for name, value in rows(of([CLOSED]))] == [
        ("frozen", GROUPS[0][1]),
        ("this model", "1.900"),
        ("5-grams", "2.000"),
        ("trigrams", "2.100"),
        ("adapting", GROUPS[1][1]),
        ("zpaq", "1.800"),
        ("LZMA2", "2.300"),
    ]


def test_a_model_that_adapts_stands_with_those_that_do():
    names = [name.strip() for name, _ in rows(of([ADAPTING]))]
    assert names.index("this model") == names.index("adapting") + 1
    assert names.count("this model") == 1


def test_a_page_has_a_table_for_each_text_with_the_last_figure_of_each_kind():
    older = Measured(split="test", bpb=3.0, **FOUND)
    page = Page("".join(tables([CLOSED, older, FROZEN, ADAPTING])))
    assert list(page.tables) == ["Bits per byte of the validation text", "Bits per byte of the test text"]
    assert page.tables["Bits per byte of the test text"] == [
        ["", "frozen", "adapting"],
        ["this model", "1.850", ""],
        ["this model", "", "1.750"],
        ["5-grams", "2.000", ""],
        ["trigrams", "2.100", ""],
        ["zpaq", "", "1.800"],
        ["LZMA2", "", "2.300"],
    ]


def test_figures_of_two_texts_do_not_stand_in_one_table():
    """As after `test` of another file: counts and LZMA need something else of it."""
    other = Measured(split="test", bpb=1.2, **{**FOUND, "lzma_bpb": 1.3})
    page = Page("".join(tables([FROZEN, ADAPTING, other])))
    assert page.tables["Bits per byte of the test text"][1:3] == [["this model", "1.200", ""], ["5-grams", "2.000", ""]]


def test_a_run_that_adapts_is_named_beside_one_that_does_not():
    follows = Closed(more={"val/bpb": 1.7}, verbatim=None, adapts=True, **FOUND)
    runs = [Run("one", "one", [CLOSED]), Run("two", "two", [follows])]
    named = "Learned from the validation text while it was measured: two."
    assert [named in said for said in cautions(runs)].count(True) == 1
    assert not any("Learned" in said for some in (runs[:1], runs[1:]) for said in cautions(some))


def test_nothing_is_said_where_nothing_stands_beside():
    alone = Closed(more={"val/bpb": 1.9}, lzma_bpb=None, verbatim=None)
    assert rows(of([alone])) == tables([alone]) == of_validation([]) == []
    assert peers(groups_of([Run("one", "one", [alone])]))[1] == []


def test_several_runs_have_a_column_for_each_who_is_known():
    later = Measured(split="val", bpb=1.7, adapts=True, lzma_bpb=2.3, trigrams_bpb=2.1, ppmd_bpb=1.9)
    runs = [Run("one", "one", [CLOSED]), Run("two", "two", [CLOSED, later])]
    heads, found = peers(groups_of(runs))
    assert heads == [
        "run",
        *(f"frozen: {who}" for who in ("this model", "5-grams", "trigrams")),
        *(f"adapting: {who}" for who in ("this model", "zpaq", "LZMA2", "PPMd")),
    ]
    assert found == [
        ["one", "1.900", "2.000", "2.100", "\u2013", "1.800", "2.300", "\u2013"],
        ["two", "1.900", "\u2013", "2.100", "1.700", "\u2013", "2.300", "1.900"],
    ]
