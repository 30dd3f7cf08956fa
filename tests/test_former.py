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
from lightning_app.cli_checks import named_classes, read_configs
from lightning_app.errors import InputError
from lightning_app.former import NAMED, OPTIONS, options_of_today, with_options_of_today, words_of_today
from lightning_app.plugins import import_all
from lightning_app.training.checkpoint import of_today
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


def test_a_module_of_somebody_has_the_options_of_ours():
    spec = {"class_path": "mine.Module", "init_args": {"regularizers": [{"class_path": "EWC"}]}}
    today = {"class_path": "mine.Module", "init_args": {"extensions": [{"class_path": "EWC"}]}}
    assert with_options_of_today({"model": spec}) == {"model": today}
    words = ["--model.class_path=mine.Module", "--model.regularizers=EWC"]
    assert words_of_today(words)[1] == "--model.extensions=EWC"
    described = {"part": "mine.Module", "version": 1, "options": {"regularizers": []}}
    assert of_today(described) == {**described, "options": {"extensions": []}}


def test_an_option_that_is_gone():
    assert options_of_today({"sample_seed": 0, "cycles": 1}, "PlasticitySchedule") == {"cycles": 1}
    with pytest.raises(InputError, match="sample_seed is 3; this option is gone, and it is always 0: leave it out"):
        options_of_today({"sample_seed": 3}, "PlasticitySchedule")


def test_what_no_option_can_be_is_left_to_the_parser_or_refused(fails: Callable[..., str], folder: Path):
    assert options_of_today({0.95: None}, "HeadController") == {0.95: None}
    with pytest.raises(InputError, match=r"advanced is .*; it must hold options by their names, such as"):
        options_of_today({"advanced": ["a"], "controller_reg_weight": 0.1}, "HeadController")
    Path("escape.yaml").write_text('model: "\\uD800"\n')
    assert "not readable YAML: line 1, column" in fails("fit", "--config", "escape.yaml")


def test_a_command_line_of_before():
    words = ["fit", "--config=a.yaml", f"--trainer.callbacks+={SCHEDULE}", "--trainer.callbacks.regrow=2"]
    more = ["--trainer.callbacks.sample_seed", "0", "--trainer.callbacks.cycles", "1", "--print_config"]
    assert words_of_today([*words, *more]) == [
        *("fit", "--config=a.yaml", "--trainer.callbacks+=PlasticitySchedule"),
        *("--trainer.callbacks.advanced.regrow=2", "--trainer.callbacks.cycles", "1", "--print_config"),
    ]
    with pytest.raises(InputError, match=r"--trainer.callbacks.sample_seed is 1; this option is gone"):
        words_of_today(["--trainer.callbacks.sample_seed=1"])


def test_each_step_of_a_key_is_that_of_today():
    model = ["--model.init_args.regularizers+=ARTRegularizer", "--model.init_args.regularizers.fast_inputs=3"]
    assert words_of_today(["fit", *model]) == [
        *("fit", "--model.init_args.extensions+=ARTRegularizer", "--model.init_args.extensions.advanced.fast_inputs=3")
    ]
    schedule = [f"--trainer.callbacks+={SCHEDULE}", "--trainer.callbacks.strategy.keep", "1"]
    assert words_of_today(schedule)[1:] == ["--trainer.callbacks.advanced.strategy.keep", "1"]


def test_a_value_of_the_command_line_has_options_of_today():
    value = "[{class_path: ARTRegularizer, init_args: {fast_learning_rate: 1e-3}}]"
    today = "[{class_path: ARTRegularizer, init_args: {advanced: {fast_learning_rate: 1e-3}}}]"
    assert words_of_today(["--model.regularizers", value]) == ["--model.extensions", today]
    assert words_of_today([f"--model.extensions={today}"]) == [f"--model.extensions={today}"]
    assert words_of_today(["--model.x={no: [yaml"]) == ["--model.x={no: [yaml"]
    callback = "{class_path: HeadController, init_args: {finally_: mask, seed: 0}}"
    assert words_of_today([f"--trainer.callbacks+={callback}"]) == [
        "--trainer.callbacks+={class_path: HeadController, init_args: {at_end: mask}}"
    ]


def test_the_class_that_a_config_names_decides(folder: Path, config: Callable[..., str]):
    """Two callbacks have options of one name: Lightning's bar has a `refresh_rate`, and our line has none any more."""
    bar = {"class_path": "lightning.pytorch.callbacks.TQDMProgressBar", "init_args": {"refresh_rate": 1}}
    path = config({"trainer": {"callbacks+": [{"class_path": "Samples"}, bar]}})
    words = ["fit", "--config", path, "--trainer.callbacks.refresh_rate=2"]
    assert words_of_today(words, named_classes(read_configs(words))) == words


def test_an_option_under_both_names():
    assert options_of_today({"at_end": "mask", "finally_": "mask"}, "HeadController") == {"at_end": "mask"}
    with pytest.raises(InputError, match="finally_ is mask, and at_end, its name of today, is keep: give at_end alone"):
        options_of_today({"finally_": "mask", "at_end": "keep"}, "HeadController")
    both = {"advanced": {"regrow": 1}, "regrow": 2}
    with pytest.raises(InputError, match=r"regrow is 2, and advanced.regrow, .* is 1: give advanced.regrow alone"):
        options_of_today(both, "PlasticitySchedule")
    assert both == {"advanced": {"regrow": 1}, "regrow": 2}
    assert options_of_today({"advanced": None, "regrow": 2}, "PlasticitySchedule") == {"advanced": {"regrow": 2}}


# Configs of before

OTHER_RECIPES = [
    "art_gpt2_offline",
    "article_gpt",
    "controller",
    "model_parallel",
    "streaming",
    "varda_gpt_offline",
]  # what is trained how is another matter today


def read(path: Path) -> object:
    """Without the places of classes, which YAML may leave out."""
    return yaml.safe_load(NAMED.sub(r"\2", path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", [p for p in SHIPPED_BEFORE if p.stem not in OTHER_RECIPES], ids=lambda path: path.stem)
def test_a_shipped_config_of_before_is_that_of_today(path: Path):
    today = read(ROOT / path.relative_to(BEFORE))
    assert with_options_of_today(read(path)) in (
        today,
        yaml.safe_load(yaml.safe_dump(today).replace("extensions+", "extensions")),
    )


@pytest.mark.parametrize("name", OTHER_RECIPES)
def test_a_recipe_of_before_is_read(name: str, main: Run):
    main_config, overlay = BEFORE / "configs/article_gpt.yaml", BEFORE / f"configs/overlays/{name}.yaml"
    words = ["--config", str(main_config), *(["--config", str(overlay)] if overlay.exists() else [])]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as stopped:
        main("fit", *words, "--print_config")
    assert stopped.value.code == 0
    assert yaml.safe_load(printed.getvalue())["model"]["init_args"]["token_noise"] == 0.08


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
