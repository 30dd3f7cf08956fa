"""VardaGPT through Lightning and the command line: what is written, when, and what a checkpoint brings back."""

from __future__ import annotations

import copy
import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.sources import Source
from lightning_app.errors import InputError
from lightning_app.former import options_of_today
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.readers import AttentionReader, CacheReader, ConcatReader, KNNReader
from lightning_app.memory.readers.base import Reader
from lightning_app.memory.slots import Entries
from lightning_app.memory.store import AssociativeMemory
from lightning_app.models.decoder import Decoder
from lightning_app.models.extension import Outputs, Regularizer
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.models.registry import describe
from lightning_app.training.callbacks.exact_resume import ExactResume, RandomState
from lightning_app.training.checkpoint import Checkpoint, load_module
from lightning_app.training.compositions import CausalLM
from lightning_app.training.module import LanguageModule
from tests.advice import SHORT, advised, missing

CHECKPOINT = Path("runs/tiny/version_0/checkpoints/last.ckpt")
IDS = torch.arange(60, 76)[None]


def decoder(**options: Any) -> Decoder:
    torch.manual_seed(0)
    return Decoder(**{"vocab_size": 257, "block_size": 16, "embedding_dim": 16, "layers": 1, "heads": 2, **options})


def attention(**options: Any) -> AttentionReader:
    options = {"memory_size": 100, "num_search_results": 3, "hard_deletion_after": 2, **options}
    return AttentionReader(**options_of_today(options, "AttentionReader"))


def varda(*readers: Reader, dropout: float = 0.0, **options: Any) -> VardaGPT:
    backbone = decoder(dropout=dropout)
    return VardaGPT(backbone, list(readers) or [attention()], **{"segment_length": 8, **options})


def memory_of(module: LanguageModule, i: int = 0) -> AssociativeMemory:
    assert isinstance(module, VardaGPT)
    return module.backbone.readers[i].bank.memories[0]


def digest(memory: AssociativeMemory) -> str:
    return hashlib.sha256(b"".join(t.numpy().tobytes() for t in memory.state_dict().values())).hexdigest()


@pytest.fixture
def data(folder: Path) -> TextDataModule:
    return TextDataModule(
        train=Source("train.txt"), val=Source("val.txt"), block_size=16, dataloader={"batch_size": 4, "shuffle": True}
    )


