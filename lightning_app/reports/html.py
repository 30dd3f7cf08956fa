"""HTML of pages. A plain text is text, whoever wrote it: only what a template or `html` has made is HTML."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

TEMPLATES = Path(__file__).parent / "templates"


def html(pattern: str, *values: object, **named: object) -> Markup:
    """The pattern, which is HTML of ours, with values in its fields: as text, unless they are HTML themselves."""
    return Markup(pattern).format(*values, **named)


def rendered(name: str, **values: Any) -> Markup:
    """A template, with values as `html` takes them."""
    return Markup(_environment().get_template(name).render(**values))


def part(name: str, *values: Any) -> Markup:
    """A macro of `parts.html`, in the same way."""
    made: Markup = getattr(_environment().get_template("parts.html").module, name)(*values)
    return made


@cache
def source(name: str) -> Markup:
    """A file of `templates/` that is put into a page as it is: a style or a script of ours."""
    return Markup((TEMPLATES / name).read_text(encoding="utf-8"))


@cache
def _environment() -> Environment:
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
