"""Generation: the cache changes nothing, ends are kept, spare ids never drawn, chance comes from the seed only."""

from dataclasses import replace

import pytest
import torch

from lightning_app.errors import InputError
from lightning_app.models.backbone import Backbone, HiddenStates
from lightning_app.models.decoder import Decoder
from lightning_app.models.generation import BatchDecoder, generate, use_column_major_weights
from lightning_app.models.generation_options import GenerationOptions

GREEDY = GenerationOptions(max_new_tokens=5, temperature=0)
SAMPLED = GenerationOptions(max_new_tokens=5, temperature=1.0, top_k=12, top_p=0.95, seed=7)
KINDS = {"greedy": GREEDY, "sampled": SAMPLED}
BLOCK = 8


def decoder(**changes):
    """A decoder with weights so large that its greedy texts vary."""
    torch.manual_seed(0)
    model = Decoder(vocab_size=29, block_size=BLOCK, embedding_dim=16, layers=2, heads=2, tie_weights=False, **changes)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, std=0.6)
    return model.eval()


def prompt(rows=3, length=3):
    return torch.randint(29, (rows, length), generator=torch.Generator().manual_seed(length))


def texts(*args, **options):
    """(B, new) tokens."""
    return torch.stack(list(generate(*args, **options)), dim=1)


class Chain(Backbone):
    """After token i always comes `follows[i]`; ids from `spare` on score higher still, but are not real."""

    def __init__(self, follows, *, vocab_size, spare):
        super().__init__()
        self.vocab_size, self.width, self.max_length, self.attention_width = vocab_size, 1, None, 0
        self.table = torch.full((vocab_size, vocab_size), -30.0)
        self.table[torch.arange(len(follows)), torch.tensor(follows)] = 30.0
        self.table[:, spare:] = 90.0

    def embed(self, ids):
        return ids[..., None].float()

    def hidden(self, embeddings, *, mask=None, cache=None, layers=()):
        return HiddenStates(embeddings)

    def logits(self, hidden):
        return self.table[hidden[..., 0].long()]

    def new_cache(self, batch_size):
        return None

    def config(self):
        return {}


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 3, BLOCK, 2 * BLOCK + 1])
def test_cache_changes_no_token_even_far_beyond_the_block_size(positions, kind, length):
    model, options = decoder(positions=positions), replace(KINDS[kind], max_new_tokens=5 * BLOCK)
    cached = texts(model, prompt(length=length), options)
    uncached = texts(model, prompt(length=length), replace(options, use_cache=False))
    assert cached.shape == (3, 5 * BLOCK)
    assert torch.equal(cached, uncached)
    assert len(cached[:, BLOCK:].unique()) > 3  # a text that repeats one token would show no wrong cache


@pytest.mark.parametrize("positions", ["learned", "rotary"])
def test_greedy_takes_the_highest_score_of_the_whole_text(positions):
    model, ids = decoder(positions=positions), prompt()
    new = texts(model, ids, GREEDY)  # 3 + 5 tokens fill the block
    for token in new.unbind(1):
        assert torch.equal(token, model(ids)[:, -1].argmax(-1))
        ids = torch.cat([ids, token[:, None]], 1)
    assert ids.shape == (3, BLOCK)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_long_prompt_is_seen_from_its_last_block_on(use_cache):
    model, ids = decoder(), prompt(length=3 * BLOCK)
    options = replace(GREEDY, use_cache=use_cache)
    new = texts(model, ids, options)
    assert torch.equal(new[:, 0], model(ids[:, -BLOCK:])[:, -1].argmax(-1))
    assert torch.equal(new, texts(model, ids[:, -BLOCK:], options))


@pytest.mark.parametrize("use_cache", [True, False])
def test_the_window_shows_at_least_half_a_block(use_cache, monkeypatch):
    """How many positions stand behind each new token: up to a full block, then its newer half and growing again."""
    model, seen = decoder(), []
    hidden = model.hidden

    def spy(embeddings, *, mask=None, cache=None, layers=()):
        seen.append((cache.length if cache is not None else 0) + embeddings.shape[1])
        return hidden(embeddings, mask=mask, cache=cache, layers=layers)

    monkeypatch.setattr(model, "hidden", spy)
    texts(model, prompt(length=6), replace(GREEDY, max_new_tokens=12, use_cache=use_cache))
    assert seen == [6, 7, 8, 4, 5, 6, 7, 8, 4, 5, 6, 7]