def trainer_with(*callbacks: L.Callback, **options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    quiet["enable_checkpointing"] = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    return L.Trainer(
        accelerator="cpu",
        use_distributed_sampler=False,
        callbacks=list(callbacks),
        **quiet,
        **{"max_steps": 4, "limit_val_batches": 0, "log_every_n_steps": 1, **options},
    )


def fit(module: LanguageModule, data: TextDataModule, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    ckpt_path = options.pop("ckpt_path", None)
    trainer = trainer_with(*callbacks, **options)
    torch.manual_seed(1)
    with advised(SHORT, *missing(trainer, ckpt_path)):
        trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return trainer


# Compiled


@pytest.mark.slow  # tests/contracts/test_extension.py compares one forward
def test_compiled_it_learns_and_writes_the_same_and_its_copy_runs_its_own_weights(
    data: TextDataModule, monkeypatch: pytest.MonkeyPatch
):
    real, compiled = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda f, **_: compiled.append(f) or real(f, backend="eager"))
    found = []
    for compiles in (False, True):
        found.append(varda(compile=compiles))
        fit(found[-1], data, max_steps=2)
        assert bool(compiled) == compiles
    assert memory_of(found[1]).size() > 0
    for (name, one), (_, two) in zip(*(module.state_dict().items() for module in found), strict=True):
        torch.testing.assert_close(one, two, msg=name)
    module, twin = found[1].eval(), copy.deepcopy(found[1]).eval()
    before = module.backbone.text_logits(IDS)
    with torch.no_grad():
        module.backbone.core.transformer["wte"].weight.zero_()
    assert torch.equal(twin.backbone.text_logits(IDS), before)
    assert not torch.equal(module.backbone.text_logits(IDS), before)


# Through the command line

READERS = [
    {"class_path": f"lightning_app.memory.readers.{name}", "init_args": {"memory_size": 100, "num_search_results": 3}}
    for name in ("ConcatReader", "AttentionReader")
]
BACKBONES = {
    "decoder": {
        "class_path": "Decoder",
        "init_args": {"embedding_dim": 16, "layers": 1, "heads": 2},
    },
    "gpt2": {
        "class_path": "PretrainedLM",
        "init_args": {"architecture": "gpt2", "options": {"n_layer": 1, "n_embd": 16, "n_head": 2}},
    },
}


@pytest.mark.parametrize("name", ["decoder", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_a_checkpoint_alone_generates_with_its_memory(
    name: str, config: Callable[..., str], main: Callable[..., None], capsys: Any
):
    """On another backbone by its class_path alone."""
    path = Path(config({}))
    scheduler = {"class_path": "WarmupCosine", "init_args": {"warmup_steps": 2}}
    model = {"readers": READERS, "segment_length": 8, "backbone": BACKBONES[name], "scheduler": scheduler}
    whole = yaml.safe_load(path.read_text()) | {"model": {"class_path": "VardaGPT", "init_args": model}}
    path.write_text(yaml.safe_dump(whole))
    main("fit", "--config", path)
    saved = torch.load(CHECKPOINT, weights_only=True)
    module, tokenizer = load_module(CHECKPOINT)
    assert isinstance(module, VardaGPT)
    assert type(module.backbone.backbone) is {"decoder": Decoder, "gpt2": PretrainedLM}[name]
    assert Checkpoint.of(saved).model == describe(module)
    for i in range(2):
        assert memory_of(module, i).size() > 50
        assert torch.equal(
            memory_of(module, i).vectors, saved["state_dict"][f"backbone.readers.{i}.bank.memories.0.vectors"]
        )
    prompt = torch.tensor([tokenizer.encode("the model")])
    before = digest(memory_of(module, 1))
    tokens = [torch.cat(list(module.generate(prompt, GenerationOptions(max_new_tokens=10)))) for _ in range(2)]
    assert torch.equal(*tokens)
    assert digest(memory_of(module, 1)) == before
    capsys.readouterr()
    main("generate", "--ckpt_path", CHECKPOINT, "--prompt", "the model", "--max_new_tokens", 3)
    assert capsys.readouterr().out.startswith("the model")


# Writing


class Counts(L.Callback):
    """What the training memory held at the end of each optimizer step."""

    def __init__(self) -> None:
        self.written: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        self.written.append(int(memory_of(module).next_id))


def test_accumulated_batches_are_written_once_per_step(data: TextDataModule):
    module = varda(attention(memory_size=1000, deletion=False))
    counts = Counts()
    fit(module, data, counts, accumulate_grad_batches=2, max_steps=3)
    assert len(counts.written) == 6
    assert counts.written[0] == 0
    assert counts.written[1] == counts.written[2] == 2 * 4 * 16  # a new memory stores everything
    assert int(memory_of(module).clock) == 3


def test_forward_and_evaluation_write_nothing(data: TextDataModule):
    module = varda()
    fit(module, data)
    before = digest(memory_of(module))
    assert memory_of(module).size() > 50
    module.eval()
    with torch.no_grad():
        module(IDS)
    for passes in (module.train(), module.eval()):
        passes.outputs(next(iter(data.val_dataloader())))
    trainer_with(limit_val_batches=1.0).validate(module, datamodule=data, verbose=False)
    assert digest(memory_of(module)) == before


def test_a_stream_evaluated_twice_gives_the_same_numbers(data: TextDataModule):
    """Though within the stream what was read earlier is used."""
    module = varda(attention(), CacheReader(lam=0.5, theta=1.0, streams=4))
    fit(module, data)
    trainer = trainer_with(limit_val_batches=1.0)
    first, second = (trainer.validate(module, datamodule=data, verbose=False)[0] for _ in range(2))
    assert first == second
    module.backbone.readers[1].writes = "never"
    (without,) = trainer.validate(module, datamodule=data, verbose=False)
    assert abs(without["val/ce"] - first["val/ce"]) > 1e-3


def test_a_model_adapts_where_an_evaluation_writes():
    """Its bits per byte then stand beside those of compressors, not of counts."""
    readers = (CacheReader(lam=0.5, theta=1.0), CacheReader(lam=0.5, theta=1.0, writes="never"))
    assert [[one.adapts for one in varda(reader).extensions] for reader in readers] == [[True], [False]]


def test_a_session_remembers_and_then_forgets():
    module = varda(CacheReader(lam=0.5, theta=1.0), segment_length=None).eval()
    before, options = digest(memory_of(module)), GenerationOptions(max_new_tokens=20)

    def logits() -> Tensor:
        with torch.no_grad():
            return module(IDS)

    fresh = logits()
    with module.session():
        list(module.generate(IDS, options))
        remembered = logits()
        bank = module.backbone.readers[0].bank
        size = bank.size()
        list(module.generate(IDS, options))
        assert bank.size() > size > 10
    assert not torch.allclose(remembered, fresh, atol=1e-3)
    assert torch.equal(logits(), fresh)
    assert digest(memory_of(module)) == before


# Resuming


def test_a_resumed_run_is_the_uninterrupted_one_with_its_memory(data: TextDataModule, tmp_path: Path):
    """Its evictions, deletions, draws of what is forgotten, dropout and thresholds too."""

    def run(**options: Any) -> tuple[dict[str, Any], L.Trainer]:
        reader = attention(forgetfulness_factor=0.05, eviction="least_useful", span_length=3)
        module = varda(reader, dropout=0.2)
        callbacks: list[L.Callback] = [RandomState(), ExactResume()]
        if not options:
            callbacks.append(
                ModelCheckpoint(tmp_path / "saved", filename="{step}", every_n_train_steps=3, save_top_k=-1)
            )
        trainer = fit(module, data, *callbacks, max_steps=6, **options)
        return module.state_dict(), trainer

    (whole, one), (resumed, two) = run(), run(ckpt_path=tmp_path / "saved" / "step=3.ckpt")
    assert one.global_step == two.global_step == 6
    prefix = "backbone.readers.0."
    assert int(whole[f"{prefix}bank.memories.0.next_id"]) > 100  # more than there is room for
    assert whole[f"{prefix}threshold.value"].isfinite()
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
    torch.testing.assert_close(two.optimizers[0].state_dict(), one.optimizers[0].state_dict(), rtol=0, atol=0)


# With other parts


def test_without_readers_it_is_a_causal_lm(data: TextDataModule):
    plain, other = CausalLM(decoder(dropout=0.1)), VardaGPT(decoder(dropout=0.1), readers=[])
    assert torch.equal(plain.eval()(IDS), other.eval()(IDS))
    losses = [fit(module.train(), data, max_steps=3).callback_metrics["train/loss"] for module in (plain, other)]
    assert torch.equal(*losses)
    for x, y in zip(plain.parameters(), other.parameters(), strict=True):
        assert torch.equal(x, y)


def test_without_a_word_about_readers_it_stores_all_with_next_tokens_and_learns_to_read_them(data: TextDataModule):
    module = VardaGPT(decoder(), segment_length=8)
    reader = module.memory.readers[0]
    fit(module, data, max_steps=1)
    before = {name: weight.clone() for name, weight in reader.named_parameters()}
    fit(module, data, max_steps=1)
    memory = memory_of(module)
    assert memory.size() > 120  # of 128: there is no price
    followed = memory.payload(memory.ids()).tokens
    assert (followed >= 0).all()
    learned = {name for name, weight in reader.named_parameters() if not torch.equal(weight, before[name])}
    assert {"fc_query.weight", "fc_read.weight", "fc_next.weight", "writer.fc_storable_vector.weight"} <= learned


class PullToZero(Regularizer):
    """The mean square of a layer's states; counts what it has learned from."""

    learned: Tensor

    def __init__(self) -> None:
        super().__init__(weight=0.5, layers=(0,))
        self.register_buffer("learned", torch.zeros((), dtype=torch.int64))

    def loss(self, outputs: Outputs) -> dict[str, Tensor]:
        return {"zero": outputs.states.layers[0].square().mean()}

    def learn(self, outputs: Outputs) -> None:
        self.learned += 1


def test_regularizers_compose_with_readers(data: TextDataModule):
    pull = PullToZero()
    module = VardaGPT(decoder(), [attention(target_rate=0.2)], 8, extensions=[pull])
    fit(module, data, max_steps=3)
    assert pull.learned == 3
    assert memory_of(module).size() > 50
    terms = module.loss_terms(module.outputs(next(iter(data.train_dataloader()))))
    assert set(terms) == {"ce", "zero", "memory_store", "memory_budget"}
    assert terms["memory_budget"][0] == 1
    assert all(term.requires_grad for _, term in terms.values())


def test_what_the_memory_did_is_logged(data: TextDataModule):
    module = varda(attention(memory_size=80))
    metrics = fit(module, data, limit_val_batches=2, val_check_interval=2).callback_metrics
    counts = {"entries", "writes", "deletions", "evictions", "forgotten"}
    assert {f"train/memory_{name}" for name in counts} <= metrics.keys()
    assert metrics["train/memory_entries"] == 80
    assert metrics["train/memory_evictions"] == metrics["train/memory_writes"] - metrics["train/memory_deletions"] > 0
    for stage in ("train", "val"):
        assert 0 < metrics[f"{stage}/memory_read_gate"] < 1
        assert metrics[f"{stage}/memory_hit_distance"] >= 0
        assert 0 <= metrics[f"{stage}/memory_store_rate"] <= 1
        assert 0 < metrics[f"{stage}/memory_distinct"] <= 1
    helped, hurt = metrics["val/memory_helped"], metrics["val/memory_hurt"]
    assert 0 < helped + hurt <= 1
    assert metrics["val/ce_without_memory"] != metrics["val/ce"]


def test_a_memory_that_finds_the_same_entries_for_every_text_is_warned_of(data: TextDataModule):
    module = varda(KNNReader(memory_size=1000, num_search_results=40))
    memory = memory_of(module)
    memory.add(torch.randn(1000, memory.memory_dim) * 100, Entries(tokens=torch.zeros(1000, dtype=torch.int64)))
    with pytest.warns(UserWarning, match=r"memory_distinct is 0\.\d+: the look-ups of a batch return"):
        fit(module, data, max_steps=2, val_check_interval=1, limit_val_batches=1.0)
    memory.remove(memory.ids())
    states = module.backbone.states(next(iter(data.val_dataloader())).input_ids).last.detach().flatten(0, 1)
    memory.add(states, Entries(tokens=torch.zeros(len(states), dtype=torch.int64)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer_with().validate(module, data, verbose=False)


# Contradictions


def test_contradictions_are_refused_with_both_values(data: TextDataModule):
    with pytest.raises(InputError, match="segment_length is 20; it must lie between 1 and the backbone's 16"):
        varda(segment_length=20)
    with pytest.raises(InputError, match="a block of 16 tokens is not a multiple of segment_length 5"):
        fit(varda(segment_length=5), data)
    with pytest.raises(InputError, match="a reader at the input needs isolate_segments: true"):
        varda(ConcatReader(), isolate_segments=False)
    with pytest.raises(InputError, match="two readers at the input"):
        varda(ConcatReader(), ConcatReader())
    with pytest.raises(InputError, match="memory_dim is 8, but KNNReader stores states of width 16"):
        varda(KNNReader(memory_dim=8))
    with pytest.raises(InputError, match="row 2 has no memory: streams is 2"):
        fit(varda(attention(scope="stream", streams=2)), data)


def test_a_checkpoint_of_another_memory_dim_is_refused_with_both_and_changes_nothing():
    module, other = varda(attention(memory_dim=8)), varda(attention(memory_dim=12))
    before = digest(memory_of(module))
    with pytest.raises(InputError, match=r"memories\.0\.vectors has shape \(100, 12\), this model's \(100, 8\)"):
        module.on_load_checkpoint({"state_dict": other.state_dict()})
    with pytest.raises(InputError, match=r"\(100, 12\) in the checkpoint and \(100, 8\) here"):
        module.load_state_dict(other.state_dict())
    assert digest(memory_of(module)) == before


def test_states_that_are_not_finite_are_refused_and_the_memory_stays(data: TextDataModule):
    module = varda()
    fit(module, data)
    before = digest(memory_of(module))
    with torch.no_grad():
        module.backbone.backbone.lm_head.weight[3] = float("nan")
        module.backbone.readers[0].fc_query.weight[0] = float("nan")
    with pytest.raises(InputError, match=r"[0-9]+ of [0-9]+ values of the vectors are not finite \(nan\)"):
        fit(module, data)
    assert digest(memory_of(module)) == before
