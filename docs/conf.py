"""The docs site: `make docs` builds it from these pages, README.md and the docstrings, without a network."""

from __future__ import annotations

import inspect
import pkgutil
import re
import sys
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path[:0] = [str(ROOT), str(DOCS)]  # the package, and the parts of this site

import lightning_app  # noqa: E402

project = "lightning_app"
author = "the authors of lightning_app"
version = release = lightning_app.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "site_parts.diagrams"]
myst_fence_as_directive = ["mermaid"]
exclude_patterns = ["results", "site_parts"]
suppress_warnings = ["myst.header"]  # memory.md and others written by experiments go down two levels at once
html_theme = "furo"
html_title = "lightning_app"
html_copy_source = html_show_sourcelink = html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}
html_static_path = ["site_parts/static"]
html_css_files = ["site.css"]
highlight_language = "none"  # of a block without one
pygments_style, pygments_dark_style = "default", "github-dark"

myst_heading_anchors = 4  # links such as data.md#pairs, as GitHub makes them
myst_enable_extensions = ["colon_fence"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}
napoleon_use_ivar = True
napoleon_use_rtype = False
python_use_unqualified_type_names = True
# Names of other libraries are looked up over the network, and the docstrings' own do not always stand on a page.
nitpick_ignore_regex = [("py:.*", ".*")]

PAGES_OF_THE_ROOT = {"index": "README.md", "contributing": "CONTRIBUTING.md", "changelog": "CHANGELOG.md"}
SHOWN_AS = {file: page for page, file in PAGES_OF_THE_ROOT.items()}
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")
REFERENCE = DOCS / "reference"


def on_the_site(text: str, folder: Path) -> str:
    """Links of a page in `folder`: pages of the root as they are here, files without a page as their names."""

    def link(found: re.Match[str]) -> str:
        label, (path, _, anchor) = found[1], found[2].partition("#")
        if "://" in path or not path:
            return found[0]
        place = (folder / path).resolve()
        if place.parent == ROOT and place.name in SHOWN_AS:
            place = DOCS / f"{SHOWN_AS[place.name]}.md"
        if not place.is_relative_to(DOCS) or place.is_dir():
            return label
        return f"[{label}](/{place.relative_to(DOCS).as_posix()}{'#' * bool(anchor)}{anchor})"

    return LINK.sub(link, text)


def read_page(app: Any, page: str, source: list[str]) -> None:
    """README.md and its neighbours stand in place of the pages that only name them."""
    if page.startswith("reference/"):
        return
    folder = (DOCS / page).parent
    if page in PAGES_OF_THE_ROOT:
        text = (ROOT / PAGES_OF_THE_ROOT[page]).read_text(encoding="utf-8").replace("](docs/images/", "](images/")
        rest = source[0][source[0].find("```{toctree}") :] if "```{toctree}" in source[0] else ""
        source[0], folder = f"{text}\n\n{rest}", ROOT
    source[0] = on_the_site(source[0], folder)


def packages() -> dict[str, list[str]]:
    """Modules by folder of lightning_app; those beside the folders under its own name."""
    found: dict[str, list[str]] = {}
    for module in pkgutil.walk_packages(lightning_app.__path__, "lightning_app."):
        parts = module.name.split(".")
        folder = ".".join(parts[:2]) if len(parts) > 2 or module.ispkg else parts[0]
        found.setdefault(folder, []).append(module.name)
    return found


def write_reference(app: Any) -> None:
    """A page for each folder of the package, on which autodoc fills in each module."""
    REFERENCE.mkdir(exist_ok=True)
    pages = {}
    for folder, modules in packages().items():
        parts = [f"## {name}\n\n```{{eval-rst}}\n.. automodule:: {name}\n```\n" for name in modules]
        pages[folder] = f"# {folder}\n\n" + "\n".join(parts)
    rows = "\n".join(pages)
    pages["index"] = (
        f"# Python\n\nFrom the docstrings, a page for each folder.\n\n```{{toctree}}\n:titlesonly:\n\n{rows}\n```\n"
    )
    for name, text in pages.items():
        path = REFERENCE / f"{name}.md"
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def read_docstring(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with `code`: what reStructuredText would take for marks stays as it is."""
    if not any(line.startswith("=====") for line in lines):  # a table, whose columns would move
        lines[:] = [_plain(line) for line in lines]


def _plain(line: str) -> str:
    pieces = re.split(r"(``.+?``|`[^`]+`)", line)
    return "".join(
        f"``{piece.strip('`')}``" if i % 2 else re.sub(r"([*|\\]|_(?=\W|$))", r"\\\1", piece)
        for i, piece in enumerate(pieces)
    )


def without_ours(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Docstrings that a class has from its library are not ours."""
    module = getattr(inspect.unwrap(obj) if callable(obj) else obj, "__module__", None)
    return True if isinstance(module, str) and not module.startswith("lightning_app") else None


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", write_reference)
    app.connect("source-read", read_page)
    app.connect("autodoc-process-docstring", read_docstring, priority=400)  # before napoleon's
    app.connect("autodoc-skip-member", without_ours)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
