"""Models of the Hugging Face library: where they come from, what is refused; what each family keeps: tests/contracts.

All models are tiny, random and made here; nothing is downloaded. Shapes: B batch, T positions, V vocabulary.
"""

import copy
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lightning_app.errors import InputError
from lightning_app.memory.model import MemoryLM
from lightning_app.memory.readers import AttentionReader
from lightning_app.memory.readers.base import TokenContext
from lightning_app.models.losses import cross_entropy
from lightning_app.models.pretrained import PretrainedLM
from tests.backbones import BLOCK, GPT2, USUAL, V, shake
from tests.backbones import OF_HUGGING_FACE as FAMILIES


def fresh(family="gpt2", *, vocab_size=V, block_size=BLOCK, **changes):
    """A small model in eval mode with weights (biases and norms too) so large that each part shows in the logits."""
    torch.manual_seed(0)
    architecture, options = FAMILIES[family]
    model = PretrainedLM(
        architecture=architecture, options=options, vocab_size=vocab_size, block_size=block_size, **changes
    )
    shake(model)
    return model.eval()


def tokens(rows=3, length=BLOCK, vocab_size=V):
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(2))


def same(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.fixture
def saved(tmp_path: Path):
    """`saved(model)` is a directory as Hugging Face's `save_pretrained` writes it."""

    def save(model, name="source"):
        model.model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


# ---- states


def test_the_last_layer_is_not_normalised():
    """Hugging Face's last hidden state is; ours is what the last block gave, as with the `Decoder`."""
    model = fresh()
    states = model.hidden(model.embed(tokens()), layers=[1])
    same(model.model.transformer.ln_f(states.layers[1]), states.last, atol=0)
    with pytest.raises(InputError, match=r"layers \[0, 2\] are asked for, but the model has the layers 0 to 1"):
        model.hidden(model.embed(tokens()), layers=[2, 0])


# ---- where a model comes from


@pytest.mark.parametrize("family", ["gpt2", "opt_350m", "gemma2"])
def test_a_directory_gives_its_weights(family, saved):
    source = fresh(family)
    model = PretrainedLM(pretrained=str(saved(source)), vocab_size=V, block_size=BLOCK // 2)
    assert all(m.training for m in model.modules())  # `from_pretrained` leaves them in eval mode
    weights, expected = model.state_dict(), source.state_dict()
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    same(model.eval()(tokens()), source(tokens()), atol=0)
    assert model.max_length == BLOCK  # block_size asks for so many, it cuts nothing off
    assert str(saved(source)) not in json.dumps(model.config())


def test_what_is_saved_does_not_depend_on_where_it_came_from(saved):
    fresh_one = fresh()
    found = [
        PretrainedLM(pretrained=str(saved(fresh_one))),
        PretrainedLM(config=fresh_one.config()["config"]),
        copy.deepcopy(fresh_one),
    ]
    assert [model.config() for model in found] == [fresh_one.config()] * 3


def test_options_of_a_pretrained_model(saved):
    model = PretrainedLM(pretrained=str(saved(fresh())), options={"resid_pdrop": 0.0, "attn_pdrop": 0.0})
    assert model.config()["config"]["resid_pdrop"] == 0.0
    assert fresh().config()["config"]["resid_pdrop"] == 0.1


def test_options_of_a_fresh_model_win_over_the_sizes():
    model = PretrainedLM(architecture="gpt2", options={**GPT2, "n_positions": 40}, vocab_size=V, block_size=BLOCK)
    assert model.max_length == 40
    renamed = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "max_position_embeddings": 40}
    assert PretrainedLM(architecture="gpt2", options=renamed, vocab_size=V).config() == model.config()


def test_no_id_is_special_in_a_fresh_model():
    """OPT's padding id is 1: its embedding would stay 0, but our token 1 is a token like others."""
    model = fresh("opt")
    assert model._embedding.padding_idx is None
    assert {model.config()["config"][f"{name}_token_id"] for name in ("bos", "eos", "pad")} == {None}


def test_tied_weights_stay_tied():
    model = fresh()
    other = PretrainedLM(**model.config())
    other.load_state_dict(model.state_dict())
    for one in (model, other, copy.deepcopy(model)):
        assert one._head.weight is one._embedding.weight
        cross_entropy(one(tokens())[:, :-1], tokens()[:, 1:]).backward()
        torch.optim.SGD(one.parameters(), lr=0.1).step()
        assert one._head.weight is one._embedding.weight
    untied = PretrainedLM(architecture="gpt2", options={**GPT2, "tie_word_embeddings": False}, vocab_size=V)
    assert untied._head.weight is not untied._embedding.weight


def test_resize_vocab(saved):
    source = fresh()
    model = PretrainedLM(pretrained=str(saved(source)), vocab_size=40, resize_vocab=True).eval()
    assert (model.vocab_size, model(tokens()).shape[-1], model.config()["config"]["vocab_size"]) == (40, 40, 40)
    same(model(tokens())[..., :V], source(tokens()))
    assert PretrainedLM(**model.config()).vocab_size == 40


# ---- bad input


def test_a_family_that_computes_its_logits_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(InputError, match=r"the family 'bert' computes its logits otherwise: .* differ by \d+"):
        PretrainedLM(architecture="bert", options=USUAL, vocab_size=V, block_size=BLOCK)
    with pytest.raises(InputError, match=r"the family 'electra' cannot be run from its embeddings \(RuntimeError"):
        PretrainedLM(architecture="electra", options=USUAL, vocab_size=V, block_size=BLOCK)
    with pytest.raises(InputError, match=r"the family 'openai-gpt' .* with a cache they differ"):
        PretrainedLM(architecture="openai-gpt", options=GPT2, vocab_size=V, block_size=BLOCK)
    with pytest.raises(InputError, match="'mamba' has no attention heads"):
        PretrainedLM(architecture="mamba", options={"num_hidden_layers": 1, "hidden_size": 24}, vocab_size=V)
    monkeypatch.setattr(PretrainedLM, "logits", lambda self, hidden: self._head(hidden))
    for family in ("gemma2", "granite", "cohere"):
        with pytest.raises(InputError, match=rf"the family '{family}' .* in one go they differ by \d+.* of 100;"):
            fresh(family)
    assert fresh("llama").vocab_size == V


def test_a_family_whose_cache_differs_is_refused(monkeypatch: pytest.MonkeyPatch):
    plain = PretrainedLM.hidden

    def forgets(self, embeddings, *, cache=None, **others):
        return plain(self, embeddings, cache=None if cache is None else self.new_cache(1), **others)

    monkeypatch.setattr(PretrainedLM, "hidden", forgets)
    with pytest.raises(InputError, match=r"with a cache they differ by \d+"):
        fresh("llama")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "no model given: give one of pretrained"),
        ({"pretrained": "gpt2", "architecture": "gpt2"}, "pretrained and architecture given: give one of"),
        ({"architecture": "gtp2"}, "there is no architecture 'gtp2'; did you mean gpt2"),
        ({"architecture": "t5"}, "'t5' gives no causal language model: ValueError: Unrecognized configuration class"),
        ({"architecture": "gpt2", "options": {"n_layers": 2}}, "'gpt2' has no option 'n_layers'; did you mean n_layer"),
        ({"architecture": "gpt2", "options": {"n_layer": "two"}}, "'gpt2' does not take these options: .*'n_layer'"),
        ({"architecture": "gpt2", "options": {"n_embd": 25, "n_head": 3}}, "(?s)25.*3"),
        ({"config": {"n_layer": 2}}, "config has no model_type among its 1 keys"),
        ({"config": {"model_type": "gpt2"}, "options": GPT2}, "options were given beside a whole config"),
    ],
)
def test_mistakes_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        PretrainedLM(**arguments)


