"""The dashboard in a browser: what its script draws, its colours, a phone, the keyboard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lightning_app.reports.dashboard import draw_dashboard, sections, write_dashboard
from tests.reports.conftest import typed

Log = list[dict[str, Any]]


@pytest.fixture
def full(simulate: Callable[..., Log], tmp_path: Path) -> Path:
    """A page with every chart."""
    log = simulate(regrowth=True, rollback=True, controller=True)
    return write_dashboard(typed(log), tmp_path / "dashboard.html", title="runs/<b>one</b>")


@pytest.fixture
def plain(simulate: Callable[..., Log], tmp_path: Path) -> Path:
    """A page with two charts, which is drawn sooner."""
    log = [r for r in simulate() if "event" not in r]
    return write_dashboard(typed(log), tmp_path / "dashboard.html", title="runs/one")


@pytest.mark.slow
def test_on_a_phone_every_chart_is_drawn_in_dark_colours_and_nothing_overflows(full: Path, visit: Callable[..., Any]):
    page = visit(full, width=400, scheme="dark")
    page.evaluate("drawAll(); document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    drawn = page.evaluate(
        """elements.map((one) => ({
          id: one.id, ink: one.layout.font.color, traces: one._fullData.length, marks: one.querySelectorAll(
            ".points path, .point path, .js-line, .heatmaplayer image, .js-fill").length,
          same: JSON.stringify(one.data.map((t) => [t.x, t.y, t.z])) ===
            JSON.stringify(charts.get(one.id).data.map((t) => [t.x, t.y, t.z])) }))"""
    )
    assert len(drawn) == 30
    assert all(chart["same"] and chart["traces"] for chart in drawn)
    assert [chart["id"] for chart in drawn if not chart["marks"]] == []
    assert {chart["ink"] for chart in drawn} == {page.evaluate("getComputedStyle(document.body).color")}
    assert page.evaluate("elements[0]._fullData.find((t) => t.name === 'train/ce').line.color") != "@train"
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    boxes = "[...document.querySelectorAll('section, figure, .chart, h1, .scroll, article')]"
    assert page.evaluate(f"{boxes}.filter((one) => one.getBoundingClientRect().right > 400).length") == 0


def test_charts_are_drawn_when_they_come_near_and_follow_the_theme(plain: Path, visit: Callable[..., Any]):
    page = visit(plain)
    page.wait_for_function("charts.get('timeline').drawn")
    assert not page.evaluate("charts.get('rates').drawn")
    page.locator("#rates").scroll_into_view_if_needed()
    page.wait_for_function("charts.get('rates').drawn")
    ground = "getComputedStyle(document.body).backgroundColor"
    ink = "document.getElementById('timeline').layout.font.color"
    light, black = page.evaluate(ground), page.evaluate(ink)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{ink} !== '{black}'")
    assert page.evaluate(ground) != light
    page.locator("#theme").click()  # back to light, whatever the system says
    page.wait_for_function(f"{ink} === '{black}'")
    assert page.evaluate(ground) == light
    assert page.locator("#theme").get_attribute("aria-pressed") == "false"


@pytest.mark.slow
def test_the_keyboard_reaches_content_theme_and_sections(plain: Path, visit: Callable[..., Any]):
    page = visit(plain)
    focus = "document.activeElement"
    page.keyboard.press("Tab")
    assert page.evaluate(f"{focus}.hash") == "#content"
    assert page.evaluate(f"{focus}.getBoundingClientRect().left") >= 0  # the skip link shows itself
    page.keyboard.press("Tab")
    assert page.evaluate(f"{focus}.id") == "theme"
    assert page.evaluate(f"getComputedStyle({focus}).outlineStyle") == "solid"
    page.keyboard.press("Enter")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    hashes = []
    for _ in sections():
        page.keyboard.press("Tab")
        hashes.append(page.evaluate(f"{focus}.hash"))
    assert hashes == [f"#{section.id}" for section in sections()]
    page.keyboard.press("Enter")
    assert page.evaluate("location.hash") == "#run"
    page.wait_for_function("document.getElementById('run').getBoundingClientRect().top < innerHeight")


def test_a_page_without_its_script_says_so(simulate: Callable[..., Log], tmp_path: Path, browser: Any):
    (tmp_path / "alone.html").write_text(draw_dashboard(typed(simulate()), title="t"))
    page = browser.new_page()
    page.goto((tmp_path / "alone.html").as_uri())
    assert page.locator("#no-plotly").is_visible()
    assert page.locator("table").count() > 5
    page.close()


@pytest.mark.slow
def test_a_single_file_draws_alone(simulate: Callable[..., Log], tmp_path: Path, visit: Callable[..., Any]):
    page = visit(write_dashboard(typed(simulate()[:40]), tmp_path / "one.html", title="t", single_file=True))
    page.wait_for_function("charts.get('timeline').drawn")
    assert not page.locator("#no-plotly").is_visible()
