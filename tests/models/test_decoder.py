"""The decoder against Hugging Face's GPT-2 and Llama, against formulas by hand, and against itself.

Shapes: B batch, T positions, D width, V vocabulary.
"""

import copy
import io
import json
import math
import random
from pathlib import Path

import pytest
import torch
import yaml
from transformers import GPT2Config, LlamaConfig
from transformers.models.gpt2.modeling_gpt2 import GPT2LMHeadModel
from transformers.models.llama.modeling_llama import LlamaForCausalLM

from lightning_app.errors import InputError
from lightning_app.models.decoder import Decoder, FeedForward, rotary_tables, rotate
from lightning_app.models.losses import cross_entropy
from lightning_app.plasticity.kinds import units_of

V, BLOCK = 31, 12
POSITIONS = ["learned", "rotary"]
KERNELS = ["matmul", "sdpa"]
LLAMA = {"positions": "rotary", "norm": "rmsnorm", "activation": "swiglu", "bias": False}


def decoder(**changes):
    """A small decoder in eval mode with weights (biases and norms too) so large that each part shows in the logits."""
    torch.manual_seed(0)
    sizes = {"vocab_size": V, "block_size": BLOCK, "embedding_dim": 24, "layers": 2, "heads": 3}
    model = Decoder(**{**sizes, **changes})
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
    rows = torch.full_like(ids, pad)
    mask = torch.zeros(ids.shape, dtype=torch.bool)
    for b, n in enumerate(lengths):
        rows[b, -n:], mask[b, -n:] = ids[b, :n], True
    return rows, mask


def same(found, expected, atol=1e-5):
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def size(model):
    return sum(parameter.numel() for parameter in model.parameters())


# ---- against Hugging Face


def same_logits_and_loss(ours, theirs):
    ids = tokens(4, ours.max_length, ours.vocab_size)
    with torch.no_grad():
        expected, found = theirs(ids, labels=ids), ours(ids)
    assert found.std() > 0.1
    same(found, expected.logits)
    same(cross_entropy(found[:, :-1], ids[:, 1:]), expected.loss)


@pytest.mark.parametrize("seed", range(4))
def test_is_gpt2(seed):
    rng = random.Random(seed)
    heads, head_size = rng.randint(1, 4), rng.randint(3, 9)
    sizes = {"vocab_size": rng.randint(20, 90), "layers": rng.randint(1, 4), "block_size": rng.randint(5, 20)}
    torch.manual_seed(seed)
    theirs = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=sizes["vocab_size"],
            n_positions=sizes["block_size"],
            n_embd=heads * head_size,
            n_layer=sizes["layers"],
            n_head=heads,
            bos_token_id=0,
            eos_token_id=0,
        )
    ).eval()
    shake(theirs)
    ours = Decoder(**sizes, embedding_dim=heads * head_size, heads=heads).eval()

    conv1d = [name for name in theirs.state_dict() if ".c_" in name and name.endswith("weight")]  # (in, out)
    assert len(conv1d) == 4 * sizes["layers"]
    weights = {name: w.t() if name in conv1d else w for name, w in theirs.state_dict().items()}
    ours.load_state_dict(weights)
    assert size(ours) == theirs.num_parameters()
    same_logits_and_loss(ours, theirs)


