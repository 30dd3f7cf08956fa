"""`make docs`: the site is built without a warning, and asks no other site for anything."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PARTS = ("Start", "How to", "Ideas", "Results", "Reference", "Architecture")  # of the sidebar, in this order
LOADS = re.compile(r"<(?:script|link|img|iframe|source|video|audio|object|embed)\b[^>]*>", re.IGNORECASE)
OF_CSS = re.compile(r"@import[^;]*|url\([^)]*\)")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built as `make docs` does it."""
    pytest.importorskip("sphinx", reason="`make docs` installs it")
    pytest.importorskip("furo")
    pytest.importorskip("myst_parser")
    out = tmp_path_factory.mktemp("site")
    (line,) = re.findall(r"python (-m sphinx .*) build/docs$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    done = subprocess.run([sys.executable, *line.split(), str(out)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def files(site: Path, ending: str) -> dict[str, str]:
    found = {str(path.relative_to(site)): path.read_text(encoding="utf-8") for path in site.rglob(f"*{ending}")}
    assert found
    return found


@pytest.mark.slow
def test_nothing_is_loaded_from_another_site(site: Path):
    pages = files(site, ".html")
    assert len(pages) > 50
    loads = [tag for text in pages.values() for tag in LOADS.findall(text)]
    assert len(loads) > 500
    assert [tag for tag in loads if "//" in tag] == []
    rules = [rule for text in files(site, ".css").values() for rule in OF_CSS.findall(text)]
    rules += [
        rule
        for text in pages.values()
        for style in re.findall("<style.*?</style>", text, re.DOTALL)
        for rule in OF_CSS.findall(style)
    ]
    assert [rule for rule in rules if "//" in rule and "data:" not in rule and "www.w3.org" not in rule] == []


@pytest.mark.slow
def test_the_sidebar_has_six_parts_and_every_page(site: Path):
    pages = files(site, ".html")
    captions = re.findall(r'<p class="caption"[^>]*><span class="caption-text">([^<]+)', pages["index.html"])
    assert tuple(captions) == PARTS
    own = {f"{path.relative_to(ROOT / 'docs').with_suffix('')}.html" for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in own if "site_parts" not in page} <= set(pages)
    assert "A language model with categories" in pages["art.html"]
    assert "Two commands" in pages["index.html"]  # README.md stands there


@pytest.mark.slow
def test_the_search_knows_words_of_pages_and_of_docstrings(site: Path):
    text = (site / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text[text.index("(") + 1 : text.rindex(")")])
    assert {"vigil", "backbon"} <= set(index["terms"]) | set(index["titleterms"])
    assert any("Decoder" in str(name) for name in index["objects"].get("lightning_app.models.decoder", []))


def test_every_diagram_is_drawn():
    pytest.importorskip("sphinx", reason="`make docs` installs it")
    made = runpy.run_path(str(ROOT / "docs" / "site_parts" / "diagrams.py"))
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "docs").rglob("*.md")]
    codes = [code for text in texts for code in made["BLOCK"].findall(text)]
    assert len(codes) > 3
    drawn = {path.name for path in made["IMAGES"].glob("diagram_*.svg")}
    assert {made["file_of"](code) for code in codes} == drawn, "make pictures"
