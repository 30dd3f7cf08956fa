"""`python main.py schema`: the JSON schema of a run's YAML, for editors and for what is checked before a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lightning_app.app import Harness
from lightning_app.io import write_atomic
from lightning_app.schema.make import Schema, schema_of


def current() -> Schema:
    """As the classes that can be imported here have it."""
    return schema_of(Harness.parser_of("fit"))


def text_of(schema: Schema) -> str:
    """A line for each definition: what changed is seen in a diff."""
    parts = [f" {json.dumps(name)}: {json.dumps(part)}" for name, part in sorted(schema["$defs"].items())]
    rest = json.dumps({key: part for key, part in schema.items() if key != "$defs"}, indent=1)
    return rest.removesuffix("\n}") + ',\n "$defs": {\n' + ",\n".join(parts) + "\n }\n}\n"


def write(output: Path | None) -> None:
    """To a file, or to the terminal."""
    text = text_of(current())
    if output is None:
        sys.stdout.write(text)
    else:
        write_atomic(output, text.encode())
        print(f"{output}: {len(text) / 1e6:.2f} MB")
