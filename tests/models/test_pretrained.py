"""Hugging Face's families behind the Backbone contract, each against its own forward.

All models are tiny, random and made here; nothing is downloaded. Shapes: B batch, T positions, V vocabulary.
"""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lightning_app.errors import InputError
from lightning_app.models.generation import BatchDecoder, GenerationOptions, generate
from lightning_app.models.losses import cross_entropy
from lightning_app.models.pretrained import PretrainedLM

V, BLOCK = 31, 16
GPT2 = {"n_layer": 2, "n_embd": 24, "n_head": 3}
OPT = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3, "ffn_dim": 40, "word_embed_proj_dim": 24}
USUAL = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3, "intermediate_size": 40}
GROUPED = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 40}
GROUPED |= {"num_key_value_heads": 2}
FAMILIES = {  # name: model_type, options
    "gpt2": ("gpt2", GPT2),
    "opt": ("opt", OPT),
    "opt_350m": ("opt", {**OPT, "word_embed_proj_dim": 12, "do_layer_norm_before": False}),
    "bloom": ("bloom", {"n_layer": 2, "hidden_size": 24, "n_head": 3}),
    "gpt_neox": ("gpt_neox", USUAL),
    "gptj": ("gptj", {**GPT2, "rotary_dim": 4}),
    "gpt_neo": (
        "gpt_neo",
        {"num_layers": 2, "hidden_size": 24, "num_heads": 3, "window_size": 5}
        | {"attention_types": [[["global", "local"], 1]]},
    ),
    "phi": ("phi", USUAL),
    "falcon": ("falcon", {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3}),
    "llama": ("llama", {**GROUPED, "head_dim": 10}),
    "mistral": ("mistral", {**GROUPED, "head_dim": 8, "sliding_window": 5}),
    "qwen2": ("qwen2", GROUPED),
    "gemma": ("gemma", {**GROUPED, "head_dim": 8}),
    "gemma2": ("gemma2", {**GROUPED, "head_dim": 8, "final_logit_softcapping": 2.0, "sliding_window": 5}),
    "granite": ("granite", {**GROUPED, "logits_scaling": 7.0, "embedding_multiplier": 3.0}),
    "cohere": ("cohere", {**GROUPED, "logit_scale": 0.3}),
}
WITHOUT_LIMIT = {"bloom"}
each_family = pytest.mark.parametrize("family", FAMILIES)


def fresh(family="gpt2", *, vocab_size=V, block_size=BLOCK, **changes):
    """A small model in eval mode with weights (biases and norms too) so large that each part shows in the logits."""
    torch.manual_seed(0)
    architecture, options = FAMILIES[family]
    model = PretrainedLM(
        architecture=architecture, options=options, vocab_size=vocab_size, block_size=block_size, **changes
    )
    shake(model)
    return model.eval()


@torch.no_grad()
def shake(model, std=0.1):
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter += torch.randn(parameter.shape, generator=generator) * std


def tokens(rows=3, length=BLOCK, vocab_size=V):
    return torch.randint(vocab_size, (rows, length), generator=torch.Generator().manual_seed(2))


def left_padded(ids, lengths, pad):
    """Rows cut to their first `lengths` tokens, with `pad` before them; and the mask, False on padding."""
    rows, mask = torch.full_like(ids, pad), torch.zeros(ids.shape, dtype=torch.bool)
    for b, n in enumerate(lengths):
        rows[b, -n:], mask[b, -n:] = ids[b, :n], True
    return rows, mask


