"""MemoryLM: segments, the order of the readers, and the Backbone contract."""

from collections.abc import Callable

import pytest
import torch

from lightning_app.errors import InputError
from lightning_app.memory.model import MemoryLM
from lightning_app.memory.options import AdvancedMemory
from lightning_app.memory.readers import AttentionReader, CacheReader, ConcatReader, KNNReader, Reader
from lightning_app.memory.readers.base import TokenContext
from lightning_app.memory.readers.learned import AdvancedReader
from lightning_app.models.decoder import Decoder
from lightning_app.models.losses import token_nll

V, D, T = 17, 8, 12


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(vocab_size=V, block_size=T, embedding_dim=D, layers=1, heads=2).eval()


def attention() -> Reader:
    return AttentionReader(memory_size=9, num_search_results=2)


def concat() -> Reader:
    return ConcatReader(memory_size=9, num_search_results=2)


def ids(seed: int = 0) -> torch.Tensor:
    return torch.randint(0, V, (2, T), generator=torch.Generator().manual_seed(seed))


def context(tokens: torch.Tensor) -> TokenContext:
    return TokenContext.of_session(tokens, start=0, new=tokens.shape[1])


@torch.no_grad()
def test_without_readers_it_is_the_backbone():
    backbone = decoder()
    model = MemoryLM(backbone, [])
    assert torch.equal(model.run(ids(), context(ids())).logits, backbone(ids()))
    assert torch.equal(model(ids()), backbone(ids()))
    assert model.flops_per_token(T) == backbone.flops_per_token(T)


@torch.no_grad()
def test_isolated_segments_do_not_see_each_other():
    backbone = decoder()
    model = MemoryLM(backbone, [], segment_length=4)
    logits = model.run(ids(), context(ids())).logits
    parts = [backbone(ids()[:, start : start + 4]) for start in (0, 4, 8)]
    torch.testing.assert_close(logits, torch.cat(parts, dim=1))
    assert model.max_length == 4
    together = MemoryLM(backbone, [], segment_length=4, isolate_segments=False)
    torch.testing.assert_close(together.run(ids(), context(ids())).logits, backbone(ids()))


@torch.no_grad()
@pytest.mark.parametrize("length", [3, 4, 9, 11])
def test_states_of_a_text_that_does_not_fill_its_segments_are_those_of_its_tokens(length: int):
    backbone = decoder()
    found = MemoryLM(backbone, [attention()], segment_length=4).eval().states(ids()[:, :length], layers=(0,))
    parts = [backbone.states(part, layers=(0,)) for part in ids()[:, :length].split(4, dim=1)]
    torch.testing.assert_close(found.last, torch.cat([part.last for part in parts], dim=1))
    torch.testing.assert_close(found.layers[0], torch.cat([part.layers[0] for part in parts], dim=1))


@torch.no_grad()
@pytest.mark.parametrize("make", [attention, concat], ids=["attention", "concat"])
def test_plain_logits_are_those_of_the_backbone(make: Callable[[], Reader]):
    model = MemoryLM(decoder(), [make()]).eval()
    model.readers[0].bank.shared.add(torch.randn(9, D, generator=torch.Generator().manual_seed(1)))
    found = model.run(ids(), context(ids()))
    torch.testing.assert_close(model.plain_logits(ids(), found), model.backbone(ids()))
    assert not torch.allclose(found.logits, model.backbone(ids()))


