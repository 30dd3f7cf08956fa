"""What a model did with a text, against what it computed."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch

from lightning_app.art.extension import ARTRegularizer
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.memory.extension import VardaGPT
from lightning_app.serving.explain import _pieces, explain
from lightning_app.training.module import LanguageModule
from tests import tokenizers as kinds

Made = tuple[LanguageModule, Tokenizer]
SOURCE = "the model learns what the teacher shows"  # what memories hold
TEXT = "the teacher learns"  # of one byte each: tokens are characters
NAMES = ("attention", "concat", "knn", "trime", "cache", "pointer")
ALL = 1000  # entries
each_reader = pytest.mark.parametrize("name", NAMES)


def reader_of(found: dict[str, Any]) -> dict[str, Any]:
    (reader,) = found["memory"]
    return reader


def ids_of(text: str) -> torch.Tensor:
    return torch.tensor([list(text.encode())])


# The text


def test_of_a_plain_model_there_are_tokens_and_how_surprising_each_was(plain: Made):
    module, tokenizer = plain
    found = explain(module, tokenizer, TEXT)
    assert list(found) == ["tokens", "surprise", "likeliest"]
    assert found["tokens"] == list(TEXT)
    log_p = module(ids_of(TEXT)).detach().log_softmax(-1)[0]
    expected = [-float(log_p[i, ord(character)]) for i, character in enumerate(TEXT[1:])]
    assert found["surprise"] == [None, *(pytest.approx(nats, abs=1e-4) for nats in expected)]
    assert found["likeliest"][0] is None
    for likeliest, row in zip(found["likeliest"][1:], log_p.exp(), strict=False):
        assert [p for _, p in likeliest] == pytest.approx(row.topk(5).values.tolist(), rel=1e-4)
        assert [tokenizer.decode([int(i)]) for i in row.topk(5).indices] == [text for text, _ in likeliest]


def test_characters_of_several_tokens_are_shown_once_they_are_whole(plain: Made):
    assert explain(*plain, "aé€!")["tokens"] == ["a", "", "é", "", "", "€", "!"]


@pytest.mark.parametrize("text", ["€uro" * 20, "🙂" * 9, "x" * 500])
def test_of_a_long_text_the_end_counts_from_a_whole_character_on(plain: Made, text: str):
    found = explain(*plain, text)
    assert 20 < len(found["tokens"]) <= 24  # the block
    assert text.endswith("".join(found["tokens"]))
    assert len(found["surprise"]) == len(found["tokens"])


def test_without_a_text_a_document_begins(plain: Made):
    assert explain(*plain, "") == {"tokens": ["<|endoftext|>"], "surprise": [None], "likeliest": [None]}


@pytest.mark.parametrize("name", [*NAMES, "sorting", "pruned", "plain"])
def test_nothing_changes_and_all_of_it_is_json(name: str, request: pytest.FixtureRequest):
    made = request.getfixturevalue("reading" if name in NAMES else name)
    module, tokenizer = made(name, SOURCE) if name in NAMES else made(TEXT) if name == "sorting" else made
    module.train()
    before = {key: x.clone() for key, x in module.state_dict().items()}
    found = explain(module, tokenizer, TEXT)
    after = module.state_dict()
    assert len(before) == len(after) > 10
    assert all(torch.equal(x, after[key]) for key, x in before.items())
    assert all(part.training for part in module.modules())
    assert json.loads(json.dumps(found, allow_nan=False)) == found


# The memory


@each_reader
def test_reads_are_those_of_the_last_positions_and_their_best_entries(name: str, reading: Callable[..., Made]):
    found = reader_of(explain(*reading(name, SOURCE), TEXT, positions=5, entries=2))
    assert (found["reader"], found["entries"]) == (name, 23 if name != "concat" else 38)
    reads = found["reads"]
    assert [read["position"] for read in reads] == [13, 14, 15, 16, 17]
    assert "".join(read["token"] for read in reads) == "earns"
    assert {len(read["entries"]) for read in reads} == {2}
    of_all = reader_of(explain(*reading(name, SOURCE), TEXT, positions=5, entries=ALL))["reads"]
    for read, all_of in zip(reads, of_all, strict=True):
        assert read["weight"] == pytest.approx(sum(entry["weight"] for entry in all_of["entries"]), abs=1e-6)
        assert read["entries"] == all_of["entries"][:2]
        weights = [entry["weight"] for entry in all_of["entries"]]
        assert weights == sorted(weights, reverse=True)


@each_reader
def test_an_entry_has_its_source_text_and_place(name: str, reading: Callable[..., Made]):
    entries = [
        entry
        for read in reader_of(explain(*reading(name, SOURCE), TEXT, entries=ALL))["reads"]
        for entry in read["entries"]
        if entry["id"] is not None
    ]
    assert len(entries) >= len(TEXT)
    for entry in entries:
        assert SOURCE[: entry["position"] + 1].endswith(entry["text"])
        assert len(entry["text"]) == min(6, entry["position"] + 1)
        assert SOURCE[entry["position"] + 1] == entry["next_token"]
        assert entry["document"] == "source.txt"  # not where it lies


@each_reader
def test_an_entry_without_a_source_says_so(name: str, reading: Callable[..., Made]):
    module, tokenizer = reading(name, SOURCE, span_length=0)
    module.memory.documents.clear()
    (memory,) = module.backbone.readers[0].bank.memories
    memory.documents[0], memory.positions[0], memory.tokens[1] = -1, -1, -1
    entries = {
        entry["id"]: entry
        for read in reader_of(explain(module, tokenizer, TEXT, entries=ALL))["reads"]
        for entry in read["entries"]
        if entry["id"] is not None
    }
    assert {entry["text"] for entry in entries.values()} == {None}
    if 0 in entries:
        assert (entries[0]["document"], entries[0]["position"]) == (None, None)
    assert {entry["document"] for id, entry in entries.items() if id} == {"key:7"}


@pytest.mark.parametrize("name", ["knn", "trime", "cache", "pointer"])
def test_weights_are_what_entries_add_to_the_probability_of_their_token(name: str, reading: Callable[..., Made]):
    module, tokenizer = reading(name, SOURCE)
    found, ids = explain(module, tokenizer, TEXT, entries=ALL), ids_of(TEXT)
    own = module.backbone.text_logits(ids).detach()[0]
    seen = 0
    for read in reader_of(found)["reads"][:-1]:
        at, token = read["position"], TEXT[read["position"] + 1]
        given = sum(entry["weight"] for entry in read["entries"] if entry["next_token"] == token)
        rest = (1 - read["weight"]) * float(own[at].softmax(-1)[ord(token)])
        assert given + rest == pytest.approx(math.exp(-found["surprise"][at + 1]), rel=1e-3)
        seen += given > 0
    assert seen > 3
    if name == "knn":
        assert {round(read["weight"], 5) for read in reader_of(found)["reads"]} == {0.25}


def test_what_has_no_probability_is_json_too(reading: Callable[..., Made]):
    module, tokenizer = reading("knn", "aaaaaaa")
    module.backbone.readers[0].tune(lam=1.0, temperature=20.0)
    found = explain(module, tokenizer, "bb")
    assert found["surprise"] == [None, 1000.0]
    json.dumps(found, allow_nan=False)


@torch.no_grad()
def test_attention_reads_the_sum_of_its_entries_by_weight(reading: Callable[..., Made]):
    module, tokenizer = reading("attention", SOURCE)
    assert isinstance(module, VardaGPT)
    (reader,) = module.backbone.readers
    states = module.backbone.backbone.states(ids_of(TEXT)).last
    for read in reader_of(explain(module, tokenizer, TEXT, entries=ALL))["reads"]:
        query = reader.queries(states)[0, read["position"]]
        vectors = torch.stack([reader.bank.shared[torch.tensor(entry["id"])] for entry in read["entries"]])
        cosines = torch.cosine_similarity(query[None], vectors, dim=-1)
        assert [entry["similarity"] for entry in read["entries"]] == pytest.approx(cosines.tolist(), abs=1e-5)
        shares = torch.cat([10 * cosines, torch.zeros(1)]).softmax(0)  # `null` is 0 at first
        assert [entry["weight"] for entry in read["entries"]] == pytest.approx(shares[:-1].tolist(), abs=1e-5)


@torch.no_grad()
def test_the_nearest_vectors_stand_beside_the_input(reading: Callable[..., Made]):
    module, tokenizer = reading("concat", SOURCE)
    assert isinstance(module, VardaGPT)
    (reader,) = module.backbone.readers
    queries, stored = reader.queries(module.backbone.embed(ids_of(TEXT)))[0], reader.bank.shared.get_all_embeddings()
    reads = reader_of(explain(module, tokenizer, TEXT, entries=ALL))["reads"]
    assert len(reads) == len(TEXT)
    for read in reads:
        nearest = torch.cosine_similarity(stored, queries[[read["position"]]], dim=-1).topk(3).values
        assert [entry["similarity"] for entry in read["entries"]] == pytest.approx(nearest.tolist(), abs=1e-3)
        shares = (10 * nearest).softmax(0)
        assert [entry["weight"] for entry in read["entries"]] == pytest.approx(shares.tolist(), abs=1e-4)


@pytest.mark.parametrize(("name", "segment_length"), [("attention", 8), ("attention", 12), ("concat", 8)])
def test_later_segments_read_what_earlier_ones_would_store(
    name: str, segment_length: int, reading: Callable[..., Made]
):
    module, tokenizer = reading(name, "so it", segment_length=segment_length, num_search_results=8)  # 4 are stored
    reads = reader_of(explain(module, tokenizer, TEXT, entries=ALL))["reads"]
    own = [[entry for entry in read["entries"] if entry["id"] is None] for read in reads]
    assert not any(own[:segment_length])
    assert all(own[segment_length:])
    for read, entries in zip(reads, own, strict=True):
        for entry in entries:
            assert entry["position"] < read["position"] // segment_length * segment_length
            assert entry["text"] == TEXT[: entry["position"] + 1]
            assert entry["next_token"] == TEXT[entry["position"] + 1]


@pytest.mark.parametrize("name", ["attention", "cache"])
def test_what_somebody_else_is_generating_is_not_read(name: str, reading: Callable[..., Made]):
    module, tokenizer = reading(name, SOURCE)
    assert isinstance(module, VardaGPT)
    before, bank = explain(module, tokenizer, TEXT), module.backbone.readers[0].bank
    tokens = module.generate(ids_of("a secret of somebody else"))
    for _ in range(5):
        next(tokens)
    size = bank.size()
    assert size > before["memory"][0]["entries"]
    assert explain(module, tokenizer, TEXT) == before
    assert bank.size() == size  # the session goes on
    tokens.close()


def test_a_cache_reads_its_own_text_and_the_nearest_of_the_memory(reading: Callable[..., Made]):
    reads = reader_of(explain(*reading("cache", "so it"), TEXT, entries=ALL))["reads"]
    assert [sum(entry["id"] is None for entry in read["entries"]) for read in reads] == list(range(len(TEXT)))


# Categories


def test_a_known_text_and_its_category(sorting: Callable[..., Made]):
    module, tokenizer = sorting(TEXT, vigilance=0.99)
    (found,) = explain(module, tokenizer, TEXT)["categories"]
    assert found["similarity"] == pytest.approx(1, abs=1e-4)
    assert found["vigilance"] == pytest.approx(0.99)
    del found["similarity"], found["vigilance"]
    expected = {"name": "art", "layer": None, "categories": 1, "category": 0, "novel": False, "inputs": 1}
    assert found == expected | {"texts": [TEXT]}


@pytest.mark.parametrize("options", [{"layer": 0}, {"kind": "fuzzy", "vigilance": 0.9}, {"name": "fine"}])
def test_a_novel_text_is_as_similar_as_the_network_finds_it(options: dict[str, Any], sorting: Callable[..., Made]):
    module, tokenizer = sorting(TEXT, **{"vigilance": 0.99, **options})
    (found,) = explain(module, tokenizer, "1, 2, 3")["categories"]
    regularizer = module.regularizers[0]
    assert isinstance(regularizer, ARTRegularizer)
    states = module.backbone.states(ids_of("1, 2, 3"), layers=regularizer.layers)
    state = states.last if "layer" not in options else states.layers[0]
    match = regularizer.art.resonate(state.mean(1)).match
    assert found["similarity"] == pytest.approx(float(match), abs=1e-4)
    assert (found["novel"], found["category"], found["layer"]) == (True, 0, options.get("layer"))
    assert found["name"] == options.get("name", "art")


def test_before_the_first_category_everything_is_novel(sorting: Callable[..., Made]):
    module, tokenizer = sorting(vigilance=None, vigilance_quantile=0.1)
    (found,) = explain(module, tokenizer, TEXT)["categories"]
    expected = {"category": None, "similarity": None, "novel": True, "vigilance": None, "texts": [], "categories": 0}
    assert expected.items() <= found.items()


# Heads


def test_heads_and_neurons_that_are_left(pruned: Made):
    found = explain(*pruned, TEXT)["heads"]
    assert found["attention"] == [[False, True, True, False], [True, False, True, True]]
    assert found["masked"] == [[False] * 4, [False, True, False, False]]
    assert found["neurons"] == {"alive": [64, 48], "masked": [0, 0], "of": [64, 64]}


def test_pieces_join_to_the_text_of_any_tokenizer():
    """A begin token is no part of it, and neither is the space that a tokenizer puts before the first word."""
    for kind in ("gpt2", "llama", "gemma"):
        tokenizer = kinds.made(kind)
        ids = tokenizer.prompt("The model é")
        pieces = _pieces(tokenizer, ids, continues=False)
        assert (len(pieces), "".join(pieces)) == (len(ids), "The model é")
        last = len(tokenizer.encode(" model é", continues=True))
        assert "".join(_pieces(tokenizer, ids[-last:], continues=True)) == " model é"
