"""Tests are collected without building a model: one that cannot be built fails its own tests, not all of them."""

from __future__ import annotations

import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest

from tests.conftest import hands_out

ROOT = Path(__file__).parent.parent
# A library builds small modules while it is imported, and may.
PLUGIN = """
from torch import nn

def pytest_configure(config):
    build = nn.Module.__init__

    def refuse(self, *args, **kwargs):
        kinds = type(self).__mro__
        models = [k for k in kinds if k.__module__.startswith("lightning_app") or k.__name__ == "PreTrainedModel"]
        assert not models, f"a {type(self).__name__} is built while tests are collected"
        build(self, *args, **kwargs)

    nn.Module.__init__ = refuse
"""


@pytest.mark.slow
def test_no_model_is_built_while_tests_are_collected(tmp_path: Path):
    (tmp_path / "no_models.py").write_text(PLUGIN)
    code = f"import sys, pytest; sys.path.insert(0, {str(tmp_path)!r}); sys.exit(pytest.main(sys.argv[1:]))"
    words = ("-p", "no_models", "-p", "no:cacheprovider", "-n", "0", "--collect-only", "-m", "slow or not slow")
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("::") > 1000


def test_what_hands_out_tests_starts_without_torch():
    code = "import sys, tests.conftest; sys.exit(len({'torch', 'lightning', 'transformers'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=100).returncode == 0


@pytest.mark.parametrize(
    ("numprocesses", "usepdb", "worker", "expected"),
    [
        (2, False, False, True),
        (0, False, False, False),
        (None, False, False, False),
        (2, True, False, False),
        (2, False, True, False),
    ],
)
def test_who_hands_out_tests(
    numprocesses: int | None, usepdb: bool, worker: bool, expected: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    if worker:
        monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw0")
    assert hands_out(Namespace(numprocesses=numprocesses, usepdb=usepdb)) == expected
