"""A checkpoint of another model is refused by the extensions that differ, before its tensors."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_app.art.extension import ARTGPT2, ARTRegularizer
from lightning_app.art.network import AdvancedART
from lightning_app.errors import InputError
from lightning_app.memory.extension import Memory, VardaGPT
from lightning_app.memory.readers import CacheReader, KNNReader
from lightning_app.models.decoder import Decoder
from lightning_app.models.registry import describe
from lightning_app.training.checkpoint import resume, start_from
from lightning_app.training.checkpoint_fit import extensions_in
from lightning_app.training.compositions import ArticleGPT, CausalLM
from lightning_app.training.module import LanguageModule


def decoder() -> Decoder:
    return Decoder(vocab_size=257, block_size=8, embedding_dim=8, layers=1, heads=2)


def knn() -> KNNReader:
    return KNNReader(memory_size=8)


MODULES: dict[str, Callable[[], LanguageModule]] = {
    "plain": lambda: ArticleGPT(decoder()),
    "memory": lambda: VardaGPT(decoder(), [knn()]),
    "joined": lambda: CausalLM(decoder(), extensions=[Memory([knn()])]),
    "two": lambda: VardaGPT(decoder(), [knn(), knn()]),
    "cache": lambda: VardaGPT(decoder(), [CacheReader(memory_size=8)]),
    "one more": lambda: VardaGPT(decoder(), [knn(), CacheReader(memory_size=8)]),
    "larger": lambda: VardaGPT(decoder(), [KNNReader(memory_size=9)]),
    "art": lambda: ARTGPT2(decoder()),
    "both": lambda: VardaGPT(decoder(), [knn()], extensions=[ARTRegularizer()]),
}
AS_IT_WAS = "as in the config.yaml of the run that wrote the checkpoint"
INIT_FROM = ", or start a fit from its weights alone (--init_from)"


def checkpoint(of: str) -> dict[str, Any]:
    module = MODULES[of]()
    raw: dict[str, Any] = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(raw)
    return raw


@pytest.mark.parametrize(
    ("of", "named"),
    [
        ("plain", []),
        ("two", ["KNNReader", "KNNReader"]),
        ("joined", ["KNNReader"]),
        ("both", ["ARTRegularizer", "KNNReader"]),
        ("art", ["ARTRegularizer"]),
    ],
)
def test_the_extensions_in_a_description(of: str, named: list[str]):
    assert extensions_in(describe(MODULES[of]())) == named


@pytest.mark.parametrize("take", [resume, start_from])
@pytest.mark.parametrize(
    ("saved", "here", "said"),
    [
        ("two", "memory", f"this model lacks the checkpoint's KNNReader: give KNNReader {AS_IT_WAS}"),
        (
            "memory",
            "cache",
            "this model lacks the checkpoint's KNNReader, and the checkpoint lacks this model's CacheReader: "
            f"give KNNReader {AS_IT_WAS} and leave out CacheReader",
        ),
    ],
)
def test_a_memory_more_or_less(
    saved: str, here: str, said: str, take: Callable[[LanguageModule, dict[str, Any]], None]
):
    with pytest.raises(InputError) as refused:
        take(MODULES[here](), checkpoint(saved))
    assert str(refused.value) == said


@pytest.mark.parametrize(
    ("saved", "here", "said", "told"),
    [
        (
            "plain",
            "memory",
            "the checkpoint lacks this model's KNNReader: leave out KNNReader",
            "the checkpoint has no KNNReader, which starts anew; the model's weights are the checkpoint's",
        ),
        (
            "memory",
            "plain",
            f"this model lacks the checkpoint's KNNReader: give KNNReader {AS_IT_WAS}",
            "the checkpoint's KNNReader stays behind: this model has none",
        ),
        (
            "memory",
            "one more",
            "the checkpoint lacks this model's CacheReader: leave out CacheReader",
            "the checkpoint has no CacheReader, which starts anew; the model's weights are the checkpoint's",
        ),
        (
            "art",
            "both",
            "the checkpoint lacks this model's KNNReader: leave out KNNReader",
            "the checkpoint has no KNNReader, which starts anew; the model's weights are the checkpoint's",
        ),
    ],
)
def test_a_memory_is_refused_where_a_run_goes_on_and_taken_as_a_start(
    saved: str, here: str, said: str, told: str, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
):
    caplog.set_level(logging.INFO)
    module, raw = MODULES[here](), checkpoint(saved)
    with pytest.raises(InputError) as refused:
        resume(module, raw)
    assert str(refused.value) == said + INIT_FROM
    new = {name: tensor.clone() for name, tensor in module.state_dict().items() if ".readers." in name}
    start_from(module, raw)
    assert told in [*(record.message for record in caplog.records), *(str(one.message) for one in recwarn)]
    state = module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in new.items())
    assert bool(new) == (here != "plain")
    theirs, ours = (
        {name.removeprefix("backbone.backbone.").removeprefix("backbone."): x for name, x in found.items()}
        for found in (raw["state_dict"], state)
    )
    shared = [name for name in ours if name in theirs]
    assert len(shared) >= 16
    assert all(torch.equal(ours[name], theirs[name]) for name in shared)


def test_a_memory_is_new_beside_an_averaged_copy_that_goes_on():
    def with_art(*readers: KNNReader) -> LanguageModule:
        art = ARTRegularizer(advanced=AdvancedART(average_decay=0.9))
        return VardaGPT(decoder(), [*readers], extensions=[art]) if readers else CausalLM(decoder(), extensions=[art])

    saved, module = with_art(), with_art(knn())
    raw: dict[str, Any] = {"state_dict": saved.state_dict()}
    saved.on_save_checkpoint(raw)
    start_from(module, raw)
    copies = [[(k, v) for k, v in m.state_dict().items() if k.endswith("wte.weight")] for m in (saved, module)]
    assert [len(found) for found in copies] == [2, 2]
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(*copies, strict=True))


def test_art_more_or_less_is_refused_where_a_run_goes_on_and_taken_as_a_start():
    for saved, here, said in (
        ("plain", "art", f"the checkpoint lacks this model's ARTRegularizer: leave out ARTRegularizer{INIT_FROM}"),
        ("both", "memory", f"the checkpoint's ARTRegularizer: give ARTRegularizer {AS_IT_WAS}{INIT_FROM}"),
    ):
        with pytest.raises(InputError) as refused:
            resume(MODULES[here](), checkpoint(saved))
        assert str(refused.value).endswith(said)
        start_from(MODULES[here](), checkpoint(saved))


def test_equal_extensions_leave_the_word_to_the_tensors():
    resume(MODULES["joined"](), checkpoint("memory"))  # the same model by another class
    with pytest.raises(InputError, match=r"vectors has shape \(8, 8\), this model's \(9, 8\)"):
        resume(MODULES["larger"](), checkpoint("memory"))
    raw = checkpoint("plain")
    raw["state_dict"].popitem()
    with pytest.raises(InputError, match="the checkpoint lacks 1 tensors, such as backbone"):
        resume(MODULES["plain"](), raw)
