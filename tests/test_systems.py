"""docs/how-to/systems.md: what other systems lack is not asked of them, and each target of make is a command there."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_app import __version__
from lightning_app.errors import InputError
from lightning_app.forecast import peak_memory
from lightning_app.memory.mapped import MappedVectors

ROOT = Path(__file__).parent.parent
OF_UNIX = ("crypt", "curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty")
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PAGE = (ROOT / "docs/how-to/systems.md").read_text(encoding="utf-8")


def targets() -> set[str]:
    """As `make help` finds them."""
    return set(re.findall(r"^([a-z0-9-]+):.*##", MAKEFILE, re.MULTILINE))


def recipe(target: str) -> str:
    (found,) = re.findall(rf"^{target}:(?!=).*##.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    return found.replace("$(BIN)/", "")


def rows() -> dict[str, str]:
    return dict(re.findall(r"^\| `make ([a-z0-9-]+)` +\| (.*?) *\|$", PAGE, re.MULTILINE))


def test_each_target_of_make_is_a_command_on_the_page():
    assert len(targets()) > 20
    assert set(rows()) == targets()


@pytest.mark.parametrize("target", sorted(targets() - {"help", "setup", "clean"}))
def test_the_command_of_a_target_is_what_make_runs(target: str):
    """Its programs are: `python -m MODULE`, `python main.py COMMAND`, and what else begins a line."""
    command = rows()[target].strip("`")
    called = re.compile(r"(?:-m|main\.py) ([\w.]+)|\b(?:docs/site_parts/\w+\.py)")
    asked = {found[0] for found in called.finditer(recipe(target))} - {"-m pip", "-m venv"}
    if target == "train":  # which makes `evaluate`, too
        asked |= {found[0] for found in called.finditer(recipe("evaluate"))}
    asked -= {"-m slow", "-m gpu"}
    assert asked <= {found[0] for found in called.finditer(command)} | {"-m venv"}, command
    for part in command.split(";"):
        assert shlex.split(part)[0] in ("python", "pip", "uv", "ruff", "mypy", "npx"), part


def test_no_module_that_unix_alone_has_is_imported_by_name():
    """Those that are of use there are asked for, and done without: see below."""
    files = [ROOT / "main.py", *(ROOT / "lightning_app").rglob("*.py")]
    assert len(files) > 200
    named = re.compile(rf"^\s*(?:import|from) (?:{'|'.join(OF_UNIX)})\b", re.MULTILINE)
    assert [path for path in files if named.search(path.read_text(encoding="utf-8"))] == []


def test_without_unix_the_peak_memory_is_not_told_and_a_mapped_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    assert (peak_memory(torch.device("cpu")) or 0) > 1e6
    for name in ("resource", "fcntl"):
        monkeypatch.setitem(sys.modules, name, None)
    assert peak_memory(torch.device("cpu")) is None
    with pytest.raises(InputError, match="leave path out"):
        MappedVectors((2, 2), dtype=torch.float32, path=str(tmp_path / "vectors"))


def test_the_citation_is_of_this_version_and_in_the_authors_page():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (cited["version"], cited["license"], cited["cff-version"]) == (__version__, "MIT", "1.2.0")
    page = (ROOT / "docs/how-to/authors.md").read_text(encoding="utf-8").replace("\\_", "_")
    assert cited["title"] in page
    assert f"version = {{{__version__}}}" in page