@pytest.mark.parametrize("tie_weights", [True, False])
def test_with_rotary_rmsnorm_and_swiglu_is_llama(tie_weights):
    ours = decoder(**LLAMA, head_size=10, tie_weights=tie_weights)
    inner = ours.state_dict()["transformer.h.0.mlp.c_proj.weight"].shape[1]
    theirs = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=V,
            hidden_size=24,
            intermediate_size=inner,
            num_hidden_layers=2,
            num_attention_heads=3,
            head_dim=10,
            max_position_embeddings=BLOCK,
            rms_norm_eps=1e-6,
            tie_word_embeddings=tie_weights,
        )
    ).eval()

    weights = {}
    for name, w in ours.state_dict().items():
        name = name.replace("transformer.h.", "model.layers.").replace("transformer.wte", "model.embed_tokens")
        name = name.replace("transformer.ln_f", "model.norm").replace("ln_1", "input_layernorm")
        name = name.replace("ln_2", "post_attention_layernorm").replace("mlp.c_proj", "mlp.down_proj")
        name = name.replace("attn.c_proj", "self_attn.o_proj")
        if "attn.c_attn" in name:
            for part, w_part in zip("qkv", w.chunk(3), strict=True):
                weights[name.replace("attn.c_attn", f"self_attn.{part}_proj")] = w_part
        elif "mlp.c_fc" in name:
            for part, w_part in zip(("gate", "up"), w.chunk(2), strict=True):
                weights[name.replace("c_fc", f"{part}_proj")] = w_part
        else:
            weights[name] = w
    theirs.load_state_dict(weights)
    assert size(ours) == theirs.num_parameters()
    same_logits_and_loss(ours, theirs)


# ---- options against formulas


def test_rotary_by_hand():
    """Angles 1 and 0.01 at position 1 turn the pairs (1, 3) and (2, 4)."""
    cos, sin = rotary_tables(4, 3)
    assert cos.shape == sin.shape == (3, 4)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0]).expand(1, 1, 3, 4)
    turned = rotate(x, cos, sin)[0, 0]
    same(turned[0], x[0, 0, 0], atol=0)
    same(turned[1], torch.tensor([-1.9841107, 1.9599007, 2.4623779, 4.0197997]), atol=2e-6)
    same(turned.norm(dim=-1), x[0, 0].norm(dim=-1))


def test_rotary_scores_depend_on_the_distance_only():
    cos, sin = rotary_tables(8, 20)
    q, k = torch.randn(2, 1, 1, 1, 8, generator=torch.Generator().manual_seed(0)).expand(-1, -1, -1, 20, -1)
    scores = (rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(-2, -1))[0, 0]
    diagonals = [scores.diagonal(-distance) for distance in range(19)]
    for diagonal in diagonals:
        same(diagonal, diagonal[:1].expand(len(diagonal)))
    assert torch.stack([d[0] for d in diagonals]).std() > 0.1


def test_rotary_tables_are_no_weights():
    model = decoder(positions="rotary")
    assert not [name for name in model.state_dict() if "rotary" in name or "wpe" in name]
    assert size(decoder()) - size(model) == BLOCK * 24


def test_rmsnorm_by_formula():
    model = decoder(norm="rmsnorm")
    states = model.hidden(model.embed(tokens()), layers=[1])
    x, weight = states.layers[1], model.state_dict()["transformer.ln_f.weight"]
    same(states.last, x / (x.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * weight)


def test_layernorm_by_formula():
    model = decoder()
    states = model.hidden(model.embed(tokens()), layers=[1])
    x, weights = states.layers[1], model.state_dict()
    x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    same(states.last, x * weights["transformer.ln_f.weight"] + weights["transformer.ln_f.bias"])


def test_feed_forward_by_formula():
    x = torch.randn(5, 24, generator=torch.Generator().manual_seed(0))
    for activation in ("gelu", "swiglu"):
        mlp = FeedForward(24, activation=activation, bias=True)
        shake(mlp, 0.3)
        h = x @ mlp.c_fc.weight.t() + mlp.c_fc.bias
        if activation == "swiglu":
            gate, value = h.tensor_split(2, dim=1)
            h = gate / (1 + (-gate).exp()) * value
        else:
            h = 0.5 * h * (1 + (math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)).tanh())
        expected = h @ mlp.c_proj.weight.t() + mlp.c_proj.bias
        assert expected.std() > 0.3
        same(mlp(x), expected)


@pytest.mark.parametrize("D", [48, 100, 192, 768])
def test_swiglu_has_as_many_weights_as_gelu(D):
    """2/3 of the inner width, rounded to a multiple of 32: off by at most 16 x 3 D."""
    gelu, swiglu = (size(FeedForward(D, activation=kind, bias=False)) for kind in ("gelu", "swiglu"))
    assert gelu == 8 * D * D
    assert abs(swiglu - gelu) <= 48 * D
    if D % 12 == 0 and D > 48:
        assert swiglu == gelu  # 192 and 768: exactly


