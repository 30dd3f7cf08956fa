"""Half precisions train and validate, or are refused before the first step."""

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch

from lightning_app.art.extension import ARTRegularizer
from lightning_app.data.datamodule import Dataloader, Source, TextDataModule
from lightning_app.errors import InputError
from lightning_app.memory.readers import NGramReader
from lightning_app.models.decoder import Decoder
from lightning_app.training.compositions import ArticleGPT
from lightning_app.training.measures import LanguageMeasures

Fit = Callable[..., tuple[L.Trainer, ArticleGPT]]


@pytest.fixture
def fit(folder: object) -> Fit:
    def run(precision: str, **options: Any) -> tuple[L.Trainer, ArticleGPT]:
        torch.manual_seed(0)
        data = TextDataModule(
            train=Source("train.txt"), val=Source("val.txt"), block_size=16, dataloader=Dataloader(batch_size=4)
        )
        decoder = Decoder(vocab_size=257, block_size=16, embedding_dim=16, layers=1, heads=2)
        module = ArticleGPT(decoder, scheduler=None, **options)
        trainer = L.Trainer(
            accelerator="cpu",
            precision=precision,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            max_steps=8,
            val_check_interval=8,
            check_val_every_n_epoch=None,
        )
        trainer.fit(module, datamodule=data)
        return trainer, module

    return run


def test_bf16_true_trains_and_validates(fit: Fit):
    trainer, module = fit("bf16-true")
    whole, _ = fit("32-true")
    assert {p.dtype for p in module.parameters()} == {torch.bfloat16}
    assert module.measures.nll.dtype == module.measures.by_passage.dtype == torch.float64
    found, wanted = (float(t.callback_metrics["val/ce"]) for t in (trainer, whole))
    assert found == pytest.approx(wanted, rel=0.02)


def test_the_weight_of_counts_keeps_its_type(fit: Fit):
    reader = NGramReader(order=3)
    fit("bf16-true", extensions=[reader])
    assert reader.lam.dtype == torch.float32
    assert float(reader.lam) != pytest.approx(0.3)  # it was chosen


def test_what_half_precision_would_spoil_is_refused(fit: Fit):
    with pytest.raises(InputError, match="16-true: without loss scaling"):
        fit("16-true")
    with pytest.raises(InputError, match=r"bf16-true, .* such as regularizers\.0\.art.*: use bf16-mixed"):
        fit("bf16-true", extensions=[ARTRegularizer()])


def test_sums_of_measures_keep_their_type():
    measures = LanguageMeasures(4)
    torch.nn.ModuleList([measures]).to(dtype=torch.bfloat16)
    logits, targets = torch.zeros(1, 3000, 4, dtype=torch.bfloat16), torch.zeros(1, 3000, dtype=torch.int64)
    for _ in range(3):
        measures.update(logits, targets, torch.ones_like(targets), torch.zeros_like(targets))
    assert measures.by_passage[0, 1] == 9000
    assert measures.compute()["ce"].item() == pytest.approx(1.3862943, abs=5e-3)
    measures.reset()
    assert measures.nll.dtype == torch.float64