@torch.no_grad()
def test_readers_of_logits_come_after_each_other_and_generation_reads_the_same_memory():
    knn, cache = KNNReader(lam=0.5, memory_size=9, num_search_results=9), CacheReader(memory_size=9, scope="shared")
    model = MemoryLM(decoder(), [knn, cache]).eval()
    before = model(ids())
    vectors = torch.randn(9, D, generator=torch.Generator().manual_seed(1))
    knn.bank.write(context(ids()[:1, :9]).update_of(vectors[None], torch.ones(1, 9, dtype=torch.bool)), training=False)
    after = model(ids())
    assert not torch.allclose(after, before)
    assert torch.equal(model.text_logits(ids()), model.backbone(ids()))
    torch.testing.assert_close(after.exp().sum(-1), torch.ones(2, T))  # log-probabilities
    with_cache, cached = model.new_cache(2), []
    for t in range(T):
        states = model.hidden(model.embed(ids()[:, t : t + 1]), cache=with_cache)
        cached.append(model.logits(states.last))
    torch.testing.assert_close(torch.cat(cached, dim=1), after, rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "make", [lambda: AttentionReader(memory_size=9, next_token=True), concat], ids=["attention", "concat"]
)
def test_next_tokens_are_read_in_any_precision(make: Callable[[], Reader], dtype: torch.dtype):
    model = MemoryLM(decoder(), [make()], segment_length=4).eval()
    expected = model.run(ids(), context(ids())).logits
    found = model.to(dtype).run(ids(), context(ids())).logits
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)


SURPRISING = {"eviction": "least_surprising", "fading": 0.0}


@torch.no_grad()
@pytest.mark.parametrize(
    "make",
    [
        lambda: AttentionReader(memory_size=5, store_cost=None, advanced=AdvancedReader(**SURPRISING)),
        lambda: CacheReader(memory_size=5, scope="shared", advanced=AdvancedMemory(**SURPRISING)),
    ],
    ids=["attention", "cache"],
)
def test_what_the_backbone_did_not_expect_stays_in_the_memory(make: Callable[[], Reader]):
    """By its nats, without those that a reader's logits would have."""
    model = MemoryLM(decoder(), [make()]).eval()
    tokens = ids()[:1]
    model.backbone.transformer["wte"].weight.mul_(9)
    (output,) = model.run(tokens, context(tokens)).reader_outputs
    assert output.update is not None
    model.readers[0].bank.write(output.update, training=False)
    nats = token_nll(model.backbone(tokens)[:, :-1], tokens[:, 1:])[0]
    best = nats.topk(5).indices.sort().values
    stored = model.readers[0].bank.shared.payload(model.readers[0].bank.shared.ids())
    assert stored.positions.tolist() == best.tolist()
    torch.testing.assert_close(stored.strengths, nats[best])


@pytest.mark.parametrize(
    ("reader", "words"),
    [
        (lambda: CacheReader(advanced=AdvancedMemory(eviction="lowest_score")), "CacheReader learns no score"),
        (lambda: ConcatReader(advanced=AdvancedReader(**SURPRISING)), "it reads before the model"),
    ],
)
def test_a_rule_that_a_reader_cannot_follow_is_refused(reader: Callable[[], Reader], words: str):
    with pytest.raises(InputError, match=words):
        MemoryLM(decoder(), [reader()])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"segment_length": 0}, "segment_length is 0"),
        ({"segment_length": T + 1}, f"segment_length is {T + 1}"),
        ({"readers": [concat, concat]}, "two readers at the input"),
        ({"readers": [concat], "segment_length": 4, "isolate_segments": False}, "isolate_segments: true"),
    ],
)
def test_contradictions(options: dict, words: str):
    readers = [make() for make in options.pop("readers", [])]
    with pytest.raises(InputError, match=words):
        MemoryLM(decoder(), readers, **options)


def test_a_block_must_be_whole_segments_and_a_reader_belongs_to_one_model():
    model = MemoryLM(decoder(), [reader := attention()], segment_length=5)
    with pytest.raises(InputError, match="12 tokens is not a multiple of segment_length 5"):
        model.run(ids(), context(ids()))
    with pytest.raises(InputError, match="a reader belongs to one model"):
        MemoryLM(decoder(), [reader])
    with pytest.raises(InputError, match=r"path is 'x.npy' with scope 'stream'"):
        MemoryLM(decoder(), [AttentionReader(scope="stream", streams=2, advanced=AdvancedReader(path="x.npy"))])
