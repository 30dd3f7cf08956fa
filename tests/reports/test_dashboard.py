"""The page as text: its sentence, its tables, what it says of what is missing, and that it obeys nothing it shows."""

from __future__ import annotations

import errno
import json
import os
import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lightning_app.errors import InputError
from lightning_app.plasticity.report.timeline import timeline
from lightning_app.reports import dashboard
from lightning_app.reports.dashboard import draw_dashboard, sections, write_dashboard
from lightning_app.reports.page import PLOTLY
from tests.reports.conftest import typed

Log = list[dict[str, Any]]
Simulate = Callable[..., Log]
VOID = ("meta", "link")
PAYLOAD = """'">\n</script><script>alert(1)</script><img src=x onerror="alert(1)">'"""


class Page(HTMLParser):
    """Collects tables by caption, text by section, and what was opened."""

    def __init__(self, html: str):
        super().__init__()
        self.opened: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.sections: dict[str, str] = {}
        self.links: set[str] = set()
        self.charts: dict[str, str] = {}  # label by id
        self._rows: list[list[str]] = []
        self._section = self._caption = ""
        self._path: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.opened.append(tag)
        self._path += [tag] * (tag not in VOID)
        if tag == "section":
            self._section = given["id"]
        elif tag == "a":
            self.links.add(given["href"])
        elif tag == "table":
            self._caption, self._rows = "", []
        elif tag == "tr":
            self._rows.append([])
        elif tag in ("td", "th"):
            self._rows[-1].append("")
        elif given.get("class") == "chart":
            self.charts[given["id"]] = given["aria-label"]

    def handle_endtag(self, tag: str) -> None:
        assert self._path.pop() == tag, f"</{tag}> closes what it did not open"
        if tag == "table":
            self.tables[self._caption] = self._rows

    def handle_data(self, data: str) -> None:
        if self._path and self._path[-1] in ("script", "style"):
            return
        if "caption" in self._path:
            self._caption += data
        elif {"td", "th"} & set(self._path):
            self._rows[-1][-1] += data
        elif "main" in self._path:
            self.sections[self._section] = self.sections.get(self._section, "") + data


@pytest.fixture
def log(simulate: Simulate) -> Log:
    return simulate(regrowth=True, rollback=True, controller=True)


def page_of(log: Log) -> Page:
    return Page(draw_dashboard(typed(log), title="runs/one"))


def without(log: Log, *names: str) -> Log:
    return [{k: v for k, v in r.items() if k not in names} for r in log if r.get("event") not in names]


def test_the_summary_says_what_happened(simulate: Simulate):
    page = page_of(simulate())
    assert (
        "12 → 6 heads in 3 pruning cycles, \u221217.5\u00a0% parameters, cross-entropy 3.1204 → 2.9500 nats"
        in (page.sections["summary"])
    )
    assert "No worse than just before the first pruning (2.9530)." in page.sections["summary"]
    assert "1,200 optimizer steps lie between the baseline and the model of now" in page.sections["summary"]


@pytest.mark.parametrize(
    ("ce", "verdict"),
    [
        (2.0, "No worse than just before the first pruning (2.0000)"),
        (2.01, "Within 1\u00a0% of"),
        (2.1, "Worse by 5.0\u00a0% than"),
    ],
)
def test_the_verdict_depends_on_the_loss(ce: float, verdict: str):
    """Against the model that was as well trained as it would be: an untrained baseline flatters."""
    stages = {"baseline": 9.0, "before": 2.0, "recovered": ce}
    log = [{"event": "evaluation", "step": 1, "cycle": 1, "stage": stage, "ce": x} for stage, x in stages.items()]
    assert "No pruning was logged." in page_of(log).sections["summary"]
    log.insert(2, {"event": "pruning_event", "step": 1, "cycle": 1, "heads": [[0, 0]]})
    assert verdict in page_of(log).sections["summary"]
    del log[1]
    assert "No verdict" in page_of([log[1], log[0]]).sections["summary"]


def test_after_a_rollback_the_summary_is_of_the_model_that_is_left(log: Log):
    summary = page_of(log).sections["summary"]
    assert "12 → 9 heads" in summary
    assert "1 rollback." in summary


def test_heads_that_are_groups_are_called_so():
    started = {"event": "plasticity_started", "step": 0, "shape": [2, 4]}
    note = "Heads are key-value groups here, of 3 query heads each"
    assert note in page_of([started | {"query_heads": 3}]).sections["summary"]
    for others in ({"query_heads": 1}, {}):  # the second is an older log's
        assert "key-value groups" not in page_of([started | others]).sections["summary"]


