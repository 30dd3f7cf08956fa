"""PlasticitySchedule through Lightning: what is pruned and when, what is logged, and a resume in every phase."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from lightning_app.art.extension import ARTRegularizer
from lightning_app.art.network import AdvancedART
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.sources import Source
from lightning_app.errors import InputError
from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import Decoder
from lightning_app.models.lora import LoRA, adapters_of
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.plasticity import gates as gates_module
from lightning_app.plasticity import surgery as surgery_module
from lightning_app.plasticity.checks import SurgeryError
from lightning_app.plasticity.cycle import Cycle
from lightning_app.plasticity.importance import EntropyImportance, MagnitudeImportance, SavedImportance, SeedImportance
from lightning_app.plasticity.kinds import units_in
from lightning_app.plasticity.layout import Part
from lightning_app.plasticity.options import AdvancedOptions
from lightning_app.plasticity.schedule import PlasticitySchedule
from lightning_app.plasticity.units import Units
from lightning_app.training.callbacks.exact_resume import ExactResume, RandomState
from lightning_app.training.callbacks.run_log import RunLog, read_log
from lightning_app.training.checkpoint import load_module, start_from
from lightning_app.training.compositions import ArticleGPT, CausalLM
from lightning_app.training.module import LanguageModule
from lightning_app.training.muon import Muon
from lightning_app.training.optimizer_parts import Entry, OptimizerByParts
from lightning_app.training.schedulers import WarmupCosine
from tests.advice import advised, missing
from tests.sameness import differences, leaves

# training 2, then per cycle warmup 1, finetuning 3: 10 steps
PLAN: dict[str, Any] = {
    "cycles": 2,
    "pruning_level": 0.5,
    "training_steps": 2,
    "warmup_steps": 1,
    "finetuning_steps": 3,
    "eval_freq": 2,
    "layer_lr_factor": 3.0,
    "sample_batches": 2,
    "sample_batch_size": 2,
}
STEPS = 12


def decoder(**options: Any) -> Decoder:
    torch.manual_seed(0)
    return Decoder(**{"vocab_size": 257, "block_size": 16, "embedding_dim": 16, "layers": 2, "heads": 4, **options})


def article_gpt(dropout: float = 0.0, **options: Any) -> ArticleGPT:
    scheduled = {"scheduler": lambda o: WarmupCosine(o, warmup_steps=2)}
    return ArticleGPT(decoder(dropout=dropout), **{**scheduled, **options})


def plan(**options: Any) -> PlasticitySchedule:
    """The plan with these options, of the group `advanced` too."""
    options = {**PLAN, **options}
    advanced = {field.name: options.pop(field.name) for field in fields(AdvancedOptions) if field.name in options}
    return PlasticitySchedule(**options, advanced=AdvancedOptions(**advanced))


@pytest.fixture
def data(folder: Path) -> Callable[[], TextDataModule]:
    return lambda: TextDataModule(
        train=Source("train.txt"),
        val=Source("val.txt"),
        block_size=16,
        dataloader={"batch_size": 4, "shuffle": True},
    )


Fit = Callable[..., L.Trainer]


@pytest.fixture
def fit(data: Callable[[], TextDataModule]) -> Fit:
    """Runs with their log in runs/NAME."""

    def run(
        module: LanguageModule, *callbacks: L.Callback, name: str = "run", seed: int = 1, **options: Any
    ) -> L.Trainer:
        ckpt_path = options.pop("ckpt_path", None)
        torch.manual_seed(seed)
        trainer = L.Trainer(
            accelerator="cpu",
            logger=CSVLogger("runs", name=name, version=0),
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
            use_distributed_sampler=False,
            callbacks=[RandomState(), ExactResume(), RunLog(), *callbacks],
            **{"max_steps": STEPS, "limit_val_batches": 0, "log_every_n_steps": 1, **options},
        )
        with advised(*missing(trainer, ckpt_path)):
            trainer.fit(module, datamodule=data(), ckpt_path=ckpt_path)
        return trainer

    return run


def events(kind: str, name: str = "run") -> list[dict[str, Any]]:
    return [record for record in read_log(f"runs/{name}/version_0") if record.get("event") == kind]


def logits(module: LanguageModule) -> Tensor:
    ids = torch.arange(32).view(2, 16) * 5 % 257
    training = module.training
    module.eval()
    with torch.no_grad():
        found = module(ids)
    module.train(training)
    return found


def heads_of(module: LanguageModule) -> Units:
    return units_in(module, "heads")[0]


class Watch(L.Callback):
    """Calls a function after each batch."""

    def __init__(self, look: Callable[[L.Trainer, LanguageModule], Any]):
        self.look, self.seen = look, []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any) -> None:
        self.seen.append(self.look(trainer, pl_module))


# What happens and when


@pytest.mark.parametrize("surgery", ["remove", "mask"])
def test_sparsity_grows_as_planned_and_the_dead_stay_dead(fit: Fit, surgery: Any):
    module, masks = article_gpt(), Watch(lambda _, module: heads_of(module).mask)
    fit(module, plan(surgery=surgery), masks)
    dead = [int((~mask).sum()) for mask in masks.seen]
    assert dead == [0] * 2 + [2] * 4 + [4] * 6  # a batch's end is behind the surgery that it brought
    for before, after in zip(masks.seen[:-1], masks.seen[1:], strict=True):
        assert not (after & ~before).any()
    chosen = [tuple(head) for event in events("pruning_event") for head in event["heads"]]
    assert len(chosen) == len(set(chosen)) == 4
    assert {(i, h) for i, h in (~heads_of(module).mask).nonzero().tolist()} == set(chosen)
    assert bool(heads_of(module).present.all()) == (surgery == "mask")
    records = [r for r in read_log("runs/run/version_0") if "plasticity/sparsity" in r]
    assert [r["plasticity/active_heads"] for r in records] == [8 - n for n in dead]
    assert [r["plasticity/sparsity"] for r in records] == pytest.approx([n / 8 for n in dead])
    assert {r["plasticity/total_heads"] for r in records} == {8}


def test_without_targets_nothing_is_pruned_and_no_loss_changes(fit: Fit, capsys: pytest.CaptureFixture[str]):
    losses = {}
    for name, callbacks in (("plain", []), ("empty", [plan(targets=[], regrow=1, layer_lr_factor=3.0)])):
        fit(article_gpt(0.1), *callbacks, name=name)
        losses[name] = [r["train/ce"] for r in read_log(f"runs/{name}/version_0") if "train/ce" in r]
    assert losses["plain"] == losses["empty"]
    assert len(losses["plain"]) == STEPS
    assert {r.get("event") for r in read_log("runs/empty/version_0")} == {None, "data", "started", "ended"}
    assert "heads" not in capsys.readouterr().out


def test_the_log_keeps_its_contract(fit: Fit):
    module = article_gpt()
    fit(module, plan(targets=["heads", "neurons"], regrow=1, layer_lr_factor=2.0))
    (started,) = events("plasticity_started")
    assert started["shape"] == [2, 4]
    assert started["targets"] == ["heads", "neurons"]
    assert started["surgery"] == "remove"
    assert (started["cycles"], started["pruning_level"]) == (2, 0.5)
    block = 16 * 48 + 48 + 16 * 16
    assert started["head_parameters_share"] == pytest.approx(2 * block / sum(p.numel() for p in decoder().parameters()))
    phases = [(e["phase"], e["cycle"], e["step"]) for e in events("phase_transition")]
    cycle = ["warmup", "analysis", "pruning", "regrowth", "finetuning", "evaluation"]
    assert phases == [
        ("training", 0, 0),
        *zip(cycle, [1] * 6, [2, 3, 3, 3, 3, 6], strict=True),
        *zip(cycle, [2] * 6, [6, 7, 7, 7, 7, 10], strict=True),
        ("done", 2, 10),
    ]
    first, second = events("analysis")
    assert first["alive"] == [[1] * 4] * 2
    for name in ("importance", "gradient", "entropy"):
        assert all(x >= 0 for row in first[name] for x in row) or name == "importance"
        nulls = [[x is None for x in row] for row in second[name]]
        assert nulls == [[not x for x in row] for row in second["alive"]]
    pruned = [e for e in events("pruning_event") if e["target"] == "heads"]
    assert [len(e["heads"]) for e in pruned] == [3, 3]  # one of them comes back
    least = sorted((x, [i, h]) for i, row in enumerate(first["importance"]) for h, x in enumerate(row))[:3]
    assert pruned[0]["heads"] == [unit for _, unit in least]
    assert pruned[0]["scores"] == pytest.approx([x for x, _ in least])
    assert pruned[0]["reasons"] == [f"number {n} of 8 from below" for n in (1, 2, 3)]
    for prune, grow in zip(pruned, events("regrowth_event"), strict=True):
        assert len(grow["heads"]) == 1
        ((i, h),) = grow["heads"]
        assert (prune["alive"][i][h], grow["alive"][i][h]) == (0, 1)
        assert grow["how"] == "undo"
        assert grow["scores"][0] > 0
    widths = [e["widths"] for e in events("pruning_event") if e["target"] == "neurons"]
    assert [sum(w) for w in widths] == [96, 64]
    assert all(width % 32 == 0 and width > 0 for w in widths for width in w)
    assert [b.mlp.c_proj.in_features for b in module.backbone.transformer["h"]] == widths[-1]
    stages = [(e["stage"], e["cycle"]) for e in events("evaluation")]
    of_cycle = ["before", "pruned", "regrown", "finetuning", "recovered"]
    assert stages == [("baseline", 0), *((s, 1) for s in of_cycle), *((s, 2) for s in of_cycle)]
    assert all(e["ppl"] == pytest.approx(math.exp(e["ce"])) for e in events("evaluation"))
    costs = events("cost")
    assert costs[0]["stage"] == "baseline"
    assert costs[0]["parameters"] == sum(p.numel() for p in decoder().parameters())
    assert costs[-1]["parameters"] == sum(p.numel() for p in module.backbone.parameters())
    assert costs[-1]["flops_per_token"] < costs[0]["flops_per_token"]
    assert costs[-1]["ceiling"] == pytest.approx(costs[0]["flops_per_token"] / costs[-1]["flops_per_token"])
    assert costs[-1]["bytes"] == 4 * costs[-1]["parameters"]
    assert all(low <= c["latency_ms"] <= high for c in costs for low, high in [c["latency_spread"]])
    assert len(events("proof")) == 6  # heads, neurons and regrowth of each cycle
    assert all(isinstance(x, int | float) for e in events("proof") for x in e["checks"].values())
    assert events("learning_rates")[0]["groups"][0].keys() == {"name", "lr", "factor"}


def test_importance_is_saved_and_given_to_another_run(fit: Fit):
    fit(article_gpt(), plan(strategy=MagnitudeImportance()))
    path = "runs/run/version_0/importance/heads_cycle_1.json"
    saved = json.loads(Path(path).read_text())
    assert saved["importance"] == events("analysis")[0]["importance"]
    assert saved["strategy"] == "MagnitudeImportance"
    fit(article_gpt(), plan(strategy=SavedImportance(path)), name="other")
    assert events("pruning_event", "other")[0]["heads"] == events("pruning_event")[0]["heads"]
    fit(article_gpt(), plan(save_importance=False), name="unsaved")
    assert not Path("runs/unsaved/version_0/importance").exists()


@pytest.mark.slow  # in small: tests/plasticity/test_importance.py
def test_importance_of_other_texts(fit: Fit):
    Path("other.txt").write_text("0123456789 " * 40)
    fit(article_gpt(), plan())
    fit(article_gpt(), plan(datasets={"other.txt": 1.0}), name="other")
    fit(article_gpt(), plan(datasets={"other.txt": 1.0, "val.txt": 2.0}, combine="max"), name="both")
    maps = [events("analysis", name)[0]["importance"] for name in ("run", "other", "both")]
    assert maps[0] != maps[1]
    assert max(x for row in maps[2] for x in row) == pytest.approx(1.0)
    with pytest.raises(InputError, match=r"none\.txt, which is not there"):
        fit(article_gpt(), plan(datasets={"none.txt": 1.0}), name="none")


@pytest.mark.slow
def test_a_warmup_until_the_loss_is_stable(fit: Fit):
    """A learning rate of 0 is stable as soon as there are losses enough."""
    module = article_gpt(optimizer=lambda p: torch.optim.SGD(p, lr=0.0), scheduler=None)
    options = {"cycles": 1, "warmup": "stable", "warmup_steps": 30, "stability_window": 8, "finetuning_steps": 1}
    fit(module, plan(**options, stability_rule="slope"), max_steps=33)
    (verdict,) = events("stabilised")
    assert verdict["rule"] == "slope"
    assert verdict["stable"]
    assert 8 <= verdict["after"] < 30
    assert len(verdict["losses"]) == verdict["window"]
    with pytest.warns(UserWarning, match="warmup_steps is 3: it will never be called stable"):
        fit(article_gpt(), plan(**{**options, "warmup_steps": 3}), max_steps=33, name="short")
    (verdict,) = events("stabilised", "short")
    assert not verdict["stable"]
    assert verdict["after"] == 3
    assert any("not stable within 3" in e["reason"] for e in events("phase_transition", "short"))


def test_steps_are_counted_and_not_batches(fit: Fit):
    fit(article_gpt(), plan(), accumulate_grad_batches=2)
    assert [e["step"] for e in events("phase_transition")] == [0, 2, 3, 3, 3, 6, 6, 7, 7, 7, 10, 10]


# Masked is removed, over a whole run


@pytest.mark.slow  # in small: tests/plasticity/test_units.py
def test_masks_and_removal_end_in_the_same_weights_of_the_living(fit: Fit):
    """The gradient of the dead counts in no norm, so that clipping is the same too."""
    found = []
    for surgery in ("remove", "mask"):
        module = article_gpt(optimizer=lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.1, eps=1e-4))
        fit(
            module,
            plan(surgery=surgery, targets=["heads", "neurons"], layer_lr_factor=1.0),
            name=surgery,
            gradient_clip_val=0.5,
        )
        for kind in ("heads", "neurons"):
            units = units_in(module, kind)[0]
            units.remove(~units.mask)
        found.append(module)
    assert events("pruning_event", "remove")[1]["widths"] == events("pruning_event", "mask")[1]["widths"]
    assert torch.equal(heads_of(found[0]).mask, heads_of(found[1]).mask)
    states = [dict(module.backbone.named_parameters()) for module in found]
    torch.testing.assert_close(*states, atol=1e-5, rtol=0)
    torch.testing.assert_close(logits(found[0]), logits(found[1]), atol=1e-5, rtol=0)


# Automatic


def getting_worse(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-2, maximize=True, fused=True)


def state_of(cycle: Cycle) -> Any:
    module, optimizer = cycle.module, cycle.trainer.optimizers[0]
    return logits(module), module.state_dict(), [optimizer.state[p] for p in module.parameters()]


def test_a_cycle_that_does_not_recover_is_undone_and_the_last_one(fit: Fit, monkeypatch: pytest.MonkeyPatch):
    snapshots: list[Any] = []
    prune, go_back = Cycle.prune, Cycle.go_back

    def remembering(cycle: Cycle) -> None:
        snapshots.append(copy.deepcopy(state_of(cycle)))
        prune(cycle)

    def comparing(cycle: Cycle, ce: float, limit: float) -> None:
        rates = [group["lr"] for group in cycle.trainer.optimizers[0].param_groups]
        go_back(cycle, ce, limit)
        torch.testing.assert_close(state_of(cycle), snapshots[-1], rtol=0, atol=0)
        assert [group["lr"] for group in cycle.trainer.optimizers[0].param_groups] == rates

    monkeypatch.setattr(Cycle, "prune", remembering)
    monkeypatch.setattr(Cycle, "go_back", comparing)
    module = article_gpt(optimizer=getting_worse, scheduler=None)
    callback = plan(pruning_level=0.7, neuron_level=0.5, automatic=True, tolerance=0.0)
    fit(module, callback)
    (rollback,) = events("rollback")
    assert rollback["cycle"] == len(snapshots)
    assert rollback["ce"] > rollback["limit"]
    last = events("phase_transition")[-1]
    assert (last["phase"], last["cycle"]) == ("done", rollback["cycle"])
    before = [e for e in events("evaluation") if e["stage"] == "before"]
    assert before[-1]["ce"] == pytest.approx(before[-2]["ce"], abs=1e-9)
    assert rollback["alive"] == heads_of(module).mask.int().tolist()
    assert events("ended")  # and the rest of the run is trained


def test_with_a_wide_tolerance_all_cycles_are_done(fit: Fit):
    module = article_gpt()
    fit(module, plan(automatic=True, tolerance=10.0))
    assert not events("rollback")
    assert int((~heads_of(module).mask).sum()) == 4


# Learning rates


def test_rates_of_layers_are_raised_while_they_are_finetuned(fit: Fit):
    rates = Watch(
        lambda trainer, _: {
            g["layer"]: (g["lr"], g["lr_factor"]) for g in trainer.optimizers[0].param_groups if "lr_factor" in g
        }
    )
    saved = Path("map.json")
    saved.write_text(json.dumps({"kind": "heads", "importance": [[0, 1, 2, 3], [4, 5, 6, 7]]}))
    module = article_gpt(scheduler=None)
    fit(module, plan(cycles=1, pruning_level=0.25, strategy=SavedImportance("map.json"), layer_lr_factor=3.0), rates)
    base = 1e-3
    for step, seen in enumerate(rates.seen, start=1):
        if 3 <= step < 6:  # of the steps after it
            assert seen == {0: (pytest.approx(3 * base), 3.0), 1: (base, 1.0), -1: (base, 1.0)}, step
        elif step >= 6:
            assert seen == {layer: (pytest.approx(base), 1.0) for layer in (0, 1, -1)}
    during, after = events("learning_rates")
    assert {g["name"]: g["factor"] for g in during["groups"]}["block 0"] == 3.0
    assert {g["factor"] for g in after["groups"]} == {1.0}


def test_head_factors_scale_updates(fit: Fit):
    """Of SGD from equal weights: the first step of the fine-tuning is so many times larger."""
    steps: dict[float, list[dict[str, Tensor]]] = {}
    Path("map.json").write_text(json.dumps({"kind": "heads", "importance": [[0, 1, 2, 3], [4, 5, 6, 7]]}))
    for factor in (1.0, 4.0):
        watch = Watch(lambda _, m: {name: p.detach().clone() for name, p in m.backbone.named_parameters()})
        module = article_gpt(optimizer=lambda p: torch.optim.SGD(p, lr=0.1), scheduler=None)
        fit(
            module,
            plan(
                cycles=1,
                pruning_level=0.25,
                strategy=SavedImportance("map.json"),
                layer_lr_factor=1.0,
                head_lr_factor=factor,
            ),
            watch,
            name=f"factor_{factor}",
        )
        steps[factor] = watch.seen
    for name, before in steps[1.0][2].items():
        assert torch.equal(before, steps[4.0][2][name])
        one, four = (steps[factor][3][name] - before for factor in (1.0, 4.0))
        cut = name.startswith("transformer.h.0.attn") and name != "transformer.h.0.attn.c_proj.bias"
        factor = 1 + 3 * 0.5 if cut else 1.0  # half of the layer's heads are dead
        torch.testing.assert_close(four, factor * one, rtol=1e-3, atol=1e-7)


# Those that watch the validation loss


def test_best_checkpoints_and_early_stopping_begin_anew(fit: Fit):
    best, stop = ModelCheckpoint("best", monitor="val/ce", save_top_k=1), EarlyStopping("val/ce", patience=1)
    seen = Watch(lambda trainer, module: (trainer.global_step, best.best_model_score, stop.best_score.clone()))
    module = article_gpt(optimizer=lambda p: torch.optim.AdamW(p, lr=1.0), scheduler=None)  # gets worse and worse

    fit(
        module,
        plan(),
        seen,
        best,
        stop,
        limit_val_batches=1,
        val_check_interval=1,
        check_val_every_n_epoch=None,
        max_steps=40,
    )
    at = {step: (score, stopping) for step, score, stopping in seen.seen}
    assert at[3][0] is None  # begun anew by the pruning; the validation of this step is still to come
    assert max(at) >= 10, "no early stop before the cycles are done"
    assert max(at) < 40, "and one after them"
    module_of_best, _ = load_module(best.best_model_path)
    assert int((~heads_of(module_of_best).mask).sum()) == 4


# Resuming


def muon_and_adamw(groups: Any) -> torch.optim.Optimizer:
    return OptimizerByParts(groups, [Entry(partial(Muon, lr=0.02), "matrices"), Entry(torch.optim.AdamW)])


WAYS: dict[str, dict[str, Any]] = {
    "remove": {"targets": ["heads", "neurons"], "regrow": 1, "head_lr_factor": 2.0},
    "mask": {"surgery": "mask", "targets": ["heads", "neurons"], "regrow": 1, "regrow_how": "new"},
    "muon": {"targets": ["heads", "neurons"], "regrow": 1, "layer_lr_factor": 2.0},
    "automatic": {"automatic": True, "tolerance": 10.0},
    "undone": {"automatic": True, "tolerance": 0.0, "pruning_level": 0.7},
    "stable": {"warmup": "stable", "warmup_steps": 3, "finetuning_steps": 1, "stability_window": 20},
}


@pytest.mark.parametrize("way", [pytest.param(way, marks=[] if way == "remove" else pytest.mark.slow) for way in WAYS])
def test_a_resume_in_any_phase_continues_bit_for_bit(fit: Fit, way: str):
    options = WAYS[way]
    said = ["the slope of the loss is tested over 20 steps"] if way == "stable" else []
    every = ModelCheckpoint("all", filename="{step}", every_n_train_steps=1, save_top_k=-1)

    def made() -> ArticleGPT:
        optimizer = {"undone": {"optimizer": getting_worse}, "muon": {"optimizer": muon_and_adamw}}.get(way, {})
        return article_gpt(dropout=0.1, **optimizer)

    whole = made()
    with advised(*said):
        trainer = fit(whole, plan(**options), every, name="whole")
    if way == "undone":
        assert events("rollback", "whole")
    expected = copy.deepcopy((trainer.optimizers[0].state_dict(), logits(whole), whole.state_dict()))
    kinds = ("phase_transition", "pruning_event", "regrowth_event", "evaluation", "rollback", "stabilised")
    for step in (
        (2, 3, 7, 9) if way == "remove" else (2, 3, 5, 6, 7, 9, 11)
    ):  # of training, warm-ups, fine-tunings, done
        module, name = made(), f"resumed_{step}"
        with advised(*said):
            resumed = fit(module, plan(**options), name=name, ckpt_path=f"all/step={step}.ckpt", seed=9)
        found = (resumed.optimizers[0].state_dict(), logits(module), module.state_dict())
        assert not differences(dict(leaves(found)), dict(leaves(expected)))
        for kind in kinds:
            later = [{**e, "time": 0} for e in events(kind, "whole") if e["step"] > step]
            assert [{**e, "time": 0} for e in events(kind, name) if e["step"] > step] == later, (step, kind)


@pytest.mark.slow  # a resume of a step behind it is fast
def test_a_run_that_failed_within_an_analysis_goes_on_with_it(fit: Fit, monkeypatch: pytest.MonkeyPatch):
    on_crash = ModelCheckpoint("crash", save_on_exception=True, save_top_k=0)
    strategy = EntropyImportance()
    monkeypatch.setattr(strategy, "scores", lambda *_, **__: {}["power cut"])
    with pytest.raises(KeyError, match="power cut"):
        fit(article_gpt(), plan(strategy=strategy), on_crash, name="crash")
    (path,) = Path("crash").glob("*.ckpt")
    module = article_gpt()
    fit(module, plan(strategy=EntropyImportance()), name="again", ckpt_path=path)
    assert int((~heads_of(module).mask).sum()) == 4
    assert events("phase_transition", "again")[-1]["phase"] == "done"


# Checkpoints


@pytest.mark.parametrize("surgery", ["remove", pytest.param("mask", marks=pytest.mark.slow)])
def test_a_pruned_model_loads_with_equal_logits(fit: Fit, surgery: Any):
    module = article_gpt()
    trainer = fit(module, plan(surgery=surgery, targets=["heads", "neurons"]))
    trainer.save_checkpoint("pruned.ckpt")
    loaded, _ = load_module("pruned.ckpt")
    assert torch.equal(logits(loaded), logits(module))
    assert torch.equal(heads_of(loaded).mask, heads_of(module).mask)
    plain = article_gpt()  # goes on without the callback, from all or from the weights alone
    fit(plain, name="plain", ckpt_path="pruned.ckpt", max_steps=STEPS)
    assert torch.equal(logits(plain), logits(module))
    begun = article_gpt()
    start_from(begun, torch.load("pruned.ckpt", weights_only=True))
    assert torch.equal(logits(begun), logits(module))
    fit(begun, name="begun", max_steps=2)
    before = article_gpt()
    fit(before, name="before").save_checkpoint("plain.ckpt")
    with pytest.raises(InputError, match="layer_lr_factor needs one for each"):
        fit(article_gpt(), plan(), name="added", ckpt_path="plain.ckpt", max_steps=2 * STEPS)
    fit(article_gpt(), plan(layer_lr_factor=1.0), name="added_later", ckpt_path="plain.ckpt", max_steps=2 * STEPS)
    assert torch.equal(heads_of(begun).mask, heads_of(module).mask)


@pytest.mark.parametrize("pruned", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_checkpoint_of_other_heads_is_refused(fit: Fit, pruned: bool):
    """Also where all shapes are the same."""
    trainer = fit(article_gpt(), *([plan()] if pruned else []))
    trainer.save_checkpoint("four.ckpt")
    for how in ("resume", "start"):
        other = ArticleGPT(decoder(heads=2), scheduler=None)
        with pytest.raises(InputError, match=r"has heads 4, this one 2|2 layers of 4 heads, this one 2 of 2"):
            fit(other, name=how, ckpt_path="four.ckpt") if how == "resume" else start_from(
                other, torch.load("four.ckpt")
            )


def test_what_was_removed_travels_in_the_checkpoint_or_not(fit: Fit):
    for keep in (True, False):
        trainer = fit(article_gpt(), plan(keep_removed=keep), name=f"keep_{keep}")
        trainer.save_checkpoint("run.ckpt")
        state = torch.load("run.ckpt", weights_only=True)["callbacks"]
        (own,) = [value for name, value in state.items() if "Plasticity" in name]
        assert len(own["kept"]["heads"]) == (4 if keep else 0)


# Copies, and compiled models


def test_arts_averaged_model_follows(fit: Fit):
    art = ARTRegularizer(novelty="drift", vigilance=0.9, advanced=AdvancedART(average_decay=0.5))
    module = article_gpt(extensions=[art])
    fit(module, plan(targets=["heads", "neurons"], regrow=1))
    for kind in ("heads", "neurons"):
        main, copied = units_in(module, kind)
        assert torch.equal(main.mask, copied.mask)
        assert int((~main.mask).sum()) > 0
    for one, two in zip(module.backbone.parameters(), art.average.module.parameters(), strict=True):
        assert one.shape == two.shape
        assert not two.requires_grad
        assert float((one.detach() - two).abs().max()) < 0.1
    assert not torch.equal(art.average.module(torch.arange(8)[None]), module.backbone(torch.arange(8)[None]))


@pytest.mark.slow
@pytest.mark.parametrize("surgery", ["remove", "mask"])
def test_a_compiled_model_is_the_one_that_is_not(fit: Fit, surgery: Any, monkeypatch: pytest.MonkeyPatch):
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **_: real(f, backend="eager"))
    found = {}
    for compiled in (False, True):
        found[compiled] = article_gpt(compile=compiled)
        fit(found[compiled], plan(surgery=surgery), name=str(compiled))
    assert events("analysis", "False")[0]["importance"] != [[0.0] * 4] * 2
    one, two = (events("analysis", name)[0]["importance"] for name in ("False", "True"))
    torch.testing.assert_close(torch.tensor(one), torch.tensor(two), rtol=1e-3, atol=1e-8)
    assert torch.equal(heads_of(found[False]).mask, heads_of(found[True]).mask)
    torch.testing.assert_close(logits(found[False]), logits(found[True]), atol=1e-4, rtol=0)


# Sabotage


def not_read(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(gates_module, "multiply_by_gates", lambda _module, arguments: arguments)


def wrong_head(patch: pytest.MonkeyPatch) -> None:
    """Each takes its neighbour's place where some are missing."""
    honest = Part.positions

    def positions(part: Part, present: Any) -> Tensor:
        found = honest(part, present)
        return found if len(present) == len(part.index) else found.roll(1, 0)

    patch.setattr(Part, "positions", positions)


