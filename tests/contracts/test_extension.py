"""What every extension keeps: it joins any module, and only an optimizer step changes it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_app.art.extension import ARTGPT2, ARTRegularizer
from lightning_app.data.batch import Batch
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.sources import Source
from lightning_app.data.tokenizers import load_tokenizer
from lightning_app.errors import InputError
from lightning_app.memory.extension import Memory, VardaGPT
from lightning_app.memory.model import MemoryLM
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
from lightning_app.memory.readers.learned import AdvancedReader
from lightning_app.memory.tools.checkpoint import Opened, fitting, with_capacity
from lightning_app.models.decoder import Decoder
from lightning_app.models.extension import Extension, Outputs, Regularizer
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.models.registry import build, describe
from lightning_app.models.weighing import COUNTED
from lightning_app.serving.explain import explain
from lightning_app.training.checkpoint import Checkpoint, load_module
from lightning_app.training.compositions import ArticleGPT, CausalLM
from lightning_app.training.module import LanguageModule
from tests.advice import SHORT, advised
from tests.conftest import write_texts

Fitted = tuple[CausalLM, dict[str, Tensor]]
IDS = torch.arange(60, 76)[None]
CHECKPOINT = Path("runs/tiny/version_0/checkpoints/last.ckpt")


class Counter(Regularizer):
    """The mean square of a layer's states; counts the batches that it has learned from."""

    learned: Tensor

    def __init__(self, weight: float = 0.5) -> None:
        super().__init__(weight, layers=(0,))
        self.register_buffer("learned", torch.zeros((), dtype=torch.int64))

    def loss(self, outputs: Outputs) -> dict[str, Tensor]:
        return {"zero": outputs.states.layers[0].square().mean()}

    def config(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def learn(self, outputs: Outputs) -> None:
        self.learned += 1


def memory(reader: type, **options: Any) -> Extension:
    return reader(memory_size=100, num_search_results=3, writes="always", **options)


def learned(reader: Callable[..., Reader]) -> Extension:
    return Memory(
        [reader(memory_size=100, num_search_results=3, advanced=AdvancedReader(hard_deletion_after=2))],
        segment_length=8,
    )


KINDS: dict[str, Callable[[], Extension]] = {
    "one that does nothing": Extension,
    "a loss term": Counter,
    "ART": lambda: ARTRegularizer(vigilance=0.9, novelty="margin", capacity=20),
    "ART with an average": lambda: ARTRegularizer(vigilance=0.9, novelty="drift", rehearsal=0.1, capacity=20),
    "AttentionReader": lambda: learned(AttentionReader),
    "AttentionReader with a budget": lambda: learned(partial(AttentionReader, store_cost=None, next_token=True)),
    "ConcatReader": lambda: learned(ConcatReader),
    "KNNReader": lambda: memory(KNNReader),
    "PromptReader": lambda: PromptReader(memory_size=100),
    "CacheReader": lambda: memory(CacheReader, streams=4),
    "PointerReader": lambda: memory(PointerReader, streams=4),
    "GatedMixture": lambda: Memory([memory(CacheReader, streams=4), memory(PointerReader, streams=4), GatedMixture()]),
    "TrimeReader": lambda: memory(TrimeReader),
}


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def decoder() -> Decoder:
    torch.manual_seed(0)
    return Decoder(vocab_size=257, block_size=16, embedding_dim=16, layers=1, heads=2, dropout=0.0)


def module_with(*extensions: Extension, **options: Any) -> CausalLM:
    return CausalLM(decoder(), extensions=list(extensions), **options)


def texts() -> TextDataModule:
    return TextDataModule(
        train=Source("train.txt"), val=Source("val.txt"), block_size=16, dataloader={"batch_size": 4, "shuffle": True}
    )


@pytest.fixture
def data(folder: Path) -> TextDataModule:
    return texts()


def fit(module: LanguageModule, data: TextDataModule) -> dict[str, Tensor]:
    torch.manual_seed(1)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=2,
        limit_val_batches=0,
        enable_checkpointing=False,
        log_every_n_steps=1,
        use_distributed_sampler=False,
        **quiet,
    )
    with advised(SHORT):
        trainer.fit(module, datamodule=data)
    return dict(trainer.callback_metrics)


