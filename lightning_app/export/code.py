"""The source files that a model needs, flat and with relative imports, as `transformers` loads them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning_app
from lightning_app.errors import InputError
from lightning_app.models.registry import PLACES, is_description
from lightning_app.plugins import IDEAS

PACKAGE = "lightning_app"
MODELING = "modeling_lightning_app"  # in the directory: what `auto_map` names
SOURCE = f"{PACKAGE}.export.{MODELING}"
PARTS = f"{PACKAGE}.export.modeling_parts"  # written anew, for the classes that a model has
AUTO_MAP = {
    "AutoConfig": f"{MODELING}.LightningAppConfig",
    "AutoModelForCausalLM": f"{MODELING}.LightningAppForCausalLM",
}


def code_files(described: dict[str, Any]) -> dict[str, str]:
    """Text by name of the files that rebuild a described backbone.

    Args:
        described: see `models.registry`.

    Raises:
        InputError: a class that is not of this project.
    """
    sources = {PARTS: _parts_source(list(descriptions_in(described)))}
    waiting = [SOURCE, PARTS]
    files: dict[str, str] = {}
    while waiting:
        module = waiting.pop()
        if flat_name(module) in files:
            continue
        source = sources[module] if module in sources else _path_of(module).read_text(encoding="utf-8")
        imports = list(_own_imports(source))
        files[flat_name(module)] = _with_relative_imports(source, imports)
        waiting += [str(node.module) for node in imports]
    return {f"{name}.py": text for name, text in files.items()}


def descriptions_in(described: Any) -> Iterator[dict[str, Any]]:
    """A description and all those in it."""
    if isinstance(described, list):
        for one in described:
            yield from descriptions_in(one)
    if is_description(described):
        yield described
        for value in described["options"].values():
            yield from descriptions_in(value)


def flat_name(module: str) -> str:
    """`lightning_app.plasticity.surgery` -> `plasticity_surgery`; what lies in `export` loses that."""
    return module.removeprefix(f"{PACKAGE}.").removeprefix("export.").replace(".", "_")


def _parts_source(described: list[dict[str, Any]]) -> str:
    """See `modeling_parts`. What cuts a backbone comes along only where one was cut."""
    names = sorted({one["part"] for one in described})
    if foreign := [name for name in names if name not in PLACES]:
        raise InputError(
            f"the model has a {foreign[0]}, which is no part of {PACKAGE}: its code cannot be taken into the directory"
        )
    places = [PLACES[name].partition(":") for name in names]
    lines = [f"from {module} import {name}" for module, _, name in places]
    cutting = [idea.shape.partition(":") for idea in IDEAS if idea.shape and any("layout" in one for one in described)]
    lines += [f"from {module} import {name} as shape" for module, _, name in cutting] or ["", "shape = None"]
    entries = [f'    "{name}": {cls},' for name, (_, _, cls) in zip(names, places, strict=True)]
    return "\n".join(['"""What rebuilds this model."""', "", *lines, "find = {", *entries, "}.__getitem__", ""])


def _path_of(module: str) -> Path:
    place = Path(str(lightning_app.__file__)).parent.joinpath(*module.split(".")[1:])
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def _own_imports(source: str) -> Iterator[ast.ImportFrom]:
    """The `from lightning_app... import ...` of a file, wherever they stand."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] == PACKAGE:
            modules = [a.name for a in node.names if _path_of(f"{node.module}.{a.name}").exists()]
            assert not modules, f"import names of {modules}, not the modules: a flat directory has no packages"
            yield node
        assert not (isinstance(node, ast.Import) and any(a.name.split(".")[0] == PACKAGE for a in node.names))


def _with_relative_imports(source: str, imports: list[ast.ImportFrom]) -> str:
    lines = source.splitlines(keepends=True)
    for node in imports:
        line = lines[node.lineno - 1]
        lines[node.lineno - 1] = line.replace(f"from {node.module} ", f"from .{flat_name(str(node.module))} ", 1)
    return "".join(lines)