def neighbour_cut(patch: pytest.MonkeyPatch) -> None:
    """The next head goes, under the name of the one that was to go."""
    honest = Units._move

    def move(units: Units, i: int, present: list[int], *args: Any) -> None:
        layer = units.layers[i]
        gone = set(layer.present) - set(present)
        others = sorted({(unit + 1) % layer.n for unit in gone})
        honest(units, i, [unit for unit in layer.present if unit not in others], *args)
        layer.present = present

    patch.setattr(Units, "_move", move)


def stale_optimizer(patch: pytest.MonkeyPatch) -> None:
    def replaced(module: nn.Module, name: str, rebuilt: Any, optimizer: Any) -> None:
        setattr(module, name, nn.Parameter(rebuilt(getattr(module, name))))

    patch.setattr(surgery_module, "replace_parameter", replaced)


def wrong_moments(patch: pytest.MonkeyPatch) -> None:
    honest = surgery_module.replace_parameter

    def replaced(module: nn.Module, name: str, rebuilt: Any, optimizer: Any) -> None:
        def off_by_one(x: Tensor, key: str | None = None, **options: Any) -> Tensor:
            return (
                rebuilt(x, key, **options)
                if key is None
                else rebuilt(x.flip(0).flip(1) if x.dim() > 1 else x.flip(0), key)
            )

        honest(module, name, off_by_one, optimizer)

    patch.setattr(surgery_module, "replace_parameter", replaced)


