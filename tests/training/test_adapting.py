"""A model that learns from what it has scored, by hand and in `validate` and `test`."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from lightning_app.data.batch import Batch
from lightning_app.data.datamodule import Dataloader, Source, TextDataModule
from lightning_app.errors import InputError
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.readers import CacheReader, NGramReader
from lightning_app.models.adaptation_options import AdaptationOptions
from lightning_app.models.losses import IGNORE, cross_entropy, token_nll
from lightning_app.training.adapting import CLIP, RECENT, Adaptation, adapting
from lightning_app.training.callbacks.dynamic_evaluation import DynamicEvaluation
from lightning_app.training.compositions import ArticleGPT
from lightning_app.training.module import LanguageModule
from lightning_app.training.schedulers import WarmupCosine
from tests.made_models import BLOCK, decoder


@pytest.fixture
def module() -> LanguageModule:
    return ArticleGPT(decoder())


def batch(seed: int = 0) -> Batch:
    return Batch.of(torch.randint(0, 256, (2, BLOCK + 1), generator=torch.Generator().manual_seed(seed)))


def test_two_steps_by_hand(module: LanguageModule):
    options, by_hand, squares = AdaptationOptions(lr=0.01, decay=0.1), {}, {}
    trained = {name: weight.detach().clone() for name, weight in module.named_parameters()}
    by_hand = dict(trained)
    for step in (1, 2):
        module.load_state_dict(by_hand, strict=False)
        loss = cross_entropy(module.eval().outputs(batch(step)).logits, batch(step).targets)
        names = [name for name, _ in module.named_parameters()]
        gradients = torch.autograd.grad(loss, [weight for _, weight in module.named_parameters()])
        norm = torch.stack([g.norm() for g in gradients]).norm()
        for name, gradient in zip(names, gradients, strict=True):
            g = gradient * min(1.0, float(CLIP / norm))
            squares[name] = RECENT * squares.get(name, 0) + (1 - RECENT) * g**2
            usual = (squares[name] / (1 - RECENT**step)).sqrt() + 1e-8
            moved = by_hand[name] - options.lr * g / usual
            by_hand[name] = moved + options.decay * (trained[name] - moved)
    module.load_state_dict(trained, strict=False)
    with adapting(module, options) as adaptation:
        assert adaptation is not None
        for step in (1, 2):
            adaptation.learn(batch(step))
        for name, weight in module.named_parameters():
            torch.testing.assert_close(weight.detach(), by_hand[name], rtol=1e-3, atol=2e-5)
    assert all(torch.equal(weight, trained[name]) for name, weight in module.named_parameters())


def test_the_weights_come_back_after_an_error(module: LanguageModule):
    before = [weight.detach().clone() for weight in module.parameters()]

    def interrupted() -> None:
        with adapting(module, AdaptationOptions(lr=0.1)) as adaptation:
            assert adaptation is not None
            adaptation.learn(batch())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        interrupted()
    assert all(torch.equal(x, y) for x, y in zip(before, module.parameters(), strict=True))


def test_what_is_not_scored_is_not_learned_and_dropout_stays_as_it_was(module: LanguageModule):
    before, training = [weight.detach().clone() for weight in module.parameters()], module.train().training
    unscored = Batch.of(torch.zeros(1, BLOCK + 1, dtype=torch.int64), scored=torch.zeros(1, BLOCK, dtype=torch.bool))
    Adaptation(module, AdaptationOptions(lr=0.1)).learn(unscored)
    assert all(torch.equal(x, y) for x, y in zip(before, module.parameters(), strict=True))
    assert training == module.training


def test_only_what_is_trained_adapts(module: LanguageModule):
    module.requires_grad_(False)
    with pytest.raises(InputError, match="all weights of this model are frozen"):
        Adaptation(module, AdaptationOptions())
    module.backbone.blocks[0].requires_grad_(True)
    frozen = module.backbone.core.transformer["wte"].weight.clone()
    with adapting(module, AdaptationOptions(lr=0.1)) as adaptation:
        assert adaptation is not None
        adaptation.learn(batch())
        assert torch.equal(frozen, module.backbone.core.transformer["wte"].weight)


def test_a_gradient_that_is_not_finite_is_said(module: LanguageModule):
    nn.init.constant_(next(module.backbone.blocks[0].parameters()), torch.nan)
    with pytest.raises(InputError, match="is not finite"):
        Adaptation(module, AdaptationOptions()).learn(batch())


@pytest.mark.parametrize("wrong", [{"lr": -1.0}, {"lr": float("nan")}, {"decay": 1.5}, {"decay": -0.1}])
def test_options_out_of_range_are_refused(wrong: dict[str, float]):
    with pytest.raises(InputError, match=next(iter(wrong))):
        AdaptationOptions(**wrong)


# In `validate` and `test`


@pytest.fixture
def data(tmp_path: Any) -> TextDataModule:
    texts = {
        "train": "Other words stand here; nobody can learn the text that is read later from them. " * 200,
        "val": "the same words come again and again, so that a model learns what they are. " * 12,
    }
    texts["test"] = texts["val"].upper()
    for name, text in texts.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    sources = {name: Source(str(tmp_path / f"{name}.txt")) for name in texts}
    loader = Dataloader(batch_size=1, num_workers=0)
    return TextDataModule(
        **sources, tokenizer="bytes", block_size=BLOCK, dataloader=loader, cache_dir=str(tmp_path / "cache")
    )


def trainer(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return L.Trainer(
        accelerator="cpu", devices=1, enable_model_summary=False, callbacks=[*callbacks], **quiet | options
    )


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_text_that_repeats_itself_is_learned_and_forgotten(
    command: str, module: LanguageModule, data: TextDataModule
):
    before = [weight.detach().clone() for weight in module.parameters()]
    run: Callable[..., Any] = lambda *callbacks: getattr(trainer(*callbacks), command)(module, data, verbose=False)[0]  # noqa: E731
    stage = "val" if command == "validate" else "test"
    frozen = run()[f"{stage}/ce"]
    assert run(DynamicEvaluation(lr=1e-2))[f"{stage}/ce"] < frozen - 0.5
    assert all(torch.equal(x, y) for x, y in zip(before, module.parameters(), strict=True))
    assert run()[f"{stage}/ce"] == frozen


class Scored(L.Callback):
    """Keeps the probability of each token that a test counts, in the order of the text."""

    def __init__(self) -> None:
        self.nats: list[torch.Tensor] = []

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        whole = pl_module.outputs

        def outputs(*given: Any, **more: Any) -> Any:
            found = whole(*given, **more)
            self.nats.append(token_nll(found.logits, found.targets)[found.targets != IGNORE].detach().clone())
            return found

        pl_module.outputs = outputs

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        del pl_module.outputs


@pytest.mark.parametrize("stride", [None, BLOCK // 2])
def test_what_comes_later_changes_nothing_in_a_test_with_everything_on(tmp_path: Path, stride: int | None):
    text = "the same words come again and again, so that a model learns what they are. " * 3
    (tmp_path / "train.txt").write_text(text, encoding="utf-8")
    found = []
    for name, other in (("one", text), ("two", text[:100] + text[100:].upper())):
        (tmp_path / f"{name}.txt").write_text(other, encoding="utf-8")
        torch.manual_seed(1)
        readers = [NGramReader(order=4, writes="evaluation"), CacheReader(lam=0.2, memory_size=200)]
        module, scored = VardaGPT(decoder(), readers), Scored()
        readers[0].bank.hold(torch.tensor(list(text.encode())))
        test = Source(str(tmp_path / f"{name}.txt"), stride=stride)
        data = TextDataModule(
            train=Source(str(tmp_path / "train.txt")), test=test, tokenizer="bytes", block_size=BLOCK,
            dataloader=Dataloader(batch_size=1, num_workers=0), cache_dir=str(tmp_path / "cache"),
        )  # fmt: skip
        trainer(scored, DynamicEvaluation(lr=1e-2)).test(module, data, verbose=False)
        found.append(torch.cat(scored.nats))
    one, two = found
    assert len(one) == len(two) == len(text.strip())  # each byte but the first, and the end
    assert torch.equal(one[:99], two[:99])
    assert not torch.equal(one[100:], two[100:])


def test_a_fit_is_as_without_it(data: TextDataModule):
    found = []
    for callbacks in ([], [DynamicEvaluation(lr=1e-2)]):
        L.seed_everything(1)
        module = ArticleGPT(decoder(), scheduler=functools.partial(WarmupCosine, warmup_steps=1, total_steps=3))
        trainer(*callbacks, max_steps=3, val_check_interval=1).fit(module, data)
        found.append([weight.detach().clone() for weight in module.parameters()])
    assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))


def test_several_ranks_are_refused(module: LanguageModule, data: TextDataModule):
    two = L.Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    with pytest.raises(InputError, match=r"trainer\.devices 1"):
        DynamicEvaluation().setup(two, module, "validate")