def same(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


@pytest.fixture
def saved(tmp_path: Path):
    """`saved(model)` is a directory as Hugging Face's `save_pretrained` writes it."""

    def save(model, name="source"):
        model.model.save_pretrained(tmp_path / name)
        return tmp_path / name

    return save


# ---- each family against its own forward


@each_family
def test_logits_are_those_of_the_family(family):
    model, ids = fresh(family), tokens()
    with torch.no_grad():
        expected = model.model(ids).logits
        found = model(ids)
    assert found.shape == (3, BLOCK, V)
    assert found.std() > 0.05
    same(found, expected)
    assert model.embed(ids).shape == (3, BLOCK, model.width)
    assert model.hidden(model.embed(ids)).last.shape == (3, BLOCK, model.width)


@each_family
def test_a_cache_changes_no_logit(family):
    """Fed in pieces of 7, 1, 1 and 7 positions, padded on the left and not."""
    model = fresh(family)
    for ids, mask in ((tokens(), None), left_padded(tokens(), [9, BLOCK, 2], pad=0)):
        cache, pieces = model.new_cache(3), []
        for start, end in ((0, 7), (7, 8), (8, 9), (9, BLOCK)):
            assert cache.length == start
            seen = None if mask is None else mask[:, :end]
            states = model.hidden(model.embed(ids[:, start:end]), mask=seen, cache=cache)
            pieces.append(model.logits(states.last))
        assert cache.length == BLOCK
        real = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        same(torch.cat(pieces, 1)[real], model(ids, mask)[real])


@each_family
def test_left_padding_changes_no_logit(family):
    model, ids, lengths = fresh(family), tokens(), [4, BLOCK, 1]
    for pad in (0, 17):
        rows, mask = left_padded(ids, lengths, pad)
        found = model(rows, mask)
        assert torch.isfinite(found).all()
        for b, n in enumerate(lengths):
            same(found[b, -n:], model(ids[b : b + 1, :n])[0])
    assert (model(rows)[0, -1] - found[0, -1]).abs().max() > 1e-3  # the mask is what makes them agree


@each_family
def test_a_later_token_changes_no_earlier_logit(family):
    model, ids = fresh(family), tokens()
    before, changed = model(ids), ids.clone()
    changed[:, -3] = (changed[:, -3] + 1) % V
    after = model(changed)
    same(after[:, :-3], before[:, :-3], atol=1e-6)
    assert (after[:, -3:] - before[:, -3:]).abs().amax(-1).min() > 1e-4


@each_family
def test_states_of_the_layers_asked_for(family):
    model, ids = fresh(family), tokens()
    states = model.hidden(model.embed(ids), layers=[1, 0])
    assert sorted(states.layers) == [0, 1]
    assert not any(block._forward_hooks for block in model._blocks)
    with torch.no_grad():
        theirs = model.model(ids, output_hidden_states=True).hidden_states
    same(states.layers[0], theirs[1])
    assert (states.layers[0] - states.layers[1]).abs().max() > 0.05
    assert model.hidden(model.embed(ids)).layers == {}


def test_the_last_layer_is_not_normalised():
    """Hugging Face's last hidden state is; ours is what the last block gave, as with the `Decoder`."""
    model = fresh()
    states = model.hidden(model.embed(tokens()), layers=[1])
    same(model.model.transformer.ln_f(states.layers[1]), states.last, atol=0)
    with pytest.raises(InputError, match=r"layers \[0, 2\] are asked for, but the model has the layers 0 to 1"):
        model.hidden(model.embed(tokens()), layers=[2, 0])


@each_family
def test_every_weight_has_a_gradient(family):
    model, ids = fresh(family).train(), tokens()
    cross_entropy(model(ids[:, :-1]), ids[:, 1:]).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None]
    assert missing == []
    assert model.embed(torch.arange(V)).shape == (V, model.width)


@each_family
def test_config_rebuilds_the_model(family):
    model = fresh(family)
    plain = json.loads(json.dumps(model.config()))
    assert plain == model.config()
    other = PretrainedLM(**plain)
    assert other.config() == plain
    other.load_state_dict(model.state_dict())
    same(other.eval()(tokens()), model(tokens()), atol=0)
    sizes = [(m.vocab_size, m.width, m.max_length, m.attention_width) for m in (model, other)]
    assert sizes[0] == sizes[1]
    assert (model.max_length is None) == (family in WITHOUT_LIMIT)


# ---- generation


