"""configs/schema.json is what the signatures say, and underlines what fit refuses, and nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fuzz.mistakes import tried

OURS = "lightning_app."
PATH = Path(__file__).parents[2] / "configs" / "schema.json"


def of_ours(schema: dict[str, Any]) -> dict[str, Any]:
    """What it says of this project's classes and of the data: the rest moves with the libraries."""
    found = {"data": schema["properties"]["data"]}
    for name, part in schema["$defs"].items():
        whole = part["anyOf"][0] if "anyOf" in part else part
        for one in whole.get("then", {}).get("allOf", ()):
            path = one["if"].get("properties", {}).get("class_path", {}).get("enum", [""])[0]
            if path.startswith(OURS):
                found[f"{name} {path}"] = one["then"]
    return found


@pytest.mark.slow
def test_it_is_what_the_signatures_say(tmp_path: Path):
    """`python main.py schema --output configs/schema.json` writes it anew.

    In a process of its own: tests import classes that no run has.
    """
    words = [sys.executable, "main.py", "schema", "--output", str(tmp_path / "made.json")]
    subprocess.run(words, cwd=PATH.parents[1], check=True, capture_output=True)
    made, kept = (of_ours(json.loads(path.read_text())) for path in (tmp_path / "made.json", PATH))
    assert len(made) > 30
    assert made == kept


def test_it_is_small():
    assert PATH.stat().st_size < 2_000_000


@pytest.mark.slow
def test_of_mistakes_nearly_all_are_underlined_and_answered_by_what_is_right():
    result = tried(40, seed=0)
    assert result.refused.total() > 30
    assert result.answered.total() >= 0.9 * result.refused.total()
    assert result.underlined.total() >= 0.9 * result.refused.total()
    assert result.wrongly == 0
