"""The card says what the checkpoint and its run say, and that the rest is unknown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

from lightning_app.export.model_card import Facts, model_card
from lightning_app.training.commit import commit

LOG = [
    {
        "event": "data",
        "splits": [
            {"split": "train", "documents": 3, "words": 900, "bytes": 5000, "tokens": 2000},
            {"split": "val", "documents": 1, "words": 90, "bytes": 500, "tokens": 200},
        ],
    },
    {"step": 10, "val/ce": 3.5, "val/ppl": 33.115, "val/bpb": 2.1},
    {"step": 20, "val/ce": 3.25, "val/ppl": 25.79, "val/bpb": 1.95, "val/acc": 0.25},
    {"step": 30, "val/ce": 3.75},
]
CONFIG: dict[str, Any] = {"seed_everything": 3, "data": {"train": {"path": "texts"}, "val": {"path": "held_out"}}}


@pytest.fixture
def model() -> Any:
    return GPT2LMHeadModel(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=10, n_positions=6))


def parts(text: str) -> tuple[dict[str, Any], str]:
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def test_from_the_checkpoint_alone_most_is_unknown(tmp_path: Path, model: Any, plain: Any) -> None:
    checkpoint = {"global_step": 20, "TextDataModule": {"tokenizer": {"name": "bytes"}}}
    facts = Facts.of(checkpoint, tmp_path / "a" / "b" / "best.ckpt", plain[0])
    front, body = parts(model_card(facts, name="some", model=model, difference=0.0))
    assert front["pipeline_tag"] == "text-generation"
    assert front["license"] == "unknown"
    assert "model-index" not in front
    assert "Unknown: neither the checkpoint nor a log beside it has any." in body
    assert "train: unknown, val: unknown" in body
    assert "| tokenizer | `bytes` |" in body
    assert "- seed: unknown" in body
    assert "How many words it has learned from is unknown." in body
    assert "Licence: Unknown" in body


def test_the_run_beside_it_says_more(tmp_path: Path, model: Any, plain: Any) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in LOG))
    checkpoint = {"global_step": 20, "TextDataModule": {"tokenizer": {"name": "bytes"}}}
    facts = Facts.of(checkpoint, tmp_path / "checkpoints" / "best.ckpt", plain[0])
    front, body = parts(model_card(facts, name="some", model=model, difference=2.4e-6))
    result = front["model-index"][0]["results"][0]
    assert result["dataset"]["name"] == "held_out"
    assert {m["type"]: m["value"] for m in result["metrics"]} == {
        "val/ce": 3.25,
        "val/ppl": 25.79,
        "val/bpb": 1.95,
        "val/acc": 0.25,
    }
    assert "| train | texts | 3 | 5,000 | 2,000 |" in body
    assert "| perplexity | 25.7900 | per token |" in body
    assert "differ by at most 2.4e-06" in body
    assert f"python main.py fit --config {tmp_path / 'config.yaml'}" in body


def test_the_config_names_the_licence_and_the_log_the_limits(tmp_path: Path, model: Any, plain: Any) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**CONFIG, "licence": "cc-by-4.0"}))
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in LOG))
    facts = Facts.of({"global_step": 20}, tmp_path / "checkpoints" / "best.ckpt", plain[0])
    front, body = parts(model_card(facts, name="some", model=model, difference=0.0))
    assert front["license"] == "cc-by-4.0"
    assert "Licence: `cc-by-4.0`, as the run's config says." in body
    assert "- It has learned from 900 words." in body
    assert "- It sees at most 6 tokens at once." in body


def test_without_a_log_the_callback_knows_one_number(tmp_path: Path, plain: Any) -> None:
    states = {"ModelCheckpoint{'monitor': 'val/ce'}": {"monitor": "val/ce", "current_score": 4.5}, "Timer": {}}
    assert Facts.of({"callbacks": states}, tmp_path / "x" / "y.ckpt", plain[0]).metrics == {"val/ce": 4.5}


def test_both_commits_are_said(tmp_path: Path, plain: Any) -> None:
    facts = Facts.of({"commit": "c0ffee"}, tmp_path / "x" / "y.ckpt", plain[0])
    assert facts.commits == ("c0ffee", commit())
    assert Facts.of({}, tmp_path / "x" / "y.ckpt", plain[0]).commits[0] == "unknown"
