"""Exported directories compute what the checkpoint does, need nothing of this project, and are whole or not there."""

from __future__ import annotations

import ast
import inspect
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GPT2LMHeadModel

from lightning_app.cli import main
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.tokenizers import Tokenizer, load_tokenizer
from lightning_app.errors import InputError
from lightning_app.export import command as exporting
from lightning_app.export.code import _own_imports, flat_name
from lightning_app.export.command import Exported, export
from lightning_app.export.modeling_lightning_app import CACHE
from lightning_app.io import temporary_name
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.readers import CacheReader, GatedMixture, NGramReader, PromptReader
from lightning_app.models.backbone import Backbone
from lightning_app.models.decoder import Decoder
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.plasticity.kinds import units_in, units_of
from lightning_app.training.checkpoint import load_module
from lightning_app.training.checkpoint_io import AtomicCheckpointIO
from lightning_app.training.compositions import ArticleGPT, CausalLM
from lightning_app.training.module import LanguageModule
from tests import tokenizers
from tests.test_model_tokenizer import save_model

pytestmark = pytest.mark.usefixtures("modules_cache")
SIZES: dict[str, Any] = {"vocab_size": 260, "block_size": 24, "embedding_dim": 16, "layers": 2, "heads": 4}
LLAMA = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu"}
FAMILIES: dict[str, dict[str, Any]] = {
    "gpt2": {"n_layer": 2, "n_embd": 16, "n_head": 4},
    "bloom": {"n_layer": 2, "hidden_size": 16, "n_head": 4},
    "llama": {
        "num_hidden_layers": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
SOURCE = "the teacher shows the model what nobody asks about again and again"


def save(module: LanguageModule, path: Path, tokenizer: Tokenizer | None = None) -> Path:
    """As a fit does, without one."""
    tokenizer = tokenizer or load_tokenizer("bytes")
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict(), "global_step": 7}
    checkpoint[TextDataModule.__qualname__] = {"tokenizer": tokenizer.state(), "fingerprint": tokenizer.fingerprint}
    module.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO(keep_previous=False).save_checkpoint(checkpoint, path)
    return path


@torch.no_grad()
def noisy(backbone: Backbone) -> Backbone:
    """Biases and norms as well: what is 0 or 1 at first shows nothing."""
    generator = torch.Generator().manual_seed(5)
    for parameter in backbone.parameters():
        parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return backbone


def decoder(**options: Any) -> Decoder:
    torch.manual_seed(0)
    made = noisy(Decoder(**{**SIZES, **options}))
    assert isinstance(made, Decoder)
    return made


def family(name: str) -> PretrainedLM:
    torch.manual_seed(0)
    made = noisy(PretrainedLM(architecture=name, options=FAMILIES[name], vocab_size=260, block_size=24))
    assert isinstance(made, PretrainedLM)
    return made


def pruned(backbone: Backbone) -> Backbone:
    """Two units of the first layer gone, one of the second masked; of heads, and of neurons."""
    for kind in ("heads", "neurons"):
        units = units_of(backbone, kind)
        dead = torch.zeros(units.shape, dtype=torch.bool)
        dead[0, 1:3] = kind == "neurons" or units.shape[1] > 2
        dead[0, 1] = True
        units.remove(dead)
        alive = units.mask
        alive[1, 0] = False
        units.set_mask(alive)
    return backbone


def loaded(folder: Path, **options: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, **options).eval()


IDS = torch.randint(257, (1, 20), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def difference(folder: Path, checkpoint: Path, ids: Tensor = IDS) -> float:
    """Largest of a logit between the directory, loaded here, and the checkpoint's module."""
    module, _ = load_module(checkpoint)
    expected = module.backbone(ids)
    assert expected.std() > 0.3  # else nothing could differ
    return float((loaded(folder)(ids).logits - expected).abs().max())


@pytest.fixture
def exported(tmp_path: Path) -> Callable[..., Exported]:
    """`exported(module)` writes a checkpoint and exports it to `out`."""

    def run(module: LanguageModule, **options: Any) -> Exported:
        return export(save(module, tmp_path / "some.ckpt"), tmp_path / "out", **options)

    return run


@pytest.fixture(scope="module")
def of_own_code(
    tmp_path_factory: pytest.TempPathFactory, reading: Callable[..., Any], modules_cache: None
) -> Callable[[str], tuple[Path, Exported]]:
    """`of_own_code("knn")`: the checkpoint of one of OWN, and what its export gave. Read only."""

    @cache
    def make(name: str) -> tuple[Path, Exported]:
        folder = tmp_path_factory.mktemp(name)
        path = save(own_modules(reading)[name](), folder / "some.ckpt")
        return path, export(path, folder / "out")

    return make


def code_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.py"))


# Families of the library


@pytest.mark.parametrize(
    ("options", "model_type"),
    [
        ({}, "gpt2"),
        ({"tie_weights": False, "bias": False}, "gpt2"),
        (LLAMA, "llama"),
        ({**LLAMA, "tie_weights": False, "bias": False, "head_size": 6}, "llama"),
    ],
)
def test_a_decoder_becomes_a_family_of_the_library(exported, tmp_path, options, model_type):
    done = exported(ArticleGPT(decoder(**options)))
    assert (done.model_type, done.folder, code_in(done.folder)) == (model_type, tmp_path / "out", [])
    model = loaded(done.folder)
    assert type(model).__module__.startswith(f"transformers.models.{model_type}.")
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == options.get("tie_weights", True)
    assert difference(done.folder, tmp_path / "some.ckpt") < 1e-5
    assert done.difference < 1e-5


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pretrained_family_is_written_as_it_is(exported, tmp_path, name):
    done = exported(CausalLM(family(name)))
    assert (done.model_type, code_in(done.folder)) == (name, [])
    assert difference(done.folder, tmp_path / "some.ckpt") == 0


@pytest.mark.parametrize("removed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_adapters_become_part_of_the_matrices(exported, tmp_path, removed):
    backbone = PretrainedLM(**{**family("gpt2").config(), "lora": {"r": 2, "target_modules": ["c_attn", "c_proj"]}})
    module = CausalLM(pruned(noisy(backbone)) if removed else noisy(backbone))
    done = exported(module)
    assert done.model_type == ("lightning_app" if removed else "gpt2")
    assert difference(done.folder, tmp_path / "some.ckpt") < 1e-5
    assert not [name for name, _ in loaded(done.folder).named_parameters() if "lora" in name]


def test_masked_heads_need_no_code(exported, tmp_path):
    module = ArticleGPT(decoder())
    for kind in ("heads", "neurons"):
        units = units_in(module, kind)[0]
        units.set_mask(torch.arange(units.shape[1]).expand(units.shape) % 3 != 1)
    done = exported(module)
    assert (done.model_type, code_in(done.folder)) == ("gpt2", [])
    assert difference(done.folder, tmp_path / "some.ckpt") < 1e-5
    weight = loaded(done.folder).transformer.h[0].attn.c_proj.weight  # (inputs, outputs)
    assert weight[4:8].count_nonzero() == 0
    assert weight[:4].count_nonzero() > 0


@pytest.mark.parametrize("name", ["decoder", pytest.param("gpt2", marks=pytest.mark.slow)])
def test_dense_has_zeros_where_heads_and_neurons_were(exported, tmp_path, name):
    backbone = decoder() if name == "decoder" else family(name)
    module = CausalLM(pruned(backbone))
    done = exported(module, dense=True)
    assert (done.model_type, code_in(done.folder)) == ("gpt2", [])
    assert difference(done.folder, tmp_path / "some.ckpt") < 1e-5
    block = loaded(done.folder).transformer.h[0]
    assert block.attn.c_attn.weight.shape == (16, 48)
    of_heads = block.attn.c_attn.weight.view(16, 3, 4, 4).abs().sum((0, 1, 3))
    assert (of_heads == 0).tolist() == [False, True, True, False]
    assert (block.mlp.c_fc.weight.abs().sum(0) == 0).nonzero()[:, 0].tolist() == [1, 2]


def test_dense_without_anything_removed_is_refused(exported, tmp_path):
    with pytest.raises(InputError, match="none is removed"):
        exported(ArticleGPT(decoder()), dense=True)
    assert [path.name for path in tmp_path.iterdir()] == ["some.ckpt"]


# Our own code


def own_modules(reading: Callable[..., Any]) -> dict[str, Callable[[], LanguageModule]]:
    return {
        "removed": lambda: ArticleGPT(pruned(decoder())),
        "rotary": lambda: ArticleGPT(decoder(positions="rotary")),
        "head_size": lambda: ArticleGPT(decoder(head_size=6)),
        "head_gates": lambda: ArticleGPT(decoder(head_gates=True)),
        **{name: lambda name=name: CausalLM(pruned(family(name))) for name in FAMILIES},
        **{
            name: lambda name=name: reading(name, SOURCE)[0]
            for name in ("attention", "concat", "knn", "trime", "pointer")
        },
        "cache": lambda: reading("cache", SOURCE, segment_length=8)[0],
        "hnsw": lambda: reading("knn", SOURCE, index_type="hnsw", dtype="float16")[0],
    }


OWN = ("removed", "rotary", "head_size", "head_gates", *FAMILIES)
OWN += ("attention", "concat", "knn", "trime", "pointer", "cache", "hnsw")
OFTEN = ("removed",)  # of the families: of the readers none


def some(names: Iterable[str]) -> list[Any]:
    return [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.slow) for name in names]


@pytest.mark.parametrize("name", some(OWN))
def test_other_models_bring_their_code(of_own_code, reading, name):
    assert set(own_modules(reading)) == set(OWN)
    checkpoint, done = of_own_code(name)
    assert done.model_type == "lightning_app"
    assert difference(done.folder, checkpoint, IDS[:, :8]) < 1e-5
    model = loaded(done.folder)
    ours = [type(module).__module__ for module in model.modules() if "lightning_app" in type(module).__module__]
    assert ours
    assert all(module.startswith("transformers_modules.") for module in ours)
    for file in code_in(done.folder):
        imports = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        assert not [node.module for node in imports if str(node.module).startswith("lightning_app")]
    with_memory = (done.folder / "memory_store.py").exists()
    assert with_memory == (name in ("attention", "concat", "knn", "trime", "pointer", "cache", "hnsw"))
    assert (done.folder / "plasticity_units.py").exists() == (name in ("removed", *FAMILIES))


def test_what_reads_tokens_stays_behind(exported):
    reader = NGramReader(order=3)
    module = VardaGPT(decoder(), [reader]).eval()
    reader.bank.hold(IDS[0])
    with pytest.warns(UserWarning, match="without NGramReader"):
        done = exported(module)
    expected = module.backbone.backbone(IDS)
    torch.testing.assert_close(loaded(done.folder)(IDS).logits, expected, atol=1e-4, rtol=1e-4)


def test_what_stands_before_prompts_stays_behind(exported):
    """With the texts that it holds, and the code that would read them."""
    reader = PromptReader(memory_size=9)
    module = VardaGPT(decoder(), [reader]).eval()
    reader.bank.shared.add(torch.ones(3, module.backbone.width))
    with pytest.warns(UserWarning, match="without PromptReader"):
        done = exported(module)
    assert done.model_type == "gpt2"
    torch.testing.assert_close(loaded(done.folder)(IDS).logits, module.backbone.backbone(IDS), atol=1e-4, rtol=1e-4)


def test_a_mixture_that_stays_behind_is_named(exported):
    counts = NGramReader(order=3)
    module = VardaGPT(decoder(), [counts, CacheReader(scope="shared", memory_size=9), GatedMixture()]).eval()
    with pytest.warns(UserWarning, match="without NGramReader, GatedMixture:"):
        exported(module)


def shapes_of_ids(model: Any) -> list[tuple[int, ...]]:
    """Filled by each forward with the shape of the ids that reach it."""
    seen: list[tuple[int, ...]] = []
    model.register_forward_pre_hook(
        lambda _model, _arguments, named: seen.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    return seen


@pytest.mark.parametrize("name", some(OWN))
def test_each_step_computes_the_new_token_alone(of_own_code, name):
    model = loaded(of_own_code(name)[1].folder)
    seen = shapes_of_ids(model)
    for beams in (1, 2):
        model.generate(IDS[:, :5], max_new_tokens=4, num_beams=beams, do_sample=False, eos_token_id=None)
    assert seen == [(1, 5), *[(1, 1)] * 3, (2, 5), *[(2, 1)] * 3]


def test_a_memory_is_read_in_the_directory(of_own_code):
    _, done = of_own_code("knn")
    model = loaded(done.folder)
    with torch.no_grad():
        read = model(IDS).logits
        model.backbone.readers[0].lam.zero_()
        plain = model(IDS).logits.log_softmax(-1)
    assert (read.exp() - plain.exp()).abs().sum(-1).mean() > 0.3  # lam is 0.25: nearly all of its mass moves
    assert "23 entries from 1 documents" in (done.folder / "README.md").read_text()


def test_regularisers_stay_behind(exported, tmp_path, sorting):
    module, _ = sorting(SOURCE[:20])
    done = exported(module)
    assert (done.model_type, code_in(done.folder)) == ("gpt2", [])
    assert difference(done.folder, tmp_path / "some.ckpt") < 1e-5


def test_a_class_of_somebody_else_is_refused(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(Decoder, "__module__", "elsewhere")
    monkeypatch.setitem(sys.modules, "elsewhere", sys.modules["lightning_app.models.decoder"])
    with pytest.raises(InputError, match=r"elsewhere\.Decoder, which is no part of lightning_app"):
        exported(ArticleGPT(decoder(positions="rotary")))
    assert not (tmp_path / "out").exists()


def test_names_of_flat_files():
    assert flat_name("lightning_app.plasticity.surgery") == "plasticity_surgery"
    assert flat_name("lightning_app.export.modeling_lightning_app") == "modeling_lightning_app"


def test_a_module_imported_as_a_name_has_no_flat_file():
    assert len(list(_own_imports("from lightning_app.plasticity.surgery import move"))) == 1
    with pytest.raises(AssertionError, match=r"'surgery'.*not the modules"):
        list(_own_imports("from lightning_app.plasticity import surgery"))


# What transformers asks of a model


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", some(["removed", "attention", "concat", "knn", "trime", "cache", "hnsw"]))
@torch.no_grad()
def test_half_precision(of_own_code, name, dtype):
    folder = of_own_code(name)[1].folder
    whole, half = loaded(folder), loaded(folder, dtype=dtype)
    assert half.get_input_embeddings().weight.dtype == dtype
    expected = whole(IDS[:, :8]).logits
    assert float((half(IDS[:, :8]).logits - expected).abs().max()) < 0.04 * float(expected.std())
    stored = {name: tensor for name, tensor in whole.named_buffers() if ".bank." in name}
    for name, tensor in half.named_buffers():
        if name in stored:
            assert tensor.dtype == stored[name].dtype
            assert torch.equal(tensor, stored[name])
    assert half.generate(IDS[:, :5], max_new_tokens=4, min_new_tokens=4).shape == (1, 9)


close = partial(torch.testing.assert_close, rtol=0, atol=1e-5)
WITH_A_PLAIN_TWIN = ("removed", *FAMILIES)


@pytest.mark.parametrize("name", some(WITH_A_PLAIN_TWIN))
@torch.no_grad()
def test_all_outputs_are_those_of_a_plain_model(tmp_path, of_own_code, name):
    """`--dense` gives a model of the library that computes the same: zeros where units were removed."""
    checkpoint, done = of_own_code(name)
    own, plain = loaded(done.folder), loaded(export(checkpoint, tmp_path / "dense", dense=True).folder)
    assert type(own).__name__ == "LightningAppForCausalLM"
    assert type(plain).__module__.startswith("transformers.models.")
    ids = torch.cat([IDS[:, :9], F.pad(IDS[:, 9:13], (5, 0), value=256)])
    mask = (torch.arange(9) >= torch.tensor([[0], [5]])).long()
    takes_positions = "position_ids" in inspect.signature(plain.forward).parameters  # ours come from the mask
    counted = {"position_ids": (mask.cumsum(-1) - 1).clamp_min(0)} if takes_positions else {}
    for options in (
        {"input_ids": ids, "attention_mask": mask, "output_hidden_states": True},
        {"input_ids": ids[:1], "labels": ids[:1], "output_hidden_states": True, "use_cache": True},
        {"inputs_embeds": own.get_input_embeddings()(ids[:1]), "logits_to_keep": 2},
        {"input_ids": ids[:1], "logits_to_keep": torch.tensor([1, 4])},
    ):
        found, expected = own(**options), plain(**options, **(counted if "attention_mask" in options else {}))
        assert [key for key in found if key != CACHE] == [key for key in expected if key != CACHE]
        real = mask.bool() if "attention_mask" in options else slice(None)
        close(found.logits[real], expected.logits[real])
        if "labels" in options:
            close(found.loss, expected.loss)
        for ours, theirs in zip(found.hidden_states or (), expected.hidden_states or (), strict=True):
            close(ours[real], theirs[real])
    as_tuple = own(ids[:1], labels=ids[:1], return_dict=False)
    assert isinstance(as_tuple, tuple)
    close(as_tuple[1], plain(ids[:1], labels=ids[:1], return_dict=False)[1])
    beams = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "eos_token_id": None, "attention_mask": mask}
    assert torch.equal(own.generate(ids, **beams), plain.generate(ids, **beams))


@pytest.mark.parametrize("name", some(name for name in OWN if name not in WITH_A_PLAIN_TWIN))
@torch.no_grad()
def test_hidden_states_are_those_of_the_checkpoint(of_own_code, name):
    checkpoint, done = of_own_code(name)
    found = loaded(done.folder)(IDS[:, :8], output_hidden_states=True).hidden_states
    backbone = load_module(checkpoint)[0].backbone
    layers = range(len(backbone.blocks))
    expected = backbone.hidden(backbone.embed(IDS[:, :8]), layers=layers)
    for layer in layers[:-1]:
        close(found[layer + 1], expected.layers[layer])
    close(found[-1], expected.last)
    assert len(found) == len(layers) + 1


REFUSED = {  # of the arguments of GPT2LMHeadModel.forward
    "token_type_ids": IDS,
    "position_ids": IDS,
    "encoder_hidden_states": torch.zeros(1, 3, 16),
    "encoder_attention_mask": torch.ones(1, 3),
    "output_attentions": True,
}


def test_arguments_of_gpt2_are_taken_or_refused_by_name(own):
    theirs = set(inspect.signature(GPT2LMHeadModel.forward).parameters) - {"self", "kwargs"}
    ours = set(inspect.signature(type(own).forward).parameters)
    assert theirs <= ours | REFUSED.keys()
    for name, value in REFUSED.items():
        with pytest.raises(ValueError, match=f"{name} is not an argument"):
            own(IDS, **{name: value})
    own(IDS, **dict.fromkeys(REFUSED))
    for given in ({}, {"input_ids": IDS, "inputs_embeds": own.get_input_embeddings()(IDS)}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            own(**given)
    with pytest.raises(ValueError, match=r"does not support (gradient|activation) checkpointing"):
        (getattr(own, "activation_checkpointing_enable", None) or own.gradient_checkpointing_enable)()


@pytest.fixture
def own(of_own_code) -> Any:
    """A decoder with removed heads, as a directory, loaded."""
    return loaded(of_own_code("removed")[1].folder)


def greedy(checkpoint: Path, ids: Tensor, n: int) -> list[int]:
    module, _ = load_module(checkpoint)
    return [int(t) for t in module.generate(ids, GenerationOptions(n, temperature=0.0))]


def test_generates_what_the_module_does_even_beyond_its_length(own, of_own_code):
    checkpoint, _ = of_own_code("removed")
    for start in (1, 20):  # of 24 positions
        found = own.generate(IDS[:, :start], max_new_tokens=40, do_sample=False, eos_token_id=None)
        assert found[0, start:].tolist() == greedy(checkpoint, IDS[:, :start], 40)
    uncached = own.generate(IDS[:, :4], max_new_tokens=15, do_sample=False, eos_token_id=None, use_cache=False)
    assert uncached[0, 4:].tolist() == greedy(checkpoint, IDS[:, :4], 15)


def test_the_cache_has_two_names(own):
    whole = own(IDS[:, :9]).logits[:, 5:]
    for name in ("cache", "past_key_values"):
        past = own(IDS[:, :5], use_cache=True)[CACHE]
        rest = own(IDS[:, 5:9], **{name: past})
        torch.testing.assert_close(rest.logits, whole)
        assert rest[CACHE].get_seq_length() == 9
    with pytest.raises(ValueError, match="give cache alone"):
        own(IDS[:, :1], cache=past, past_key_values=past)


def test_rows_padded_on_the_left_get_what_they_get_alone(own, of_own_code):
    checkpoint, _ = of_own_code("removed")
    ids = torch.cat([IDS[:, :9], torch.nn.functional.pad(IDS[:, 9:13], (5, 0), value=256)])
    mask = torch.ones_like(ids)
    mask[1, :5] = 0
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None}
    found = own.generate(ids, attention_mask=mask, **options)
    assert found[0, 9:].tolist() == greedy(checkpoint, IDS[:, :9], 12)
    assert found[1, 9:].tolist() == greedy(checkpoint, IDS[:, 9:13], 12)


def test_beam_search_finds_a_text_at_least_as_likely(own):
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    plain, beams = own.generate(IDS[:, :3], **options), own.generate(IDS[:, :3], num_beams=4, **options)

    def likelihood(text: Tensor) -> float:
        with torch.no_grad():
            return float(-own(text, labels=text.clone().index_fill_(1, torch.arange(3), -100)).loss)

    assert beams.shape == plain.shape
    assert likelihood(beams) >= likelihood(plain) - 1e-6


def test_labels_give_the_loss_and_a_gradient(own):
    labels = IDS.clone()
    labels[:, :5] = -100
    found = own(IDS, labels=labels)
    expected = F.cross_entropy(found.logits[0, 4:-1], IDS[0, 5:])
    torch.testing.assert_close(found.loss, expected)
    found.loss.backward()
    assert all(p.grad is not None for p in own.parameters())


def test_ids_without_a_token_are_never_drawn(exported):
    done = exported(CausalLM(decoder(vocab_size=300)))
    model = loaded(done.folder)
    with torch.no_grad():
        model.transformer.wte.weight[257:] *= 50  # loud, and tied to the output
    assert model.generation_config.suppress_tokens == list(range(257, 300))
    text = model.generate(IDS[:, :4], max_new_tokens=15, eos_token_id=None)
    assert int(text.max()) < 257
    assert model(IDS).logits.shape[-1] == 300  # they are there, as in the checkpoint


# How texts are drawn, and where they end


GREEDY = {"repetition_penalty": 1.1, "pad_token_id": 0}
DRAWN = {**GREEDY, "do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20}


def said_by(folder: Path) -> dict[str, Any]:
    said = GenerationConfig.from_pretrained(folder).to_diff_dict()
    return {name: value for name, value in said.items() if name not in ("transformers_version", "suppress_tokens")}


@pytest.mark.parametrize(
    ("given", "written"),
    [
        (DRAWN, DRAWN),
        pytest.param(GREEDY, GREEDY, marks=pytest.mark.slow),
        ({"temperature": 0.6, "top_p": 0.9}, {"pad_token_id": 2}),
    ],
)
def test_a_model_keeps_its_ends_and_how_it_draws(tmp_path, given, written):
    """Through a checkpoint, too, whose rebuilt model has no source; drawing that was never on cannot be written."""
    source = save_model(tmp_path / "source", "smollm2", bos_token_id=1, eos_token_id=2)
    said = {"bos_token_id": 1, "eos_token_id": [0, 2], **given}
    (source / "generation_config.json").write_text(json.dumps(said))
    first = export(source, tmp_path / "first").folder
    module, tokenizer = load_module(first)
    again = export(save(module, tmp_path / "some.ckpt", tokenizer), tmp_path / "again").folder
    for folder in (first, again):
        found = said_by(folder)
        assert found.pop("max_length") == 64
        assert found == {**written, "bos_token_id": 1, "eos_token_id": [2, 0]}
        assert AutoConfig.from_pretrained(folder).eos_token_id == [2, 0]
        assert load_module(folder)[0].end_ids == {0, 2}


def test_a_model_without_a_begin_token_gets_none(tmp_path):
    source = save_model(tmp_path / "source", "qwen", bos_token_id=None)
    found = said_by(export(source, tmp_path / "out").folder)
    assert "bos_token_id" not in found
    assert "do_sample" not in found  # greedy, as the source


@pytest.mark.parametrize("kind", [None, "smollm2"])
def test_conversations_are_written_as_in_training(tmp_path, kind):
    """Also before the template that the tokenizer had itself."""
    tokenizer = load_tokenizer("bytes" if kind is None else str(with_template(tmp_path / "tokenizer", kind)))
    path = save(CausalLM(decoder(vocab_size=tokenizer.vocab_size)), tmp_path / "some.ckpt", tokenizer)
    talk = [{"role": "user", "content": "Where?"}]
    assert rendered(export(path, tmp_path / "before").folder, talk) == (None if kind is None else "its own")
    raw = torch.load(path, weights_only=True)
    raw[TextDataModule.__qualname__]["chat_template"] = {
        "text": "<{{ messages[0].content }}>{{ eos_token }}",
        "name": "a",
    }
    torch.save(raw, path)
    assert rendered(export(path, tmp_path / "out").folder, talk) == f"<Where?>{tokenizer.decode([tokenizer.eot])}"
    (tmp_path / "given.jinja").write_text("{{ messages[0].role }}é", encoding="utf-8")
    words = ["export", "--ckpt_path", str(path), "--output", f"{tmp_path}/given"]
    main([*words, "--chat_template", f"{tmp_path}/given.jinja"])
    assert rendered(tmp_path / "given", talk) == "useré"
    left = [(tmp_path / name / "additional_chat_templates").exists() for name in ("before", "given")]
    assert left == [kind is not None, False]  # the given one counts with tools, too


def with_template(folder: Path, kind: str) -> Path:
    tokenizers.save(kind, folder)
    (folder / "chat_template.jinja").write_text("its own")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates/tool_use.jinja").write_text("its own with tools")
    return folder


def rendered(folder: Path, talk: list[dict[str, str]]) -> str | None:
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    return None if tokenizer.chat_template is None else tokenizer.apply_chat_template(talk, tokenize=False)


def test_a_saved_copy_of_the_model_is_the_model(own, of_own_code, tmp_path):
    own.save_pretrained(tmp_path / "again")
    assert difference(tmp_path / "again", of_own_code("removed")[0]) == 0


# Refusals


@pytest.mark.parametrize("name", [".", "..", "somewhere/.."])
def test_a_directory_that_is_no_place_of_its_own_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="give a directory of its own"):
        exporting.check_output(Path(name), overwrite=True)


def test_a_place_in_use_is_refused(exported, tmp_path):
    module = ArticleGPT(decoder())
    out = tmp_path / "out"
    out.mkdir()
    (temporary_name(out) / "out").mkdir(parents=True)  # of a process that was killed, and had this one's number
    exported(module)  # an empty one is taken
    with pytest.raises(InputError, match="not empty: give another directory, or --overwrite"):
        exported(module)
    (out / "README.md").write_text("old")
    exported(module, overwrite=True)
    assert (out / "README.md").read_text() != "old"
    (out / "config.json").unlink()
    with pytest.raises(InputError, match="no earlier export"):
        exported(module, overwrite=True)
    with pytest.raises(InputError, match="is a file"):
        export(tmp_path / "some.ckpt", tmp_path / "some.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "some.ckpt"]


def test_a_crash_leaves_what_was_there(exported, tmp_path, monkeypatch):
    exported(ArticleGPT(decoder()))
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    def crash(*_arguments: Any, **_options: Any) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(exporting, "model_card", crash)
    with pytest.raises(KeyboardInterrupt):
        exported(ArticleGPT(decoder(layers=1)), overwrite=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "some.ckpt"]


def test_a_directory_that_computes_something_else_is_not_kept(exported, tmp_path, monkeypatch):
    changed = decoder()
    torch.nn.init.zeros_(changed.transformer["ln_f"].bias)
    monkeypatch.setattr(exporting, "plain_model", lambda backbone: PLAIN(changed))
    with pytest.raises(InputError, match="computes other logits than the checkpoint: they differ by"):
        exported(ArticleGPT(decoder()))
    assert [path.name for path in tmp_path.iterdir()] == ["some.ckpt"]


PLAIN = exporting.plain_model


def test_a_full_disk_is_named(exported, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(InputError, match=r"no space left in .*: up to 16,8.* bytes are needed, 1,000 are free"):
        exported(ArticleGPT(decoder()))
    assert [path.name for path in tmp_path.iterdir()] == ["some.ckpt"]


def test_the_command_says_what_it_wrote(tmp_path, capsys):
    runs = tmp_path / "runs" / "a" / "version_0" / "checkpoints"
    runs.mkdir(parents=True)
    save(ArticleGPT(pruned(decoder())), runs / "best.ckpt")
    words = ["export", "--ckpt_path", "best", "--runs_dir", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]
    main(words)
    said = capsys.readouterr().out
    assert "lightning_app: its own code, in the directory" in said
    assert "logits differ by at most 0" in said
    assert "trust_remote_code=True" in said
    assert 'AutoTokenizer.from_pretrained(".", trust_remote_code=True)' in (tmp_path / "out" / "README.md").read_text()
    main([*words, "--dense", "--overwrite"])
    assert "gpt2: a family of transformers" in capsys.readouterr().out
    with pytest.raises(InputError, match="without --push_to_hub"):
        main([*words, "--private", "--debug"])
    with pytest.raises(InputError, match="there is no checkpoint"):
        main(["export", "--ckpt_path", "nowhere.ckpt", "--output", f"{tmp_path}/other", "--debug"])


# Without this project


BLOCKED = """
import os, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "lightning_app":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Blocked())
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
ids = torch.load("ids.pt")
for name in sorted(os.listdir("exported")):
    model = AutoModelForCausalLM.from_pretrained(f"exported/{name}", trust_remote_code=True).eval()
    assert AutoTokenizer.from_pretrained(f"exported/{name}")("the")["input_ids"] == list(b"the")
    with torch.no_grad():
        torch.save(model(ids).logits, f"{name}.pt")
    assert model.generate(ids[:, :3], max_new_tokens=30, min_new_tokens=30).shape == (1, 33)
assert "lightning_app" not in sys.modules
"""


@pytest.mark.slow
def test_every_directory_works_where_this_project_cannot_be_imported(tmp_path, reading):
    ids, expected = IDS[:, :8], {}
    for name, make in own_modules(reading).items():
        module = make().eval()
        export(save(module, tmp_path / f"{name}.ckpt"), tmp_path / "empty" / "exported" / name)
        with torch.no_grad():
            expected[name] = load_module(tmp_path / f"{name}.ckpt")[0].backbone(ids)
    torch.save(ids, tmp_path / "empty" / "ids.pt")
    environment = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1", "PATH": ""}
    subprocess.run([sys.executable, "-c", BLOCKED], cwd=tmp_path / "empty", env=environment, check=True)
    assert len(expected) == len(OWN)
    for name, logits in expected.items():
        found = torch.load(tmp_path / "empty" / f"{name}.pt")
        assert float((found - logits).abs().max()) < 1e-5, name


def test_a_side_file_becomes_part_of_the_directory(tmp_path, reading):
    module, tokenizer = reading("knn", SOURCE)
    assert isinstance(module, VardaGPT)
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict(), "global_step": 1}
    checkpoint[TextDataModule.__qualname__] = {"tokenizer": tokenizer.state(), "fingerprint": tokenizer.fingerprint}
    module.on_save_checkpoint(checkpoint)
    AtomicCheckpointIO(side_file_bytes=10).save_checkpoint(checkpoint, tmp_path / "large.ckpt")
    with torch.no_grad():
        expected = module.backbone(IDS)
    export(tmp_path / "large.ckpt", tmp_path / "out")
    assert (tmp_path / "memory").is_dir()
    shutil.rmtree(tmp_path / "memory")
    with torch.no_grad():
        assert float((loaded(tmp_path / "out")(IDS).logits - expected).abs().max()) < 1e-5
