"""The reader of n-gram counts: what it mixes, how it chooses its weight, and what a checkpoint has of it."""

import functools
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_app.compression.archive import compress, decompress
from lightning_app.data.batch import Batch
from lightning_app.data.datamodule import Dataloader, Source, TextDataModule
from lightning_app.data.tokenizers import load_tokenizer
from lightning_app.errors import InputError
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.readers import NGramReader
from lightning_app.memory.readers.ngram import likeliest_weight
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.models.modes import evaluated
from lightning_app.training.checkpoint import load_module
from lightning_app.training.compositions import ArticleGPT
from lightning_app.training.module import LanguageModule
from lightning_app.training.schedulers import WarmupCosine
from tests.made_models import BLOCK, decoder, ready

TEXT = "the model learns what the teacher shows and forgets what nobody asks about again "


def made(text: str = TEXT, **options: Any) -> VardaGPT:
    module = VardaGPT(decoder(), [NGramReader(**{"order": 4, "lam": 0.5} | options)])
    if text:
        module.backbone.readers[0].bank.hold(torch.tensor(list(text.encode())))
    ready(module)
    return module


@torch.no_grad()
def test_it_mixes_the_counts_of_the_last_tokens_of_the_block():
    module = made()
    batch = Batch.of(torch.tensor([list(TEXT[: BLOCK + 1].encode())]))
    plain = module.backbone.backbone(batch.input_ids).softmax(-1)[0]
    mixed = module.outputs(batch).logits.exp()[0]
    counts = module.backbone.readers[0].bank.counts
    for at in (0, 1, 2, 7, BLOCK - 1):
        context = [-1, -1, *batch.input_ids[0, : at + 1].tolist()][-3:]
        p = counts.distribution(torch.tensor([context]))[0]
        torch.testing.assert_close(mixed[at], 0.5 * p + 0.5 * plain[at])


def test_training_does_not_read():
    module = made().train()
    batch = Batch.of(torch.tensor([list(TEXT[: BLOCK + 1].encode())]))
    assert torch.equal(module.outputs(batch).logits, module.backbone.backbone(batch.input_ids))


def test_a_generation_knows_the_tokens_that_no_state_has():
    """With the counts alone, what follows is the text; in a batch and behind a full context, too."""
    tokenizer = load_tokenizer("bytes")
    module = made(TEXT * 2, lam=1.0, order=12)
    options = GenerationOptions(max_new_tokens=2 * BLOCK, temperature=0)
    prompt = "the model learns"
    ids = torch.tensor([tokenizer.encode(prompt)])
    answer = bytes(int(token) for token in module.generate(ids, options)).decode()
    assert (prompt + answer) == (TEXT * 2)[: len(prompt + answer)]
    both = module.batch_decoder()
    texts = [both.join(tokenizer.encode(some), options) for some in (prompt, "forgets what nobody asks")]
    for _ in range(6):
        both.step()
    assert [bytes(text.ids).decode() for text in texts] == ["the model learns what ", "forgets what nobody asks about"]


def test_the_likeliest_weight():
    generator = torch.Generator().manual_seed(0)
    own, theirs = torch.rand(2, 500, dtype=torch.float64, generator=generator)

    def nats(weight: float) -> float:
        return float(-(weight * own + (1 - weight) * theirs).log().sum())

    found = likeliest_weight(own, theirs)
    assert nats(found) == pytest.approx(min(nats(i / 1000) for i in range(1, 1000)), rel=1e-5)
    assert likeliest_weight(own, own * 1e-6) > 0.999
    assert likeliest_weight(own * 0, theirs) == 0


@pytest.fixture
def data(tmp_path: Path) -> TextDataModule:
    words = "another story tells of a teacher who learns, and of models that nobody asks or forgets. "
    for name, text in {"train": TEXT * 150, "val": (TEXT[20:] + words) * 6}.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    sources = {name: Source(str(tmp_path / f"{name}.txt")) for name in ("train", "val")}
    loader = Dataloader(batch_size=4, num_workers=0)
    return TextDataModule(
        **sources, tokenizer="bytes", block_size=BLOCK, dataloader=loader, cache_dir=str(tmp_path / "cache")
    )


def trainer(folder: Path, **options: Any) -> L.Trainer:
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
    }
    return L.Trainer(accelerator="cpu", devices=1, default_root_dir=folder, **quiet | options)


def test_a_fit_trains_as_without_it_and_a_checkpoint_has_all(data: TextDataModule, tmp_path: Path):
    schedule = functools.partial(WarmupCosine, warmup_steps=1, total_steps=4)
    weights = []
    for readers in ([], [NGramReader(order=4)]):
        L.seed_everything(1)
        module: Any = (
            VardaGPT(decoder(), readers, scheduler=schedule) if readers else ArticleGPT(decoder(), scheduler=schedule)
        )
        fit = trainer(tmp_path, max_steps=4, val_check_interval=2)
        fit.fit(module, data)
        weights.append([weight.detach().clone() for weight in module.backbone.core.parameters()])
    assert all(torch.equal(x, y) for x, y in zip(*weights, strict=True))
    reader = module.backbone.readers[0]
    assert reader.bank.text.tolist()[:20] == list(TEXT.encode())[:20]
    assert float(reader.lam) not in (0.3, 0.5)
    fit.save_checkpoint(tmp_path / "a.ckpt")
    again, _ = load_module(tmp_path / "a.ckpt")
    batch = next(iter(data.val_dataloader()))
    with torch.no_grad():
        assert torch.equal(again.eval().outputs(batch).logits, module.eval().outputs(batch).logits)
    before = float(reader.lam)
    trainer(tmp_path).validate(module, data, verbose=False)
    assert float(reader.lam) == before  # chosen by a fit alone


class Measures(L.Callback):
    """Looks at the model in eval mode between validations, as plasticity does."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, LanguageModule)
        with evaluated(pl_module), torch.no_grad():
            pl_module.outputs(batch)


def test_the_weight_is_that_of_the_validation_alone(data: TextDataModule, tmp_path: Path):
    found = []
    for callbacks in ([], [Measures()]):
        L.seed_everything(1)
        module: Any = VardaGPT(decoder(), [NGramReader(order=4)], scheduler=None)
        trainer(tmp_path, max_steps=4, val_check_interval=2, callbacks=callbacks).fit(module, data)
        with module.session():  # on one rank alone, where a text is sampled
            module.eval().outputs(next(iter(data.train_dataloader())))
        found.append(float(module.backbone.readers[0].lam))
    assert found[0] == found[1] < 1


def test_what_an_evaluation_has_seen_is_counted_until_its_end():
    module, (_, tokenizer) = made("", writes="evaluation", lam=0.9), ready(made())
    text = b"what was read once is known, what was read once is known, what was read once is known"
    done = compress(text, module, tokenizer)
    assert done.bits < 0.8 * compress(text, made("", lam=0.9), tokenizer).bits
    assert decompress(done.data, module, tokenizer) == text
    assert module.backbone.readers[0].bank.size() == 0


def test_counts_do_not_stay_on_a_device_that_the_model_has_left():
    """`meta` stands for a GPU, which a fit leaves at its end."""
    bank = made().backbone.readers[0].bank
    bank.begin_evaluation()
    before = bank.counts
    assert bank.to("cpu").counts is before
    bank.to("meta")
    assert bank.counts.last.device.type == bank.counts.levels[0].grams.device.type == "meta"


def test_wrong_options_are_refused():
    for wrong in ({"order": 1}, {"order": 21}, {"lam": 1.5}, {"writes": "always"}, {"memory_size": -5}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            NGramReader(**wrong)  # type: ignore[arg-type]
