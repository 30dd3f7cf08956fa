"""Predictions of a run with ART, turned into shares and areas."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from experiments.detected import limit, main
from lightning_app.errors import InputError


def predicted(path: Path, rows: list[tuple[float, float, bool]]) -> Path:
    names = ("art_similarity", "ce", "art_novel")
    path.write_text("".join(json.dumps(dict(zip(names, row, strict=True))) + "\n" for row in rows))
    return path


def test_the_loss_calls_as_many_known_sequences_novel():
    losses = torch.tensor([1.0, 4.0, 2.0, 3.0])
    assert [int((losses > limit(losses, share)).sum()) for share in (0, 0.25, 0.5, 1)] == [0, 1, 2, 4]


def test_shares_and_areas(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    known = predicted(
        tmp_path / "mine.jsonl", [(0.9, 2.0, False), (0.8, 3.0, False), (0.3, 2.5, True), (0.95, 1.0, False)]
    )
    other = predicted(tmp_path / "other.jsonl", [(0.2, 2.4, True), (0.85, 5.0, False)])
    main([str(known), str(other)])
    *_, mine, theirs = capsys.readouterr().out.splitlines()
    assert mine == "| mine (known) | 4 | 25% | 25% |  |  |"
    assert theirs == "| other | 2 | 50% | 50% | 0.750 | 0.750 |"


def test_a_model_without_art_is_refused(tmp_path: Path):
    plain = tmp_path / "plain.jsonl"
    plain.write_text('{"ce": 1.0}\n')
    with pytest.raises(InputError, match="no predictions of a model with ART"):
        main([str(plain), str(plain)])
