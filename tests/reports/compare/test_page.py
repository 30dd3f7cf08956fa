"""Several runs on one page: their numbers, intervals and warnings, and the page in a browser."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import t

from lightning_app.errors import InputError
from lightning_app.reports.compare.page import draw_comparison, write_comparison
from lightning_app.reports.compare.tables import costs, format_comparison, nothing_measured, results
from lightning_app.reports.groups import against, cautions, groups_of, same_text
from lightning_app.reports.intervals import SUMS, change, change_over_seeds, over_passages, over_seeds
from lightning_app.reports.runs import ABSENT, Run, differing
from tests.reports.conftest import typed

PASSAGES = 32
BYTES = 100.0  # of each
PAYLOAD = """</script><script>alert(1)</script><img src=x onerror="alert(1)">"""


def log(
    level: float = 2.0,
    *,
    text: str = "same",
    tokens: int = 1_000,
    old: bool = False,
    steps: tuple[int, ...] = (10, 20, 30),
    every: float = 5.0,
) -> list[dict[str, Any]]:
    """A run that falls to `level` nats per byte; an older one logged neither tokens nor passages."""
    draw = np.random.default_rng(0)
    split = {"split": "val", "documents": 2, "words": 9, "bytes": 3_200, "tokens": tokens, "text": text}
    records: list[dict[str, Any]] = [
        {"time": 100.0, "event": "data", "step": 0, "splits": [split]},
        {"time": 100.0, "event": "started", "step": 0, "parameters": 1_500_000, "world_size": 1},
    ]
    for i, step in enumerate(steps):
        now, nats = (
            100.0 + every * (i + 1),
            (level + 0.5 * (len(steps) - 1 - i)) * BYTES * draw.uniform(0.8, 1.2, PASSAGES),
        )
        records.append(
            {"time": now, "step": step, "train/ce": 3.0 - i / 10, "tokens_per_s": 500.0, "model_tflops": 0.005}
        )
        if not old:
            records[-1] |= {"tokens": 64.0 * step, "train_flops": 640e6 * step}
        ce = nats.sum() / tokens
        measures = {"val/ce": ce, "val/ppl": math.exp(ce), "val/bpb": nats.sum() / math.log(2) / BYTES / PASSAGES}
        records.append({"time": now, "step": step, **measures, "val/acc": 0.25})
        sums = {"nats": nats.tolist(), "tokens": [tokens / PASSAGES] * PASSAGES, "bytes": [BYTES] * PASSAGES}
        sums["right"] = [tokens / PASSAGES / 4] * PASSAGES
        records += [] if old else [{"time": now, "event": "passages", "step": step, **sums}]
    return [*records, {"time": 100.0 + every * len(steps) + 1, "event": "ended", "step": steps[-1]}]


def run(label: str, records: list[dict[str, Any]] | None = None, **options: Any) -> Run:
    callbacks = [{"class_path": "x.Samples", "init_args": {"prompts": ["A head", "A"]}}]
    config = {"seed_everything": 1, "name": label, "trainer": {"callbacks": callbacks}, "data": {"val": {"stride": 64}}}
    samples = ("A head that learns", "A & B")
    return Run(
        label,
        f"runs/{label}/version_0",
        typed(log() if records is None else records),
        config | options,
        samples,
        "best",
    )


# Numbers


def test_the_interval_over_passages_is_that_of_a_normal_mean():
    nats = np.random.default_rng(1).normal(100, 10, size=400)
    sums = np.stack([nats, np.full(400, 50.0), np.full(400, 200.0), np.full(400, 10.0)], axis=-1)
    found = over_passages(sums, "val/ce")
    half = 1.96 * nats.std() / 20 / 50
    assert found.value == pytest.approx(nats.mean() / 50)
    assert (found.low, found.high) == pytest.approx((found.value - half, found.value + half), rel=2e-3)
    assert over_passages(sums[:7], "val/ce").low is None  # too few to say anything
    assert over_passages(np.pad(sums[:8], ((0, 9), (0, 0))), "val/bpb").low is not None  # passages without a token


def test_a_paired_change_is_surer_than_the_measures_themselves():
    base = np.stack([np.random.default_rng(2).uniform(50, 150, 32), *np.full((3, 32), 10.0)], axis=-1)
    more = base * [1.02, 1, 1, 1]
    found = change(more, base)
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0, 2.0))
    assert over_passages(base, "val/bpb").high > 1.05 * over_passages(base, "val/bpb").value


def test_the_interval_over_seeds_is_students():
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found.value, found.low, found.high) == pytest.approx(
        (2.0, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), rel=1e-4
    )
    assert over_seeds([1.0]).low is None


def test_a_change_between_seeds_is_welchs():
    ours, theirs = [2.02, 2.04, 2.09], [1.9, 2.0, 2.1, 2.04]
    a, b = np.log(ours), np.log(theirs)
    squares = a.var(ddof=1) / 3, b.var(ddof=1) / 4
    freedom = sum(squares) ** 2 / (squares[0] ** 2 / 2 + squares[1] ** 2 / 3)
    half = t.ppf(0.975, freedom) * sum(squares) ** 0.5
    expected = [100 * (math.exp(a.mean() - b.mean() + x) - 1) for x in (0, -half, half)]
    found = change_over_seeds(ours, theirs)
    assert [found.value, found.low, found.high] == pytest.approx(expected)


def test_sides_of_several_seeds_are_compared_over_seeds():
    """Over passages a change seems sure that is no larger than what seeds differ by."""
    levels = (2, 3, 2.1, 3.1)
    runs = [run(f"{x}", log(x), seed_everything=i % 2, data={"x": i // 2}) for i, x in enumerate(levels)]
    base, group = groups_of(runs)
    found = against(group, base)
    assert found is not None
    assert found.low < 0 < found.value < found.high
    alone = against(*groups_of([runs[2], runs[0]])[::-1])
    assert alone is not None
    assert alone.high < 0


def test_time_stops_between_a_crash_and_its_resume():
    records = [
        {"time": 10.0, "event": "started", "step": 0},
        {"time": 14.0, "step": 1, "train/ce": 1.0},
        {"time": 900.0, "event": "data", "step": 1},
        {"time": 901.0, "event": "resumed", "step": 1},
        {"time": 903.0, "step": 2, "train/ce": 1.0},
        {"time": 950.0, "event": "closed", "step": 2},
    ]
    found = run("a", records)
    assert (found.clock, found.seconds) == ([0, 4, 4, 4, 6, 53], 6)
    assert found.series("train/ce", "time") == [4, 6]
    assert found.series("train/ce", "tokens") is None


def test_tokens_of_a_validation_are_those_of_its_step():
    assert run("a").series("val/ce", "tokens") == [640, 1280, 1920]


def test_costs_are_the_logs():
    pruned = [*log(), {"event": "cost", "step": 30, "stage": "after cycle 1", "parameters": 900_000}]
    heads, rows = costs(groups_of([run("a"), run("b", pruned), run("c", log(old=True))]))
    assert heads[1:] == ["parameters", "FLOPs per token", "tokens", "training FLOPs", "tokens/s", "time", "steps"]
    assert rows[0][1:] == ["1.5 M", "10 M", "1.92 k", "19.2 G", "500", "0:00:16", "30"]
    assert rows[1][1] == "1.5 M → 900 k"
    assert rows[2][2:5] == ["10 M", "not in this log", "not in this log"]


# Sides


def test_runs_that_differ_in_their_seed_alone_are_one_side():
    runs = [
        run("a", log(2.0)),
        run("b", log(2.2), seed_everything=2),
        run("c", log(9.0), seed_everything=2, data={"x": 1}),
    ]
    groups = groups_of(runs)
    assert [[one.label for one in group.runs] for group in groups] == [["a", "b"], ["c"]]
    found = groups[0].estimate("val/bpb")
    values = [one.measure("val/bpb") for one in runs[:2]]
    assert found is not None
    assert found.value == pytest.approx(sum(values) / 2)
    assert found.low < min(values) < max(values) < found.high
    assert (groups[0].chance, groups[1].chance) == ("2 seeds", "32 passages")


def test_the_same_seed_twice_and_options_that_are_not_known_are_no_further_draws():
    without = Run("c", "c", typed(log()))
    assert len(groups_of([run("a"), run("b"), without, Run("d", "d", typed(log()))])) == 4


def test_an_older_log_has_no_interval_and_none_is_made_up():
    group, newer = groups_of([run("a", log(old=True)), run("b", data={})])
    assert group.chance == "nothing"
    assert [group.estimate(name).low for name in ("val/bpb", "val/ce", "val/acc")] == [None] * 3
    assert against(newer, group).low is None
    assert results([group, newer], group)[1][0][1].count("[") == 0


def test_measures_on_other_texts_and_tokens_do_not_compare():
    a, b, c = run("a"), run("b", log(text="other"), data={}), run("c", log(tokens=800), data={})
    assert (same_text(a, b), same_text(a, c), same_text(a, Run("d", "d", []))) == (False, True, None)
    assert any("validation text is not the same: b validated on another" in said for said in cautions([a, b]))
    assert any("Compare bits per byte" in said for said in cautions([a, c]))
    assert against(*reversed(groups_of([a, b]))) is None
    assert against(*reversed(groups_of([a, c]))) is not None
    assert cautions([a]) == []


def test_what_a_reader_has_to_know_is_said():
    other = run("b", log()[:-1], data={"val": {"stride": 128}})
    said = " ".join(cautions([run("a"), other, Run("c", "c", typed([{"event": "failed", "step": 4, "error": "X"}]))]))
    for words in (
        "data.val.stride (64, 128)",
        "b (not ended, step 30)",
        "c (failed: X, step 4)",
        "No validation in the log of c",
    ):
        assert words in said


def test_options_of_parts_are_compared_by_the_name_of_their_class():
    stop = {"class_path": "a.b.EarlyStopping", "init_args": {"patience": 3}}
    one, two = run("a"), run("b", trainer={"callbacks": [stop], "max_steps": 5})
    found = differing([one, two])
    assert found["trainer.callbacks[EarlyStopping].init_args.patience"] == [ABSENT, 3]
    assert found["name"] == ["a", "b"]
    assert "data.val.stride" not in found


# The page and the terminal


def test_the_terminal_has_both_tables():
    lines = format_comparison(
        [run("a", log(text="x")), run("b", log(2.1), data={"val": {"stride": 64}, "x": 1})]
    ).splitlines()
    assert lines[0].startswith("! The validation text is not the same")
    assert re.match(r"run +bits/byte +nats/token", lines[1])
    assert [line.split()[0] for line in lines if re.match(r"[ab] ", line)] == ["a", "b", "a", "b"]


def test_one_run_is_a_page_of_one():
    page = draw_comparison([run("a")])
    assert "<h1>a</h1>" in page
    assert 'const compared = {"titles"' in page  # its script is code, not text
    assert "Change: of bits per byte" not in page


def test_the_page_obeys_nothing_that_it_shows():
    bad = Run(PAYLOAD, PAYLOAD, typed(log()), {"name": PAYLOAD, PAYLOAD: 1}, [PAYLOAD], PAYLOAD)
    page = draw_comparison([bad, run("b", [*log(), {"step": 40, PAYLOAD: 1.0}])])
    assert PAYLOAD not in page
    assert "<img" not in page
    assert page.count("<script") == 3  # the charts' JSON, plotly, the page's own


def test_the_best_run_stands_first_and_any_run_can_be_the_baseline():
    runs = [run("worst", log(2.2)), run("best", log(1.8), x=1), run("middle", x=2)]
    lines = format_comparison(runs, "middle").splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["best", "middle", "worst"]
    assert "\u2013" in lines[2]
    assert "against middle" in lines[-1]
    assert "against worst" in format_comparison(runs)
    page = draw_comparison(runs, baseline="best")
    assert '<option value="0" selected>best</option>' in page
    assert '<span id="against">best</span>' in page
    with pytest.raises(InputError, match=r"baseline is 'x', .* choose one of best, middle, worst"):
        draw_comparison(runs, baseline="x")


def test_runs_that_measured_nothing_are_one_line():
    dead = [run("d1", [{"event": "failed", "step": 0, "error": "OSError"}], x=1), run("d2", [], x=2)]
    said = "Nothing measured by 2 of 4 runs: d1 (failed: OSError), d2 (not ended)."
    runs = [dead[0], run("a"), dead[1], run("b", log(2.1), x=3)]
    assert said in format_comparison(runs)
    assert said in draw_comparison(runs)
    assert "against a," in format_comparison(runs)  # the first that has measured something
    assert nothing_measured(dead) == ""  # there is nothing else to show


def test_options_that_change_no_result_are_left_out():
    runs = [run("a", trainer={"logger": True, "max_steps": 1}), run("b", trainer={"logger": False, "max_steps": 2})]
    page = draw_comparison(runs)
    assert "trainer.<wbr>max_steps" in page
    assert "logger" not in page
    assert "1 of 3 options that can change a result differ" in page


@pytest.mark.slow
def test_ten_runs_fit_a_page_of_1280_pixels_and_are_sorted_smoothed_and_compared_by_clicks(
    tmp_path: Path, visit: Callable[..., Any]
):
    runs = [run(f"a_long_name_{i}/version_{i}", log(2 + (7 * i % 10) / 20), x=i, **{f"o{i}": i}) for i in range(10)]
    opened = visit(write_comparison(runs, tmp_path / "compare.html"), width=1280)
    opened.evaluate("drawAll(); document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    wide = "[...document.querySelectorAll('.scroll')].filter((one) => one.scrollWidth > one.clientWidth + 1).length"
    assert opened.evaluate(wide) == 0
    rows = "[...document.querySelector('#results table').tBodies[0].rows]"
    column = f"{rows}.map((row) => parseFloat(row.cells[1].textContent))"
    bits = opened.evaluate(column)
    assert bits == sorted(bits)
    opened.get_by_role("button", name="bits/byte").first.click()
    opened.get_by_role("button", name="bits/byte").first.click()
    assert opened.evaluate(column) == sorted(bits, reverse=True)
    opened.locator("#baseline").select_option("3")
    row = opened.locator("#results table").first.locator("tbody tr").nth(6)
    assert row.locator("td").nth(4).inner_text().strip() == "\u2013"
    assert opened.locator("#against").inner_text() == row.locator("th").inner_text().strip()
    y = "document.getElementById('curve-0').data[0].y"
    before = opened.evaluate(f"[...{y}]")
    opened.locator("#smoothing").fill("0.5")
    after = opened.evaluate(f"[...{y}]")
    assert after[0] == before[0]
    assert after[1] == pytest.approx((before[0] / 2 + before[1]) / 1.5)
    opened.locator('input[name="log"][value="yaxis"]').check()
    assert opened.evaluate("document.getElementById('curve-0').layout.yaxis.type") == "log"


@pytest.fixture
def page(tmp_path: Path, visit: Callable[..., Any]) -> Callable[..., Any]:
    runs = [run("a"), run("b", log(2.1, every=9), data={}), run("c", log(1.9, old=True), trainer={"max_steps": 4})]
    file = write_comparison(runs, tmp_path / "compare.html", axis="steps")
    return lambda **more: visit(file, **more)


# One test, since plotly takes a second to load.
@pytest.mark.slow
def test_samples_stand_side_by_side_and_the_switch_moves_all_curves_to_another_axis(page: Callable[..., Any]):
    opened = page(scheme="dark")
    check_samples(opened)
    opened.set_viewport_size({"width": 400, "height": 800})
    opened.evaluate("drawAll(); document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    drawn = "document.getElementById('curve-0')"
    points = f"{drawn}._fullData.map((t) => [...t.x])"
    assert opened.evaluate(points) == [[10, 20, 30]] * 3
    opened.locator('input[value="tokens"]').check()
    assert opened.evaluate(f"{drawn}.data.map((t) => [...t.x])") == [[640, 1280, 1920]] * 2 + [[]]
    assert opened.evaluate(f"{drawn}.layout.xaxis.title.text") == "tokens"
    opened.locator('input[value="time"]').focus()
    opened.keyboard.press("Space")
    assert opened.evaluate(points) == [[5, 10, 15], [9, 18, 27], [5, 10, 15]]
    assert opened.evaluate(f"{drawn}.layout.xaxis.title.text") == "seconds of the run"
    opened.locator('input[name="run"][value="1"]').uncheck()
    assert opened.evaluate(f"{drawn}.data.map((t) => t.visible ?? true)") == [True, False, True]
    assert opened.evaluate("document.documentElement.scrollWidth") <= 400


def check_samples(opened: Any) -> None:
    """Side by side under their prompts."""
    prompts = opened.locator("#samples details summary").all_inner_texts()
    assert prompts == ["Prompt: A head", "Prompt: A", "Prompt: (no prompt)"]  # c's config names no prompts
    cards = opened.locator("#samples details").first.locator("article")
    assert cards.count() == 2
    assert cards.first.inner_text().split("\n")[-1] == "A head that learns"
    tops = {round(cards.nth(i).bounding_box()["y"]) for i in range(2)}
    assert len(tops) == 1


@pytest.mark.parametrize("column", [[1.0], [1.0, [2.0]], [1.0, {}], [1.0, None], [1.0, math.inf], 3.0, []])
def test_passages_of_a_damaged_line_do_not_count(column: object):
    records = [{"step": 5, "val/ce": 2.0}, {"event": "passages", "step": 5, **{name: [1.0, 2.0] for name in SUMS}}]
    assert Run("a", "a", typed(records)).passages is not None
    assert Run("a", "a", typed([records[0], {**records[1], SUMS[1]: column}])).passages is None