def moments_lost(patch: pytest.MonkeyPatch) -> None:
    honest = surgery_module.replace_parameter

    def replaced(module: nn.Module, name: str, rebuilt: Any, optimizer: Any) -> None:
        honest(module, name, rebuilt, optimizer)
        optimizer.state.pop(getattr(module, name), None)

    patch.setattr(surgery_module, "replace_parameter", replaced)


def wrong_count(patch: pytest.MonkeyPatch) -> None:
    honest = Units.set_mask
    patch.setattr(Units, "set_mask", lambda units, mask: honest(units, _one_more_alive(mask)))
    removed = Units.remove
    patch.setattr(
        Units, "remove", lambda units, dead, *args, **options: removed(units, ~_one_more_alive(~dead), *args, **options)
    )


def _one_more_alive(mask: Tensor) -> Tensor:
    mask = mask.clone()
    if len(dead := (~mask).nonzero()):
        mask[tuple(dead[0])] = True
    return mask


@pytest.mark.parametrize(
    ("sabotage", "words", "surgeries"),
    [
        (not_read, "the mask is not read", ("remove", "mask")),
        (wrong_head, "removal: the logits differ|have other numbers|the mask is not read", ("remove",)),
        (neighbour_cut, "removal: the logits differ|have other numbers", ("remove",)),
        (stale_optimizer, "optimizer", ("remove",)),
        (wrong_moments, "other numbers in exp_avg", ("remove",)),
        (moments_lost, "the optimizer's state was", ("remove",)),
        (wrong_count, "should be dead", ("remove", "mask")),
    ],
)
def test_sabotage_fails_the_run(
    fit: Fit, sabotage: Callable[[pytest.MonkeyPatch], None], words: str, surgeries: tuple[Any, ...], monkeypatch: Any
):
    for surgery in surgeries:
        with monkeypatch.context() as patch:
            sabotage(patch)
            with pytest.raises(SurgeryError, match=words):
                fit(article_gpt(), plan(surgery=surgery), name=surgery)
        assert events("failed", surgery)[0]["error"] == "SurgeryError"