def test_without_bias_there_is_none():
    biased, plain = (dict(decoder(bias=bias).named_parameters()) for bias in (True, False))
    assert [name for name in biased if name not in plain] == [name for name in biased if name.endswith("bias")]
    assert len(biased) - len(plain) == 2 * 6 + 1


def test_a_gate_for_each_head_is_one_at_first_and_closes_that_head_alone():
    sizes = {"vocab_size": V, "block_size": BLOCK, "embedding_dim": 24, "layers": 2, "heads": 3}
    gated, plain = Decoder(**sizes, head_gates=True).eval(), Decoder(**sizes).eval()
    plain.load_state_dict({name: x for name, x in gated.state_dict().items() if "c_gate" not in name})
    assert torch.equal(gated(tokens()), plain(tokens()))
    cross_entropy(gated(tokens())[:, :-1], tokens()[:, 1:]).backward()
    assert all(block.attn.c_gate.weight.grad.abs().min() > 0 for block in gated.blocks)
    with torch.no_grad():
        for own, other in zip(gated.blocks, plain.blocks, strict=True):
            own.attn.c_gate.bias[1] = -200
            other.attn.c_proj.weight[:, 8:16] = 0
    same(gated(tokens()), plain(tokens()), atol=1e-7)


# ---- kernels, head sizes


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("options", [{}, {"head_size": 10, **LLAMA}])
@pytest.mark.parametrize("length", [1, BLOCK])
def test_kernels_agree(options, padded, length):
    models = [decoder(attention_kernel=kernel, **options) for kernel in KERNELS]
    ids, mask = tokens(length=length), None
    if padded:
        ids, mask = left_padded(ids, [max(1, length - 4), length, 1], pad=0)
    same(models[0](ids, mask), models[1](ids, mask), atol=2e-6)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize(("heads", "head_size"), [(5, 6), (1, 2), (3, 32)])
def test_head_size_is_independent_of_the_width(kernel, heads, head_size):
    model = decoder(heads=heads, head_size=head_size, attention_kernel=kernel)
    weights = model.state_dict()
    assert weights["transformer.h.0.attn.c_attn.weight"].shape == (3 * heads * head_size, 24)
    assert weights["transformer.h.0.attn.c_proj.weight"].shape == (24, heads * head_size)
    assert model.attention_width == 2 * heads * head_size
    assert model(tokens()).shape == (3, BLOCK, V)
    cache = model.new_cache(3)
    pieces = [model.hidden(model.embed(tokens()[:, t : t + 1]), cache=cache).last for t in range(BLOCK)]
    same(model.logits(torch.cat(pieces, 1)), model(tokens()))


# ---- training


@pytest.mark.parametrize("options", [{}, LLAMA, {"tie_weights": False, "attention_kernel": "matmul"}])
def test_one_batch_is_learned_by_heart(options):
    torch.manual_seed(0)
    model = Decoder(vocab_size=V, block_size=16, embedding_dim=32, layers=2, heads=2, **options)
    ids = tokens(4, 17)
    ids[:, 0] = torch.arange(4)  # else two rows could begin alike, and no model could tell them apart
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    losses = []
    for _ in range(200):
        loss = cross_entropy(model(ids[:, :-1]), ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if losses[-1] < 0.05:
            break
    assert losses[0] == pytest.approx(math.log(V), abs=0.2)  # a fresh model knows nothing
    assert losses[-1] < 0.05, f"{losses[-1]} after {len(losses)} steps"


def test_dropout_acts_in_training_only_and_follows_the_seed():
    plain, model, ids = decoder(), decoder(dropout=0.3), tokens()
    assert torch.equal(model(ids), plain(ids))
    model.train()
    torch.manual_seed(5)
    first, other = model(ids), model(ids)
    torch.manual_seed(5)
    again = model(ids)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, plain(ids))


# ---- sizes, initialisation, tied weights


