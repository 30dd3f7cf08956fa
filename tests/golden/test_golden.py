"""Small runs give the numbers that they gave before: see CONTRIBUTING.md, "Golden runs"."""

from __future__ import annotations

import json

import pytest

from tests.conftest import keep_parsers
from tests.golden.compare import differences
from tests.golden.mutations import CONTROLS, MUTATIONS
from tests.golden.runner import HERE, NAMES, run, run_shipped, shipped

CONFIGS = HERE.parent.parent / "configs"

HAPPENED = {  # what each run is there for
    "accumulation": {"accumulated steps"},
    "art_gpt2": {"categories born", "steps with a match", "steps with drift", "steps of rehearsal"},
    "article_gpt": set(),
    "averaging": {"averaged weights", "validations of the average"},
    "controller": {"updates that switched a head", "heads pruned"},
    "plasticity": {"heads pruned", "neurons pruned", "heads regrown"},
    "varda_gpt": {
        *(f"memory{i} {what}" for i in range(5) for what in ("reads", "writes", "evictions")),
        *("memory0 deletions", "memory1 deletions"),
    },
}


RARE = ("accumulation", "averaging", "controller")  # `make golden-compare` and `make test-slow` have them


def expected(name: str) -> dict:
    return json.loads((HERE / "expected" / f"{name}.json").read_text())


def test_each_run_has_its_file():
    assert sorted(HAPPENED) == NAMES
    assert sorted(path.stem for path in (HERE / "expected").glob("*.json")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_a_run_is_there_for_happens(name: str):
    events = expected(name)["events"]
    assert events["optimizer steps"] == 40
    assert HAPPENED[name] <= events.keys()


def test_a_run_is_resumed_at_step_20():
    resumed = expected("article_gpt")["resumed"]
    assert resumed["events"] == {"optimizer steps": 20, "resumed": 1}


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in RARE else n for n in NAMES])
def test_a_run_gives_what_it_gave(name: str, monkeypatch: pytest.MonkeyPatch):
    keep_parsers(monkeypatch)
    found = differences(expected(name), run(name))
    assert not found, "\n".join(map(str, found[:10]))


def test_there_are_ten_mutations():
    assert len(MUTATIONS) == 10


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch):
    mutation = MUTATIONS[name]
    mutation.patch(monkeypatch)
    found = differences(expected(mutation.run), run(mutation.run, config=mutation.config))
    assert found
    assert any(difference.where.startswith("weights") for difference in found), found[0]
    print(f"{name}: {len(found)} differences, the first {found[0]}")


@pytest.mark.slow
@pytest.mark.parametrize("name", CONTROLS)
def test_a_mutation_changes_what_it_names_alone(name: str):
    control = CONTROLS[name]
    assert not differences(expected(control.run), run(control.run, config=control.config))


def test_each_shipped_config_and_overlay_has_its_file():
    assert sorted(path.stem for path in CONFIGS.glob("*.yaml")) == sorted(shipped.CONFIGS)
    overlays = {path.stem for path in (CONFIGS / "overlays").glob("*.yaml")}
    assert overlays == shipped.OVERLAYS.keys() | shipped.LEFT_OUT
    assert sorted(path.stem for path in (HERE / "expected" / "shipped").iterdir()) == shipped.NAMES


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning")  # 20 steps are short for what the configs are for, and all say so
@pytest.mark.parametrize("name", shipped.NAMES)
def test_a_shipped_config_gives_what_it_gave(name: str):
    found = differences(expected(f"shipped/{name}"), run_shipped(name))
    assert not found, "\n".join(map(str, found[:10]))


@pytest.mark.slow
def test_no_run_leaves_anything_to_the_next():
    """In the other order than above, in one process."""
    for name in reversed(NAMES):
        assert not differences(expected(name), run(name)), name