@pytest.mark.parametrize("family", ["gpt2", "opt_350m", "bloom", "llama", "mistral"])
def test_generation_with_a_cache_and_beyond_max_length(family):
    model, options = fresh(family), {"max_new_tokens": 2 * BLOCK, "temperature": 0.7, "seed": 3}
    found = [
        torch.stack(list(generate(model, tokens(2, 5), GenerationOptions(**options, use_cache=use_cache))))
        for use_cache in (True, False)
    ]
    assert torch.equal(*found)
    assert found[0].shape == (2 * BLOCK, 2)
    assert len(found[0].unique()) > 5


@pytest.mark.parametrize("family", FAMILIES)
def test_each_step_computes_the_new_token_alone(family):
    model, seen = fresh(family), []
    model.model.base_model.register_forward_pre_hook(
        lambda _model, _arguments, named: seen.append(named["inputs_embeds"].shape[:2]), with_kwargs=True
    )
    list(generate(model, tokens(2, 5), GenerationOptions(4)))
    assert seen == [(2, 5), *[(2, 1)] * 3]


@pytest.mark.parametrize("family", ["gpt2", "opt", "bloom", "llama", "mistral"])
def test_a_text_in_a_batch_is_that_alone(family):
    """Texts of several lengths join one by one and outgrow the context: padding on the left changes none of them."""
    model, prompts = fresh(family), [tokens(1, length)[0].tolist() for length in (1, BLOCK + 3, 5, 9)]
    options = [GenerationOptions(BLOCK + i, temperature=0.7, seed=i) for i in range(len(prompts))]
    expected = [
        torch.cat(list(generate(model, torch.tensor([ids]), o))).tolist()
        for ids, o in zip(prompts, options, strict=True)
    ]
    batch, texts = BatchDecoder(model, device=torch.device("cpu")), []
    while len(texts) < len(prompts) or batch.texts:
        if len(texts) < len(prompts):
            texts.append(batch.join(prompts[len(texts)], options[len(texts)]))
        batch.step()
        for text in [text for text in batch.texts if text.new == text.options.max_new_tokens]:
            batch.leave(text)
    assert [text.ids[len(ids) :] for text, ids in zip(texts, prompts, strict=True)] == expected
    assert len({token for text in expected for token in text}) > 5


def test_too_many_positions_are_refused():
    model, message = fresh(), f"{BLOCK + 1} positions do not fit the model's {BLOCK}: shorten the text"
    with pytest.raises(InputError, match=message):
        model(tokens(length=BLOCK + 1))
    cache = model.new_cache(3)
    model.hidden(model.embed(tokens()), cache=cache)
    with pytest.raises(InputError, match=message):
        model.hidden(model.embed(tokens(length=1)), cache=cache)
    assert fresh("bloom")(tokens(length=3 * BLOCK)).shape == (3, 3 * BLOCK, V)


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
    renamed = {"num_hidden_layers": 2, "hidden_size": 24, "num_attention_heads": 3, "max_position_embeddings": 40}
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
    (directory / "model.safetensors").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match=remedy):
        PretrainedLM(pretrained=str(directory))
    (directory / "config.json").write_text("{")
    with pytest.raises(InputError, match=remedy):
        PretrainedLM(pretrained=str(directory))


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


# ---- dtype, memory, FLOPs


def test_dtype():
    model = fresh(dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.config()["dtype"] == "bfloat16"
    assert {p.dtype for p in PretrainedLM(**model.config()).parameters()} == {torch.bfloat16}


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


@pytest.mark.parametrize("family", ["gpt2", "opt_350m", "bloom", "gpt_neox", "llama"])
@pytest.mark.parametrize("length", [4, BLOCK])
def test_flops_per_token_equal_those_counted(family, length):
    """Eager attention, which the counter sees; rotations, norms and activations are no matrix products."""
    model, ids = fresh(family), tokens(5, length)
    model.model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        model(ids)
    assert 3 * counter.get_total_flops() == model.flops_per_token(length) * ids.numel()


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
