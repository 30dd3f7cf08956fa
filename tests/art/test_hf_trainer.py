"""ART in Hugging Face's Trainer, on a random GPT-2 of 2 layers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from lightning_app.art.hf_trainer import ARTTrainer, load_art
from lightning_app.art.network import ART, SPAN, AdvancedART
from lightning_app.art.rules import pool
from lightning_app.errors import InputError
from lightning_app.former import options_of_today
from tests import tokenizers

ROOT = Path(__file__).parent.parent.parent
WIDTH, PAD = 16, 0
SIZES = {"n_layer": 2, "n_embd": WIDTH, "n_head": 2, "vocab_size": 50, "n_positions": 16}
SIZES |= {"bos_token_id": 1, "eos_token_id": 1}

Row = dict[str, Tensor]


def gpt2(seed: int = 0, dropout: float = 0.1) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), dropout)
    return GPT2LMHeadModel(GPT2Config(**SIZES, **drops))


def texts(n: int, *, left: bool = False, length: int = 12, seed: int = 1) -> list[Row]:
    """Of unequal lengths, padded; padding is no label."""
    generator, rows = torch.Generator().manual_seed(seed), []
    for i in range(n):
        real = 4 + i % (length - 3)
        ids, mask = torch.full((length,), PAD), torch.zeros(length, dtype=torch.int64)
        where = slice(length - real, None) if left else slice(real)
        ids[where] = torch.randint(2, 50, (real,), generator=generator)
        mask[where] = 1
        begun = (mask == 1) & (mask.cumsum(0) > 1)  # on the left, padding would predict the first token
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": ids.where(begun, -100)})
    return rows


def settings(folder: Path, **options: Any) -> TrainingArguments:
    plain = {"per_device_train_batch_size": 4, "max_steps": 6, "learning_rate": 1e-2, "logging_steps": 2, "seed": 3}
    quiet = {"report_to": [], "disable_tqdm": True, "save_strategy": "no", "use_cpu": True}
    return TrainingArguments(str(folder), **{**plain, **quiet, "dataloader_pin_memory": False, **options})


def art_of(**options: Any) -> ART:
    return ART(WIDTH, **options_of_today({"vigilance": 0.9, "capacity": 50, **options}, "ART"))


def trainer_of(folder: Path, *, art: ART | None = None, data: list[Row] | None = None, **options: Any) -> ARTTrainer:
    own = {name: options.pop(name) for name in ("lambda_art", "pooling", "layer", "average_decay") if name in options}
    more = ("learn_at_most", "warmup_steps", "rehearsal", "rehearsed_texts")
    own |= {name: options.pop(name) for name in more if name in options}
    rows = texts(24) if data is None else data
    model, art = options.pop("model", None) or gpt2(), art_of() if art is None else art
    return ARTTrainer(model=model, args=settings(folder, **options), train_dataset=rows, art=art, **own)


def weights(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    same = {name: torch.equal(one[name].nan_to_num(-9), other[name].nan_to_num(-9)) for name in one}
    return one.keys() == other.keys() and all(same.values())


class Watch(TrainerCallback):
    """Calls a function before each optimizer step, with the model."""

    def __init__(self, look: Any):
        self.look = look

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.look(kwargs["model"])


# The loss


SLOW = pytest.mark.slow
ACCUMULATED: dict[str, Any] = {"gradient_accumulation_steps": 2}
SMOOTHED = {"label_smoothing_factor": 0.1, **ACCUMULATED}


@pytest.mark.parametrize(
    ("options", "rehearsal"),
    [
        pytest.param({}, 0, id="plain", marks=SLOW),
        pytest.param(SMOOTHED, 1, id="smoothed, accumulated, rehearsed"),
        pytest.param({}, 1, id="rehearsed", marks=SLOW),
        pytest.param(ACCUMULATED, 0, id="accumulated", marks=SLOW),
        pytest.param(ACCUMULATED, 1, id="accumulated, rehearsed", marks=SLOW),
        pytest.param(SMOOTHED, 0, id="smoothed, accumulated", marks=SLOW),
    ],
)
def test_lambda_0_gives_the_weights_and_losses_of_the_plain_trainer(
    options: dict[str, Any], rehearsal: float, tmp_path: Path
):
    plain = Trainer(model=gpt2(), args=settings(tmp_path, **options), train_dataset=texts(24))
    plain.train()
    ours = trainer_of(tmp_path, lambda_art=0.0, rehearsal=rehearsal, **options)  # seeds dropout as the other did
    ours.train()
    assert equal(weights(plain.model), weights(ours.model))
    losses = [[entry["loss"] for entry in trainer.state.log_history if "loss" in entry] for trainer in (plain, ours)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 3
    assert len(ours.art) > 0  # it learns and logs all the same


@pytest.mark.parametrize("novelty", ["drift", pytest.param("margin", marks=SLOW)])
def test_it_trains_as_a_loop_written_by_hand(novelty: str, tmp_path: Path):
    art, batches = art_of(novelty=novelty), []
    trainer = trainer_of(tmp_path, art=art, lambda_art=0.5, average_decay=0.5, max_grad_norm=0.0)
    trainer.data_collator = lambda rows: batches.append(default_data_collator(rows)) or batches[-1]
    trainer.add_callback(_Seeded(9))
    trainer.train()
    model, by_hand = gpt2(), art_of(novelty=novelty)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5)).eval()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    model.train()
    torch.manual_seed(9)
    pulled = []
    for step, batch in enumerate(batches):
        mask = batch["attention_mask"].bool()
        out = model(**batch, output_hidden_states=True)
        embeddings = pool(out.hidden_states[-1], mask, "mean")[0]
        with torch.no_grad():
            ids = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
            averaged = pool(average.module(**ids, output_hidden_states=True).hidden_states[-1], mask, "mean")[0]
        term = by_hand.loss(embeddings, averaged)
        pulled.append(term.item())
        optimizer.zero_grad()
        (out.loss + 0.5 * term).backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1 - step / 6)
        optimizer.step()
        by_hand.learn(embeddings.detach())
        average.update_parameters(model)
    assert len(pulled) == 6
    assert max(pulled) > 0.01
    for name, expected in weights(model).items():
        torch.testing.assert_close(trainer.model.state_dict()[name], expected, rtol=1e-3, atol=1e-4)
    assert len(by_hand) == len(art) > 1
    torch.testing.assert_close(art.prototypes, by_hand.prototypes, rtol=1e-4, atol=1e-4)


class _Seeded(TrainerCallback):
    """Draws dropout from a seed of its own."""

    def __init__(self, seed: int):
        self.seed = seed

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            torch.manual_seed(self.seed)


def test_accumulated_batches_have_the_gradient_of_one_large_batch(tmp_path: Path):
    def gradients(**options: Any) -> dict[str, Tensor]:
        found: list[dict[str, Tensor]] = []
        art = art_of(novelty="margin", vigilance=0.0)
        art.learn(torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(4)))
        trainer = trainer_of(tmp_path, art=art, model=gpt2(dropout=0.0), lambda_art=3.0, max_steps=1, **options)
        look = Watch(lambda model: found.append({n: p.grad.clone() for n, p in model.named_parameters()}))
        trainer.add_callback(look)
        trainer.train()
        return found[0]

    one = gradients(per_device_train_batch_size=8, max_grad_norm=0.0)
    several = gradients(per_device_train_batch_size=2, gradient_accumulation_steps=4, max_grad_norm=0.0)
    for name, gradient in one.items():
        torch.testing.assert_close(several[name], gradient, rtol=1e-3, atol=1e-6)


def test_the_averaged_model_runs_in_the_precision_of_the_live_one(tmp_path: Path):
    trainer = trainer_of(tmp_path, art=art_of(vigilance=1.0, merge_at=1.0), bf16=True)
    low: list[bool] = []
    trainer.average.module.register_forward_pre_hook(lambda *_: low.append(torch.is_autocast_enabled("cpu")))
    trainer.train()
    assert low == [True] * 5  # without categories nothing is novel yet


@pytest.mark.parametrize(
    ("pooling", "left"),
    [
        pytest.param("last", False, id="last-right", marks=SLOW),
        pytest.param("token", True, id="token-left"),
        pytest.param("mean", False, id="mean-right", marks=SLOW),
        pytest.param("mean", True, id="mean-left", marks=SLOW),
        pytest.param("last", True, id="last-left", marks=SLOW),
        pytest.param("token", False, id="token-right", marks=SLOW),
    ],
)
def test_padding_never_counts(pooling: str, left: bool, tmp_path: Path):
    rows = texts(24, left=left)
    other = [{**row, "input_ids": row["input_ids"].where(row["attention_mask"] == 1, 7)} for row in rows]
    found = []
    for data in (rows, other):
        trainer = trainer_of(tmp_path, data=data, pooling=pooling, lambda_art=0.5, max_steps=3)
        trainer.train()
        found.append(trainer)
    assert equal(weights(found[0].art), weights(found[1].art))
    assert equal(weights(found[0].model), weights(found[1].model))
    kept = found[0].art.texts[: len(found[0].art)]
    assert (kept != -1).any()
    assert not (kept == PAD).any()


def test_typical_texts_begin_where_a_text_begins(tmp_path: Path):
    rows = texts(8, left=True)
    trainer = trainer_of(tmp_path, data=rows, max_steps=2)
    trainer.train()
    first = {tuple(row["input_ids"][row["attention_mask"] == 1][:SPAN].tolist()) for row in rows}
    kept = {tuple(t for t in text.tolist() if t >= 0) for text in trainer.art.texts[: len(trainer.art)].flatten(0, 1)}
    assert kept - {()} <= first
    assert kept - {()}


def test_an_inner_layer_is_that_of_the_blocks(tmp_path: Path):
    trainer = trainer_of(tmp_path, layer=0, max_steps=1, model=gpt2(dropout=0.0), lambda_art=0.0, logging_steps=1)
    batch, seen = next(iter(trainer.get_train_dataloader())), []
    trainer.model.transformer.h[0].register_forward_hook(lambda module, _, out: seen.append(out))
    trainer.model(**batch)
    states = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    expected = art_of()
    expected.learn(pool(states.detach(), batch["attention_mask"].bool(), "mean")[0])
    trainer.train()
    torch.testing.assert_close(trainer.art.prototypes, expected.prototypes)


# Rehearsal


@pytest.mark.parametrize("novelty", [pytest.param("drift", marks=SLOW), "margin"])
def test_rehearsal_is_the_kl_divergence_of_the_averaged_model_from_the_live_one(novelty: str, tmp_path: Path):
    trainer = trainer_of(tmp_path, art=art_of(novelty=novelty), rehearsal=0.5, rehearsed_texts=6, lambda_art=2.0)
    trainer.train()
    model, average, batch = trainer.model.train(), trainer.average.module, default_data_collator(texts(4, left=True))
    for part in model.modules():
        part.p = 0.0  # of dropout
    kl, n = 0.0, 0
    for text in trainer.art.drawn_texts(6, seed=trainer.state.global_step):
        ids = text[text >= 0][None]
        p, q = (some(ids).logits[0, :-1].detach().double().softmax(-1) for some in (average, model))
        kl, n = kl + float((p * (p / q).log()).sum()), n + len(p)
    assert kl / n > 0.01
    trainer.current_gradient_accumulation_steps = 1
    both = trainer.compute_loss(model, batch).item()
    trainer.rehearsal = 0.0
    assert both - trainer.compute_loss(model, batch).item() == pytest.approx(2.0 * 0.5 * kl / n, rel=1e-3)


def test_rehearsal_is_logged_adds_up_and_is_no_part_of_evaluation(tmp_path: Path):
    trainer = trainer_of(tmp_path, lambda_art=0.5, rehearsal=3.0, gradient_accumulation_steps=2)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logged) == 3
    for entry in logged:
        assert entry["loss"] == pytest.approx(entry["ce"] + 0.5 * (entry["art"] + entry["art_rehearsal"]), abs=1e-5)
        assert {"art_clusters", "art_births", "art_known", "art_match", "art_drift"} <= entry.keys()
    assert logged[-1]["art_rehearsal"] > 0
    plain = Trainer(model=trainer.model, args=settings(tmp_path))
    assert trainer.evaluate(texts(10))["eval_loss"] == plain.evaluate(texts(10))["eval_loss"]


def test_rehearsal_of_a_model_without_next_tokens_is_refused(tmp_path: Path):
    model = GPT2ForSequenceClassification(GPT2Config(**SIZES, pad_token_id=PAD, num_labels=2))
    rows = [{**row, "labels": torch.tensor(0)} for row in texts(24)]
    with pytest.raises(InputError, match="GPT2ForSequenceClassification predicts no next tokens"):
        trainer_of(tmp_path, model=model, data=rows, rehearsal=1.0).train()


# What is learned, and when


def test_categories_are_learned_once_per_optimizer_step_from_all_of_its_batches(tmp_path: Path):
    trainer = trainer_of(tmp_path, gradient_accumulation_steps=3, per_device_train_batch_size=2)
    seen: list[int] = []
    trainer.add_callback(Watch(lambda model: seen.append(int(trainer.art.seen))))
    trainer.train()
    assert seen == [0, 6, 12, 18, 24, 30]  # before each step only what earlier ones saw
    assert int(trainer.art.seen) == 36


def test_of_many_tokens_some_are_learned(tmp_path: Path):
    trainer = trainer_of(tmp_path, pooling="token", learn_at_most=5)
    trainer.train()
    assert int(trainer.art.seen) == 6 * 5


def test_embeddings_that_are_not_finite_are_not_learned(tmp_path: Path):
    trainer = trainer_of(tmp_path, max_steps=1, lambda_art=0.0)
    hook = trainer.model.transformer.ln_f.register_forward_hook(
        lambda module, _, out: out.masked_fill(torch.arange(len(out))[:, None, None] == 1, torch.nan)
    )
    trainer.train()
    hook.remove()
    assert int(trainer.art.seen) == 3
    assert trainer.art.prototypes.isfinite().all()


def test_evaluation_is_the_plain_trainers_and_changes_nothing(tmp_path: Path):
    trainer = trainer_of(tmp_path)
    trainer.train()
    plain = Trainer(model=trainer.model, args=settings(tmp_path))
    before = weights(trainer.art), weights(trainer.average)
    metrics = trainer.evaluate(texts(10, seed=5))
    assert metrics["eval_loss"] == plain.evaluate(texts(10, seed=5))["eval_loss"]
    assert trainer.predict(texts(10, seed=5)).predictions.shape == (10, 12, 50)  # logits alone, no hidden states
    assert equal(before[0], weights(trainer.art))
    assert equal(before[1], weights(trainer.average))


@SLOW  # with rehearsal besides: `test_rehearsal_is_logged_adds_up_and_is_no_part_of_evaluation`
def test_ce_art_and_clusters_are_logged_and_add_up(tmp_path: Path):
    trainer = trainer_of(tmp_path, lambda_art=0.5, gradient_accumulation_steps=2)
    trainer.train()
    logged = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 6]
    for entry in logged:
        assert entry["loss"] == pytest.approx(entry["ce"] + 0.5 * entry["art"], abs=1e-5)
        assert {"art_clusters", "art_births", "art_known", "art_match", "art_drift"} <= entry.keys()
    assert logged[-1]["art"] > 0
    assert logged[-1]["art_clusters"] == len(trainer.art)


def test_the_weight_warms_up(tmp_path: Path):
    trainer = trainer_of(tmp_path, lambda_art=0.5, warmup_steps=4, logging_steps=1)
    found: list[float] = []
    trainer.add_callback(Watch(lambda model: found.append(trainer.weight)))
    trainer.train()
    assert found == [0.0, 0.125, 0.25, 0.375, 0.5, 0.5]


# Checkpoints


@pytest.mark.parametrize(
    ("novelty", "rehearsal"),
    [
        ("margin", 2.0),
        pytest.param("drift", 0.0, marks=SLOW),
        pytest.param("margin", 0.0, marks=SLOW),
        pytest.param("drift", 2.0, marks=SLOW),
    ],
)
def test_a_resumed_run_ends_as_one_that_never_stopped(novelty: str, rehearsal: float, tmp_path: Path):
    options: dict[str, Any] = {"lambda_art": 0.5, "save_strategy": "steps", "save_steps": 3, "rehearsal": rehearsal}
    art: dict[str, Any] = {"novelty": novelty, "normalize": "center", "vigilance": None, "vigilance_quantile": 0.3}
    whole = trainer_of(tmp_path, art=art_of(**art), data=texts(40), **options)
    whole.train()
    resumed = trainer_of(tmp_path, art=art_of(**art), data=texts(40), model=gpt2(seed=8), **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert equal(weights(whole.model), weights(resumed.model))
    assert equal(weights(whole.art), weights(resumed.art))
    assert (whole.average is None) == (novelty == "margin" and rehearsal == 0)
    assert whole.average is None or equal(weights(whole.average), weights(resumed.average))
    assert len(whole.art) > 0


def test_the_best_checkpoint_comes_back_with_its_categories(tmp_path: Path):
    options: dict[str, Any] = {"save_strategy": "steps", "save_steps": 2, "eval_strategy": "steps", "eval_steps": 2}
    arguments = settings(tmp_path, **options, load_best_model_at_end=True, metric_for_best_model="loss")
    trainer = ARTTrainer(
        model=gpt2(), args=arguments, train_dataset=texts(24), eval_dataset=texts(4), art=art_of(), compute_metrics=None
    )
    scores = iter([1.0, 3.0, 2.0])
    trainer.evaluation_loop = _scored(trainer.evaluation_loop, scores)  # type: ignore[method-assign]
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-2")
    assert int(trainer.art.seen) == 2 * 4


def _scored(loop: Any, scores: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        out = loop(*args, **kwargs)
        out.metrics["eval_loss"] = next(scores)
        return out

    return run


def test_saved_categories_load_without_a_trainer(tmp_path: Path):
    trainer = trainer_of(tmp_path, art=art_of(kind="fuzzy", normalize="center", vigilance=0.7), max_steps=4)
    trainer.train()
    trainer.save_model(str(tmp_path / "end"))
    art = load_art(tmp_path / "end")
    assert equal(weights(art), weights(trainer.art))
    assert art.config() == trainer.art.config()
    assert "average" not in torch.load(tmp_path / "end" / "art.pt", weights_only=True)


# As documented


def documented() -> tuple[str, str]:
    """The script of docs/how-to/categories.md, and its lines for a pretrained model."""
    section = (
        (ROOT / "docs/how-to/categories.md")
        .read_text()
        .split("## ART in Hugging Face's Trainer\n")[1]
        .split("\n## ")[0]
    )
    script, pretrained = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return script, pretrained


@pytest.mark.parametrize("pretrained", [pytest.param(False, marks=SLOW), True], ids=["fresh", "pretrained"])
def test_the_documented_script_runs(
    pretrained: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    script, lines = documented()
    if pretrained:
        folder = llama(tmp_path / "tiny")
        script = script[: script.index("ids =")] + lines + script[script.index("trainer =") :]
        script = script.replace("models/smollm2", str(folder))
    small = {
        '"runs/': f'"{tmp_path}/',
        "max_steps=200": "max_steps=4, use_cpu=True",
        "logging_steps=50": "logging_steps=2",
    }
    for long, short in small.items():
        assert long in script
        script = script.replace(long, short)
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {}
    exec(script, names)
    assert names["art"].width == names["model"].config.hidden_size
    assert len(names["art"]) > 0
    assert names["found"].match.min() > -1
    assert "'art_clusters': " in capsys.readouterr().out


def llama(folder: Path) -> Path:
    """The directory of a random LLaMA with a tokenizer of its own."""
    tokenizer = tokenizers.made("smollm2")
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(vocab_size=tokenizer.vocab_size, num_hidden_layers=2, **sizes)).save_pretrained(folder)
    return tokenizers.save("smollm2", folder)


# Mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lambda_art": -1}, "lambda_art is -1"),
        ({"pooling": "max"}, "pooling is 'max'"),
        ({"average_decay": 1.5}, "average_decay is 1.5"),
        ({"learn_at_most": 0}, "learn_at_most is 0"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
        ({"rehearsal": -1}, "rehearsal is -1"),
        ({"rehearsed_texts": 0}, "rehearsed_texts is 0"),
    ],
)
def test_options_outside_their_range_are_refused(options: dict[str, Any], message: str, tmp_path: Path):
    with pytest.raises(InputError, match=message):
        trainer_of(tmp_path, **options)


def test_an_option_that_is_the_trainers_own_is_named(tmp_path: Path):
    with pytest.warns(UserWarning, match="average_decay is 0.5 in art, where it has no effect"):
        trainer_of(tmp_path, art=ART(WIDTH, advanced=AdvancedART(average_decay=0.5, choice_alpha=0.1)))


def test_another_width_or_layer_is_named(tmp_path: Path):
    with pytest.raises(InputError, match="art has width 8, the hidden states 16"):
        trainer_of(tmp_path, art=ART(8)).train()
    with pytest.raises(InputError, match="layer is 2; the model has 2"):
        trainer_of(tmp_path, layer=2).train()


def test_model_init_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="model_init"):
        ARTTrainer(model_init=lambda: gpt2(), args=settings(tmp_path), art=art_of())


def test_a_checkpoint_of_other_categories_or_of_none_is_refused(tmp_path: Path):
    trainer_of(tmp_path, save_strategy="steps", save_steps=1, max_steps=1).train()
    with pytest.raises(InputError, match=r"'kind': 'cosine'.*'kind': 'fuzzy'"):
        trainer_of(tmp_path, art=art_of(kind="fuzzy")).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    with pytest.raises(InputError, match=r"was written with another rehearsal than 1\.0"):
        trainer_of(tmp_path, rehearsal=1.0).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    (tmp_path / "checkpoint-1" / "art.pt").unlink()
    with pytest.raises(InputError, match=r"has no art\.pt"):
        trainer_of(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


# Two processes

SCRIPT = """
import sys
from pathlib import Path

