"""Mermaid's blocks on the site: pictures that `make pictures` has drawn, as no other site is asked for a script."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.util.docutils import SphinxDirective

IMAGES = Path(__file__).parent.parent / "images"
BLOCK = re.compile(r"^```mermaid\n(.*?)\n```$", re.DOTALL | re.MULTILINE)


def file_of(code: str) -> str:
    """The picture's name: another one once the block has changed."""
    return f"diagram_{hashlib.sha256(code.strip().encode()).hexdigest()[:8]}.svg"


def labels(code: str) -> str:
    """What the diagram's boxes and arrows say, for who cannot see it."""
    found = re.findall(r'"([^"]+)"', code)
    return "diagram: " + "; ".join(label.replace("<br>", " ") for label in found)


class Mermaid(SphinxDirective):
    has_content = True

    def run(self) -> list[nodes.Node]:
        code = "\n".join(self.content)
        name = file_of(code)
        if not (IMAGES / name).exists():
            raise self.error(f"this diagram is not drawn: `make pictures` makes docs/images/{name}")
        return [nodes.image(uri=f"/images/{name}", alt=labels(code), classes=["diagram"])]


def setup(app: Any) -> dict[str, bool]:
    app.add_directive("mermaid", Mermaid)
    return {"parallel_read_safe": True}