def test_with_the_cache_each_position_is_computed_once(monkeypatch):
    model, new = decoder(), []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda x, **options: new.append(x.shape[1]) or hidden(x, **options))
    texts(model, prompt(length=3), GREEDY)
    assert new == [3, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("use_cache", [True, False])
def test_a_finished_row_repeats_eot_until_all_are_done(kind, use_cache):
    eot = 5
    model = Chain([1, 5, 3, 4, 5, 2], vocab_size=8, spare=6)  # 0 1 eot; 2 3 4 eot; and the chain would go on from eot
    options = replace(KINDS[kind], max_new_tokens=9, use_cache=use_cache)
    ids = torch.tensor([[0], [2]])
    assert texts(model, ids, options, vocab_size=6, eot=eot).tolist() == [[1, 5, 5], [3, 4, 5]]
    assert texts(model, ids, replace(options, max_new_tokens=2), vocab_size=6, eot=eot).tolist() == [[1, 5], [3, 4]]
    endless = texts(model, ids, options, vocab_size=6).tolist()
    assert endless == [[1, 5, 2, 3, 4, 5, 2, 3, 4], [3, 4, 5, 2, 3, 4, 5, 2, 3]]


def test_eot_in_the_prompt_ends_nothing():
    model = Chain([1, 5, 3, 4, 5, 2], vocab_size=6, spare=6)
    assert texts(model, torch.tensor([[0, 5]]), replace(GREEDY, max_new_tokens=9), eot=5).tolist() == [[2, 3, 4, 5]]


@pytest.mark.parametrize("kind", KINDS)
def test_spare_ids_are_never_drawn(kind):
    model, ids = Chain([1, 2, 0], vocab_size=5, spare=3), torch.tensor([[0]])
    options = replace(KINDS[kind], max_new_tokens=6)
    assert texts(model, ids, options, vocab_size=3).tolist() == [[1, 2, 0, 1, 2, 0]]
    assert min(texts(model, ids, options).flatten().tolist()) >= 3  # without the argument they would be


def test_spare_ids_of_a_decoder_are_never_drawn_however_hot():
    hot = GenerationOptions(max_new_tokens=40, temperature=100.0)
    drawn = texts(decoder(), prompt(rows=8), hot, vocab_size=11)
    assert drawn.unique().tolist() == list(range(11))
    assert texts(decoder(), prompt(rows=8), hot).max() >= 11


def test_the_seed_decides_and_the_global_generator_is_left_alone():
    model = decoder(dropout=0.5)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = texts(model, prompt(), SAMPLED)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(texts(model, prompt(), SAMPLED), first)
    assert not torch.equal(texts(model, prompt(), replace(SAMPLED, seed=8)), first)


def test_rows_with_the_same_prompt_are_drawn_apart():
    drawn = texts(decoder(), prompt(rows=1).expand(6, -1), replace(SAMPLED, temperature=3.0))
    assert len(drawn.unique(dim=0)) > 1


def test_nothing_stays_switched_on_between_two_tokens():
    stream = generate(decoder(), prompt(), GREEDY)
    next(stream)
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


def test_the_prompt_stays_as_it_is():
    ids = prompt()
    before = ids.clone()
    texts(decoder(), ids, GREEDY)
    assert torch.equal(ids, before)


def test_default_options():
    tokens = texts(decoder(), prompt())
    assert torch.equal(tokens, texts(decoder(), prompt(), GenerationOptions(100, temperature=0.8, seed=0)))
    assert tokens.shape == (3, 100)


MIXED = (  # length of the prompt, options
    (1, GenerationOptions(9, temperature=0)),
    (5, GenerationOptions(3, temperature=1.0, top_k=12, seed=1)),
    (2 * BLOCK, GenerationOptions(14, temperature=0.7, min_p=0.05, seed=2)),
    (3, GenerationOptions(20, temperature=1.0, top_p=0.9, repetition_penalty=1.3, seed=3)),
    (3, GenerationOptions(20, temperature=1.0, top_p=0.9, repetition_penalty=1.3, seed=4)),
)


def alone(model, ids, options):
    return torch.cat(list(generate(model, torch.tensor([ids]), options))).tolist()


@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize(
    ("every", "use_cache"),
    [
        (0, True),
        (1, True),
        (4, True),
        (1, False),
        pytest.param(0, False, marks=pytest.mark.slow),
        pytest.param(4, False, marks=pytest.mark.slow),
    ],
)
def test_texts_that_join_and_leave_get_the_tokens_that_they_get_alone(positions, use_cache, every):
    """A text joins every `every` steps (0: all at once) and leaves when it has its tokens."""
    model = decoder(positions=positions)
    waiting = [(prompt(rows=1, length=length)[0].tolist(), options) for length, options in MIXED]
    expected = [alone(model, ids, options) for ids, options in waiting]
    batch, texts, done, steps = BatchDecoder(model, device=torch.device("cpu"), use_cache=use_cache), [], [], 0
    while waiting or batch.texts:
        while waiting and (every == 0 or steps % every == 0 or not batch.texts):
            ids, options = waiting.pop(0)
            texts.append((batch.join(ids, options), len(ids)))
            if every:
                break
        batch.step()
        steps += 1
        for text in [text for text in batch.texts if text.new == text.options.max_new_tokens]:
            batch.leave(text)
            done.append(text)
    assert [text.ids[n:] for text, n in texts] == expected
    assert len(done) == len(MIXED)
    assert steps < sum(len(tokens) for tokens in expected)  # together


def test_rows_that_have_left_are_dropped_from_the_cache(monkeypatch):
    model, rows = decoder(), []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda x, **options: rows.append(len(x)) or hidden(x, **options))
    batch = BatchDecoder(model, device=torch.device("cpu"))
    texts = [batch.join([1], GREEDY) for _ in range(4)]
    for text in texts[:3]:
        batch.step()
        batch.leave(text)
    batch.step()
    assert rows == [4, 4, 2, 1]  # of the four two are left, then one: half