@pytest.mark.parametrize(
    ("last", "state"),
    [
        ({"event": "failed", "step": 5, "error": "OutOfMemoryError"}, "failed: OutOfMemoryError"),
        ({"event": "ended", "step": 5}, "ended"),
        ({"event": "interrupted", "step": 5, "signal": "SIGTERM"}, "interrupted by SIGTERM"),
        ({"event": "phase_transition", "step": 5, "phase": "finetuning", "cycle": 2}, "fine-tuning, cycle 2"),
        ({"step": 5, "train/ce": 2.0}, "training"),
    ],
)
def test_the_state_of_the_run(last: dict[str, Any], state: str):
    assert state in page_of([{"event": "started", "step": 0}, last]).sections["summary"]


def test_seconds_of_a_forward_are_no_powers_of_ten():
    costs = [{"event": "cost", "step": i, "stage": "baseline", "latency_ms": x} for i, x in enumerate((3229.5, 43.21))]
    assert "3,230 \u2192 43.2" in page_of([costs[0], costs[1] | {"stage": "pruned"}]).sections["summary"]


def test_a_proof_that_does_not_hold_is_said_at_the_top(log: Log):
    assert "A proof does not hold" not in page_of(log).sections["summary"]
    broken = [*log, {"event": "proof", "step": 77, "cycle": 3, "checks": {"same output": False}}]
    page = page_of(broken)
    assert "A proof does not hold (step 77)" in page.sections["summary"]
    assert page.tables["What was proved after each change"][-1] == [
        "3",
        "77",
        "same output",
        "✗ does not hold",
        "\u2013",
    ]


def test_proofs_begin_with_a_verdict_and_each_has_its_limit():
    logged = [
        {"event": "proof", "step": 5, "cycle": 1, "checks": {"logits, masked against removed": 0.0, "dead heads": 2}}
    ]
    page = page_of(logged)
    assert "2 of 2 checks passed." in page.sections["proofs"]
    rows = page.tables["What was proved after each change"]
    assert rows[1] == [
        "1",
        "5",
        "logits, masked against removed",
        "0",
        "1e-05 of the largest logit, or of 1, in 32 bits; 0.03 in 16",
    ]
    assert rows[2][3:] == ["2", "as many as were chosen, none other"]
    broken = [*logged, {"event": "proof", "step": 7, "cycle": 1, "checks": {"same output": False}}]
    assert "2 of 3 checks passed." in page_of(broken).sections["proofs"]


def test_heads_die_on_the_timeline_at_the_step_of_their_event():
    log = [
        {"event": "plasticity_started", "step": 0, "shape": [1, 4]},
        {"step": 10, "plasticity/sparsity": 0.0},
        {"event": "pruning_event", "step": 12, "cycle": 1, "heads": [[0, 1]], "alive": [[1, 0, 1, 1]]},
        {"step": 20, "plasticity/sparsity": 0.25},
    ]
    (trace,) = [one for one in timeline(typed(log)).data if one["name"] == "plasticity/sparsity"]
    assert (trace["x"], trace["y"]) == ([0, 12, 20], [0.0, 0.25, 0.25])
    (logged,) = [one for one in timeline(typed([log[1], log[3]])).data if one["name"] == "plasticity/sparsity"]
    assert (logged["x"], logged["y"]) == ([10, 20], [0.0, 0.25])


def test_every_pruned_head_has_its_row(log: Log):
    rows = page_of(log).tables["Pruned heads"]
    assert len(rows) == 1 + 6
    first = next(r for r in log if r.get("event") == "pruning_event")
    fate = "regrown in cycle 2, step 750 with its old weights"
    assert rows[1] == [
        "1",
        "350",
        "1",
        "0",
        f"{first['scores'][0]:.5g}",
        f"{first['reasons'][0]}; lowest importance",
        fate,
    ]
    assert [row[-1] for row in rows[2:]] == ["no", "no", "no", *["rolled back in cycle 3, step 1,400"] * 2]


def test_pruned_neurons_have_a_table_of_their_own():
    event = {
        "event": "pruning_event",
        "step": 9,
        "cycle": 1,
        "target": "neurons",
        "removed": [3, 0],
        "widths": [61, 64],
    }
    page = page_of([event | {"reason": "smallest norm"}])
    assert page.tables["Pruned neurons"][1] == ["1", "9", "3, 0", "61, 64", "smallest norm"]
    assert "not logged: pruning_event (heads)" in page.sections["chosen"]


