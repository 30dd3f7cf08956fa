"""ARTRegularizer and ARTGPT2 through Lightning: what is learned and when, what is logged, what a checkpoint holds."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_app.art.extension import ARTGPT2, ARTRegularizer
from lightning_app.art.network import SPAN, AdvancedART
from lightning_app.data.batch import Batch
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.sources import Source
from lightning_app.errors import InputError
from lightning_app.former import options_of_today
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.readers import AttentionReader, KNNReader
from lightning_app.memory.slots import Entries
from lightning_app.models.decoder import Decoder
from lightning_app.models.extension import Outputs
from lightning_app.models.losses import IGNORE
from lightning_app.training.callbacks.exact_resume import ExactResume, RandomState
from lightning_app.training.checkpoint import load_module, start_from
from lightning_app.training.compositions import ArticleGPT
from lightning_app.training.module import LanguageModule
from tests.advice import SHORT, advised, missing

NOVELTIES = ["drift", "margin", "constant"]
MANY = {"vigilance": 0.9}  # so that a small model's texts are of several categories


def decoder(**options: Any) -> Decoder:
    torch.manual_seed(0)
    return Decoder(**{"vocab_size": 257, "block_size": 16, "embedding_dim": 16, "layers": 2, "heads": 2, **options})


def art_gpt2(dropout: float = 0.0, **art: Any) -> ARTGPT2:
    return ARTGPT2(decoder(dropout=dropout), ARTRegularizer(**options_of_today({**MANY, **art}, "ARTRegularizer")))


def art_of(module: LanguageModule) -> ARTRegularizer:
    (art,) = module.regularizers
    assert isinstance(art, ARTRegularizer)
    return art


def batch(rows: int = 4, T: int = 16, seed: int = 0) -> Batch:
    return Batch.of_texts(torch.randint(250, (rows, T), generator=torch.Generator().manual_seed(seed)))


def digest(module: torch.nn.Module) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in module.state_dict().values())).hexdigest()


def assert_equal(one: torch.nn.Module, two: torch.nn.Module) -> None:
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0, equal_nan=True)


@pytest.fixture
def data(folder: Path) -> TextDataModule:
    return TextDataModule(
        train=Source("train.txt"),
        val=Source("val.txt"),
        test=Source("val.txt"),
        block_size=16,
        dataloader={"batch_size": 4, "shuffle": True},
    )


Fit = Callable[..., L.Trainer]


def trainer_with(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        use_distributed_sampler=False,
        callbacks=list(callbacks),
        **{"max_steps": 4, "limit_val_batches": 0, "log_every_n_steps": 1, **options},
    )


@pytest.fixture
def fit(data: TextDataModule) -> Fit:
    def run(module: LanguageModule, *callbacks: L.Callback, **options: Any) -> L.Trainer:
        ckpt_path = options.pop("ckpt_path", None)
        trainer = trainer_with(*callbacks, **options)
        torch.manual_seed(1)
        with advised(SHORT, *missing(trainer, ckpt_path)):
            trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
        return trainer

    return run


# Loss


@pytest.mark.parametrize(
    ("novelty", "rehearsal"),
    [
        ("drift", 0),
        ("margin", 1),
        pytest.param("margin", 0, marks=pytest.mark.slow),
        pytest.param("constant", 0, marks=pytest.mark.slow),
    ],
)
def test_lambda_zero_is_bit_equal_to_the_plain_module(fit: Fit, novelty: Any, rehearsal: float):
    plain, options = ArticleGPT(decoder(dropout=0.1)), {"novelty": novelty, "rehearsal": rehearsal}
    other, shaped = (art_gpt2(dropout=0.1, lambda_art=weight, **options) for weight in (0.0, 5.0))
    for module in (plain, other, shaped):
        fit(module)
    assert_equal(plain.backbone, other.backbone)
    assert len(art_of(other).art) > 1
    assert not torch.equal(shaped.backbone.transformer["wte"].weight, plain.backbone.transformer["wte"].weight)


def test_the_weight_rises_over_the_warmup_of_optimizer_steps(fit: Fit):
    class Weights(L.Callback):
        seen: list[float] = []  # noqa: RUF012

        def on_train_batch_start(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
            self.seen.append(art_of(module).weight)

    weights = Weights()
    module = art_gpt2(lambda_art=0.8, warmup_steps=4)
    fit(module, weights, max_steps=6, accumulate_grad_batches=2)
    assert weights.seen == pytest.approx([x for x in (0, 0.2, 0.4, 0.6, 0.8, 0.8) for _ in range(2)])
    assert art_gpt2(lambda_art=0.3).regularizers[0].weight == 0.3


@pytest.mark.parametrize("pooling", ["mean", "last", "token"])
@pytest.mark.parametrize("novelty", NOVELTIES)
def test_what_stands_on_padding_changes_neither_loss_nor_categories(pooling: Any, novelty: Any):
    module = art_gpt2(pooling=pooling, novelty=novelty)
    art = art_of(module)
    seen = batch()
    seen.attention_mask[1, 9:] = False
    seen.attention_mask[3, 4:] = False
    first = module.outputs(batch(seed=1)).detached()
    art.learn(first)
    found = []
    for filled in (0, 77):
        padded = replace(seen, input_ids=seen.input_ids.masked_fill(~seen.attention_mask, filled))
        twin = copy.deepcopy(module)
        with torch.no_grad():
            outputs = twin.outputs(padded)
            terms, said = twin.loss_terms(outputs), twin._described(outputs)
            art_of(twin).learn(outputs)
        found.append((terms["art"][1], said, twin.state_dict()))
    torch.testing.assert_close(*found, rtol=0, atol=0, equal_nan=True)
    assert int(art_of(twin).art.counts.sum()) > int(art.art.counts.sum()) > 0


def test_the_averaged_model_is_that_of_the_live_one_without_dropout_and_is_not_trained(fit: Fit):
    module = art_gpt2(dropout=0.4, average_decay=0.5)
    art = art_of(module)
    weights: list[Tensor] = []

    class Keep(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
            weights.append(module.backbone.lm_head.weight.detach().clone())

    trainer = fit(module, Keep(), max_steps=3)
    assert art.average is not None
    by_hand = weights[0]
    for weight in weights[1:]:
        by_hand = (by_hand + weight) / 2
    torch.testing.assert_close(art.average.module.lm_head.weight, by_hand)
    assert not torch.equal(*weights[-2:])
    averaged = {id(p) for p in art.average.parameters()}
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert len(optimized) == len(list(module.backbone.parameters()))
    assert not averaged & optimized
    assert all(p.grad is None and not p.requires_grad for p in art.average.parameters())

    outputs = module.train().outputs(batch())
    embeddings, ends = art.embeddings(outputs)
    art.art.threshold.fill_(1.1)  # all are novel
    found = [art._averaged(outputs, embeddings, ends) for _ in range(2)]
    assert torch.equal(*found)
    assert torch.equal(found[0], art.average.module.eval().states(outputs.ids).last.mean(1))


def test_only_rows_with_something_novel_are_run_through_the_averaged_model():
    module = art_gpt2(pooling="token", novelty="drift")
    art, seen = art_of(module), batch()
    outputs = module.outputs(seen)
    some = seen.each(lambda x: x[:2])
    art.art.merge_at = 1.0
    art.learn(module.outputs(some).detached())
    art.after_step()
    assert art.average is not None
    rows: list[int] = []
    states = art.average.module.states
    art.average.module.states = lambda ids, layers: rows.append(len(ids)) or states(ids, layers=layers)  # type: ignore[method-assign, assignment]
    with torch.no_grad():
        art.average.module.transformer["wte"].weight += 1.0
    embeddings, ends = art.embeddings(outputs)
    novel = set(ends[art.art.is_novel(embeddings), 0].tolist())
    assert novel
    assert len(novel) < 4
    averaged = art._averaged(outputs, embeddings, ends)
    assert rows == [len(novel)]
    same = (averaged == embeddings).all(-1)
    assert same.tolist() == [row not in novel for row in ends[:, 0].tolist()]


# Rehearsal


def rehearsing(**options: Any) -> tuple[ARTGPT2, Outputs]:
    """One that has learned a batch with texts of 16, 16, 9 and 4 tokens, and is no more what it was."""
    module = art_gpt2(**{"rehearsal": 0.5, "novelty": "margin", "rehearsed_texts": 6, **options})
    seen = batch()
    seen.attention_mask[2, 9:] = False
    seen.attention_mask[3, 4:] = False
    outputs = module.train().outputs(seen)
    art_of(module).learn(outputs.detached())
    with torch.no_grad():
        module.backbone.lm_head.weight.add_(torch.randn(257, 16, generator=torch.Generator().manual_seed(5)))
    return module, outputs


def test_rehearsal_is_the_kl_divergence_of_the_averaged_model_from_the_live_one():
    module, outputs = rehearsing()
    art = art_of(module)
    weight, term = module.loss_terms(outputs)["art_rehearsal"]
    kl, n, average = 0.0, 0, art.average.module.eval()
    drawn = art.art.drawn_texts(6, seed=0)
    assert len({int((text >= 0).sum()) for text in drawn}) > 1
    for text in drawn:
        ids = text[text >= 0][None]
        p, q = (model(ids)[0, :-1].detach().double().softmax(-1) for model in (average, module.backbone))
        kl, n = kl + float((p * (p / q).log()).sum()), n + len(p)
    assert kl / n > 0.1
    assert (weight, term.item()) == (0.1, pytest.approx(0.5 * kl / n, rel=1e-4))


def test_rehearsal_is_0_until_the_model_and_its_average_differ_and_then_pulls_it_back():
    module, outputs = rehearsing(average_decay=0.0)
    apart = module.loss_terms(outputs)["art_rehearsal"][1]
    weight = module.backbone.lm_head.weight
    (gradient,) = torch.autograd.grad(apart, weight)
    with torch.no_grad():
        weight -= 1e-3 * gradient / gradient.norm()
        assert module.loss_terms(outputs)["art_rehearsal"][1] < apart
        art_of(module).average.update_parameters(module.backbone)
        assert module.loss_terms(outputs)["art_rehearsal"][1].item() == pytest.approx(0, abs=1e-6)


def test_rehearsal_is_of_training_alone_and_0_without_texts():
    module, outputs = rehearsing()
    assert {"ce", "art", "art_rehearsal"} == module.train().loss_terms(outputs).keys()
    assert {"ce", "art"} == module.eval().loss_terms(outputs).keys()
    none, outputs = rehearsing(rehearsal=0.0)
    assert {"ce", "art"} == none.loss_terms(outputs).keys()
    assert art_of(none).average is None
    assert art_gpt2(rehearsal=1.0).train().loss_terms(outputs)["art_rehearsal"][1] == 0


def test_texts_are_drawn_by_step_and_rank_alone_so_accumulated_batches_rehearse_the_same(
    monkeypatch: pytest.MonkeyPatch,
):
    module, outputs = rehearsing()
    art, seeds = art_of(module), []
    drawn_texts = art.art.drawn_texts
    monkeypatch.setattr(art.art, "drawn_texts", lambda n, seed: seeds.append(seed) or drawn_texts(n, seed=seed))
    monkeypatch.setattr("lightning_app.art.extension.world_size", lambda: 3)
    for step in range(2):
        for rank in range(3):
            monkeypatch.setattr("lightning_app.art.extension.rank", lambda rank=rank: rank)
            terms = [module.loss_terms(outputs)["art_rehearsal"][1] for _ in range(2)]
            assert torch.equal(*terms)
        assert art.steps == step
        art.after_step()
    assert seeds == [seed for seed in range(6) for _ in range(2)]


def test_rehearsal_is_logged_and_trains_what_lambda_alone_would_not(fit: Fit):
    modules = [art_gpt2(novelty="margin", rehearsal=rehearsal, average_decay=0.9) for rehearsal in (0.0, 50.0)]
    metrics = [fit(module, max_steps=6).callback_metrics for module in modules]
    ce, art, kept, loss = (float(metrics[1][f"train/{name}"]) for name in ("ce", "art", "art_rehearsal", "loss"))
    assert kept > 0
    assert loss == pytest.approx(ce + 0.1 * (art + kept), rel=1e-5)
    assert "train/art_rehearsal" not in metrics[0]
    assert digest(modules[0].backbone) != digest(modules[1].backbone)


# What is learned, and when


@pytest.mark.parametrize("accumulate", [1, 2])
def test_categories_are_learned_from_all_batches_of_a_step_once_it_is_done(fit: Fit, accumulate: int):
    module = art_gpt2()

    class Counts(L.Callback):
        seen: list[tuple[int, int]] = []  # noqa: RUF012

        def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
            self.seen.append((int(art_of(module).steps), int(art_of(module).art.seen)))

    counts = Counts()
    counts.seen = []
    fit(module, counts, max_steps=3, accumulate_grad_batches=accumulate)
    done = [(i + 1) // accumulate for i in range(3 * accumulate)]
    assert counts.seen == [(steps, 4 * accumulate * steps) for steps in done]


def test_forward_and_evaluation_change_nothing(fit: Fit, data: TextDataModule):
    module = art_gpt2()
    fit(module, limit_val_batches=1.0, val_check_interval=2)
    before = digest(module)
    trainer = trainer_with(limit_val_batches=1.0)
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.test(module, datamodule=data, verbose=False)
    assert len(trainer.predict(module, datamodule=data)) > 1
    for passes in (module.train(), module.eval()):
        passes.loss_terms(passes.outputs(batch()))
    assert digest(module) == before


def test_validation_in_between_changes_no_category(fit: Fit):
    modules = [art_gpt2(dropout=0.1), art_gpt2(dropout=0.1)]
    fit(modules[0], RandomState())
    fit(modules[1], RandomState(), limit_val_batches=2, val_check_interval=1)
    assert_equal(*modules)


def test_of_many_embeddings_some_are_learned_evenly_spread():
    module = art_gpt2(pooling="token", learn_at_most=5)
    outputs = module.outputs(batch()).detached()
    learned: list[Tensor] = []
    art_of(module).art.learn = lambda x, spans: learned.append(x) or {}  # type: ignore[method-assign, assignment]
    art_of(module).learn(outputs)
    assert torch.equal(learned[0], outputs.states.last.flatten(0, 1)[[0, 15, 31, 47, 63]])


@pytest.mark.parametrize(("pooling", "first"), [("mean", 0), ("last", 8), ("token", None)])
def test_the_text_of_a_category_is_what_was_pooled(pooling: Any, first: int | None):
    """The first tokens where the whole is pooled, else the last ones up to the token; SPAN of 40 are kept."""
    module = ARTGPT2(
        decoder(block_size=40), ARTRegularizer(pooling=pooling, vigilance=1.0, advanced=AdvancedART(merge_at=1.0))
    )
    seen = batch(rows=2, T=40)
    seen.attention_mask[1, 5:] = False
    art_of(module).learn(module.outputs(seen).detached())
    art, ids = art_of(module).art, seen.input_ids
    if first is None:
        assert len(art) == 45
        assert art.texts[3, 0].tolist() == [*ids[0, :4].tolist(), *[-1] * (SPAN - 4)]
        assert art.texts[39, 0].tolist() == ids[0, 8:40].tolist()
        assert art.texts[44, 0, :6].tolist() == [*ids[1, :5].tolist(), -1]
        return
    assert len(art) == 2
    assert art.texts[0, 0].tolist() == ids[0, first : first + SPAN].tolist()
    assert art.texts[1, 0, :6].tolist() == [*ids[1, :5].tolist(), -1]


def test_embeddings_that_are_not_finite_are_named_by_document_and_the_others_are_learned():
    modules = [art_gpt2(), art_gpt2()]
    outputs = modules[0].outputs(batch()).detached()
    modules[1].regularizers[0].learn(_rows(outputs, [0, 3]))
    outputs.states.last[1, 3] = torch.nan
    outputs.states.last[2, 0, 5] = torch.inf
    with pytest.warns(UserWarning, match=r"art: 2 of 4 embeddings are not finite \(documents \[1, 2\]\)"):
        modules[0].regularizers[0].learn(outputs)
    assert_equal(*modules)
    assert art_of(modules[0]).art.seen == 2


def _rows(outputs: Outputs, rows: list[int]) -> Outputs:
    states = type(outputs.states)(outputs.states.last[rows].clone())
    some = (outputs.ids, outputs.targets, outputs.mask, outputs.document_ids)
    return Outputs(*(tensor[rows] for tensor in some), states, outputs.logits)


# What is said


def test_what_is_learned_is_logged(fit: Fit):
    module = art_gpt2()
    metrics = fit(module, limit_val_batches=2, val_check_interval=2, accumulate_grad_batches=2).callback_metrics
    logged = ("clusters", "vigilance", "births", "known", "match", "drift", "size_median", "size_max")
    assert {"train/art", "train/ce", "train/loss", *(f"train/art_{name}" for name in logged)} <= metrics.keys()
    assert {"val/art", "val/art_similarity", "val/art_novel"} <= metrics.keys()
    assert "val/art_category" not in metrics
    art = art_of(module).art
    assert metrics["train/art_clusters"] == len(art) > 1
    assert float(metrics["train/art_vigilance"]) == pytest.approx(MANY["vigilance"])
    assert metrics["train/art_size_max"] == art.counts.max()
    assert 0 < metrics["train/art_known"] <= 1
    ce, term = float(metrics["train/ce"]), float(metrics["train/art"])
    assert float(metrics["train/loss"]) == pytest.approx(ce + 0.1 * term, rel=1e-5)
    assert term > 0
    assert 0.5 < metrics["val/art_similarity"] <= 1
    assert module.learned["art_births"] == 8 * (1 - module.learned["art_known"])  # of both batches of the step


def test_predict_says_category_similarity_and_novelty_of_each_text(fit: Fit, data: TextDataModule):
    module = art_gpt2()
    trainer = fit(module)
    batches = trainer.predict(module, datamodule=data)
    rows = [row for some in batches for row in some]
    assert len(rows) == len(data.dataset("test"))
    for row in rows:
        assert {"document", "tokens", "ce", "art_category", "art_similarity", "art_novel"} <= row.keys()
        assert type(row["art_category"]) is int
        assert type(row["art_novel"]) is bool
    ids = art_of(module).art.ids.tolist()
    assert all(row["art_category"] in ids for row in rows)
    assert all(row["art_novel"] == (row["art_similarity"] < MANY["vigilance"]) for row in rows)
    json.dumps(rows)


def test_a_text_without_category_or_tokens_is_of_none():
    module = art_gpt2(pooling="token")
    seen = batch()
    said = module._described(module.outputs(seen))
    assert said["art_category"].tolist() == [-1] * 4
    assert said["art_similarity"].tolist() == [-1.0] * 4
    assert said["art_novel"].tolist() == [True] * 4
    art_of(module).learn(module.outputs(seen).detached())
    seen.attention_mask[2] = False
    said = module._described(module.outputs(seen))
    assert said["art_category"].tolist()[2] == -1
    assert said["art_novel"].tolist()[2] is False
    assert min(said["art_category"].tolist()[i] for i in (0, 1, 3)) >= 0


def test_two_regularizers_need_two_names(fit: Fit):
    other = ARTRegularizer(name="first", layer=0, pooling="last", novelty="margin", kind="fuzzy", normalize="center")
    module = ARTGPT2(decoder(), ARTRegularizer(), [other])
    metrics = fit(module, max_steps=6).callback_metrics
    assert {"train/art", "train/first", "train/art_clusters", "train/first_clusters"} <= metrics.keys()
    twice = ARTGPT2(decoder(), ARTRegularizer(), [ARTRegularizer()])
    with pytest.raises(InputError, match="two loss terms have the name 'art'"):
        fit(twice)


# Checkpoints and copies


def everything(dropout: float = 0.2) -> ARTGPT2:
    art: dict[str, Any] = {"normalize": "whiten", "vigilance_quantile": 0.3, "capacity": 20}
    advanced = AdvancedART(average_decay=0.9, fast_inputs=3, rehearsed_texts=3)
    term = ARTRegularizer(lambda_art=1.0, warmup_steps=3, rehearsal=0.5, advanced=advanced, **art)
    return ARTGPT2(decoder(dropout=dropout), term)


def test_a_resumed_run_is_the_uninterrupted_one_with_its_categories_and_averaged_model(fit: Fit, tmp_path: Path):
    def run(**options: Any) -> tuple[ARTGPT2, L.Trainer]:
        module = everything()
        save = ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=6, save_top_k=-1)
        callbacks: list[L.Callback] = [RandomState(), ExactResume(), *([save] if not options else [])]
        return module, fit(module, *callbacks, max_steps=12, accumulate_grad_batches=2, **options)

    (whole, one), (resumed, two) = run(), run(ckpt_path=tmp_path / "saved" / "step=6.ckpt")
    assert one.global_step == two.global_step == 12
    assert_equal(whole, resumed)
    torch.testing.assert_close(two.optimizers[0].state_dict(), one.optimizers[0].state_dict(), rtol=0, atol=0)
    assert one.callback_metrics["train/art_rehearsal"] == two.callback_metrics["train/art_rehearsal"] > 0
    assert one.callback_metrics["train/art_clusters"] == two.callback_metrics["train/art_clusters"] > 3
    assert art_of(resumed).steps == 12


def test_a_validation_calibrates_and_the_vigilance_then_stays(fit: Fit, caplog: pytest.LogCaptureFixture):
    """At the first validation from `calibrate_at` on: that share of its texts is novel, whatever comes later."""
    art = ARTRegularizer(normalize="center", vigilance_quantile=0.25, calibrate_at=6)
    module, found = ARTGPT2(decoder(), art), {}

    class Seen(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            found[trainer.global_step] = art.art.vigilance

        def on_validation_end(self, trainer: L.Trainer, *_: Any) -> None:
            found[f"validation at {trainer.global_step}"] = art.art.is_fixed

    options = {"max_steps": 12, "val_check_interval": 4, "check_val_every_n_epoch": None, "limit_val_batches": 5}
    trainer = fit(module, Seen(), **options)
    assert [found[f"validation at {step}"] for step in (4, 8, 12)] == [False, True, True]
    assert found[7] != found[8] != found[9] == found[12]
    assert "25% of 20 held-out embeddings do not" in caplog.text
    again = ARTGPT2(decoder(), ARTRegularizer(**art.config()))
    again.load_state_dict(module.state_dict())
    assert art_of(again).art.is_fixed
    trainer.validate(module, datamodule=trainer.datamodule, verbose=False)
    assert art_of(module).art.vigilance == found[12]


def test_a_checkpoint_alone_brings_back_module_and_categories(fit: Fit, tmp_path: Path):
    module = everything()
    fit(module, max_steps=8).save_checkpoint(tmp_path / "m.ckpt", weights_only=False)
    loaded, _ = load_module(tmp_path / "m.ckpt")
    for again in (loaded, ARTGPT2.load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True)):
        assert isinstance(again, ARTGPT2)
        assert_equal(again, module)
        assert art_of(again).config() == art_of(module).config()
        assert (art_of(again).rehearsal, art_of(again).advanced.rehearsed_texts) == (0.5, 3)
        found, known = (m.eval()._described(m.eval().outputs(batch())) for m in (again, module))
        torch.testing.assert_close(found, known, rtol=0, atol=0)


def test_a_copy_has_categories_and_an_averaged_model_of_its_own(fit: Fit):
    module = art_gpt2(average_decay=0.0)  # the averaged model is the last one
    fit(module)
    twin, before = copy.deepcopy(module), digest(module)
    fit(twin)
    assert digest(module) == before
    average = art_of(twin).average
    assert average is not None
    assert_equal(average.module, twin.backbone)
    assert digest(twin.backbone) != digest(module.backbone)
    assert art_of(twin).art.seen == 2 * art_of(module).art.seen


@pytest.mark.parametrize(
    "novelty", ["drift", *(pytest.param(novelty, marks=pytest.mark.slow) for novelty in NOVELTIES[1:])]
)
def test_a_run_starts_from_a_plain_checkpoint_with_new_categories_and_a_plain_one_from_one_with_art(
    fit: Fit, novelty: Any
):
    plain, module = ArticleGPT(decoder()), art_gpt2(novelty=novelty)
    fit(plain)
    fit(module)
    fresh = art_gpt2(novelty=novelty)
    start_from(fresh, {"state_dict": plain.state_dict()})
    assert_equal(fresh.backbone, plain.backbone)
    assert len(art_of(fresh).art) == 0
    if (average := art_of(fresh).average) is not None:
        assert_equal(average.module, plain.backbone)
        assert not any(p.requires_grad for p in average.parameters())
    fit(fresh)
    other = ArticleGPT(decoder())
    start_from(other, {"state_dict": module.state_dict()})
    assert_equal(other.backbone, module.backbone)
    again = art_gpt2(novelty=novelty)
    start_from(again, {"state_dict": module.state_dict()})
    assert_equal(again, module)  # what both have goes on


def test_a_start_from_another_config_is_refused():
    with pytest.raises(InputError, match=r"\(257, 32\), this model's \(257, 16\)"):
        start_from(art_gpt2(), {"state_dict": ArticleGPT(decoder(embedding_dim=32)).state_dict()})
    with pytest.raises(InputError, match="the checkpoint lacks"):
        start_from(art_gpt2(), {"state_dict": ArticleGPT(decoder(layers=1)).state_dict()})
    with pytest.raises(InputError, match="the model lacks"):
        start_from(ArticleGPT(decoder()), {"state_dict": art_gpt2().state_dict() | {"other": torch.zeros(1)}})
    with pytest.raises(InputError, match=r"prototypes has shape \(50, 16\), this model's \(1000, 16\)"):
        start_from(art_gpt2(), {"state_dict": art_gpt2(capacity=50).state_dict()})


# With other parts


@pytest.mark.parametrize("options", [{"novelty": "drift"}, {"layer": 0, "pooling": "last", "novelty": "drift"}])
def test_with_a_memory_the_averaged_model_sees_the_same_segments(fit: Fit, options: dict[str, Any]):
    """And what the backbone thinks before anything is read: with its own weights it says what the live one does."""
    art = ARTRegularizer(advanced=AdvancedART(average_decay=0.0), **MANY, **options)
    module = VardaGPT(decoder(), [AttentionReader(memory_size=100)], 8, extensions=[art])
    fit(module, max_steps=3)
    assert len(art.art) > 1
    seen = replace(batch(), positions=torch.arange(64).view(4, 16))
    outputs = module.eval().outputs(seen)
    embeddings, ends = art.embeddings(outputs)
    assert not torch.allclose(outputs.states.last, outputs.plain_states.last, atol=1e-4)
    art.art.threshold.fill_(1.1)  # all are novel
    torch.testing.assert_close(art._averaged(outputs, embeddings, ends), embeddings)
    assert art.average is not None
    apart = art.average.module.backbone.states(outputs.ids, layers=art.layers)
    assert not torch.allclose(art._states(apart)[:, -1], art._states(outputs.plain_states)[:, -1], atol=1e-3)


@pytest.mark.parametrize("reader", [AttentionReader, KNNReader])
def test_with_a_memory_rehearsal_is_of_what_both_models_say_without_it_in_segments(folder: Path, reader: Any):
    art = ARTRegularizer(advanced=AdvancedART(average_decay=0.0), novelty="margin", rehearsal=1.0, **MANY)
    module = VardaGPT(decoder(), [reader(memory_size=100, scope="shared")], 6, True, extensions=[art])
    data = TextDataModule(train=Source("train.txt"), block_size=12, dataloader={"batch_size": 4})
    with advised(SHORT):
        trainer_with(max_steps=3).fit(module, datamodule=data)
    vectors = torch.randn(9, 16, generator=torch.Generator().manual_seed(2))
    module.backbone.readers[0].bank.shared.add(vectors, Entries(tokens=torch.arange(9)))
    model, ids = module.eval().backbone, batch(T=6).input_ids
    assert not torch.allclose(model(ids), model.text_logits(ids))
    outputs = module.train().outputs(replace(batch(T=12), positions=torch.arange(48).view(4, 12)))
    assert module.loss_terms(outputs)["art_rehearsal"][1].item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        module.backbone.backbone.lm_head.weight.mul_(3.0)
    assert module.loss_terms(outputs)["art_rehearsal"][1] > 0.01


def test_pairs_of_prompt_and_target_are_one_sequence_whose_prompt_is_not_predicted(fit: Fit, folder: Path):
    pairs = [{"prompt": f"say {i % 7}", "target": f" {i % 7} is said"} for i in range(80)]
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    data = TextDataModule(train=Source("pairs.jsonl"), block_size=32, dataloader={"batch_size": 4})
    module = ARTGPT2(decoder(block_size=32), ARTRegularizer(vigilance=0.99))
    seen: list[Outputs] = []

    class Keep(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
            seen.extend(module._seen)

    with advised(SHORT):
        trainer_with(Keep()).fit(module, datamodule=data)
    assert len(seen) == 4
    outputs = seen[0]
    for ids, targets, mask in zip(outputs.ids, outputs.targets, outputs.mask, strict=True):
        text = bytes(ids[mask].tolist()[:-1]).decode() if ids[mask][-1] > 255 else bytes(ids[mask].tolist()).decode()
        assert text.startswith("say ")
        predicted = targets != IGNORE
        assert not predicted[:4].any()
        assert bytes(i for i in targets[predicted].tolist() if i < 256).decode() == f" {text[4]} is said"
    assert len(art_of(module).art) > 1
    assert art_of(module).art.seen == 16


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"lambda_art": -0.1}, "lambda_art is -0.1; it must be at least 0"),
        ({"warmup_steps": -1}, "warmup_steps is -1; it must be at least 0"),
        ({"average_decay": 1.5}, "average_decay is 1.5; it must be at least 0, at most 1"),
        ({"learn_at_most": 0}, "learn_at_most is 0; it must be at least 1"),
        ({"rehearsal": -0.5}, "rehearsal is -0.5; it must be at least 0"),
        ({"rehearsal": float("nan")}, "rehearsal is nan; it must be at least 0"),
        ({"rehearsed_texts": 0}, "rehearsed_texts is 0; it must be at least 1"),
        ({"pooling": "max"}, "pooling is 'max'; there are mean, last, token"),
        ({"vigilance": 0.7, "vigilance_quantile": 0.1}, "vigilance is 0.7 and vigilance_quantile 0.1"),
        ({"calibrate_at": 5}, "calibrate_at is 5: give a step from 1 on, and a vigilance_quantile"),
        ({"calibrate_at": 0, "vigilance_quantile": 0.1}, "calibrate_at is 0: give a step from 1 on"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        ARTRegularizer(**options_of_today(options, "ARTRegularizer"))


def test_a_layer_that_is_not_there_is_refused(fit: Fit):
    with pytest.raises(InputError, match="layer is 2; the backbone has no such layer"):
        fit(art_gpt2(layer=2))


def test_a_checkpoint_of_another_width_is_refused_with_both_and_changes_nothing():
    module = art_gpt2()
    before = digest(module)
    wider = ARTGPT2(decoder(embedding_dim=32), ARTRegularizer(**MANY))
    narrow = {name: x for name, x in wider.state_dict().items() if "art." in name}
    with pytest.raises(InputError, match=r"art\.prototypes has shape \(1000, 32\), this model's \(1000, 16\)"):
        module.on_load_checkpoint({"state_dict": module.state_dict() | narrow})
    assert digest(module) == before