def test_sabotage_of_a_regrowth_fails_the_run(fit: Fit, monkeypatch: pytest.MonkeyPatch):
    regrow = Units.regrow

    def other(units: Units, layer: int, unit: int, how: Any = "undo", optimizer: Any = None) -> None:
        regrow(units, layer, unit, how, optimizer)
        units.layers[layer].parts[0].parameter.data.mul_(1.01)

    monkeypatch.setattr(Units, "regrow", other)
    with pytest.raises(SurgeryError, match="did not come back as it was"):
        fit(article_gpt(), plan(regrow=1))


# Bad input, before any training


class Unknown(Decoder):
    """Attention whose matrices have names of their own."""

    def __init__(self, **options: Any):
        super().__init__(**options)
        for block in self.transformer["h"]:
            block.attn._modules["first"] = block.attn._modules.pop("c_attn")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pruning_level": 1.0}, r"the level of heads is 1\.0; it must lie in \[0, 1\)"),
        ({"pruning_level": -0.1}, r"must lie in \[0, 1\)"),
        ({"pruning_level": math.nan}, r"must lie in \[0, 1\)"),
        ({"neuron_level": 1.5}, r"the level of neurons is 1\.5"),
        ({"pruning_level": [0.1, 1.0]}, r"must lie in \[0, 1\)"),
        ({"pruning_level": [0.1]}, "1 values for 2 cycles"),
        ({"pruning_level": [0.3, 0.1]}, "must not fall"),
        ({"cycles": 0}, "cycles is 0"),
        ({"eval_freq": 0}, "eval_freq is 0"),
        ({"keep_per_layer": -1}, "keep_per_layer is -1"),
        ({"sample_batches": 0}, "sample_batches is 0"),
        ({"tolerance": -0.1}, "tolerance is -0.1"),
        ({"warmup": "stable", "warmup_steps": 0}, "a loss may never be stable"),
        ({"finetuning_steps": 0}, "finetuning_steps is 0"),
        ({"regrow": 1, "keep_removed": False}, "regrow needs keep_removed"),
        ({"stability_window": 2, "warmup": "stable"}, "window is 2"),
        ({"targets": ["heads", "heads"]}, "targets"),
    ],
)
def test_options_are_refused_when_they_are_given(options: dict[str, Any], words: str):
    with pytest.raises(InputError, match=words):
        plan(**options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pruning_level": 0.9}, r"level 0\.9 takes 7 of 8, and each of the 2 layers keeps at least 1"),
        ({"pruning_level": 0.75, "regrow": 1}, r"takes 7 of 8 \(1 of them regrown\)"),
        ({"neuron_level": 0.9, "targets": ["neurons"]}, "neurons: level 0.9 takes 115 of 128.*keeps at least 32"),
        ({"cycles": 3}, "3 cycles of 1 \\+ 3 steps after 2 take 14 steps, and the run has 12"),
        ({"training_steps": 5000}, "the run has 12"),
        ({"neuron_strategy": EntropyImportance(), "targets": ["neurons"]}, "EntropyImportance cannot score neurons"),
        ({"datasets": {"none.txt": 1.0}}, r"none\.txt, which is not there"),
    ],
)
def test_plans_that_cannot_work_are_refused_before_training(fit: Fit, options: dict[str, Any], words: str):
    steps = Watch(lambda trainer, _: trainer.global_step)
    with pytest.raises(InputError, match=words):
        fit(article_gpt(), plan(**options), steps)
    assert not steps.seen
    assert not Path("runs/run/version_0/log.jsonl").exists()


