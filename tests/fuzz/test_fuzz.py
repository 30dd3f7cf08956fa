"""A small sample of `python -m tests.fuzz`, and that it finds what it is for."""

import random
from pathlib import Path
from unittest import mock

import pytest
import torch
import yaml

from lightning_app import cli
from lightning_app.errors import InputError
from lightning_app.training import checkpoint_io
from tests.conftest import CONFIG, merged
from tests.fuzz.__main__ import fuzz, table
from tests.fuzz.damage import damaged
from tests.fuzz.registry import ACCEPTED, FAILURES, KINDS, REFUSED, SILENT, TRACEBACK, UNCLEAR, Case, numbers
from tests.fuzz.requests import answer_judged
from tests.fuzz.yamls import fitted, in_this_process


def test_no_damage_passes_unnoticed(capsys: pytest.CaptureFixture[str]):
    results = fuzz(32, seed=1, kinds=[name for name in KINDS if name != "yaml"])
    assert len(results) >= 8
    failures = [failure for result in results.values() for failure in result.failures]
    assert not failures, "\n".join(failures)
    assert results["checkpoint"].counts[REFUSED] >= 4
    assert results["request"].counts[REFUSED] >= 2
    assert "checkpoint" in table(results)


def test_no_mutant_of_a_config_ends_in_a_traceback():
    (result,) = fuzz(4, seed=1, kinds=["yaml"]).values()
    assert not result.failures, "\n".join(result.failures)
    assert result.counts[REFUSED] >= 2


def test_a_tenth_of_the_cases_are_configs():
    found = numbers(10_000, list(KINDS))
    assert found["yaml"] == 1000
    assert sum(found.values()) == 10_000
    assert max(found.values()) <= 1126
    assert numbers(7, ["yaml"]) == {"yaml": 7}


def outcomes(case: Case, n: int = 40) -> set[str]:
    return {case(random.Random(seed)).name for seed in range(n)}


def test_it_finds_a_flip_that_nobody_notices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Without the sums of the parts `torch.load` returns whatever bits there are."""
    path = tmp_path / "a.ckpt"
    torch.save({"weights": torch.arange(10_000)}, path)
    case = damaged([path], lambda draw: checkpoint_io.read_checkpoint(path)["weights"].tolist())
    assert not outcomes(case) & set(FAILURES)
    monkeypatch.setattr(checkpoint_io, "_check_sums", lambda *arguments: None)
    assert SILENT in outcomes(case)


def test_it_finds_a_traceback(tmp_path: Path):
    path = tmp_path / "number"
    path.write_text("1024")
    assert outcomes(damaged([path], lambda draw: int(path.read_text()))) >= {TRACEBACK, SILENT}


@pytest.mark.parametrize(
    "text", ["Internal Server Error", "{}", '{"error": {"message": ""}}', '{"detail": "Not Found"}']
)
def test_it_finds_an_answer_that_has_not_openais_form(text: str):
    assert answer_judged(404, "application/json", text, head=False).name == UNCLEAR
    assert answer_judged(500, "application/json", text, head=False).name == TRACEBACK
    assert answer_judged(200, "application/json", '{"x": NaN}', head=False).name == UNCLEAR


def test_a_config_of_several_processes_is_taken(folder: Path):
    """No second one is started."""
    Path("mutant.yaml").write_text(yaml.safe_dump(merged(CONFIG, {"trainer": {"devices": 3}})))
    with in_this_process():
        assert fitted("", trains=False).name == ACCEPTED


def test_it_finds_a_fit_that_does_not_end_in_one_line(folder: Path):
    """An exception that is not for users, a bare exit, and one that is for users."""
    found = []
    Path("mutant.yaml").write_text("{}")
    for error in (LookupError("x"), SystemExit("error: " + "x" * 30), InputError("x" * 30)):
        with mock.patch.object(cli, "check_arguments", side_effect=error):
            found.append(fitted("", trains=False).name)
    assert found == [TRACEBACK, UNCLEAR, REFUSED]
