"""Pairs of the project's own docstrings: no answer is shared, and the score is that of the answers' content."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from experiments import store
from experiments.pairs import ROOT, Pair, described, distinct, main, moved, score, split, table, write
from tests import tokenizers
from tests.advice import SHORT, advised

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A LLaMA with random weights and a tokenizer of its own."""
    path, tokenizer = tokenizers.save("smollm2", tmp_path / "tiny-llama"), tokenizers.made("smollm2")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **SIZES,
        vocab_size=tokenizer.vocab_size,
        num_hidden_layers=2,
        max_position_embeddings=128,
        initializer_range=0.5,
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eot,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


def test_a_docstring_is_read(tmp_path: Path):
    docstring = (
        "Keeps.\n\n    Args:\n        size: at most\n            so many.\n\n    Raises:\n        InputError: no.\n    "
    )
    (tmp_path / "a.py").write_text(f'class Store:\n    """{docstring}"""\n')
    assert list(described(tmp_path)) == [Pair("Question: In `Store`, what is `size`?\nAnswer:", " at most so many.")]


def test_no_two_answers_or_questions_are_alike():
    first = Pair("a", " the number of heads of each layer")
    alike = [Pair("b", " and the number of heads of a model"), Pair("a", " something else that is long enough")]
    other = Pair("c", " how many steps it takes until then")
    assert distinct([first, *alike, other, Pair("d", " too short"), Pair("e", " long" * 50)]) == [first, other]


@pytest.mark.slow
def test_the_pairs_are_the_projects_and_the_split_follows_from_the_seed():
    pairs = distinct(described(ROOT / "lightning_app"))
    assert len(pairs) > 400
    learned, scored = split(pairs, 1)
    assert (len(learned), len(scored)) == (200, 100)
    assert len({pair.target for pair in [*learned, *scored]}) == 300
    assert split(pairs, 1) == (learned, scored) != split(pairs, 2)
    apart = moved(learned)
    assert sorted(pair.target for pair in apart) == sorted(pair.target for pair in learned)
    assert not any(one == other for one, other in zip(learned, apart, strict=True))


def test_the_score_is_that_of_the_answers_content(directory: Path, tmp_path: Path):
    pairs = [Pair("What is it?", " a memory of the text"), Pair("And this?", " one")]
    nats, tokens = score(str(directory), write(tmp_path / "pairs.jsonl", pairs), str(directory), tmp_path / "cache")
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    for pair, nat, n in zip(pairs, nats, tokens, strict=True):
        prompt, target = (tokenizer(text, add_special_tokens=False).input_ids for text in (pair.prompt, pair.target))
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *target]])).logits[0, len(prompt) - 1 : -1]
        assert n == len(target)  # and not the end of text
        assert nat == pytest.approx(
            torch.nn.functional.cross_entropy(logits, torch.tensor(target)).item() * n, rel=1e-4
        )


def test_the_table_compares_with_before():
    def record(learned: str, nats: list[float]) -> store.Record:
        return {"seed": 3, "learned": learned, "nats": nats, "tokens": [2, 2], "train_seconds": 7.4}

    *_, before, after = table([record("nothing", [4.0, 4.0]), record("the pairs", [3.0, 3.0])])
    assert before == "| 3 | nothing | 2.000 |  | 7 |"
    assert after == "| 3 | the pairs | 1.500 | +25.00 [+25.00, +25.00] (one seed) | 7 |"


@pytest.mark.slow
def test_it_runs_in_small_and_goes_on(directory: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    small = ["--data.block_size", "96", "--trainer.max_steps", "4", "--tune_allocator", "false"]
    words = ["--model", str(directory), "--folder", str(tmp_path / "pairs"), "--seeds", "1", "--quick", *small]
    with advised(SHORT):
        main(words)
    results = store.records(tmp_path / "pairs")
    assert [record["learned"] for record in results] == ["nothing", "the pairs", "answers moved"]
    assert len({np.sum(record["nats"]) for record in results}) == 3
    asked = json.loads((tmp_path / "pairs" / "seed_1" / "scored.jsonl").read_text().splitlines()[0])
    assert asked["prompt"].startswith("Question: In `")
    main(words)
    assert store.records(tmp_path / "pairs") == results
    assert "| 1 | answers moved |" in capsys.readouterr().out