def test_parameters_of_the_162m_preset():
    config = yaml.safe_load((Path(__file__).parents[2] / "configs/article_gpt_162m.yaml").read_text())
    options = config["model"]["init_args"]["backbone"]
    with torch.device("meta"):
        model = Decoder(vocab_size=50_257, block_size=config["data"]["block_size"], **options)
    found = model.config()
    assert (found["layers"], found["heads"], found["head_size"], found["embedding_dim"]) == (12, 12, 64, 768)
    assert (found["block_size"], found["tie_weights"]) == (256, False)
    per_block = 4 * 768 + (768 + 1) * 3 * 768 + (768 + 1) * 768 + (768 + 1) * 4 * 768 + (4 * 768 + 1) * 768
    expected = (50_257 + 256) * 768 + 12 * per_block + 2 * 768
    assert size(model.transformer) == expected == 123_849_984
    assert size(model.lm_head) == 38_597_376
    assert size(model) == 162_447_360


@pytest.mark.parametrize("tie_weights", [True, False])
@pytest.mark.parametrize("options", [{}, LLAMA])
def test_initialisation(options, tie_weights):
    torch.manual_seed(0)
    model = Decoder(
        vocab_size=400, block_size=200, embedding_dim=128, layers=8, heads=4, tie_weights=tie_weights, **options
    )
    kinds = {"residual": 0, "matrix": 0, "bias": 0, "norm": 0}
    for name, parameter in model.named_parameters():
        if name.endswith("c_proj.weight"):
            kind = "residual"
            assert parameter.std().item() == pytest.approx(0.02 / 4, rel=0.03), name  # sqrt(2 x 8 layers) = 4
        elif parameter.dim() == 2:
            kind = "matrix"
            assert parameter.std().item() == pytest.approx(0.02, rel=0.03), name
        else:
            kind = "bias" if name.endswith("bias") else "norm"
            assert (parameter == (kind == "norm")).all(), name
        if parameter.dim() == 2:
            assert abs(parameter.mean().item()) < 5 * 0.02 / parameter.numel() ** 0.5, name
        kinds[kind] += 1
    embeddings = 1 + (options == {}) + (not tie_weights)
    biases = 8 * 6 + 1 if options == {} else 0
    assert kinds == {"residual": 16, "matrix": 16 + embeddings, "bias": biases, "norm": 17}


def tied(model):
    embedding, output = model.transformer["wte"].weight, model.lm_head.weight
    return embedding is output and embedding.data_ptr() == output.data_ptr()


