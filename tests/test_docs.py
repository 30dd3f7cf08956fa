"""What the documents name is there, and nothing was left to be filled in."""

import ast
import contextlib
import io
import pkgutil
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_app.yaml_file import leaves
from tests.conftest import Run
from tests.sources import nodes

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").glob("*.md"),
        *(ROOT / "docs" / "how-to").glob("*.md"),
        *(ROOT / "data").rglob("*.md"),
    ]
)
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))


def test_all_are_found():
    assert {
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "how-to.md",
        "articles.md",
        "from-the-seeds.md",
        "log.md",
    } <= {page.name for page in PAGES}


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


def test_the_page_of_the_configs_has_every_config():
    page = (ROOT / "docs" / "configs.md").read_text()
    assert CONFIGS
    for path in CONFIGS:
        assert f"`{path.relative_to(ROOT)}`" in page


def test_the_readme_says_what_it_is_within_1200_words():
    readme = (ROOT / "README.md").read_text()
    assert "git clone" in readme.split("\n## ")[1]
    assert len(readme.split()) <= 1_200


def test_the_figures_of_the_readme_stand_on_the_pages_that_it_names():
    readme = (ROOT / "README.md").read_text().split("## What was measured")[1].split("\n## ")[0]
    rows = re.findall(r"^\| [^|]+\?[^|]*\| ([^|]+) \| \[\w+\]\(([^)]+)\)", readme, re.MULTILINE)
    assert len(rows) == 3
    for result, place in rows:
        page, figures = (ROOT / place).read_text(), re.findall(r"\[?\d+\.\d+(?:, \d+\.\d+\])?", result)
        assert len(figures) >= 3
        assert [figure for figure in figures if figure not in page] == []


def test_docstrings_name_what_they_speak_of():
    """ "Those of ..." and "Of ..." make a reader ask: what?"""
    seen, found = 0, set()
    for path in (ROOT / "lightning_app").rglob("*.py"):
        for node in nodes(path.read_text()):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                seen += 1
                if text.split()[0] in ("Those", "Of"):
                    found.add(f"{path.relative_to(ROOT / 'lightning_app')}: {getattr(node, 'name', '')}")
    assert seen > 1_000
    assert not found


def test_each_promise_names_tests_that_are_there():
    promises = (ROOT / "docs" / "reliability.md").read_text()
    named = set(re.findall(r"`(tests/[\w/.]+)`", promises))
    assert len(named) > 40
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


# docs/from-the-seeds.md: every key and class in its tables is there

KEY = re.compile(r"[a-z]\w*(\.[a-z]\w*)*")
NO_KEYS = {  # names that a run gives, choices of an option, and keys of a row of text
    *("memory_store", "memory_budget", "memory_retrieval", "art_category", "art_similarity", "art_novel"),
    *("phase_transition", "pruning_event", "prompt", "target"),
    *("auto", "cpu", "flat", "ivf", "ivfpq", "hnsw", "drift", "last", "token", "fuzzy", "combined", "slope"),
}
ALL = {  # what the tables speak of, in one config
    "class_path": "VardaGPT",
    "init_args": {
        "backbone": {"class_path": "Decoder"},
        "readers": [{"class_path": "AttentionReader"}],
        "extensions": [{"class_path": "ARTRegularizer"}],
        "optimizer": {"class_path": "AdamW", "init_args": {"lr": 1e-3}},
    },
}
CALLBACKS = ("PlasticitySchedule", "HeadController")


def cells_of_the_seeds() -> list[str]:
    """The column `here` of all tables."""
    page = (ROOT / "docs" / "from-the-seeds.md").read_text()
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in page.splitlines() if line[:1] == "|"
    ]
    return [row[min(2, len(row) - 1)] for row in rows]


def words_of_the_seeds() -> set[str]:
    """What stands in backticks in that column, without the value of `key: value`; no commands or paths."""
    found = {text for cell in cells_of_the_seeds() for text in re.findall(r"`([^`]+)`", cell)}
    keys = {re.sub(r"^\.|: .*", "", text).replace("init_args.", "") for text in found}
    return {key for key in keys if not re.search(r"[/ <*]|\.(html|jsonl|txt|yaml)$|^-|^tiktoken$", key)}


def keys_of_a_run(model: dict[str, Any], main: Run, config: Callable[..., str]) -> set[str]:
    """All that the parser knows of a config, with the places above each."""
    callbacks = [{"class_path": name} for name in CALLBACKS]
    printed = io.StringIO()
    path = config({})
    merged = {**yaml.safe_load(Path(path).read_text()), "model": model, "trainer": {"callbacks": callbacks}}
    Path(path).write_text(yaml.safe_dump(merged))
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit):
        main("fit", "--config", path, "--print_config")
    keys = [key.replace(".init_args", "") for key, _ in leaves(yaml.safe_load(printed.getvalue()), lists="classes")]
    return {key.rsplit(".", n)[0] for key in keys for n in range(key.count(".") + 1)}


def test_every_key_of_the_seeds_is_there(main: Run, config: Callable[..., str]):
    known = keys_of_a_run(ALL, main, config)
    known |= keys_of_a_run({"class_path": "CausalLM", "init_args": {"backbone": "PretrainedLM"}}, main, config)
    ends = {key.split(".", n)[-1] for key in known for n in range(key.count(".") + 1)} | {
        *LightningCLI.subcommands(),
        "prepare",
    }
    words = {word for word in words_of_the_seeds() if KEY.fullmatch(word) and not word.startswith("lightning_app.")}
    assert len(words & ends) > 60
    assert words - ends == NO_KEYS


def test_every_class_and_module_of_the_seeds_is_there():
    words = words_of_the_seeds()
    places = {word for word in words if word.startswith("lightning_app.")}
    assert len(places) > 5
    for place in places:
        pkgutil.resolve_name(place)
    names = {word for word in words if word[0].isupper()}
    assert len(names) > 8
    sources = " ".join(path.read_text() for path in (ROOT / "lightning_app").rglob("*.py"))
    assert {name for name in names if not re.search(rf"\bclass {name}\b|import .*\b{name}\b", sources)} <= {
        "EarlyStopping"
    }
