"""The Python face: what the command line does, from a notebook."""

from __future__ import annotations

from pathlib import Path

import pytest

import lightning_app
from lightning_app.cli import main as command
from lightning_app.errors import InputError
from lightning_app.reports.run_folder import RunFolder


@pytest.mark.usefixtures("main")  # parsers are kept
def test_a_fit_by_options_is_that_of_the_command_line(folder: Path):
    run = lightning_app.fit("tiny.yaml", name="mine", trainer={"max_steps": 2}, **{"data.dataloader.batch_size": 3})
    assert run == RunFolder(Path("runs/mine/version_0"))
    config = run.config()
    assert (config["trainer"]["max_steps"], config["data"]["dataloader"]["batch_size"]) == (2, 3)
    assert lightning_app.fit("tiny.yaml", name="mine", trainer={"max_steps": 2}).number == 1
    with pytest.raises(InputError, match=r"there is no option --trainer.max_step: did you mean trainer.max_steps"):
        lightning_app.fit("tiny.yaml", trainer={"max_step": 1})


def test_a_model_continues_as_the_command_does(
    tiny_run: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
):
    model = lightning_app.load(tiny_run)
    assert model.path == tiny_checkpoint
    assert lightning_app.load(RunFolder(tiny_run)).path == lightning_app.load(tiny_checkpoint).path == tiny_checkpoint
    words = ["generate", "--ckpt_path", str(tiny_checkpoint), "--prompt", "the model", "--max_new_tokens", "9"]
    capsys.readouterr()
    command(words)
    said = model.generate("the model", max_new_tokens=9)
    assert capsys.readouterr().out == f"the model{said}\n"
    with pytest.raises(InputError, match="temperature is -1"):
        model.generate(temperature=-1)


def test_bits_per_byte_are_those_of_test(trained: Path, main, capsys: pytest.CaptureFixture[str]):
    text = Path("val.txt").read_text()
    found = lightning_app.load(trained).bits_per_byte(text)
    capsys.readouterr()
    options = ("--data.clean", "false", "--data.dataloader.batch_size", 1)
    main("test", "--config", "tiny.yaml", "--ckpt_path", "best", "--data.test.path", "val.txt", *options)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "test/bpb" in line]
    assert found == pytest.approx(float(row.split("│")[2]), rel=1e-5)


def test_nothing_is_imported_before_it_is_asked_for():
    assert set(lightning_app.__all__) == {"__version__", "fit", "load"}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        lightning_app.nothing  # noqa: B018