def test_tied_weights_share_storage_and_stay_tied():
    model = decoder()
    assert tied(model)
    assert not tied(decoder(tie_weights=False))
    assert size(decoder(tie_weights=False)) - size(model) == V * 24

    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    torch.manual_seed(9)
    other = Decoder(**model.config()).eval()
    assert not torch.equal(other(tokens()), model(tokens()))
    other.load_state_dict(torch.load(file))
    same(other(tokens()), model(tokens()), atol=0)
    for one in (other, copy.deepcopy(model)):
        assert tied(one)
        cross_entropy(one(tokens())[:, :-1], tokens()[:, 1:]).backward()
        torch.optim.SGD(one.parameters(), lr=0.1).step()
        assert tied(one)
        assert not torch.equal(one.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize(
    "options", [{}, {**LLAMA, "head_size": 10, "attention_kernel": "sdpa", "dropout": 0.2, "tie_weights": False}]
)
def test_config_rebuilds_the_model(options):
    model = decoder(**options)
    plain = json.loads(json.dumps(model.config()))
    other = Decoder(**plain).eval()
    assert plain == other.config()
    assert {name: plain[name] for name in options} == options
    other.load_state_dict(model.state_dict())
    same(other(tokens()), model(tokens()), atol=0)
    torch.manual_seed(0)
    expected = model.train()(tokens())
    torch.manual_seed(0)
    same(other.train()(tokens()), expected, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"embedding_dim": 25}, "embedding_dim 25 is not divisible by heads 3: change one of them, or give head_size"),
        ({"heads": 0}, "heads 0"),
        ({"heads": 0, "head_size": 8}, "heads is 0; it must be at least 1"),
        ({"heads": -1, "head_size": 8}, "heads is -1; it must be at least 1"),
        ({"layers": 0}, "layers is 0; it must be at least 1"),
        ({"vocab_size": 0}, "vocab_size is 0; it must be at least 1"),
        ({"block_size": 0}, "block_size is 0; it must be at least 1"),
        ({"embedding_dim": 0}, "embedding_dim is 0; it must be at least 1"),
        ({"head_size": 0}, "head_size is 0; it must be at least 1"),
        ({"head_size": -2}, "head_size is -2; it must be at least 1"),
        ({"dropout": 1.0}, r"dropout is 1.0; it must lie in \[0, 1\)"),
        ({"dropout": -0.1}, r"dropout is -0.1; it must lie in \[0, 1\)"),
        ({"positions": "rotary", "head_size": 5}, "rotary positions need an even head_size, not 5"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        decoder(**options)


# ---- FLOPs


def test_flops_per_token_by_hand():
    """6 per weight of the matrices (D -> 3 D, D -> D, D -> 4 D, 4 D -> D, D -> V), 12 per layer, width and position."""
    expected = 6 * (2 * 12 * 24 * 24 + 24 * V) + 12 * 2 * 24 * 7
    assert decoder().flops_per_token(7) == expected
    assert decoder(tie_weights=False).flops_per_token(7) == expected


def test_logits_are_no_probabilities():
    logits = decoder()(tokens())
    assert logits.min() < 0
    assert (logits.exp().sum(-1) - 1).abs().min() > 0.5


# ---- gradient checkpointing


def trained_once(*, checkpointing, **changes):
    """Loss, gradients, and the bytes that the forward keeps for the backward; dropout on, the same seed."""
    model = decoder(dropout=0.3, gradient_checkpointing=checkpointing, **changes).train()
    kept = {}

    def keep(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    torch.manual_seed(5)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        states = model.states(tokens(), layers=[0])
        loss = model.logits(states.last).square().mean() + states.layers[0].square().mean()
    loss.backward()
    return loss.item(), {name: p.grad for name, p in model.named_parameters()}, sum(kept.values())


@pytest.mark.parametrize("changes", [{}, LLAMA, {"attention_kernel": "sdpa"}], ids=["gpt2", "llama", "sdpa"])
def test_gradient_checkpointing_changes_memory_alone(changes):
    plain, recomputed = (trained_once(checkpointing=on, layers=4, **changes) for on in (False, True))
    assert recomputed[0] == plain[0]
    assert len(plain[1]) > 10
    for name, gradient in plain[1].items():
        assert torch.equal(recomputed[1][name], gradient), name
    assert recomputed[2] < plain[2] / 3


def test_gradient_checkpointing_is_for_training_alone(monkeypatch):
    model = decoder(gradient_checkpointing=True).train()
    calls = []
    spy = staticmethod(lambda block, x, **others: calls.append(1) or block(x, **others))
    monkeypatch.setattr(Decoder, "_recomputed", spy)
    model.hidden(model.embed(tokens()), cache=model.new_cache(3))
    model.eval()(tokens())
    assert calls == []
    same(model.train()(tokens()), decoder().train()(tokens()), atol=0)
    assert len(calls) == 2
    assert model.config()["gradient_checkpointing"] is True


@pytest.mark.parametrize("removes", [False, True])
def test_gates_have_the_same_gradients_with_gradient_checkpointing(removes):
    """Of what is alive: a head is masked, or cut out."""
    gradients = []
    for checkpointing in (False, True):
        model = decoder(gradient_checkpointing=checkpointing).train()
        heads, dead = units_of(model, "heads"), torch.tensor([[False, True, False], [False, False, False]])
        heads.remove(dead) if removes else heads.set_mask(~dead)
        with heads.gates() as leaves:
            model(tokens()).square().mean().backward()
        gradients.append(heads.from_leaves([leaf.grad for leaf in leaves]))
    assert gradients[0].shape == (2, 3)
    assert gradients[0].abs().sum() > 0
    assert torch.equal(*gradients)
