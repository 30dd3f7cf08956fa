"""What every Backbone keeps: padding, caches and later tokens change no logit, and its config rebuilds it.

Shapes: B batch, T positions, V vocabulary.
"""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lightning_app.errors import InputError
from lightning_app.models.backbone import Backbone
from lightning_app.models.generation import BatchDecoder, generate
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.models.losses import cross_entropy
from lightning_app.models.pretrained import PretrainedLM
from lightning_app.models.registry import build, describe
from tests.backbones import BLOCK, KINDS, LAYERS, OF_ADAPTERS, OF_OURS, SEGMENTED, WITH_MEMORY, V, made, some_ids

WITHOUT_LIMIT = {"bloom"}
COUNTED = [*OF_OURS, "gpt2", "opt_350m", "bloom", "gpt_neox", "llama", SEGMENTED]  # families whose FLOPs can be seen
LENGTHS = (9, 14, 2)


# Fast: of Hugging Face's families those that differ in what our code sees: positions, limits, logits and windows.
FAST = {
    *OF_OURS,
    *OF_ADAPTERS,
    *WITH_MEMORY,
    SEGMENTED,
    "gpt2",
    "opt_350m",
    "bloom",
    "gpt_neox",
    "llama",
    "gemma2",
    "cohere",
}
PARAMETERS = [pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow) for kind in KINDS]


@pytest.fixture(scope="module", params=PARAMETERS)  # so that a worker has all tests of one kind after each other
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(kind: str) -> Backbone:
    return made(kind)


@pytest.fixture
def ids(model: Backbone) -> Tensor:
    """(3, T), where T is as long as the model allows, and 16 at most."""
    return some_ids(length=min(BLOCK, model.max_length or BLOCK))


def left_padded(ids: Tensor, pad: int = 0) -> tuple[Tensor, Tensor, list[int]]:
    """Rows cut to their first tokens, with `pad` before them; the mask, False on padding; and how long each is."""
    lengths = [min(n, ids.shape[1]) for n in LENGTHS]
    rows, mask = torch.full_like(ids, pad), torch.zeros(ids.shape, dtype=torch.bool)
    for b, n in enumerate(lengths):
        rows[b, -n:], mask[b, -n:] = ids[b, :n], True
    return rows, mask, lengths


