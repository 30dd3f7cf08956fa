"""What the configs and the command line say, before anything heavy is imported."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from lightning_app.cli_checks import check_arguments, given_options, read_configs, without_effect
from lightning_app.errors import InputError


@pytest.fixture
def yaml(tmp_path: Path):
    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def given_by(words: list[str]) -> dict[str, Any]:
    return given_options(words, read_configs(words))


def test_later_configs_and_the_command_line_win(yaml):
    one, two = yaml("1.yaml", "data: {block_size: 8, vocab_size: 300}"), yaml("2.yaml", "data: {block_size: 16}")
    given = given_by(["fit", "--config", one, f"-c={two}", "--data.vocab_size", "400", "--name", "x"])
    assert given == {"data.block_size": 16, "data.vocab_size": 400}


def test_a_list_replaces_all_that_stood_there(yaml):
    one = yaml("1.yaml", "model: {optimizer: {class_path: A, init_args: {lr: 1}}, other: 2}")
    two, rest = yaml("2.yaml", "model: {optimizer: [{class_path: B}]}"), {"model.other": 2}
    assert given_by(["fit", "--config", one, "--config", two]) == rest | {"model.optimizer": [{"class_path": "B"}]}
    word = '{"class_path": "B"}'
    assert given_by(["fit", "--config", one, "--model.optimizer", word]) == rest | {
        "model.optimizer": {"class_path": "B"}
    }
    later = given_by(["fit", "--config", two, "--model.optimizer.lr", "3"])
    assert later == {"model.optimizer": [{"class_path": "B"}], "model.optimizer.lr": 3}


def test_an_option_of_the_optimizer_where_there_is_a_list_is_refused(yaml):
    several = yaml("1.yaml", "model: {init_args: {optimizer: [{class_path: B}], other: 2}}")
    one = yaml("2.yaml", "model: {init_args: {optimizer: {class_path: A}}}")
    lr = ["--model.init_args.optimizer.init_args.lr", "3"]
    with pytest.raises(InputError, match=r"optimizer\.init_args\.lr is given, and the config has a list"):
        check_arguments(given_by(["fit", "--config", several, *lr]))
    check_arguments(given_by(["fit", "--config", several, "--config", one, *lr]))
    for whole in ("--model.init_args.optimizer=AdamW", "--model.optimizer=AdamW"):
        check_arguments(given_by(["fit", "--config", several, whole, *lr]))
    check_arguments(given_by(["fit", "--config", one, *lr]))


@pytest.mark.parametrize("text", ["- a list", "a: [", "\x00"])
def test_unreadable_configs(yaml, text: str):
    with pytest.raises(InputError, match=r"c\.yaml"):
        check_arguments(given_by(["fit", "--config", yaml("c.yaml", text)]))


def test_a_linked_size_may_be_repeated_but_not_contradicted(yaml):
    config = yaml("c.yaml", "data: {block_size: 8}\nmodel: {init_args: {backbone: {block_size: 8}}}")
    check_arguments(given_by(["fit", "--config", config]))
    with pytest.raises(InputError, match=r"is 8, but data\.block_size is 9"):
        check_arguments(given_by(["fit", "--config", config, "--data.block_size=9"]))


@pytest.mark.parametrize(
    "text",
    [
        "strategy: {class_path: lightning.pytorch.strategies.DeepSpeedStrategy}",
        "logger+: [{class_path: TensorBoardLogger}, {class_path: DeepSpeedStrategy, init_args: {}}]",
    ],
)
def test_a_class_whose_package_is_not_installed(yaml, monkeypatch: pytest.MonkeyPatch, text: str):
    config = yaml("c.yaml", f"trainer: {{{text}}}")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install deepspeed"):
        check_arguments(given_by(["fit", "--config", config]))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    check_arguments(given_by(["fit", "--config", config]))


def test_options_without_effect():
    given = {
        "a.init_args.lr": 1,
        "a.init_args.betas": [1],
        "b.c": 2,
        "d.e": 3,
        "callbacks+": [],
        "callbacks.monitor": "x",
    }
    config = {"a": {"class_path": "SGD", "init_args": {"lr": 1}}, "b": None, "d": {"e": 3}, "callbacks": []}
    assert without_effect(given, config) == ["a.init_args.betas"]
