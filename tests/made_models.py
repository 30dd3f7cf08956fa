"""Small models of each kind, with random weights and a memory, categories or heads to look at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch

from lightning_app.art.extension import ARTRegularizer
from lightning_app.data.corpus import Document
from lightning_app.data.tokenizers import Tokenizer, load_tokenizer
from lightning_app.former import options_of_today
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.readers import (
    AttentionReader,
    CacheReader,
    ConcatReader,
    GatedMixture,
    KNNReader,
    PointerReader,
    PromptReader,
    Reader,
    TrimeReader,
)
from lightning_app.memory.slots import Entries
from lightning_app.memory.tools import build
from lightning_app.memory.tools.build import Text
from lightning_app.models.decoder import Decoder
from lightning_app.plasticity.kinds import units_in
from lightning_app.training.compositions import ArticleGPT
from lightning_app.training.module import LanguageModule

WIDTH, BLOCK, LAYERS, HEADS = 16, 24, 2, 4
SPAN = 6  # bytes of text that go with each entry


def learned_pointer(**options: Any) -> PointerReader:
    """One that has left its start: random numbers where all are 0 there."""
    return _moved(PointerReader(**options), "metric_change.weight", "age_bias", "gate.outer.weight")


def learned_mixture(**options: Any) -> GatedMixture:
    """The same."""
    return _moved(GatedMixture(**options), "gate.outer.weight")


R = TypeVar("R", bound=Reader)


def _moved(reader: R, *names: str) -> R:
    build = reader.build

    def build_and_move(**sizes: int) -> None:
        build(**sizes)
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for name in names:
                parameter = reader.get_parameter(name)
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))

    object.__setattr__(reader, "build", build_and_move)
    return reader


READERS: dict[str, Callable[..., Reader]] = {
    "attention": AttentionReader,
    "concat": ConcatReader,
    "knn": lambda **o: KNNReader(lam=0.25, temperature=20.0, **o),
    "trime": TrimeReader,
    "pointer": lambda **o: learned_pointer(**{"scope": "shared"} | o),
    "cache": lambda **o: CacheReader(lam=0.3, theta=0.1, **{"scope": "shared"} | o),
}
Made = tuple[LanguageModule, Tokenizer]


def decoder(block_size: int = BLOCK) -> Decoder:
    torch.manual_seed(0)
    backbone = Decoder(vocab_size=257, block_size=block_size, embedding_dim=WIDTH, layers=LAYERS, heads=HEADS)
    torch.nn.init.normal_(backbone.transformer["wte"].weight, std=1.0)
    return backbone


def ready(module: LanguageModule) -> Made:
    tokenizer = load_tokenizer("bytes")
    module.use_tokenizer(tokenizer)
    return module.eval(), tokenizer


@torch.no_grad()
def fill(module: VardaGPT, source: str) -> None:
    """Store each byte of a text but the last, at its state, with the bytes up to it and the one behind."""
    module.memory.documents[7] = "/home/somebody/texts/source.txt"
    ids = torch.tensor([list(source.encode())])
    for reader in module.backbone.readers:
        if not reader.bank.memories:
            continue
        inner = module.backbone.backbone
        states = inner.embed(ids) if reader.reads_input else inner.states(ids[:, -BLOCK:]).last
        n = states.shape[1] - 1
        first = ids.shape[1] - 1 - n
        length = reader.bank.shared.span_length
        spans = torch.nn.functional.pad(ids[0], (length, 0), value=-1).unfold(0, max(1, length), 1)[1:, :length]
        at = torch.arange(first, first + n)
        payload = Entries(ids[0, first + 1 :], torch.full((n,), 7), at, spans[at])
        reader.bank.shared.add(reader.queries(states)[0, :-1], payload)


@pytest.fixture(scope="session")
def reading() -> Callable[..., Made]:
    """`reading("knn", "a text", segment_length=8)`: a model with this reader of a memory that holds the text."""

    def make(name: str, source: str, *, segment_length: int | None = None, **options: Any) -> Made:
        options = {"memory_size": 50, "num_search_results": 3, "span_length": SPAN, **options}
        torch.manual_seed(1)
        made = READERS[name](**options_of_today(options, "AttentionReader"))  # readers have them at the same places
        module = VardaGPT(decoder(), [made], segment_length, isolate_segments=segment_length == 8)
        fill(module, source)
        return ready(module)

    return make


@pytest.fixture
def sorting() -> Callable[..., Made]:
    """`sorting("a text", vigilance=0.9)`: a model whose only category is that of the text, if there is one."""

    def make(text: str = "", **options: Any) -> Made:
        regularizer = ARTRegularizer(**{"vigilance": 0.5, "novelty": "margin", **options})
        module, tokenizer = ready(ArticleGPT(decoder(), extensions=[regularizer]))
        if text:
            ids = torch.tensor([tokenizer.encode(text)])
            states = module.backbone.states(ids, layers=regularizer.layers)
            state = states.last if regularizer.layer is None else states.layers[regularizer.layer]
            regularizer.art.learn(state.mean(1).detach(), ids)
        return module, tokenizer

    return make


@pytest.fixture
def pruned() -> Made:
    """Heads 0 and 3 of layer 0 were removed, head 1 of layer 1 is masked; a quarter of its neurons was removed."""
    module = ArticleGPT(decoder())
    heads, neurons = units_in(module, "heads")[0], units_in(module, "neurons")[0]
    heads.remove(torch.tensor([[True, False, False, True], [False] * HEADS]))
    heads.set_mask(torch.tensor([[True] * HEADS, [True, False, True, True]]))
    dead = torch.zeros(neurons.shape, dtype=torch.bool)
    dead[1, ::4] = True
    neurons.remove(dead)
    return ready(module)


@pytest.fixture
def plain() -> Made:
    return ready(ArticleGPT(decoder()))


FOUND = {"fox.txt": "The quick brown fox jumps over it.", "sea.txt": "Waves come in from the sea and go out."}


def finding(folder: Path) -> Made:
    """A model that puts one of these texts before a prompt."""
    backbone = decoder(block_size=256)
    for block in backbone.blocks:
        torch.nn.init.normal_(block.attn.c_attn.weight)  # what stands before changes what follows
        torch.nn.init.normal_(block.attn.c_proj.weight)
    reader = PromptReader(memory_size=200, num_search_results=16)
    module, tokenizer = ready(VardaGPT(backbone, [reader]))
    documents = [Document(text, name=f"/home/somebody/{name}") for name, text in FOUND.items()]
    text = Text.of(documents, tokenizer, str(folder), block_size=64, stride=None)
    build.fill(module.memory, reader, text, range(len(documents)), skipped=[])
    return module, tokenizer
