"""Every command in README.md and docs/ has options that are there. tests/test_page_runs.py runs them."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest

from lightning_app.cli import COMMANDS, main
from lightning_app.cli import commands as all_commands
from lightning_app.cli_checks import config_paths, named_classes, read_configs
from lightning_app.schema.find import check_config, check_words
from tests.pages import ROOT, blocks, commands, pages, shell

PAGES = pages()
BY_CONFIG = {"fit", "validate", "test", "predict", "prepare"}  # their options are keys of a YAML


def of_page(page: Path) -> list[list[str]]:
    return [words for block in blocks(page) for words in commands(shell(block))]


def test_the_pages_have_many_commands():
    assert sum(len(of_page(page)) for page in PAGES) > 100
    named = {words[0] for page in PAGES for words in of_page(page)}
    assert {name for name in COMMANDS if name not in ("schema", "completion")} <= named


@pytest.fixture
def folder_of_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the configs, in which a page's files can be written."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if of_page(page)], ids=lambda page: page.stem)
def test_each_command_of_a_page_knows_its_options(
    page: Path, folder_of_pages: Path, capsys: pytest.CaptureFixture[str]
):
    for block in blocks(page):
        if block.file and block.file.endswith(".yaml"):
            Path(block.file).write_text(block.code, encoding="utf-8")
            check_config(read_configs(["--config", block.file])[0], Path(block.file))
    for words in of_page(page):
        if words[0] in BY_CONFIG:
            options_of_a_config(words)
        else:
            options_of_a_command(words, capsys)


def options_of_a_config(words: list[str]) -> None:
    paths = config_paths(words)
    missing = [path for path in paths if not path.exists()]
    assert [path for path in missing if not path.name.endswith("-memory.yaml")] == [], words  # `memory build` writes it
    configs = [config for path in paths if path not in missing for config in read_configs(["--config", str(path)])]
    check_words(words[1:], named_classes(configs))


def options_of_a_command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert words[0] in all_commands() or words[0].startswith("--"), words
    if words[0].startswith("--"):
        return
    path = [word for word in words[:2] if re.fullmatch("[a-z]+", word)] if words[0] == "memory" else words[:1]
    with contextlib.suppress(SystemExit):
        main([*path, "--help"])
    known = set(re.findall(r"--[a-z0-9_]+", capsys.readouterr().out))
    given = {word.split("=")[0] for word in words if word.startswith("--")}
    assert given <= known | {"--help"}, words
