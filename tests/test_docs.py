"""What the documents name is there, and nothing was left to be filled in."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "data").rglob("*.md")])
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def test_all_are_found():
    assert {"README.md", "CONTRIBUTING.md", "CHANGELOG.md", "how-to.md", "from-the-seeds.md", "log.md"} <= {
        page.name for page in PAGES
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        assert "://" in target or (page.parent / target).exists(), target


@pytest.mark.parametrize("page", [*PAGES, *CONFIGS], ids=lambda p: p.name)
def test_nothing_is_left_to_be_filled_in(page: Path):
    assert not re.search(r"\bTBM\b|\bTODO\b|<!-- |\bMETRIC\b", page.read_text())


def test_the_architecture_names_every_folder_and_files_that_are_there():
    package, text = ROOT / "lightning_app", (ROOT / "docs" / "architecture.md").read_text()
    folders = {path.name for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert {row.split("/`")[0] for row in re.findall(r"^\| `(\w+/`)", text, flags=re.M)} == folders
    named = set(re.findall(r"`([\w/]+\.py)`", text)) - {
        "lightning_app/plugins.py",
        "tests/test_layering.py",
        "tests/test_ideas.py",
    }
    assert len(named) > 40
    assert [name for name in sorted(named) if not (package / name).is_file()] == []


def test_the_readme_has_every_config():
    readme = (ROOT / "README.md").read_text()
    assert CONFIGS
    for path in CONFIGS:
        assert f"`{path.relative_to(ROOT)}`" in readme


def test_each_promise_names_tests_that_are_there():
    promises = (ROOT / "docs" / "reliability.md").read_text()
    named = set(re.findall(r"`(tests/[\w/.]+)`", promises))
    assert len(named) > 40
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