def test_sizes_that_do_not_fit_are_refused(saved):
    source = str(saved(fresh()))
    for vocab_size in (V - 1, V + 1):
        message = (
            rf"data.vocab_size is {vocab_size}, but '.*source' has {V} ids: .* data.vocab_size: {V} .*resize_vocab"
        )
        with pytest.raises(InputError, match=message):
            PretrainedLM(pretrained=source, vocab_size=vocab_size)
    message = f"data.block_size is {BLOCK + 1}, but '.*source' holds at most {BLOCK} positions"
    with pytest.raises(InputError, match=message):
        PretrainedLM(pretrained=source, vocab_size=V, block_size=BLOCK + 1)
    with pytest.raises(InputError, match=r"has no option 'resid_drop'; did you mean resid_pdrop"):
        PretrainedLM(pretrained=source, options={"resid_drop": 0.0})


def test_a_model_that_cannot_be_loaded(saved, tmp_path: Path):
    remedy = r"could not be loaded \(.*\); give a directory .* HF_HUB_OFFLINE=1, or make a fresh model"
    for name in ("gpt2", str(tmp_path / "nowhere")):
        with pytest.raises(InputError, match=remedy) as caught:
            PretrainedLM(pretrained=name)
        assert repr(name) in str(caught.value)
        assert ("there is no such directory" in str(caught.value)) == (name != "gpt2")
        assert "\n" not in str(caught.value)
    directory = saved(fresh())
    (directory / "config.json").write_text("{")
    with pytest.raises(InputError, match=remedy):
        PretrainedLM(pretrained=str(directory))


def _with_config(directory: Path, **change: Any) -> str:
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    return str(directory)


def test_weights_of_another_config_are_named(saved):
    with pytest.raises(InputError, match=r"do not belong together: transformer.h.0.mlp.c_fc.bias is \(128,\) in the"):
        PretrainedLM(pretrained=_with_config(saved(fresh()), n_inner=100))


