"""The commit of this code is known where git and its folder are."""

import re
import subprocess
from pathlib import Path

import pytest

from lightning_app.training import commit as module
from lightning_app.training.commit import commit


@pytest.fixture(autouse=True)
def asked_anew():
    commit.cache_clear()
    yield
    commit.cache_clear()


def repository(folder: Path) -> str:
    """The commit of a new repository with one file below `package/`."""

    def git(*words: str) -> str:
        own = ("-c", "user.name=x", "-c", "user.email=x@example.org")
        return subprocess.run(["git", *own, *words], cwd=folder, capture_output=True, text=True, check=True).stdout

    (folder / "package").mkdir()
    (folder / "package" / "a.py").write_text("1")
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "one")):
        git(*words)
    return git("rev-parse", "HEAD").strip()


def test_the_commit_with_a_mark_for_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    head = repository(tmp_path)
    assert re.fullmatch("[0-9a-f]{40}", head)
    monkeypatch.setattr(module, "__file__", str(tmp_path / "package" / "training" / "commit.py"))
    assert commit() == head
    (tmp_path / "package" / "a.py").write_text("2")
    commit.cache_clear()
    assert commit() == f"{head} with changes"


def test_without_git_or_its_folder_it_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "__file__", str(tmp_path / "package" / "training" / "commit.py"))
    (tmp_path / "package").mkdir()
    assert commit() == "unknown"
    commit.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert commit() == "unknown"
