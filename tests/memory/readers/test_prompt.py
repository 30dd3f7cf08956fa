"""The reader that puts the text of what it finds before a prompt: what it finds, and what text comes back."""

from pathlib import Path

import pytest
import torch

from lightning_app.data.batch import Batch
from lightning_app.data.corpus import Document
from lightning_app.errors import InputError
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.readers import CacheReader, PromptReader
from lightning_app.memory.readers.prompt import Passage, best
from lightning_app.memory.slots import Entries
from lightning_app.memory.tools.build import Text, fill
from lightning_app.memory.tools.inspect import entries_by_document, keys_of, remove_documents
from lightning_app.models.extension import Found
from lightning_app.models.generation_options import GenerationOptions
from tests.made_models import BLOCK, decoder, ready

TEXTS = {
    "fox.txt": "The quick brown fox jumps over the lazy dog while 13 wizards vex bad nymphs.",
    "sea.txt": "Waves come in from the sea and go out again; the sänd keeps no mark of them.",
    "tax.txt": "A tax on windows made people brick them up: light was the price of saving.",
}


def made(folder: Path, **options: object) -> VardaGPT:
    """A model with these texts in its memory."""
    reader = PromptReader(**{"memory_size": 400, "num_search_results": 16, **options})
    module, tokenizer = ready(VardaGPT(decoder(), [CacheReader(scope="shared"), reader]))
    documents = [Document(text, name=f"/home/somebody/{name}") for name, text in TEXTS.items()]
    text = Text.of(documents, tokenizer, str(folder), block_size=BLOCK, stride=BLOCK // 2)
    fill(module.memory, reader, text, range(len(documents)), skipped=[])
    return module


def reader_of(module: VardaGPT) -> PromptReader:
    reader = module.memory.readers[1]
    assert isinstance(reader, PromptReader)
    return reader


def found(module: VardaGPT, prompt: str) -> list[Found]:
    return module.found_for(prompt, ready(module)[1])


def test_the_document_that_is_nearest_to_the_prompt_comes_back_whole(tmp_path):
    module = made(tmp_path)
    for name, words in (
        ("fox.txt", "a brown fox jumps"),
        ("sea.txt", "waves; the sänd"),
        ("tax.txt", "price of saving."),
    ):
        assert found(module, words) == [Found(TEXTS[name], f"/home/somebody/{name}")]
    assert found(module, "  ") == []


def test_several_passages_of_long_documents_with_what_lies_around(tmp_path):
    module = made(tmp_path, passages=2, passage_length=16)
    texts = [one.text for one in found(module, "lazy dog while")]
    assert len(texts) == 2
    assert texts[0] in TEXTS["fox.txt"]
    assert "dog" in texts[0]
    assert all(len(text) <= 24 for text in texts)  # 16, and 4 on both sides


def test_what_was_deleted_is_neither_found_nor_told(tmp_path):
    module = made(tmp_path, passages=3)
    memories = reader_of(module).bank.memories
    held = entries_by_document(memories)
    remove_documents(memories, keys_of("sea.txt", held, module.memory.documents))
    assert {one.text for one in found(module, "waves; the sänd")} == {TEXTS["fox.txt"], TEXTS["tax.txt"]}
    remove_documents(memories, held)
    assert found(module, "waves; the sänd") == []


def test_entries_that_are_gone_leave_a_gap(tmp_path):
    module = made(tmp_path)
    reader, text = reader_of(module), TEXTS["fox.txt"]
    memory = reader.bank.shared
    (key,) = keys_of("fox.txt", entries_by_document([memory]), module.memory.documents)
    known = memory.payload(memory.ids())
    gone = (known.documents == key) & (known.positions >= 9) & (known.positions < 19)
    memory.remove(memory.ids()[gone])
    assert reader.text(Passage(key, 0, 100, 0.0), ready(module)[1]) == f"{text[:9]} ... {text[20:]}"


def test_words_that_stand_everywhere_count_little():
    """Two states are as near to both passages, a third to the second alone."""
    known = Entries(documents=torch.tensor([[7, 8], [7, 8], [8, 7]]), positions=torch.tensor([[3, 3], [4, 4], [5, 70]]))
    distances = torch.tensor([[1.0, 1.0], [2.0, 2.0], [1.0, 5.0]])
    first, second, third = best(known, distances, length=64, most=9)
    assert first == Passage(8, -16, 80, 4.0)
    assert {(one.document, one.start, one.gain) for one in (second, third)} == {(7, -16, 0.0), (7, 48, 0.0)}


@torch.no_grad()
def test_the_model_itself_says_what_it_says_without(tmp_path):
    ids = torch.tensor([list(TEXTS["fox.txt"][:BLOCK].encode())])
    module = made(tmp_path)
    cached = VardaGPT(module.backbone.backbone, [CacheReader(scope="shared")]).eval()
    torch.testing.assert_close(*(one.outputs(Batch.of_texts(ids)).logits for one in (module, cached)))


@torch.no_grad()
def test_the_states_are_of_the_layer_at_its_depth(tmp_path):
    for depth, layer in ((0.0, 0), (0.3, 0), (0.5, 1), (1.0, 1)):
        module = made(tmp_path, depth=depth)
        memory = reader_of(module).bank.shared
        (key,) = keys_of("fox.txt", entries_by_document([memory]), module.memory.documents)
        known = memory.payload(memory.ids())
        stored = memory.get_all_embeddings()[(known.documents == key) & (known.positions < BLOCK)]
        ids = list(TEXTS["fox.txt"][:BLOCK].encode())
        inner = module.backbone.backbone
        states = inner.hidden(inner.embed(torch.tensor([ids])), layers=[layer]).layers[layer][0]
        torch.testing.assert_close(stored, states)
        torch.testing.assert_close(module.memory.queries(reader_of(module), ids), states)


def test_generation_writes_nothing_to_it(tmp_path):
    module = made(tmp_path)
    before = reader_of(module).bank.size()
    list(module.generate(torch.tensor([[65, 66]]), GenerationOptions(5)))
    assert reader_of(module).bank.size() == before


@pytest.mark.parametrize(
    "wrong", [{"passages": 0}, {"passage_length": 0}, {"query_length": -1}, {"depth": 1.5}, {"writes": "always"}]
)
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        PromptReader(**wrong)