def test_a_model_without_heads_that_show_is_refused(fit: Fit):
    torch.manual_seed(0)
    module = ArticleGPT(Unknown(vocab_size=257, block_size=16, embedding_dim=16, layers=2, heads=4))
    with pytest.raises(InputError, match=r"write a layout for it in lightning_app/plasticity/families\.py"):
        fit(module, plan())


def test_no_validation_text_and_no_language_module(data: Callable[[], TextDataModule], folder: Path):
    trainer = L.Trainer(
        accelerator="cpu", logger=False, callbacks=[plan()], max_steps=STEPS, enable_checkpointing=False
    )
    with pytest.raises(InputError, match=r"give data\.val or data\.split"):
        trainer.fit(article_gpt(), datamodule=TextDataModule(train=Source("train.txt"), block_size=16))


@pytest.mark.slow  # in small: tests/contracts/test_units.py
def test_a_layer_may_be_skipped_if_that_is_allowed(fit: Fit):
    Path("map.json").write_text(json.dumps({"kind": "heads", "importance": [[0, 1, 2, 3], [4, 5, 6, 7]]}))
    strategy = SavedImportance("map.json")
    for name, backbone in (("decoder", decoder()), ("gpt2", gpt2())):
        module = CausalLM(backbone, scheduler=None)
        fit(module, plan(cycles=1, pruning_level=0.5, keep_per_layer=0, strategy=strategy), name=name)
        assert heads_of(module).mask.int().tolist() == [[0] * 4, [1] * 4]