import torch
from test_hf_trainer import art_of, gpt2, texts, trainer_of

trainer = trainer_of(
    Path("out"), model=gpt2(dropout=0.0), lambda_art=0.5, logging_steps=1,
    per_device_train_batch_size=int(sys.argv[1]), **({"ddp_backend": "gloo"} if sys.argv[1] == "2" else {}),
)
trainer.train()
rank = trainer.args.process_index
logged = [entry for entry in trainer.state.log_history if "loss" in entry]
found = {"art": trainer.art.state_dict(), "model": trainer.model.state_dict(), "logged": logged}
torch.save(found, f"{sys.argv[1]}-{rank}.pt")
"""


@pytest.mark.slow
def test_two_ranks_learn_the_same_categories(tmp_path: Path):
    (tmp_path / "train.py").write_text(SCRIPT)
    path = f"{ROOT}{os.pathsep}{Path(__file__).parent}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for command, size in ((run, "2"), ([sys.executable], "4")):
        words = [*command, "train.py", size]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, env=environment, timeout=240)
        assert done.returncode == 0, done.stderr
    first, second, alone = (torch.load(tmp_path / f"{name}.pt", weights_only=True) for name in ("2-0", "2-1", "4-0"))
    assert equal(first["art"], second["art"])
    assert equal(first["model"], second["model"])
    assert int(first["art"]["seen"]) == int(alone["art"]["seen"]) == 24
    assert int(first["art"]["size"]) == int(alone["art"]["size"]) > 1
    for entry in first["logged"]:
        assert entry["loss"] == pytest.approx(entry["ce"] + 0.5 * entry["art"], abs=1e-4)


def test_a_flipped_bit_of_the_categories_is_noticed(tmp_path: Path):
    torch.save({"width": 4, "options": {}, "art": {"prototypes": torch.arange(1000.0)}}, tmp_path / "art.pt")
    content = bytearray((tmp_path / "art.pt").read_bytes())
    content[content.index(torch.arange(1000.0).numpy().tobytes()) + 100] ^= 1
    (tmp_path / "art.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"art.pt is damaged \(Bad CRC-32"):
        load_art(tmp_path)