def test_the_stabilisation_says_why_it_fired(log: Log):
    text = page_of(log).sections["stabilisation"]
    assert "stable: rule slope, window 20, statistic -0.0004, after 150 steps" in text
    assert "went on regardless: the time was up (rule slope" in text
    assert text.count("not stable, went on regardless: ") == 1


def test_impact_and_recovery_of_a_cycle():
    stages = {"baseline": (0, 2.0), "before": (1, 2.0), "pruned": (1, 3.0), "recovered": (1, 2.1)}
    log = [{"event": "evaluation", "step": 1, "cycle": c, "stage": s, "ce": ce} for s, (c, ce) in stages.items()]
    rows = page_of(log).tables["Cross-entropy of each cycle, nats per token"]
    assert [cell.replace("\u00a0", " ") for cell in rows[1]] == [
        *("1", "2.0000", "3.0000", "\u2013", "+50.0 %", "2.1000", "+5.0 %", "+5.0 %")
    ]


def test_baseline_and_now_side_by_side(simulate: Simulate):
    log = simulate()
    tables = page_of(log).tables
    rows = tables["Baseline and now (evaluated recovered, cycle 3; measured after cycle 3)"]
    costs = [r for r in log if r.get("event") == "cost"]
    ces = [r["ce"] for r in log if r.get("event") == "evaluation"]
    assert rows[1][1:3] == [f"{ces[0]:.4f}", f"{ces[-1]:.4f}"]
    assert rows[2][1:3] == [f"{ces[1]:.4f}", f"{ces[-1]:.4f}"]
    assert rows[4][:3] == ["parameters", f"{costs[0]['parameters']:,}", f"{costs[-1]['parameters']:,}"]
    assert rows[7][:3] == [
        "a forward, ms (CPU time; on a GPU wall time)",
        f"{costs[0]['latency_ms']:.3f}",
        f"{costs[-1]['latency_ms']:.3f}",
    ]
    assert [row[0] for row in tables["What each stage costs"][1:]] == [r["stage"] for r in costs]


def test_samples_stand_side_by_side_by_prompt(log: Log):
    text = page_of(log).sections["samples"]
    assert text.count("Prompt: ") == 2
    assert text.count("fine-tuned, cycle 2") == 2
    assert text.count("A head that <i>dies</i>") == 1 + 6  # the prompt, and at the head of each text


def test_rollbacks_and_regrown_heads(log: Log, simulate: Simulate):
    page = page_of(log)
    assert page.tables["Rollbacks"][1] == ["3", "1,400", "4.8000", "2.9000", "the loss is above its limit"]
    assert page.tables["Regrown heads (layer.head)"][1] == [
        "2",
        "750",
        "1.0",
        "0.4",
        "undo",
        "gradient above the median",
    ]
    assert "No rollback in this log." in page_of(simulate()).sections["proofs"]


def test_each_section_can_be_reached_and_each_chart_has_words_and_data(log: Log):
    html = draw_dashboard(typed(log), title="t")
    page = Page(html)
    assert page.links >= {f"#{section.id}" for section in sections()}
    assert set(page.sections) >= {section.id for section in sections()}
    charts = json.loads(html.split('id="charts">')[1].split("</script>")[0])
    assert {chart["id"] for chart in charts} == set(page.charts)
    assert len(charts) == len(page.charts) == 30
    assert all(page.charts.values())


MISSING = {
    "evaluation": "impacts",
    "stabilised": "stabilisation",
    "analysis": "analyses",
    "cost": "against",
    "text_samples": "samples",
    "proof": "proofs",
    "pruning_event": "chosen",
    "phase_transition": "phases",
    "controller_update": "gates",
    "entropy": "analyses",
    "importance": "analyses",
    "gradient": "gradients",
    "val/ce": "fine-tuning",
    "ceiling": "against",
    "learning_rates": "learning-rates",
    "plasticity_started": "summary",
}


@pytest.mark.parametrize(("name", "section"), MISSING.items())
def test_what_was_not_logged_is_named(log: Log, name: str, section: str):
    pattern = rf"not logged: [^.]*{name}"
    assert not re.search(pattern, page_of(log).sections[section])
    assert re.search(pattern, page_of(without(log, name)).sections[section])


def test_a_log_without_plasticity_has_its_training_curves(log: Log):
    plain = [{k: v for k, v in r.items() if "plasticity" not in k} for r in log if "event" not in r]
    page = page_of(plain)
    assert {"timeline", "rates"} == set(page.charts)
    assert "No plasticity in this log" in page.sections["summary"]
    assert "Training loss " in page.sections["summary"]


