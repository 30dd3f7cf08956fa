"""Options of before: translated to where they stand today, taken with their old default, or refused with the remedy."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from benchmarks.code_options import arguments, classes, within
from lightning_app.errors import InputError
from lightning_app.former import NAMED, OPTIONS, options_of_today, with_options_of_today, words_of_today
from lightning_app.plugins import import_all
from tests.conftest import Run

ROOT = Path(__file__).parent.parent
BEFORE = ROOT / "tests" / "before"
SHIPPED_BEFORE = sorted((BEFORE / "configs").rglob("*.yaml"))
SCHEDULE = "lightning_app.callbacks.PlasticitySchedule"


def test_the_table_speaks_of_options_that_are_there():
    import_all()
    by_name = {cls.__name__: cls for cls in classes()}
    moved = 0
    for name, options in OPTIONS.items():
        today = {option: annotation for _, option, annotation in arguments(by_name[name])}
        assert options.keys() & today.keys() == set(), name
        for place in options.values():
            group, _, option = place.partition(".") if isinstance(place, str) else ("", "", "")
            assert not group or group in today, (name, place)
            assert not option or option in {x.name for cls in within(today[group]) for x in fields(cls)}, (name, place)
            moved += bool(group)
    assert moved > 60


def test_options_that_moved():
    old = {"cycles": 2, "regrow": 1, "strategy": {"class_path": "EntropyImportance"}, "advanced": {"combine": "max"}}
    new = {
        "cycles": 2,
        "advanced": {"regrow": 1, "strategy": {"class_path": "EntropyImportance"}, "combine": "max"},
    }
    assert options_of_today(old, "PlasticitySchedule") == new
    assert options_of_today(new, "PlasticitySchedule") == new
    spec = {"trainer": {"callbacks+": [{"class_path": SCHEDULE, "init_args": old}]}}
    assert with_options_of_today(spec) == {"trainer": {"callbacks+": [{"class_path": SCHEDULE, "init_args": new}]}}
    assert options_of_today({"regrow": 1}, "Samples") == {"regrow": 1}


def test_two_names_of_one_list():
    art, old = {"class_path": "ARTRegularizer"}, {"class_path": "EWC"}
    assert options_of_today({"extensions": [art], "regularizers": [old]}, "CausalLM") == {"extensions": [art, old]}
    assert options_of_today({"extensions": [art], "regularizers": None}, "CausalLM") == {"extensions": [art]}
    change = {"model": {"init_args": {"regularizers+": [old]}}}  # as an overlay has it, which names no class
    assert with_options_of_today(change) == {"model": {"init_args": {"extensions+": [old]}}}


def test_an_option_that_is_gone():
    assert options_of_today({"sample_seed": 0, "cycles": 1}, "PlasticitySchedule") == {"cycles": 1}
    with pytest.raises(InputError, match="sample_seed is 3; this option is gone, and it is always 0: leave it out"):
        options_of_today({"sample_seed": 3}, "PlasticitySchedule")


def test_a_command_line_of_before():
    words = ["fit", "--config=a.yaml", f"--trainer.callbacks+={SCHEDULE}", "--trainer.callbacks.regrow=2"]
    more = ["--trainer.callbacks.sample_seed", "0", "--trainer.callbacks.cycles", "1", "--print_config"]
    assert words_of_today([*words, *more]) == [
        *("fit", "--config=a.yaml", "--trainer.callbacks+=PlasticitySchedule"),
        *("--trainer.callbacks.advanced.regrow=2", "--trainer.callbacks.cycles", "1", "--print_config"),
    ]
    with pytest.raises(InputError, match=r"--trainer.callbacks.sample_seed is 1; this option is gone"):
        words_of_today(["--trainer.callbacks.sample_seed=1"])


# Configs of before


def read(path: Path) -> object:
    """Without the places of classes, which YAML may leave out."""
    return yaml.safe_load(NAMED.sub(r"\2", path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", SHIPPED_BEFORE, ids=lambda path: path.stem)
def test_a_shipped_config_of_before_is_that_of_today(path: Path):
    assert with_options_of_today(read(path)) == read(ROOT / path.relative_to(BEFORE))


def test_all_that_were_shipped_are_there():
    assert len(SHIPPED_BEFORE) == 27


def test_the_command_line_reads_a_config_of_before(main: Run, config: Callable[..., str]):
    """The parser, and the checks before it; what of it had no effect would be a warning, and so an error here."""
    options = {"cycles": 1, "regrow": 1, "layer_lr_factor": 1e-1, "sample_seed": 0}
    spec = {"trainer": {"callbacks": [{"class_path": SCHEDULE, "init_args": options}]}}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as stopped:
        main("fit", "--config", config(spec), "--trainer.callbacks.automatic=true", "--print_config")
    assert stopped.value.code == 0
    (read,) = yaml.safe_load(printed.getvalue())["trainer"]["callbacks"]
    assert "regrow" not in read["init_args"]
    found = read["init_args"]["advanced"]
    assert (found["regrow"], found["layer_lr_factor"], found["automatic"]) == (1, 0.1, True)