@pytest.fixture(scope="module")
def fitted(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Fitted:
    """A module that has trained, and its metrics; read only."""
    module = module_with(KINDS[kind]())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fitted"))
        write_texts()
        return module, fit(module, texts())


def some_batch(data: TextDataModule) -> Batch:
    data.prepare_data()
    data.setup("fit")
    return next(iter(data.train_dataloader()))


def state(module: LanguageModule) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(module: LanguageModule, before: dict[str, Tensor]) -> None:
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


def test_terms_are_scalars_with_a_weight_and_a_known_mean(kind: str, data: TextDataModule):
    module = module_with(KINDS[kind]())
    (extension,) = module.extensions
    terms = extension.terms(module.train().outputs(some_batch(data)))
    assert all(isinstance(weight, float | int) and term.dim() == 0 for weight, term in terms.values())
    assert set(extension.means_over.values()) <= set(COUNTED)
    assert set(module.loss_terms(module.outputs(some_batch(data)))) == {"ce", *terms}


def test_only_a_step_changes_it(fitted: Fitted, data: TextDataModule):
    """Not a forward, an evaluation, a session, nor a generation."""
    module, _ = fitted
    before, batch = state(module), some_batch(data)
    for passes in (module.train(), module.eval()):
        passes.loss_terms(passes.outputs(batch))
    with torch.no_grad(), module.session():
        outputs = module.outputs(batch)
        for extension in module.extensions:
            extension.measures(outputs, training=False)
            extension.describe(outputs)
            extension.after_evaluation_batch(outputs)
        list(module.generate(IDS, GenerationOptions(max_new_tokens=3)))
    assert_same(module, before)


def test_a_description_rebuilds_it(fitted: Fitted, data: TextDataModule):
    module, _ = fitted
    again = build(describe(module))
    again.load_state_dict(module.state_dict())
    again.load_own_state(module.own_state(), resumes=False)
    assert describe(again) == describe(module)
    assert again.own_state() == module.own_state()
    batch = some_batch(data)
    assert torch.equal(again.eval().outputs(batch).logits, module.eval().outputs(batch).logits)


def test_a_copy_of_the_module_is_a_whole_of_its_own(kind: str, data: TextDataModule):
    module = module_with(KINDS[kind]())
    fit(module, data)
    twin, batch = copy.deepcopy(module).eval(), some_batch(data)
    (extension,) = twin.extensions
    ours = {id(p) for p in twin.parameters()}
    assert {id(p) for p in extension.model.parameters()} <= ours
    before = twin.outputs(batch).logits
    with torch.no_grad():
        for tensor in [*module.parameters(), *module.buffers()]:
            tensor.zero_()
    assert torch.equal(twin.outputs(batch).logits, before)


def test_what_it_says_after_a_step_is_numbers(fitted: Fitted):
    module, metrics = fitted
    assert {type(number) for number in module.learned.values()} <= {float}
    assert {f"train/{name}" for name in module.learned} <= metrics.keys()
    (extension,) = module.extensions
    assert set(extension.on_bar) <= module.learned.keys()
    own = {id(buffer) for buffer in module.buffers()}
    assert {id(buffer) for buffer in extension.learned_buffers()} <= own


# The list


def test_terms_come_in_the_order_of_the_list(data: TextDataModule):
    module = module_with(Counter(), ARTRegularizer(vigilance=0.9), memory(TrimeReader))
    assert list(module.loss_terms(module.outputs(some_batch(data)))) == ["ce", "zero", "art"]
    other = module_with(ARTRegularizer(vigilance=0.9), Counter())
    assert list(other.loss_terms(other.outputs(some_batch(data)))) == ["ce", "art", "zero"]


def test_readers_that_stand_by_themselves_share_one_memory():
    module = module_with(KNNReader(memory_size=8), Counter(), CacheReader(memory_size=8))
    assert [type(extension) for extension in module.extensions] == [Memory, Counter]
    assert isinstance(module.backbone, MemoryLM)
    assert [type(reader) for reader in module.backbone.readers] == [KNNReader, CacheReader]


def test_a_second_memory_is_refused():
    with pytest.raises(InputError, match="has a memory already: give all readers to one Memory"):
        module_with(Memory([KNNReader(memory_size=8)]), CacheReader(memory_size=8))


def test_regularizers_are_their_former_name():
    new = describe(ArticleGPT(decoder(), extensions=[Counter()]))
    former = {**new, "options": dict(new["options"])}
    former["options"]["regularizers"] = former["options"].pop("extensions")
    assert Checkpoint.of({"lightning_app": {"model": former, "format": 2}}).model == new


NAMED: dict[str, Callable[[], tuple[LanguageModule, LanguageModule]]] = {
    "VardaGPT": lambda: (
        VardaGPT(decoder(), [AttentionReader(memory_size=50)], 8, extensions=[Counter()]),
        module_with(Counter(), Memory([AttentionReader(memory_size=50)], 8)),
    ),
    "ARTGPT2": lambda: (
        ARTGPT2(decoder(), ARTRegularizer(vigilance=0.9), extensions=[Counter()]),
        module_with(ARTRegularizer(vigilance=0.9), Counter()),
    ),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_named_composition_is_any_module_with_its_extension(name: str, data: TextDataModule):
    named, other = NAMED[name]()
    metrics = [fit(module, data) for module in (named, other)]
    assert metrics[0] == metrics[1]
    assert_same(named, state(other))


def test_a_memory_and_art_join_any_module_by_yaml(main: Callable[..., None], config: Callable[..., str]):
    extensions = [
        {"class_path": "KNNReader", "init_args": {"memory_size": 100, "num_search_results": 3, "writes": "always"}},
        {"class_path": "ARTRegularizer", "init_args": {"vigilance": 0.9}},
    ]
    main("fit", "--config", config({"model": {"init_args": {"extensions": extensions}}}))
    module, tokenizer = load_module(CHECKPOINT)
    assert isinstance(module, ArticleGPT)
    assert [type(extension) for extension in module.extensions] == [Memory, ARTRegularizer]
    stored = dict(module.stored(lambda n: torch.arange(n), tokenizer))
    assert set(stored) == {"backbone.readers.0.bank.0", "art"}
    assert {row[2] for row in stored["backbone.readers.0.bank.0"].rows} == {"train.txt"}
    tokens = [torch.cat(list(module.generate(IDS, GenerationOptions(max_new_tokens=20)))) for _ in range(2)]
    assert torch.equal(*tokens)
    assert explain(module, tokenizer, "the model")["memory"][0]["reader"] == "knn"


def test_the_memory_of_any_module_is_grown_and_its_config_written_beside_it(folder: Path):
    module, tokenizer = module_with(Memory([KNNReader(memory_size=8)], 8), Counter()), load_tokenizer("bytes")
    module.use_tokenizer(tokenizer)
    module.extensions[0].documents[7] = "here.txt"  # type: ignore[operator,union-attr,index]
    opened = with_capacity(Opened(folder / "old.ckpt", {}, module.eval(), tokenizer), 20)
    assert opened.knn.bank.shared.memory_size == 20
    assert opened.memory.documents == {7: "here.txt"}
    model = fitting({"model": {"init_args": {"extensions": []}}}, opened.module)["model"]
    assert (model["class_path"], set(model["init_args"])) == ("CausalLM", {"backbone", "extensions"})
    assert model["init_args"]["extensions"][0]["init_args"]["segment_length"] == 8


# Compiled


@pytest.mark.parametrize(
    "kind", ["a loss term", "AttentionReader", pytest.param("ConcatReader", marks=pytest.mark.slow)], indirect=True
)
def test_a_compiled_module_computes_the_same_and_its_copy_runs_its_own_weights(
    kind: str, data: TextDataModule, monkeypatch: pytest.MonkeyPatch
):
    real, calls = torch.compile, []
    monkeypatch.setattr(torch, "compile", lambda f, **_: calls.append(f) or real(f, backend="eager"))
    plain, module, batch = module_with(KINDS[kind]()), module_with(KINDS[kind](), compile=True), some_batch(data)
    module.compile_again()
    assert calls == [Decoder.states, Decoder.hidden_of_texts]
    with advised():  # torch hides what it says itself, where no filter makes it an error
        found, wanted = module.eval().outputs(batch), plain.eval().outputs(batch)
        assert torch.equal(found.logits, wanted.logits)
        losses, expected = (one.extensions[0].terms(of) for one, of in ((module, found), (plain, wanted)))
        assert [loss.item() for _, loss in losses.values()] == [loss.item() for _, loss in expected.values()] != []
        twin = copy.deepcopy(module)
        with torch.no_grad():
            module.backbone.core.transformer.wte.weight.zero_()
        assert not torch.equal(module.outputs(batch).logits, plain.outputs(batch).logits)
        assert torch.equal(twin.outputs(batch).logits, plain.outputs(batch).logits)
