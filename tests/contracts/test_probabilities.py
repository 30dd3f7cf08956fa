"""Every way in which a probability is made: it is one, and knows nothing of what comes later."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from lightning_app.data.batch import Batch
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.readers import CacheReader, KNNReader, NGramReader
from lightning_app.models.adaptation_options import AdaptationOptions
from lightning_app.training.adapting import adapting
from lightning_app.training.compositions import ArticleGPT
from lightning_app.training.module import LanguageModule
from tests.made_models import BLOCK, READERS, decoder, fill, learned_mixture, learned_pointer, ready

SOURCE = "what the teacher shows and forgets what nobody asks about again"
TEXT = bytes(range(256)) + b"the model learns what the teacher shows and forgets what nobody asks about again " * 10
STORE = {"memory_size": 300, "num_search_results": 5}
BOTH = ["knn and cache", "cache, adapting", "mixture, adapting"]  # each alone is fast
WAYS = [*READERS, "plain", "ngram", "ngram that writes", "mixture", "adapting", *BOTH]


def made(way: str) -> LanguageModule:
    torch.manual_seed(1)
    name = way.removesuffix(", adapting")
    readers: dict[str, Callable[[], list]] = {
        "knn and cache": lambda: [KNNReader(temperature=20.0, **STORE), CacheReader(lam=0.3, **STORE)],
        "cache": lambda: [CacheReader(lam=0.3, memory_size=300)],
        "mixture": lambda: [
            NGramReader(order=4),
            KNNReader(temperature=20.0, **STORE),
            CacheReader(**STORE),
            learned_pointer(memory_size=300),
            learned_mixture(),
        ],
        "ngram": lambda: [NGramReader(order=4)],
        "ngram that writes": lambda: [NGramReader(order=4, writes="evaluation")],
        **{one: lambda one=one: [READERS[one](**STORE)] for one in READERS if one != "cache"},
    }
    if name not in readers:
        return ready(ArticleGPT(decoder()))[0]
    module = VardaGPT(decoder(), readers[name]())
    for reader in module.backbone.readers:
        if isinstance(reader, NGramReader):
            reader.bank.hold(torch.tensor(list(SOURCE.encode())))
    fill(module, SOURCE)
    return ready(module)[0]


@torch.no_grad()
def logits(module: LanguageModule, text: bytes, *, adapts: bool) -> Tensor:
    """(N, V) of a text in blocks, as an evaluation scores it; what was scored is written and learned."""
    found = []
    ids = torch.tensor(list(text))
    options = adapting(module, AdaptationOptions(lr=1e-2)) if adapts else nullcontext()
    with module.session(), options as adaptation:
        for start in range(0, len(ids) - BLOCK, BLOCK):
            batch = Batch.of(ids[None, start : start + BLOCK + 1], positions=torch.arange(start, start + BLOCK)[None])
            outputs = module.outputs(batch)
            found.append(outputs.logits[0])
            for extension in module.extensions:
                extension.after_evaluation_batch(outputs)
            if adaptation is not None:
                adaptation.learn(batch)
    return torch.cat(found)


@pytest.mark.parametrize("way", [pytest.param(w, marks=pytest.mark.slow) if w in BOTH else w for w in WAYS])
def test_a_mixture_sums_to_1_and_what_comes_later_changes_nothing(way: str):
    module, adapts, changed_at = made(way), "adapting" in way, 20 * BLOCK + 7
    whole = logits(module, TEXT, adapts=adapts)
    assert len(whole) >= 1000
    if way.startswith(
        ("knn", "cache", "ngram", "pointer", "mixture")
    ):  # of other logits the softmax makes probabilities
        assert whole.double().logsumexp(-1).abs().max() < 1e-6
    other = TEXT[:changed_at] + bytes(255 - byte for byte in TEXT[changed_at:])
    changed = logits(module, other, adapts=adapts)
    assert torch.equal(whole[:changed_at], changed[:changed_at])
    assert not torch.equal(whole[changed_at + 1 :], changed[changed_at + 1 :])


@pytest.mark.slow
def test_who_adapts_or_writes_follows_the_text():
    """Else nothing above could have failed."""
    for way, other in (("adapting", "plain"), ("cache, adapting", "cache")):
        module = made(way)
        assert not torch.equal(logits(module, TEXT, adapts=True), logits(made(other), TEXT, adapts=False))
