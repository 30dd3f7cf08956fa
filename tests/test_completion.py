"""What a shell completes: bash is asked, and others read their scripts where they are here."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from lightning_app.cli import main


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    main(["completion", shell])
    return capsys.readouterr().out


def completed(words: str, script: str) -> list[str]:
    """What bash offers behind these words."""
    ask = (
        "\nCOMP_WORDS=(" + words + ' ""); COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_LINE="${COMP_WORDS[*]}"\n'
        'COMP_POINT=${#COMP_LINE}; $(complete -p lightning-app | sed -E "s/.*-F ([^ ]+) .*/\\1/"); '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash"], input=script + ask, capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_commands_options_and_choices(capsys: pytest.CaptureFixture[str]):
    bash = script("bash", capsys)
    assert {"fit", "generate", "memory", "schema"} <= {*completed("lightning-app", bash)}
    assert {"build", "list", "search"} <= {*completed("lightning-app memory", bash)}
    fit = subprocess.run(["bash", "-n"], input=bash, text=True, check=True, capture_output=True)
    assert fit.stderr == ""
    for option in ("--trainer.max_steps", "--data.train.path", "--config", "--top_k", "--index_type", "KNNReader"):
        assert option in bash


@pytest.mark.slow
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_read_theirs(shell: str, capsys: pytest.CaptureFixture[str]):
    text = script(shell, capsys)
    assert "trainer.max_steps" in text
    assert "temperature" in text
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=text, text=True, check=True)
