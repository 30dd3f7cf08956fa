"""The part of the command line that works before anything heavy is imported."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_app.cli import check_arguments, given_options, main, without_effect
from lightning_app.errors import InputError


@pytest.fixture
def yaml(tmp_path: Path):
    def write(name: str, text: str) -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def test_later_configs_and_the_command_line_win(yaml):
    one, two = yaml("1.yaml", "data: {block_size: 8, vocab_size: 300}"), yaml("2.yaml", "data: {block_size: 16}")
    given = given_options(["fit", "--config", one, f"-c={two}", "--data.vocab_size", "400", "--name", "x"])
    assert given == {"data.block_size": 16, "data.vocab_size": 400}


@pytest.mark.parametrize("text", ["- a list", "a: [", "\x00"])
def test_unreadable_configs(yaml, text: str):
    with pytest.raises(InputError, match=r"c\.yaml"):
        check_arguments(["fit", "--config", yaml("c.yaml", text)])


def test_a_linked_size_may_be_repeated_but_not_contradicted(yaml):
    config = yaml("c.yaml", "data: {block_size: 8}\nmodel: {init_args: {backbone: {block_size: 8}}}")
    check_arguments(["fit", "--config", config])
    with pytest.raises(InputError, match=r"is 8, but data\.block_size is 9"):
        check_arguments(["fit", "--config", config, "--data.block_size=9"])


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
        check_arguments(["fit", "--config", config])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    check_arguments(["fit", "--config", config])


def test_a_command_whose_packages_are_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "--ckpt_path", "best"])
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "error: serve needs packages that are not here: pip install fastapi uvicorn\n"


def test_options_without_effect():
    given = {"a.init_args.lr": 1, "a.init_args.betas": [1], "b.c": 2, "d.e": 3, "callbacks+": []}
    config = {"a": {"class_path": "SGD", "init_args": {"lr": 1}}, "b": None, "d": {"e": 3}, "callbacks": []}
    assert without_effect(given, config) == ["a.init_args.betas"]


def test_cheap_mistakes_are_found_before_lightning_is_imported(tmp_path: Path):
    code = (
        "import sys; from lightning_app.cli import main\n"
        "try: main(['fit', '--config', 'nowhere.yaml'])\n"
        "except SystemExit as stop: print(stop.code, 'lightning' in sys.modules, 'torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    options = {"capture_output": True, "text": True, "check": True, "cwd": tmp_path, "env": environment}
    done = subprocess.run([sys.executable, "-c", code], **options)
    assert done.stdout.split() == ["1", "False", "False"]
    assert "nowhere.yaml" in done.stderr


def interrupt(*args: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from lightning_app.reports.compare import command as compare

    monkeypatch.setattr(compare, "command", interrupt)
    with pytest.raises(SystemExit) as ended:
        main(["compare", "runs"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "compare: stopped by Ctrl-C\n"


@pytest.mark.parametrize("command", ["fit", "validate", "prepare"])
def test_ctrl_c_is_one_line_where_there_is_a_trainer(
    folder: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Here while the text is read; in a fit, tests/callbacks/test_interruption.py."""
    from lightning_app.text.datamodule import TextDataModule

    monkeypatch.setattr(TextDataModule, "prepare_data", interrupt)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit) as ended:
        main([command, "--config", "tiny.yaml"])
    signal.signal(signal.SIGINT, before)  # Lightning ignores it from then on
    assert ended.value.code == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"{command}: stopped by Ctrl-C"


def test_a_closed_pipe_ends_a_command_without_a_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    from lightning_app.reports.compare import command as compare

    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        monkeypatch.setattr(compare, "command", lambda argv: print("a page"))
        with pytest.raises(SystemExit) as ended:
            main(["compare", "runs"])
    assert ended.value.code == 141
    assert capsys.readouterr().err == ""
