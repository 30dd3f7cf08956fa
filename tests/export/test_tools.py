"""Other people's tools on exported directories, with and without code of their own: pipeline and lm_eval."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lightning_app.export.command import export
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.training.checkpoint import load_module
from lightning_app.training.compositions import ArticleGPT
from tests.export.test_command import decoder, pruned, save

pytestmark = [pytest.mark.usefixtures("modules_cache"), pytest.mark.slow]
ROOT = Path(__file__).parents[2]
TEXT = (
    "The teacher shows what nobody asks about. A model forgets what it was told, and learns what it was shown.\n\n"
    "What the teacher shows again is learned again; nobody forgets what nobody asks, \u2013 na\u00efve as it is.\n"
) * 3
KINDS = ("plain", "removed", "knn", "attention")


def module_of(kind: str, reading: Callable[..., Any]) -> Any:
    if kind in ("plain", "removed"):
        return ArticleGPT(decoder() if kind == "plain" else pruned(decoder()))
    return reading(kind, TEXT)[0]


@pytest.fixture
def written(tmp_path: Path, reading: Callable[..., Any]) -> Callable[[str], tuple[Path, Path]]:
    """`written("knn")`: the checkpoint and the directory of such a model."""

    def write(kind: str) -> tuple[Path, Path]:
        checkpoint = save(module_of(kind, reading), tmp_path / "some.ckpt")
        done = export(checkpoint, tmp_path / "out")
        assert (done.model_type == "gpt2") == (kind == "plain")
        return checkpoint, done.folder

    return write


@pytest.mark.filterwarnings("ignore")  # of the library's own
@pytest.mark.parametrize("kind", KINDS)
def test_a_pipeline_continues_texts(written: Any, kind: str) -> None:
    from transformers import pipeline

    checkpoint, folder = written(kind)
    generator = pipeline("text-generation", model=str(folder), trust_remote_code=True, device="cpu")
    options = {"max_new_tokens": 8, "do_sample": False, "return_full_text": False}
    found = generator(["The teacher", "What nobody asks"], **options)
    module, tokenizer = load_module(checkpoint)
    for prompt, (answer,) in zip(("The teacher", "What nobody asks"), found, strict=True):
        tokens = [int(t) for t in greedy(module, tokenizer.encode(prompt), 8)]
        expected = tokenizer.decode(tokens[: tokens.index(tokenizer.eot)] if tokenizer.eot in tokens else tokens)
        assert answer["generated_text"] == expected
    generator.model.generation_config.eos_token_id = None
    sampled = generator("The", return_tensors=True)[0]["generated_token_ids"]
    # GPT-2 ends at its length; our own code goes on, as `generate` does, and the pipeline asks for 256 tokens
    assert len(sampled) == (24 if kind == "plain" else 3 + 256)


def greedy(module: Any, ids: list[int], n: int) -> Any:
    """Without what a session would write: a directory reads its memory alone."""
    options = GenerationOptions(n, temperature=0.0)
    return super(type(module), module).generate(torch.tensor([ids]), options, eot=None)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_lm_eval_finds_our_perplexity(written: Any, tmp_path: Path, kind: str) -> None:
    pytest.importorskip("lm_eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    checkpoint, folder = written(kind)
    (tmp_path / "val.txt").write_text(TEXT, encoding="utf-8")
    task = yaml.safe_load((ROOT / "examples" / "lm_eval" / "articles.yaml").read_text())
    task["dataset_kwargs"]["data_files"]["validation"] = str(tmp_path / "val.txt")
    task["dataset_kwargs"]["cache_dir"] = str(tmp_path / "cache")
    (tmp_path / "task").mkdir()
    (tmp_path / "task" / "articles.yaml").write_text(yaml.safe_dump(task))
    manager = TaskManager(include_path=str(tmp_path / "task"), include_defaults=False)
    model = HFLM(str(folder), trust_remote_code=True, device="cpu", dtype="float32", batch_size=3)
    found = simple_evaluate(model, tasks=["articles"], task_manager=manager, bootstrap_iters=0)["results"]["articles"]
    nats, n_bytes = ours(checkpoint, TEXT), len(TEXT.encode())
    assert found["bits_per_byte,none"] == pytest.approx(nats / math.log(2) / n_bytes, rel=1e-5)
    assert found["byte_perplexity,none"] == pytest.approx(math.exp(nats / n_bytes), rel=1e-3)
    words = len(re.split(r"\s+", TEXT))  # one more than there are, as the text ends with a line
    assert math.log(found["word_perplexity,none"]) == pytest.approx(nats / words, rel=1e-3)


@torch.no_grad()
def ours(checkpoint: Path, text: str) -> float:
    """Nats of a document by the module: all windows but the last next to each other, that one ending at the end."""
    module, tokenizer = load_module(checkpoint)
    ids = [tokenizer.eot, *tokenizer.encode(text)]
    L, N, nats = module.backbone.max_length, len(ids) - 1, 0.0
    for start in range(0, N, L):
        end = min(start + L, N)
        window = torch.tensor([ids[max(0, end - L) : end]])
        logp = module.backbone(window).log_softmax(-1)[0, start - end :]
        nats -= float(logp.gather(1, torch.tensor(ids[start + 1 : end + 1])[:, None]).double().sum())
    return nats
