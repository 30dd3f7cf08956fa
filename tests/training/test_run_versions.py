"""Each run has a folder of its own, made before anything else, and none is left by a command that was refused."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lightning_app.errors import InputError
from lightning_app.training.run_versions import RANKS, claim_version, next_version, release_empty


@pytest.fixture(autouse=True)
def _nothing_claimed() -> Iterator[None]:
    release_empty()
    yield
    release_empty()


def test_the_next_version_is_above_all_that_are_there(tmp_path: Path):
    assert next_version(tmp_path) == "version_0"
    for name in ("version_2", "version_10", "version_old", "other"):
        (tmp_path / name).mkdir()
    (tmp_path / "version_12").write_text("a file cannot be the folder of a run")
    assert next_version(tmp_path) == "version_13"


def test_runs_that_start_at_the_same_moment_have_a_folder_each(tmp_path: Path):
    with ThreadPoolExecutor(32) as pool:
        folders = list(pool.map(claim_version, [tmp_path / "runs/name"] * 64))
    assert sorted(folders) == sorted(tmp_path / f"runs/name/version_{n}" for n in range(64))
    assert all(folder.is_dir() for folder in folders)


def test_what_nothing_was_written_to_goes(tmp_path: Path):
    runs = tmp_path / "runs/name"
    used = claim_version(runs)
    (used / "log.jsonl").touch()
    claim_version(runs)
    claim_version(tmp_path / "runs/other")
    release_empty()
    assert sorted(path.name for path in (tmp_path / "runs").rglob("*")) == ["log.jsonl", "name", "version_0"]
    assert claim_version(runs).name == "version_1"


@pytest.mark.parametrize("name", RANKS)
def test_only_the_first_of_several_ranks_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, "1")
    assert claim_version(tmp_path / "runs") == tmp_path / "runs/version_0"
    assert not (tmp_path / "runs").exists()
    monkeypatch.setenv(name, "0")
    assert claim_version(tmp_path / "runs").is_dir()


def test_a_place_where_none_can_be_made(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="lies at or below a file: give another --runs_dir"):
        claim_version(tmp_path / "file" / "name")
