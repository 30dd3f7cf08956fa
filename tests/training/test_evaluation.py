from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from lightning_app.data.batch import Batch
from lightning_app.data.datamodule import TextDataModule
from lightning_app.models.losses import IGNORE
from lightning_app.training.evaluation import Evaluation, mean_of_each
from lightning_app.training.measures import PASSAGES, LanguageMeasures

V, CPU = 300, torch.device("cpu")


@pytest.fixture
def data(folder: Path) -> TextDataModule:
    data = TextDataModule(train={"path": "train.txt"}, val={"path": "val.txt"}, tokenizer="bytes", block_size=16)  # type: ignore[arg-type]
    data.prepare_data()
    data.setup("fit")
    return data


@pytest.fixture
def evaluation(data: TextDataModule) -> Evaluation:
    evaluation = Evaluation()
    evaluation.use_tokenizer(data.tokenizer, vocab_size=V, device=CPU)
    return evaluation


def test_bytes_of_each_id_and_none_of_spare_ones(evaluation: Evaluation, data: TextDataModule):
    assert evaluation.token_bytes is not None
    assert evaluation.token_bytes.tolist() == [*[1] * 256, *[0] * (V - 256)]  # 256 is the end of a document
    assert data.tokenizer.vocab_size == 257


def batch_of(targets: torch.Tensor, documents: torch.Tensor) -> Batch:
    positions = torch.arange(targets.shape[1]).expand_as(targets)
    return Batch(targets, targets, targets != IGNORE, documents, documents, positions)


def test_rows_by_hand(evaluation: Evaluation):
    logits = torch.zeros(2, 3, V)
    logits[0, 0, 65] = math.log(V - 1)  # the target has half of all
    targets = torch.tensor([[65, 66, IGNORE], [IGNORE, IGNORE, IGNORE]])
    batch = batch_of(targets, torch.tensor([[4, 4, -1], [7, 7, 7]]))
    one, none = evaluation.rows(logits, batch)
    nats = math.log(2 * (V - 1) / (V - 1)) + math.log(V)
    assert one == pytest.approx(
        {"document": 4, "tokens": 2, "ce": nats / 2, "bytes": 2, "bpb": nats / math.log(2) / 2}, rel=1e-6
    )
    assert none == {"document": 7, "tokens": 0, "ce": 0.0, "bytes": 0, "bpb": 0.0}
    assert Evaluation().rows(logits, batch)[0].keys() == {"document", "tokens", "ce"}


@pytest.mark.parametrize("fit", [True, False])
def test_passages_are_kept_apart_and_all_begins_anew(evaluation: Evaluation, data: TextDataModule, fit: bool):
    evaluation.use_passages(data if fit else None)
    measures, dataset = LanguageMeasures(V), data.dataset("val")
    batch = dataset.__getitems__(list(range(len(dataset))))
    found = []
    for _ in range(2):
        evaluation.update(measures, torch.zeros(*batch.input_ids.shape, V), batch)
        found.append(evaluation.end(measures))
    assert found[0] == found[1]
    assert found[0].keys() == {"ce", "ppl", "acc", "f1", "bpb"}
    assert float(found[0]["ce"]) == pytest.approx(math.log(V))
    if not fit:
        assert evaluation.by_passage is None
        return
    assert evaluation.by_passage is not None
    assert evaluation.by_passage.shape == (PASSAGES, 4)
    assert int(evaluation.by_passage[:, 1].sum()) == int((batch.targets != IGNORE).sum())


def test_means_of_amounts_and_not_of_names():
    said = {
        "known": torch.tensor([True, False]),
        "distance": torch.tensor([1.0, 2.0]),
        "category": torch.tensor([3, 9]),
    }
    assert {name: float(mean) for name, mean in mean_of_each(said).items()} == {"known": 0.5, "distance": 1.5}