def gpt2() -> Backbone:
    torch.manual_seed(0)
    return PretrainedLM(
        architecture="gpt2", options={"n_layer": 2, "n_embd": 16, "n_head": 4}, vocab_size=257, block_size=16
    )


def test_a_run_that_ends_within_a_cycle_says_so(fit: Fit):
    class Stop(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            trainer.should_stop = trainer.global_step >= 4

    with pytest.warns(UserWarning, match="the run ended in the finetuning phase of cycle 1 of 2"):
        fit(article_gpt(), plan(), Stop())


@pytest.mark.slow  # tests/test_configs.py has the same words
def test_the_end_says_what_was_reached_and_proved(fit: Fit, capsys: pytest.CaptureFixture[str]):
    fit(article_gpt(), plan())
    printed = capsys.readouterr().out
    assert "heads: 8 -> 4 (50.0% dead, surgery: remove)" in printed
    assert "proved of heads: dead heads: 4" in printed


# A pretrained LLaMA of 4 key-value groups, of 2 query heads each, whose adapters alone are trained

ADAPTED = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
GROUPED = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 8, "num_key_value_heads": 4}


@pytest.fixture
def adapted(folder: Path) -> CausalLM:
    torch.manual_seed(0)
    sizes = {**GROUPED, "intermediate_size": 64, "initializer_range": 0.2}
    whole = PretrainedLM(architecture="llama", options=sizes, vocab_size=257, block_size=16)
    whole.model.save_pretrained("own")
    return CausalLM(PretrainedLM(pretrained="own", lora=LoRA(r=2, target_modules=ADAPTED)), scheduler=None)


