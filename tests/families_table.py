"""`python -m tests.families_table` runs tests/test_families.py (minutes) and writes its results to docs/models.md."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests import tokenizers
from tests.families import FAMILIES

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs/models.md"
TABLE = re.compile(r"^\| family .*?\n(?=\n|\Z)", re.M | re.S)
STEPS = {  # by test
    "test_fine_tuning_with_lora": "LoRA",
    "test_fine_tuning_in_full": "in full",
    "test_resuming": "resume",
    "test_generating": "generate",
    "test_serving": "serve",
    "test_a_memory_is_built_and_searched": "memory",
    "test_plasticity": "plasticity",
    "test_art": "ART",
    "test_exporting": "export",
}
Outcomes = dict[tuple[str, str], bool]  # by family and test


class Results:
    """A plugin that keeps what passed: all tests of a name must have."""

    def __init__(self) -> None:
        self.passed: Outcomes = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test, _, which = report.nodeid.rpartition("::")[2].partition("[")
        family = next((name for name in FAMILIES if which.startswith((f"{name}]", f"{name}-"))), None)
        if test in STEPS and family is not None:
            passed = report.outcome == "passed"
            self.passed[family, test] = self.passed.get((family, test), True) and passed


def table(passed: Outcomes) -> str:
    """What works for which family; what was not tried does not."""
    head = ["family", "model_type", "tokenizer", *STEPS.values()]
    rows = [
        [name, f"`{family.model_type}`", tokenizers.ABOUT[family.tokenizer]]
        + ["yes" if passed.get((name, test)) else "no" for test in STEPS]
        for name, family in FAMILIES.items()
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "".join(_line(line, widths) for line in lines)


def _line(cells: list[str], widths: list[int]) -> str:
    return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |\n"


def main() -> int:
    results = Results()
    every = ["-n", "0", "-m", "slow or not slow", "-k", "not the_page", str(HERE / "test_families.py")]
    code = pytest.main(every, plugins=[results])
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(TABLE.sub(lambda _: table(results.passed), page), encoding="utf-8")
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
