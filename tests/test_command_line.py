"""Commands that are typed functions: their help and their mistakes, before anything heavy is imported."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import cyclopts
import pytest

from lightning_app.cli import commands, main
from lightning_app.command_line import app_of

ROOT = Path(__file__).parents[1]
TYPED = {name: command for name, command in commands().items() if command.place or command.parts}
WHOLE = [[name] if command.place else [name, part] for name, command in TYPED.items() for part in command.parts or [""]]


def arguments_of(app: cyclopts.App, words: list[str]) -> cyclopts.ArgumentCollection:
    return (app if len(words) == 1 else app[words[1]]).assemble_argument_collection(parse_docstring=True)


def parsers() -> Iterator[tuple[str, cyclopts.ArgumentCollection]]:
    for words in WHOLE:
        yield " ".join(words), arguments_of(app_of(words[0], TYPED[words[0]]), words)


def test_help_of_all_commands_imports_nothing_heavy():
    code = (
        "import sys; from lightning_app.cli import main\n"
        "from lightning_app.plugins import load; from lightning_app.cli import commands\n"
        "for command in commands().values():\n"
        "    functions = [load(place) for place in [command.place, *command.parts.values()] if place]\n"
        "for words in (['generate'], ['memory'], ['memory', 'build']):\n"
        "    main([*words, '--help'])\n"
        "    assert not {'torch', 'lightning', 'numpy', 'transformers', 'fastapi'} & set(sys.modules), words"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("Usage: python main.py") == 3


def test_every_option_is_told_and_every_number_says_what_it_is_without_it():
    for command, arguments in parsers():
        for argument in arguments:
            if argument.children:
                continue
            text, hint = argument.parameter.help or "", str(argument.hint)
            assert text, f"{command} {argument.name}"
            numbers = argument.hint in (int, float) or re.search(r"\b(int|float)\b", hint)
            default = argument.field_info.default
            if numbers and default is None:
                assert re.search(r"without|instead of", text), f"{command} {argument.name}: {text}"


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("generate",), "generate needs --ckpt_path: python main.py generate --help"),
        (("generate", "--ckpt_path"), "--ckpt_path needs a value"),
        (("generate", "--ckptpath", "best"), "there is no option --ckptpath: did you mean --ckpt_path?"),
        (("generate", "--ckpt_path", "a", "--promt", "b"), "unknown option: --promt. Did you mean --prompt?"),
        (
            ("serve", "--ckpt_path", "a", "--port", "many"),
            'invalid value for --port: unable to convert "many" into int',
        ),
        (("compare", "a", "--axis", "x"), 'invalid value "x" for --axis. Choose from: "steps", "tokens", "time"'),
        (("compress", "--ckpt_path", "a"), "compress needs FILE: python main.py compress --help"),
        (("memory", "search", "--ckpt_path", "a"), "memory search needs --query: python main.py memory search --help"),
        (("memory", "bild"), 'unknown command "bild". Did you mean "build"? Available commands: build, add, '),
    ],
)
def test_a_mistake_is_one_line(words: tuple[str, ...], error: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith(f"error: {error}")
    assert line.count("\n") == 1


@pytest.mark.parametrize("text", ["- an item", "--- a line", "-1", "a=b", "\udce4"])
def test_a_text_may_be_anything(text: str):
    app = app_of("generate", TYPED["generate"])
    words = ["--ckpt_path", "a", "--prompt", text, "--stop", text, "--stop", "b"]
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    whole = text.replace("\udce4", "ä")  # a byte that is not UTF-8
    assert bound.kwargs["prompt"] == whole
    assert bound.kwargs["sampling"].stop == [whole, "b"]