def test_a_row_of_a_batch_draws_with_its_own_seed():
    model = decoder()
    together = texts(model, prompt(rows=1).expand(3, -1), SAMPLED)
    single = [texts(model, prompt(rows=1), replace(SAMPLED, seed=SAMPLED.seed + i))[0] for i in range(3)]
    assert torch.equal(together, torch.stack(single))


def test_a_high_penalty_lets_no_token_come_twice():
    options = GenerationOptions(20, temperature=0.01, repetition_penalty=1e6)
    new = texts(decoder(), prompt(rows=2), options, vocab_size=29)
    for row, ids in zip(new.tolist(), prompt(rows=2).tolist(), strict=True):
        # positive scores fall to 0 and negative ones far below: while there are positive ones none is drawn again
        assert len(set(row[:8]) - set(ids)) == 8


@pytest.mark.parametrize("shape", [(0,), (1, 0), (4,), (1, 2, 3)])
def test_a_prompt_without_rows_or_tokens_is_refused(shape):
    with pytest.raises(InputError, match=r"the prompt has shape \(.*\); it must be \(rows, tokens\) with at least one"):
        list(generate(decoder(), torch.zeros(shape, dtype=torch.long), GREEDY))


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": -1},
        {"temperature": -0.1},
        {"temperature": float("nan")},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": float("nan")},
        {"temperature": float("inf")},
        {"seed": 2**63},
        {"min_p": -0.1},
        {"min_p": 1.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": 1e-38},
        {"repetition_penalty": 2e6},
        {"max_new_tokens": 2.5},
        {"top_k": 3.0},
        {"seed": 0.5},
        {"repetition_penalty": float("nan")},
    ],
)
def test_bad_options_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(InputError, match=f"{name} is {value}; it must be"):
        GenerationOptions(**wrong)


@pytest.mark.parametrize("tied", [False, True])
def test_another_layout_of_the_matrices_keeps_values_and_ties(tied):
    torch.manual_seed(0)
    model = Decoder(vocab_size=29, block_size=BLOCK, embedding_dim=16, layers=2, heads=2, tie_weights=tied).eval()
    before, expected = {n: p.clone() for n, p in model.state_dict().items()}, model(prompt())
    use_column_major_weights(model)
    assert not model.lm_head.weight.is_contiguous()
    assert (model.lm_head.weight is model.transformer["wte"].weight) == tied
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.allclose(model(prompt()), expected, atol=1e-6)
