"""LoRA: against the formula, against a merged plain model, through the command line, and beside plasticity.

Shapes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from lightning_app.errors import InputError
from lightning_app.models.lora import LoRA, merged, named_as
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.plasticity.kinds import units_of
from lightning_app.training.callbacks.run_log import read_log
from lightning_app.training.checkpoint import load_module
from tests.backbones import ADAPTED, BLOCK, GPT2, OF_HUGGING_FACE, V

FAMILIES = {family: (OF_HUGGING_FACE[family][1], ADAPTED[family], (2, 4)) for family in ("gpt2", "llama")}
"""Options, all projections, (layers, heads or groups of them)."""
each_family = pytest.mark.parametrize("family", FAMILIES)
Main = Callable[..., None]


def with_adapters(family: str = "gpt2", **lora: Any) -> PretrainedLM:
    """A small model in eval mode, each of whose weights shows in its logits, adapters included."""
    torch.manual_seed(0)
    options, targets, _ = FAMILIES[family]
    adapters = LoRA(**{"r": 3, "alpha": 5.0, "target_modules": targets, **lora})
    model = PretrainedLM(architecture=family, options=options, vocab_size=V, block_size=BLOCK, lora=adapters)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.1
    return model.eval()


def tokens() -> Tensor:
    return torch.randint(V, (3, BLOCK), generator=torch.Generator().manual_seed(2))


def close(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, rtol=0, atol=2e-5)


@torch.no_grad()
def test_a_projection_says_what_the_formula_says():
    model = with_adapters()
    projection = model.model.transformer.h[1].attn.c_attn
    x = torch.randn(2, 32)
    a, b = projection.lora_A.default.weight, projection.lora_B.default.weight
    assert (a.shape, b.shape) == ((3, 32), (96, 3))
    weight, bias = projection.base_layer.weight, projection.base_layer.bias
    close(projection(x), x @ weight + bias + 5.0 / 3 * (x @ a.T) @ b.T)


@each_family
def test_new_adapters_change_nothing_and_are_all_that_is_trained(family: str):
    options, targets, _ = FAMILIES[family]
    torch.manual_seed(0)
    plain = PretrainedLM(architecture=family, options=options, vocab_size=V, block_size=BLOCK).eval()
    torch.manual_seed(0)
    lora = LoRA(r=2, target_modules=targets)
    model = PretrainedLM(architecture=family, options=options, vocab_size=V, block_size=BLOCK, lora=lora).eval()
    assert torch.equal(model(tokens()), plain(tokens()))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[-3] for name in trained} == {"lora_A", "lora_B"}
    adapted = [m for m in model.modules() if "lora_A" in m._modules]
    assert len(trained) == 2 * len(adapted)
    assert {name.rsplit(".", 4)[0].rsplit(".", 1)[-1] for name in trained} <= {"attn", "mlp", "self_attn", "attention"}
    assert {name.split(".")[-4] for name in trained} == set(targets)


def test_what_is_asked_for_is_trained_too():
    model = with_adapters(train=["ln_f.weight", "wpe.weight"])
    others = {name for name, p in model.named_parameters() if p.requires_grad and "lora_" not in name}
    assert others == {"model.transformer.ln_f.weight", "model.transformer.wpe.weight"}


@each_family
@torch.no_grad()
def test_a_merged_model_is_plain_and_computes_the_same(family: str):
    model = with_adapters(family)
    before = copy.deepcopy(model.state_dict())
    plain = merged(model)
    assert type(plain) is PretrainedLM
    assert plain.lora is None
    assert not any("lora" in name or "base_layer" in name for name in plain.state_dict())
    close(plain(tokens()), model(tokens()))
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert all(p.requires_grad for p in plain.parameters())


@each_family
@pytest.mark.parametrize("kind", ["heads", "neurons"])
@torch.no_grad()
def test_units_are_masked_cut_out_and_merged_with_adapters(family: str, kind: Any):
    model = with_adapters(family)
    units = units_of(model, kind)
    assert kind == "neurons" or units.shape == FAMILIES[family][2]
    dead = torch.zeros(units.shape, dtype=torch.bool)
    dead[0, 1] = dead[1, 2] = dead[1, 3] = True
    whole = model(tokens())
    units.set_mask(~dead)
    masked = model(tokens())
    assert (masked - whole).abs().max() > 1e-3
    close(merged(model)(tokens()), masked)
    sizes = {id(part.parameter): part.parameter.numel() for layer in units.layers for part in layer.parts}
    assert len(sizes) == sum(len(layer.parts) for layer in units.layers)  # adapters are parts of their own
    units.remove(dead)
    close(model(tokens()), masked)
    close(merged(model)(tokens()), masked)
    for i, unit in dead.nonzero().tolist():
        units.regrow(i, unit, "new")
    close(model(tokens()), masked)  # new ones say nothing yet


@torch.no_grad()
def test_heads_are_merged_where_they_are_untied_and_trained_where_they_are_tied():
    for model in (with_adapters("llama", target_modules=["lm_head"]), with_adapters(train=["wte.weight"])):
        close(merged(model)(tokens()), model(tokens()))


def test_a_frozen_matrix_costs_a_third_less():
    model = with_adapters(target_modules=["c_attn"])
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    layers = [m for m in model.modules() if not isinstance(m, nn.Embedding)]
    frozen = sum(p.numel() for m in layers for p in m.parameters(recurse=False) if p.dim() == 2 and not p.requires_grad)
    assert model.flops_per_token(BLOCK) == 6 * adapters + 4 * frozen + 12 * 2 * 32 * BLOCK


def test_weights_of_a_plain_model_find_their_places():
    torch.manual_seed(0)
    plain = PretrainedLM(architecture="gpt2", options=GPT2, vocab_size=V, block_size=BLOCK).eval()
    model = with_adapters()
    own = copy.deepcopy(model.state_dict())
    model.load_state_dict(named_as(own, plain.state_dict()))
    assert torch.equal(
        model.state_dict()[f"{(place := 'model.transformer.h.0.attn.c_attn')}.lora_A.default.weight"],
        own[f"{place}.lora_A.default.weight"],
    )
    for projection in model.modules():
        if "lora_B" in projection._modules:
            nn.init.zeros_(projection.lora_B.default.weight)
    assert torch.equal(model(tokens()), plain(tokens()))
    assert named_as(own, own) == own
    assert named_as(plain.state_dict(), own).keys() == own.keys()


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"r": 0}, "lora.r is 0"),
        ({"alpha": 0.0}, "lora.alpha is 0"),
        ({"dropout": 1.0}, "lora.dropout is 1"),
        ({"target_modules": []}, "target_modules is empty"),
        ({"target_modules": ["c_attn", "q_proj"]}, "names q_proj.*it has c_attn, c_fc, c_proj"),
        ({"target_modules": ["c_attn", "lm_head"]}, "names the head, whose matrix is the embedding's"),
        ({"train": ["ln_g.weight"]}, "ln_g.weight"),
    ],
)
def test_mistakes_are_said_in_plain_words(lora: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said):
        with_adapters(**lora)


def test_a_family_without_a_default_shows_what_it_has(monkeypatch: pytest.MonkeyPatch):
    from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS

    monkeypatch.delitem(DEFAULTS, "gpt2")
    with pytest.raises(InputError, match=r"give lora\.target_modules, of c_attn"):
        with_adapters(target_modules=None)


# ---- through the command line

BACKBONE = {
    "class_path": "PretrainedLM",
    "init_args": {"architecture": "gpt2", "options": {"n_layer": 2, "n_embd": 16, "n_head": 4}},
}


def module(lora: dict[str, Any] | None) -> dict[str, Any]:
    backbone = {**BACKBONE, "init_args": {**BACKBONE["init_args"], **({"lora": lora} if lora else {})}}
    return {
        "class_path": "CausalLM",
        "init_args": {"backbone": backbone, "scheduler": None},
    }


def write(name: str, lora: dict[str, Any] | None, **trainer: Any) -> str:
    """The small config with another model."""
    config = yaml.safe_load(Path("tiny.yaml").read_text())
    config |= {"name": name, "model": module(lora), "trainer": config["trainer"] | trainer}
    Path(f"{name}.yaml").write_text(yaml.safe_dump(config))
    return f"{name}.yaml"


def saved(name: str, checkpoint: str = "last") -> dict[str, Any]:
    return torch.load(f"runs/{name}/version_0/checkpoints/{checkpoint}.ckpt", weights_only=True)


@pytest.fixture
def base(folder: Path, main: Main) -> Path:
    """A whole model that was trained for some steps."""
    main("fit", "--config", write("base", None))
    return Path("runs/base/version_0/checkpoints/last.ckpt")


@pytest.mark.slow
@pytest.mark.parametrize("surgery", [None, *(pytest.param(x, marks=pytest.mark.slow) for x in ("mask", "remove"))])
def test_from_a_whole_checkpoint_to_one_of_adapters_and_on_exactly(
    base: Path,
    main: Main,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    surgery: str | None,
):
    """With surgery: before the stop and after it."""
    lora = {"r": 2, "dropout": 0.1, "target_modules": ["c_attn", "c_proj"]}
    plasticity = {
        "class_path": "PlasticitySchedule",
        "init_args": {
            "cycles": 2,
            "pruning_level": 0.5,
            "targets": ["heads"],
            "training_steps": 2,
            "warmup_steps": 1,
            "finetuning_steps": 1,
            "sample_batches": 1,
            "sample_batch_size": 2,
            "surgery": surgery,
            "regrow": 1,
        },
    }
    for name in ("whole", "parts"):
        write(name, lora, max_steps=8, callbacks=[plasticity] if surgery else [])

    def crash(module: Any, batch: object, batch_idx: int) -> None:
        if module.global_step == 4:
            raise RuntimeError("power cut")

    from lightning_app.training.compositions import CausalLM

    main("fit", "--config", "whole.yaml", "--init_from", base)
    with monkeypatch.context() as patch:
        patch.setattr(CausalLM, "on_train_batch_start", crash)
        with pytest.raises(RuntimeError, match="power cut"):
            main("fit", "--config", "parts.yaml", "--save_every_n_steps", 4, "--init_from", base)
    main("fit", "--config", "parts.yaml", "--ckpt_path", "last")
    whole, parts = saved("whole"), saved("parts")
    assert whole["state_dict"].keys() == parts["state_dict"].keys()
    assert all(torch.equal(x, parts["state_dict"][name]) for name, x in whole["state_dict"].items())

    before, adapters = torch.load(base, weights_only=True)["state_dict"], 2 * 3 * 2
    if surgery is None:
        frozen = {n.replace(".base_layer.", "."): x for n, x in whole["state_dict"].items() if "lora_" not in n}
        assert frozen.keys() == before.keys()
        assert all(torch.equal(x, before[name]) for name, x in frozen.items())
    states = whole["optimizer_states"][0]
    assert sum(len(group["params"]) for group in states["param_groups"]) == adapters == len(states["state"])
    assert "parameters are trained (" in caplog.text

    loaded, _ = load_module("runs/whole/version_0/checkpoints/last.ckpt")
    dead = 4 if surgery else 0
    assert int((~units_of(loaded.backbone, "heads").mask).sum()) == dead
    ids = torch.arange(10)[None]
    assert isinstance(loaded.backbone, PretrainedLM)
    close(merged(loaded.backbone)(ids), loaded.backbone(ids))
    capsys.readouterr()
    last = "runs/whole/version_0/checkpoints/last.ckpt"
    main("generate", "--ckpt_path", last, "--prompt", "the", "--max_new_tokens", 4)
    assert capsys.readouterr().out.startswith("the")
    assert read_log("runs/whole/version_0")[-1]["event"] == "closed"


def test_a_decoder_has_no_adapters(fails: Callable[..., str], config: Callable[..., str]):
    name = config({"model": {"init_args": {"backbone": {"lora": {"r": 2}}}}})
    assert "lora" in fails("fit", "--config", name)


def test_adapters_beside_random_weights_are_warned_of(folder: Path, main: Main):
    with pytest.warns(UserWarning, match="beside random weights"):
        main("fit", "--config", write("fresh", {"r": 2}), "--trainer.max_steps", 1)