@pytest.mark.parametrize(
    "options",
    [
        {"head_lr_factor": 3.0},
        pytest.param(
            {"strategy": SeedImportance(), "neuron_strategy": MagnitudeImportance(), "regrow": 1, "regrow_how": "new"},
            marks=pytest.mark.slow,
        ),
        pytest.param({"surgery": "mask"}, marks=pytest.mark.slow),
    ],
    ids=["rates", "seed", "mask"],
)
def test_key_value_groups_are_cut_with_their_adapters(
    fit: Fit, adapted: CausalLM, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    frozen = {name: p.clone() for name, p in adapted.named_parameters() if name.endswith("base_layer.weight")}
    trainer = fit(adapted, plan(targets=["heads", "neurons"], **options))
    regrown = options.get("regrow", 0)
    heads, neurons = (units_in(adapted, kind)[0] for kind in ("heads", "neurons"))
    assert (int((~heads.mask).sum()), int((~neurons.mask).sum())) == (4, 64)
    printed = capsys.readouterr().out
    assert "heads (groups of 2 that share keys and values): 8 -> 4 (50.0% dead" in printed
    if "surgery" not in options:
        assert [f"proved of {kind}: parameters removed: " in printed for kind in ("heads", "neurons")] == [True, True]
    assert events("plasticity_started")[0]["query_heads"] == 2
    for units in (heads, neurons):
        for layer in units.layers:
            for part in layer.parts:
                assert part.parameter.shape[part.dim] == part.positions(layer.present).numel()
    if not regrown:  # what is frozen has moved, and not changed
        for i, layer in enumerate(heads.layers):
            q = layer.parts[0]
            name = f"backbone.model.model.layers.{i}.self_attn.q_proj.base_layer.weight"
            assert torch.equal(q.parameter, frozen[name][q.index[layer.present].flatten()])
    trainer.save_checkpoint("pruned.ckpt")
    assert torch.equal(logits(load_module("pruned.ckpt")[0]), logits(adapted))
    assert all(adapters_of(m) for name, m in adapted.named_modules() if name.endswith(tuple(ADAPTED)))