@pytest.mark.parametrize(
    ("quantised", "said"),
    [
        (
            {"quant_method": "exl2", "bits": 4},
            "are quantised by 'exl2', which transformers cannot read; give the model",
        ),
        (
            {"quant_method": "gptq", "bits": 4},
            "a package is missing: .*GPTQ.*full precision",
        ),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "a package is missing: .*bitsandbytes.*GGUF file"),
        ({"bits": 4}, "could not be loaded .*quant_method"),
    ],
    ids=["exl2", "gptq", "bitsandbytes", "no method"],
)
def test_a_quantisation_that_cannot_be_read_is_refused(saved, quantised: dict[str, Any], said: str):
    with pytest.raises(InputError, match=said) as caught:
        PretrainedLM(pretrained=_with_config(saved(fresh()), quantization_config=quantised))
    assert "\n" not in str(caught.value)


def test_code_of_a_directory_is_never_run_or_asked_for(saved, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda prompt="": asked.append(prompt) or "y")
    directory = saved(fresh())
    config = json.loads((directory / "config.json").read_text())
    names = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (directory / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "own", "auto_map": names}))
    for options in ({}, {"trust_remote_code": True}):
        with pytest.raises(InputError, match=r"it brings code of its own, which is never run here\); give") as caught:
            PretrainedLM(pretrained=str(directory), options=options)
        assert "\n" not in str(caught.value)
    PretrainedLM(config=fresh().config()["config"] | {"auto_map": names}, vocab_size=V)  # of a family with code here
    assert asked == []
    assert not (tmp_path / "ran").exists()


def test_pickled_weights_are_refused(saved):
    directory = saved(fresh())
    torch.save(fresh().model.state_dict(), directory / "pytorch_model.bin")
    PretrainedLM(pretrained=str(directory))
    (directory / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"\(pytorch_model.bin is pickled, which may run code: save it as"):
        PretrainedLM(pretrained=str(directory))


def test_a_model_without_all_of_its_weights_is_refused(tmp_path: Path):
    model = PretrainedLM(architecture="gpt2", options={**GPT2, "tie_word_embeddings": False}, vocab_size=V)
    weights = {name: x for name, x in model.model.state_dict().items() if name != "lm_head.weight"}
    model.model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(InputError, match=r"lacks 1 weights of a causal language model, such as lm_head.weight"):
        PretrainedLM(pretrained=str(tmp_path))
    shutil.rmtree(tmp_path)


# ---- dtype, memory


def test_dtype():
    model = fresh(dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config()["dtype"] == "bfloat16"
    assert {p.dtype for p in PretrainedLM(**model.config()).parameters()} == {torch.bfloat16}


def test_a_frozen_model_lets_what_stands_on_it_learn():
    model = MemoryLM(fresh(freeze=True), [AttentionReader(num_search_results=2)], segment_length=4)
    ids = tokens()
    context = replace(TokenContext.of_session(ids, start=0, new=BLOCK), segments=torch.arange(BLOCK) // 4)
    found = model.run(ids, context)
    assert not found.before.requires_grad  # so its forward keeps no activations
    found.logits.square().mean().backward()
    learning = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert learning
    assert not any(name.startswith("backbone.") for name in learning)
    assert not any(p.requires_grad for p in PretrainedLM(**model.backbone.config()).parameters())


def test_gradient_checkpointing_changes_no_gradient():
    gradients = []
    for checkpointing in (False, True):
        model = fresh(gradient_checkpointing=checkpointing).train()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        states = model.hidden(model.embed(tokens()), layers=[0])
        (model.logits(states.last).square().mean() + states.layers[0].square().mean()).backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        assert model.config()["gradient_checkpointing"] is checkpointing
        assert any(getattr(m, "gradient_checkpointing", False) for m in model.modules()) is checkpointing
    assert len(gradients[0]) > 10
    for name, gradient in gradients[0].items():
        same(gradients[1][name], gradient, atol=1e-6)


def test_gradient_checkpointing_with_dropout_is_exact_and_saves_memory():
    found = []
    for checkpointing in (False, True):
        model, kept = fresh(gradient_checkpointing=checkpointing).train(), {}

        def keep(tensor, kept=kept):
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        torch.manual_seed(5)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            states = model.hidden(model.embed(tokens()), layers=[0])
            loss = model.logits(states.last).square().mean() + states.layers[0].square().mean()
        loss.backward()
        found.append((loss.item(), {name: p.grad for name, p in model.named_parameters()}, sum(kept.values())))
    assert model.model.config.resid_pdrop > 0
    assert found[0][0] == found[1][0]
    assert all(torch.equal(found[1][1][name], gradient) for name, gradient in found[0][1].items())
    assert found[1][2] < found[0][2] / 2