def same(found: Tensor, expected: Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def greedy(model: Backbone, ids: Tensor, n: int, **options: Any) -> list[int]:
    """A text that varies: sampled by a seed."""
    options = {"temperature": 0.7, "seed": 3, **options}
    return [int(token) for token in torch.cat(list(generate(model, ids, GenerationOptions(n, **options))))]


def test_the_three_steps_have_their_shapes_and_are_the_forward(model: Backbone, ids: Tensor):
    embeddings = model.embed(ids)
    states = model.hidden(embeddings)
    logits = model.logits(states.last)
    assert embeddings.shape == states.last.shape == (*ids.shape, model.width)
    assert logits.shape == (*ids.shape, model.vocab_size) == (*ids.shape, V)
    assert logits.std() > 0.05
    assert torch.equal(model(ids), logits)
    assert states.layers == {}
    same(model.states(ids).last, model.core.states(ids).last if model.core is not model else states.last)


def test_logits_of_a_family_are_its_own(model: Backbone, ids: Tensor):
    if isinstance(model, PretrainedLM):
        same(model(ids), model.model(ids).logits)


def test_states_of_the_layers_asked_for(model: Backbone, ids: Tensor):
    for states in (model.hidden(model.embed(ids), layers=[1, 0]), model.states(ids, layers=[1, 0])):
        assert sorted(states.layers) == [0, 1]
        assert states.layers[0].shape[:2] == ids.shape
        assert (states.layers[0] - states.layers[1]).abs().max() > 0.05
    assert not any(block._forward_hooks for block in model.blocks)
    if isinstance(model, PretrainedLM):
        same(states.layers[0], model.model(ids, output_hidden_states=True).hidden_states[1])


def test_a_cache_changes_no_logit(model: Backbone, ids: Tensor):
    """Fed in pieces, padded on the left and not."""
    T = ids.shape[1]
    for rows, mask in ((ids, None), left_padded(ids)[:2]):
        cache, pieces = model.new_cache(3), []
        for start, end in ((0, T // 2 - 1), (T // 2 - 1, T // 2), (T // 2, T // 2 + 1), (T // 2 + 1, T)):
            assert cache.length == start
            seen = None if mask is None else mask[:, :end]
            states = model.hidden(model.embed(rows[:, start:end]), mask=seen, cache=cache)
            pieces.append(model.logits(states.last))
        assert cache.length == T
        real = torch.ones_like(rows, dtype=torch.bool) if mask is None else mask
        same(torch.cat(pieces, 1)[real], model(rows, mask)[real], atol=2e-5)


def test_left_padding_changes_no_logit(model: Backbone, ids: Tensor):
    for pad in (0, 17):
        rows, mask, lengths = left_padded(ids, pad)
        found = model(rows, mask)
        assert torch.isfinite(found).all()
        for b, n in enumerate(lengths):
            same(found[b, -n:], model(ids[b : b + 1, :n])[0], atol=2e-5)
    assert (model(rows)[-1, -1] - found[-1, -1]).abs().max() > 1e-3  # the mask is what makes them agree


def test_right_padding_changes_no_earlier_logit(model: Backbone, ids: Tensor):
    """With a mask, and without one."""
    lengths = torch.tensor([4, ids.shape[1], 1])
    mask = torch.arange(ids.shape[1]) < lengths[:, None]
    rows = ids.where(mask, 17)
    for found in (model(rows, mask), model(rows)):
        for b, n in enumerate(lengths.tolist()):
            same(found[b, :n], model(ids[b : b + 1, :n])[0], atol=2e-5)


def test_a_later_token_changes_no_earlier_logit(model: Backbone, ids: Tensor):
    for rows, mask in ((ids, None), left_padded(ids)[:2]):
        before, changed = model(rows, mask), rows.clone()
        changed[:, -2] = (changed[:, -2] + 1) % V
        after = model(changed, mask)
        earlier = torch.ones_like(rows, dtype=torch.bool) if mask is None else mask.clone()
        earlier[:, -2:] = False
        same(after[earlier], before[earlier], atol=2e-6)
        assert (after[:, -2:] - before[:, -2:]).abs().amax(-1).min() > 1e-4


def _is_bias(name: str) -> bool:
    """That of keys moves all scores of a query alike, which changes no probability."""
    return name.endswith("bias")


def test_every_weight_that_is_trained_has_a_gradient(kind: str, model: Backbone, ids: Tensor):
    cross_entropy(model.train()(ids[:, :-1]), ids[:, 1:]).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not (p.grad.any() or _is_bias(name))}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    writer = {name for name in without - frozen if name.startswith("readers.")}  # it learns from what it writes
    assert without - writer == frozen
    assert bool(frozen) == (kind in OF_ADAPTERS)
    assert bool(writer) <= (kind in WITH_MEMORY)


def test_a_description_rebuilds_it(kind: str, model: Backbone, ids: Tensor):
    plain = json.loads(json.dumps(describe(model)))
    assert plain == describe(model)
    other = build(plain)
    assert describe(other) == plain
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.eval()(ids), model(ids))
    sizes = [(m.vocab_size, m.width, m.max_length, m.attention_width, m.segment) for m in (model, other)]
    assert sizes[0] == sizes[1]
    assert (model.max_length is None) == (kind in WITHOUT_LIMIT)
    model.config().clear()
    assert describe(model) == plain


def test_a_copy_has_weights_of_its_own(model: Backbone, ids: Tensor):
    expected, other = model(ids), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(other(ids), expected)
    assert not torch.equal(model(ids), expected)


def test_too_many_positions_are_refused(model: Backbone):
    if model.max_length is None:
        assert model(some_ids(length=3 * BLOCK)).shape == (3, 3 * BLOCK, V)
        return
    message = rf"{BLOCK + 1} positions do not fit .*{BLOCK}: shorten the text"
    with pytest.raises(InputError, match=message):
        model(some_ids(length=BLOCK + 1))
    cache = model.new_cache(3)
    model.hidden(model.embed(some_ids()), cache=cache)
    with pytest.raises(InputError, match=message):
        model.hidden(model.embed(some_ids(length=1)), cache=cache)


# Generation


def test_a_text_that_outgrows_the_context_is_the_same_without_a_cache(model: Backbone, ids: Tensor):
    found = [greedy(model, ids[:1, :5], ids.shape[1] - 2, use_cache=use_cache) for use_cache in (True, False)]
    assert found[0] == found[1]
    assert len({*found[0]}) > 2


def test_each_step_computes_the_new_token_alone_and_calls_each_block_once(model: Backbone, ids: Tensor):
    seen: list[tuple[int, ...]] = []

    def remember(_block: object, given: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
        seen.append(tuple((given[0] if given else named["hidden_states"]).shape[:2]))

    for block in model.blocks:
        block.register_forward_pre_hook(remember, with_kwargs=True)
    greedy(model, ids[:2, :3], 4)
    assert len(model.blocks) == LAYERS
    assert seen[::LAYERS] == seen[1::LAYERS] == [(2, 3), *[(2, 1)] * 3]


def test_a_text_in_a_batch_is_that_alone(model: Backbone, ids: Tensor):
    """Texts of several lengths join one by one and outgrow the context: padding on the left changes none of them."""
    T = ids.shape[1]
    prompts = [some_ids(1, length)[0].tolist() for length in (1, T + 3, T - 4)]
    options = [GenerationOptions(6 + i, temperature=0.7, seed=i) for i in range(len(prompts))]
    expected = [
        [int(token) for token in torch.cat(list(generate(model, torch.tensor([prompt]), o)))]
        for prompt, o in zip(prompts, options, strict=True)
    ]
    batch, texts = BatchDecoder(model, device=torch.device("cpu")), []
    while len(texts) < len(prompts) or batch.texts:
        if len(texts) < len(prompts):
            texts.append(batch.join(prompts[len(texts)], options[len(texts)]))
        batch.step()
        for text in [text for text in batch.texts if text.new == text.options.max_new_tokens]:
            batch.leave(text)
    assert [text.ids[len(prompt) :] for text, prompt in zip(texts, prompts, strict=True)] == expected


# Counting


@pytest.mark.parametrize("name", COUNTED)
def test_flops_per_token_are_those_counted(name: str):
    """By kernels that the counter sees; rotations, norms and activations are no matrix products."""
    model = made(name)
    for module in model.core.modules():
        if hasattr(module, "kernel"):
            module.kernel = "matmul"
    if isinstance(model, PretrainedLM):
        model.model.set_attn_implementation("eager")
    for length in (4, model.max_length or BLOCK):
        with FlopCounterMode(display=False) as counter:
            model(some_ids(length=length))
        assert 3 * counter.get_total_flops() == model.flops_per_token(length) * 3 * length