def test_an_empty_log_is_a_page_too():
    page = page_of([])
    assert page.charts == {}
    assert "No number was logged." in page.sections["summary"]


def poisoned(value: Any, key: str = "") -> Any:
    """Each text of the log, but for the words that say what a record is, becomes an attack."""
    if isinstance(value, dict):
        return {k: poisoned(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [poisoned(one, key) for one in value]
    return PAYLOAD if isinstance(value, str) and key not in ("event", "phase", "target") else value


def test_no_text_of_the_log_is_obeyed(log: Log):
    evil = [poisoned(r) for r in log]
    evil += [{"event": "failed", "step": 1, "error": PAYLOAD, "message": PAYLOAD}]
    evil += [{"event": "analysis", "step": 1, "cycle": PAYLOAD, "alive": [[1]], "entropy": [[0.5]]}]
    evil += [{"event": "proof", "step": 1, "cycle": PAYLOAD, "checks": {PAYLOAD: PAYLOAD}}]
    evil += [{"event": "phase_transition", "step": 1, "phase": PAYLOAD, "cycle": 1}]
    html = draw_dashboard(typed(evil), title=PAYLOAD)
    page = Page(html)
    assert "img" not in page.opened
    assert page.opened.count("script") == 3
    assert page.sections["samples"].count("<script>alert(1)") > 10
    embedded = html.split('id="charts">')[1].split("</script>")[0]
    assert "<" not in embedded
    assert "<img" not in embedded.replace("\\u003c", "<")


def test_the_page_asks_nothing_of_a_network(log: Log):
    html = draw_dashboard(typed(log), title="t")
    assert re.findall(r'(?:src|href)="([^#"][^"]*)"', html) == ["data:,", PLOTLY]
    assert not re.search(r"https?:|@import|url\(", html)


def test_a_single_file_holds_the_script(log: Log):
    html = draw_dashboard(typed(log), title="t", single_file=True)
    assert len(html) > 3_000_000
    assert f'src="{PLOTLY}"' not in html


def test_a_value_that_is_no_number_is_missing_and_no_broken_json():
    log = [{"step": 1, "train/ce": float("nan")}, {"step": 2, "train/ce": 2.0}]
    log += [{"event": "analysis", "step": 2, "cycle": 1, "alive": [[1, 1]], "entropy": [[float("inf"), 0.5]]}]
    html = draw_dashboard(typed(log), title="t")
    assert "NaN" not in html.split('id="charts">')[1].split("</script>")[0]


def test_the_script_is_written_once_and_the_page_again(simulate: Simulate, tmp_path: Path):
    log, folder = simulate(), tmp_path / "new"
    assert write_dashboard(typed(log[:20]), folder / "dashboard.html", title="t") == folder / "dashboard.html"
    script, first = (folder / PLOTLY).stat(), (folder / "dashboard.html").read_text()
    write_dashboard(typed(log), folder / "dashboard.html", title="t")
    assert (folder / PLOTLY).stat().st_mtime_ns == script.st_mtime_ns
    assert (folder / "dashboard.html").read_text() == draw_dashboard(typed(log), title="t") != first
    assert sorted(path.name for path in folder.iterdir()) == ["dashboard.html", PLOTLY]
    write_dashboard(typed(log), tmp_path / "single/dashboard.html", title="t", single_file=True)
    assert [path.name for path in (tmp_path / "single").iterdir()] == ["dashboard.html"]


def test_a_write_that_fails_leaves_the_old_page(simulate: Simulate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_dashboard(typed(simulate()), tmp_path / "dashboard.html", title="old")

    def full(*paths: object) -> None:
        raise OSError(errno.ENOSPC, "simulated")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(InputError, match="no space left in"):
        write_dashboard(typed(simulate()), tmp_path / "dashboard.html", title="new")
    assert "<h1>old</h1>" in (tmp_path / "dashboard.html").read_text()
    assert len(list(tmp_path.iterdir())) == 2


def test_a_page_is_drawn_fast_enough_to_be_drawn_again_and_again(simulate: Simulate):
    log = simulate(regrowth=True, controller=True, every=1)
    log += [{"step": 1400 + i, "train/ce": 2.0, "lr": 1e-4} for i in range(3000 - len(log))]
    took = []
    for _ in range(3):
        began = time.process_time()
        dashboard.draw_dashboard(typed(log), title="t")
        took.append(time.process_time() - began)
    assert len(log) == 3000
    assert min(took) < 0.3
