"""What is text on a page, and what is HTML."""

from __future__ import annotations

import re

import pytest
from jinja2 import UndefinedError

from lightning_app.reports.html import html, part, rendered, source
from lightning_app.reports.page import embedded
from lightning_app.reports.parts import Fold, html_of, html_table, note, plain, samples_of

ATTACK = "</script><script>alert(1)</script><img src=x onerror='alert(1)'>"


def test_a_plain_text_is_text_wherever_it_stands_on_a_page():
    parts = [
        ATTACK,
        note(ATTACK),
        html("<p title='{}'>{}</p>", ATTACK, ATTACK),
        html_table(ATTACK, [ATTACK], [[ATTACK, ATTACK]]),
        samples_of(ATTACK, [(ATTACK, ATTACK * 2), (ATTACK, "another")], opened=True),
        Fold(ATTACK, [ATTACK]),
        part("tiles", [(ATTACK, ATTACK, ATTACK)]),
        part("not_logged", [ATTACK]),
    ]
    drawn = html_of(parts)
    assert drawn.count("&lt;script&gt;") == 20
    assert "<script" not in drawn
    assert "<img" not in drawn
    assert "<" not in embedded({"text": ATTACK})


def test_facts_are_words_and_not_json():
    splits = [{"split": "train", "bytes": 12_000, "text": None}, {"split": "val", "share": 0.5}]
    assert plain(splits) == "split train, bytes 12,000, text \u2013; split val, share 0.5"
    assert plain([1, True, ATTACK]) == f"1, yes, {ATTACK}"


def test_html_of_ours_stays_html():
    assert html_of([html("<b>{}</b>", 1)]) == "<b>1</b>"
    assert "<td><i>x</i></td>" in html_table("t", ["a", "b"], [["c", html("<i>{}</i>", "x")]])


def test_a_template_that_is_given_too_little_fails():
    with pytest.raises(UndefinedError):
        rendered("switches.html", axes=["steps"])


def test_the_theme_has_each_colour_for_light_and_dark_and_no_page_has_others():
    colours = [line for line in source("theme.css").splitlines() if line.startswith("  --")]
    assert len(colours) > 30
    assert all(": light-dark(" in line for line in colours)
    for name in ("page.css", "compare.css", "categories.css"):
        assert re.findall(r": [^;]*(?:#[0-9a-f]{3}|light-dark|rgb)", source(name)) == []
