"""The example of CONTRIBUTING: an idea is a folder and a row."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lightning_app
from lightning_app import plugins
from lightning_app.models import registry
from lightning_app.models.backbone import HiddenStates
from lightning_app.models.decoder import Decoder
from lightning_app.models.extension import Outputs
from lightning_app.models.losses import IGNORE
from lightning_app.plugins import Idea
from lightning_app.reports.record import Numbers
from lightning_app.reports.run_folder import RunFolder
from lightning_app.serving.explain import explain
from lightning_app.training.checkpoint import load_module

EXAMPLE = Path(__file__).parent.parent / "examples" / "idea"


@pytest.fixture
def idea(monkeypatch: pytest.MonkeyPatch) -> Idea:
    """The example, as if its folder and its row stood in the package."""
    (row,) = re.findall(r"```python\n(.*?)```", (EXAMPLE / "README.md").read_text(), flags=re.S)
    added: Idea = eval(row, {"Idea": Idea})
    monkeypatch.setattr(lightning_app, "__path__", [*lightning_app.__path__, str(EXAMPLE)])
    monkeypatch.setattr(plugins, "IDEAS", (*plugins.IDEAS, added))
    for name, place in added.parts.items():
        monkeypatch.setitem(registry.PLACES, name, place)
        monkeypatch.setitem(registry.IDEA_OF, name, added)
    return added  # the modules stay imported: jsonargparse imports all subclasses that there have ever been


def test_a_config_trains_with_it_and_its_checkpoint_opens(
    idea: Idea, folder: Path, config: Callable[..., str], main: Callable[..., Any]
):
    assert sum(len(path.read_text().splitlines()) for path in EXAMPLE.rglob("*.py")) < 80
    main("fit", "--config", config({"model": {"init_args": {"extensions": [{"class_path": "UnigramBaseline"}]}}}))
    run = RunFolder(Path("runs/tiny/version_0"))
    logged = [
        record.values["val/unigram_ce"]
        for record in run.records()
        if isinstance(record, Numbers) and "val/unigram_ce" in record.values
    ]
    assert len(logged) > 1
    assert logged[-1] < math.log(257)  # what no counts at all would cost
    module, tokenizer = load_module(run.checkpoint("last"))
    (extension,) = module.extensions
    counts = extension.counts / extension.counts.sum()
    found = explain(module, tokenizer, "the model learns")
    assert found["unigram"] == pytest.approx([-math.log(counts[ord(token)]) for token in found["tokens"]], rel=1e-5)


def test_it_counts_what_is_there_and_pulls_towards_it(idea: Idea):
    baseline = registry.find_class("UnigramBaseline")(weight=1.0)
    baseline.attach(Decoder(vocab_size=4, block_size=4, embedding_dim=4, layers=1, heads=1))
    ids, mask = torch.tensor([[0, 0, 1, 3]]), torch.tensor([[True, True, True, False]])
    targets, logits = torch.tensor([[0, 1, IGNORE, IGNORE]]), torch.zeros(1, 4, 4, requires_grad=True)
    seen = Outputs(ids, targets, mask, torch.zeros_like(ids), HiddenStates(torch.zeros(1, 4, 4)), logits)
    baseline.learn_step([seen.detached()])
    assert baseline.counts.tolist() == [3, 2, 1, 1]
    measured = baseline.measures(seen, training=False)["unigram_ce"]
    assert measured.item() == pytest.approx(-(math.log(3 / 7) + math.log(2 / 7)) / 2)
    ((weight, term),) = baseline.terms(seen).values()
    assert (weight, term.item()) == (1.0, pytest.approx(sum(math.log(7 / 4 / n) for n in (3, 2, 1, 1)) / 4))
    term.backward()
    assert logits.grad is not None
    assert (logits.grad[0, 0] < 0).tolist() == [True, True, False, False]  # a step raises what is frequent
