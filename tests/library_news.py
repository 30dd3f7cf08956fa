"""Deprecations that one library raises in another are no errors, but are counted by message in library_news.txt.

conftest.py imports this file first, so that a deprecation at the import of a library is none either.
"""

from __future__ import annotations

import re
import sys
import sysconfig
import warnings
from collections import Counter
from pathlib import Path

import pytest

NEWS = Path(__file__).with_name("library_news.txt")
CATEGORIES = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
OURS = {
    "lightning_app",
    "experiments",
    "benchmarks",
    "tests",
    "main",
}  # `pip install -e .` puts one among the libraries
LONGEST = 160  # characters of a message


def libraries() -> str:
    """A pattern of the modules that lie in site-packages or the standard library, by name and (said again) by path."""
    folders = [Path(place) for place in sys.path if Path(place).name in ("site-packages", "dist-packages")]
    installed = {path.name.split(".")[0] for folder in folders if folder.is_dir() for path in folder.iterdir()}
    names = {name for name in installed | sys.stdlib_module_names if name.isidentifier()} - OURS - {"__main__"}
    paths = [*map(str, folders), sysconfig.get_path("stdlib")]
    return rf"({'|'.join(sorted(names))})(\.|$)|({'|'.join(re.escape(path) for path in paths)})/"


PATTERN = libraries()
for _category in CATEGORIES:
    warnings.filterwarnings("always", category=_category, module=PATTERN)


def line_of(category: type[Warning], message: str, filename: str) -> str:
    """What, where and why, without what differs from run to run."""
    parts = Path(filename).parts
    place = next((i for i, part in enumerate(parts) if part in ("site-packages", "dist-packages")), None)
    library = "python" if place is None else parts[place + 1].removesuffix(".py")
    plain = re.sub(r"(?<![\w:/.])(~?/[\w.+-]+){2,}/?", "PATH", " ".join(message.split()))
    plain = re.sub(r"\b0x[0-9a-fA-F]+", "ADDRESS", plain)
    plain = re.sub(r"\d{3,}(\.\d+)*|\d+\.\d{3,}", "N", plain)
    return f"{category.__name__} in {library}: {plain[:LONGEST].rstrip()}"


def read(path: Path) -> set[str]:
    """The known lines, without their counts."""
    return (
        {line.split(maxsplit=1)[1] for line in path.read_text(encoding="utf-8").splitlines()}
        if path.exists()
        else set()
    )


class LibraryNews:
    """Counts, in the process that collects what xdist's workers saw, and compares at the end."""

    def __init__(self, mode: str, path: Path) -> None:
        self.mode, self.path = mode, path
        self.counts: Counter[str] = Counter()

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage) -> None:
        if issubclass(warning_message.category, CATEGORIES):
            self.counts[line_of(warning_message.category, str(warning_message.message), warning_message.filename)] += 1

    @property
    def new(self) -> list[str]:
        return sorted(set(self.counts) - read(self.path))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.mode == "write":
            lines = [f"{self.counts[line]:6} {line}\n" for line in sorted(self.counts)]
            self.path.write_text("".join(lines), encoding="utf-8")
        elif self.mode == "check" and self.new and session.exitstatus == 0:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for line in self.new:
            terminalreporter.write_line(f"not in {self.path.name}: {line}", yellow=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--library-news",
        choices=("show", "check", "write"),
        default="show",
        help="new deprecations inside libraries: show them, fail at them, or write the file anew",
    )
    parser.addoption("--library-news-file", type=Path, default=NEWS)


def pytest_configure(config: pytest.Config) -> None:
    for category in CATEGORIES:
        config.addinivalue_line("filterwarnings", f"always::{category.__name__}:{PATTERN}")
    if not hasattr(config, "workerinput"):  # xdist hands on what its workers record
        news = LibraryNews(config.getoption("library_news"), config.getoption("library_news_file"))
        config.pluginmanager.register(news, "library-news")
