"""The part of the command line that works before anything heavy is imported."""

import gc
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_app import __version__, cli, cli_checks
from lightning_app.cli import main
from lightning_app.yaml_file import read_yaml


def test_a_command_whose_packages_are_not_installed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stopped:
        main(["serve", "--ckpt_path", "best"])
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "error: serve needs packages that are not here: pip install fastapi uvicorn\n"


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


def test_nothing_is_collected_while_a_process_imports(monkeypatch: pytest.MonkeyPatch):
    frozen: list[bool] = []
    monkeypatch.setattr(gc, "freeze", lambda: frozen.append(gc.isenabled()))
    with cli.imports():
        assert gc.isenabled()  # here torch is imported already: what tests leave is collected
    monkeypatch.delitem(sys.modules, "torch")
    with cli.imports():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert frozen == [False]


def test_a_config_is_read_once_before_the_parser_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    read: list[Path] = []
    monkeypatch.setattr(cli_checks, "read_yaml", lambda path: read.append(path) or read_yaml(path))  # type: ignore[func-returns-value]
    paths = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    paths[0].write_text("model: {class_path: ArticleGPT}")
    paths[1].write_text("dataloader: {batch_size: 1}")
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(paths[0]), "--config", str(paths[1])])
    assert "a config has a top-level `dataloader`" in capsys.readouterr().err
    assert read == paths


def interrupt(*args: object, **options: object) -> None:
    raise KeyboardInterrupt


def test_ctrl_c_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    from lightning_app.reports.compare import command as compare

    monkeypatch.setattr(compare, "compare", interrupt)
    with pytest.raises(SystemExit) as ended:
        main(["compare", "runs"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == "compare: stopped by Ctrl-C\n"


@pytest.mark.parametrize("command", ["fit", "validate", "prepare"])
def test_ctrl_c_is_one_line_where_there_is_a_trainer(
    folder: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Here while the text is read; in a fit, tests/training/callbacks/test_interruption.py."""
    from lightning_app.data.datamodule import TextDataModule

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
        monkeypatch.setattr(compare, "compare", lambda *_, **__: (Path("a.html"), "a table"))
        with pytest.raises(SystemExit) as ended:
            main(["compare", "runs"])
    assert ended.value.code == 141
    assert capsys.readouterr().err == ""


def told(*words: str) -> tuple[int, str, str]:
    """Exit code and both outputs of a command in a fresh process, which imports neither torch nor Lightning."""
    code = (
        "import sys; from lightning_app.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "finally: assert not {'torch', 'lightning'} & set(sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("words", [(), ("--help",), ("-h",), ("help",)])
def test_all_commands_are_told_by_group_with_a_line_each(words: tuple[str, ...]):
    code, out, err = told(*words)
    assert (code, err) == (0, "")
    groups = [part.splitlines() for part in out.split("\n\n")]
    listed = {group[0]: [line.split()[0] for line in group[1:]] for group in groups}
    assert listed["Train and measure, by a config"] == ["fit", "validate", "test", "predict", "prepare"]
    assert {"generate", "serve", "export"} < {*listed["Use a trained model"]}
    assert listed["Look at runs, memories and categories"] == [
        *("report", "compare", "completion", "schema", "memory", "categories")
    ]
    assert set(cli.commands()) == {name for group in listed.values() for name in group}


def test_a_mistyped_command_is_answered_by_the_nearest_and_the_list():
    code, out, err = told("genrate", "--ckpt_path", "best")
    assert (code, out) == (1, "")
    assert err.endswith("\nerror: there is no command 'genrate': did you mean generate?\n")
    assert "\n  serve " in err
    assert told("--ckpt_path", "best")[2].endswith(
        "error: the command comes first: python main.py COMMAND --ckpt_path\n"
    )


def test_a_run_says_its_first_line_before_anything_is_imported(tmp_path: Path):
    code = "import sys; from lightning_app import cli\ncli.imports = lambda: sys.exit(0)\ncli.main(sys.argv[1:])"
    words = [sys.executable, "-c", code, "fit", "--config", "configs/article_gpt.yaml"]
    done = subprocess.run(words, cwd=Path(__file__).parent.parent, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", "fit article_gpt: loading\n")


def test_the_version():
    assert told("--version") == (0, f"lightning_app {__version__}\n", "")
