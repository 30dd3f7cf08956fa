"""Tokenizers of Hugging Face's against the library's own, on any text."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_app.data.corpus import Document
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.reading import say_once
from lightning_app.data.token_array import OTHER_BYTES, TokenArray
from lightning_app.data.token_cache import prepare_tokens
from lightning_app.data.tokenizers import HuggingFaceTokenizer, Tokenizer, load_tokenizer
from lightning_app.data.windows import TokenWindows
from lightning_app.errors import InputError
from lightning_app.training.evaluation import Evaluation
from tests import tokenizers as kinds
from tests.contracts.test_tokenizer import SPECIAL, texts

SMOLLM2 = Path(__file__).parents[3] / "models" / "smollm2"


@cache
def library(kind: str) -> Any:
    """The family's own."""
    import tokenizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if kind == "SmolLM2":
        return AutoTokenizer.from_pretrained(SMOLLM2)
    files = kinds.files_of(kind)
    config = {name: token for name, token in json.loads(files["tokenizer_config.json"]).items() if "token" in name}
    config.pop("tokenizer_class"), config.pop("clean_up_tokenization_spaces")
    made = tokenizers.Tokenizer.from_str(files["tokenizer.json"])
    return PreTrainedTokenizerFast(tokenizer_object=made, clean_up_tokenization_spaces=False, **config)


def ours(kind: str) -> Tokenizer:
    return _smollm2() if kind == "SmolLM2" else kinds.made(kind)


@cache
def _smollm2() -> Tokenizer:
    return load_tokenizer(str(SMOLLM2))


needs_smollm2 = pytest.mark.skipif(not SMOLLM2.is_dir(), reason="make smollm2")
EVERY = [*kinds.KINDS, pytest.param("SmolLM2", marks=[needs_smollm2, pytest.mark.slow])]
unicode = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


@pytest.mark.parametrize("kind", EVERY)
@settings(max_examples=50, deadline=None)
@given(text=st.one_of(texts, unicode))
def test_the_ids_are_the_librarys(kind: str, text: str):
    if kind in kinds.LOSSY:  # whose vocabulary would match a special token's name: see below
        for name in SPECIAL:
            text = text.replace(name, "")
    expected = library(kind).encode(text, add_special_tokens=False, split_special_tokens=True)
    assert ours(kind).encode(text) == expected
    assert ours(kind).decode(expected, continues=True).strip(" ") == library(kind).decode(expected).strip(" ")
    whole = library(kind).encode(text, split_special_tokens=True)
    assert ours(kind).prompt(text) == (whole or [ours(kind).eot])


@pytest.mark.slow
@pytest.mark.parametrize("kind", EVERY)
@settings(max_examples=500, deadline=None)
@given(text=st.one_of(texts, unicode))
def test_the_ids_of_ten_times_as_many_texts(kind: str, text: str):
    test_the_ids_are_the_librarys.hypothesis.inner_test(kind, text)


@pytest.mark.parametrize("kind", sorted(kinds.LOSSY))
def test_a_special_tokens_name_is_no_special_token_in_any_kind(kind: str):
    """The library takes it for one in a Unigram vocabulary, whatever it is asked."""
    tokenizer = kinds.made(kind)
    special = {one["id"] for one in json.loads(tokenizer.files["tokenizer.json"])["added_tokens"]}
    unknown = {"unigram": 2, "wordpiece": 0}[kind]
    for name in SPECIAL:
        for text in (name, f"a {name} b", f"{name}{name}"):
            assert not set(tokenizer.encode(text)) & special - {unknown}
            assert not set(tokenizer.encode(text, continues=True)) & special - {unknown}


def test_an_added_token_is_text_unless_asked_for():
    import tokenizers

    files = kinds.files_of("gpt2")
    own = tokenizers.Tokenizer.from_str(files["tokenizer.json"])
    plain = own.encode("a<tool>b").ids
    own.add_tokens([tokenizers.AddedToken("<tool>", special=False)])
    made = HuggingFaceTokenizer.of_files("added", {**files, "tokenizer.json": own.to_str()})
    assert made.encode("a<tool>b") == plain
    assert made.encode("a<tool>b", special=True) == own.encode("a<tool>b").ids != plain
    assert made.decode(own.encode("a<tool>b").ids) == "a<tool>b"


@pytest.mark.parametrize("kind", ["gpt2", "smollm2", "llama3"])
def test_tiktoken_encodes_what_it_can(kind: str):
    made, text = kinds.made(kind), "It's 1999, and\n\n  x = 12 "
    assert made._fast is not None
    found = made._fast.encode(text)
    assert found is not None
    assert found.tolist() == library(kind).encode(text, add_special_tokens=False)
    assert made._fast.encode(" " * 200_000) is None
    assert (made._fast.encode("\x01") is None) == (kind == "smollm2")  # which has no token for it


def test_tiktoken_is_not_used_where_it_gives_other_ids():
    """Ids in another order than that of the merges."""
    parsed = json.loads(kinds.files_of("gpt2")["tokenizer.json"])
    last = max(parsed["model"]["vocab"].values())
    swapped = {last: last - 400, last - 400: last}
    parsed["model"]["vocab"] = {token: swapped.get(i, i) for token, i in parsed["model"]["vocab"].items()}
    made = HuggingFaceTokenizer.of_files("swapped", {"tokenizer.json": json.dumps(parsed)})
    assert made._fast is None
    assert made.decode(made.encode("The model")) == "The model"
    parsed = json.loads(kinds.files_of("llama3")["tokenizer.json"])
    parsed["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\p{L}+$|\s+|\S"  # `$` ends a line, or a text
    assert HuggingFaceTokenizer.of_files("lines", {"tokenizer.json": json.dumps(parsed)})._fast is None


# Where it comes from


@pytest.mark.parametrize("place", ["folder", "folder/tokenizer.json"])
def test_a_directory_or_its_file(place: str, tmp_path: Path):
    kinds.save("llama", tmp_path / "folder")
    found = load_tokenizer(str(tmp_path / place))
    assert found.encode("The model") == kinds.made("llama").encode("The model")
    assert (found.eot, found.bos, found.name) == (2, 1, str(tmp_path / place))


def test_a_slow_one_is_converted(tmp_path: Path):
    model = json.loads(kinds.files_of("gpt2")["tokenizer.json"])["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(model["vocab"]))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "".join(" ".join(pair) + "\n" for pair in model["merges"]))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    found = load_tokenizer(str(tmp_path))
    assert found.encode("The model, 1999") == kinds.made("gpt2").encode("The model, 1999")
    assert found.eot == 0


def _drop(name: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(kinds.files_of("gpt2")["tokenizer.json"]).items() if key != name}


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"no tokenizer that can be read"),
        ({"tokenizer.json": "{"}, r"tokenizer\.json is damaged: it is not JSON"),
        ({"tokenizer.json": "[]"}, r"tokenizer\.json holds a list, not an object"),
        ({"tokenizer.json": json.dumps({"a": 1})}, r"has no model with a vocabulary"),
        ({"tokenizer.json": json.dumps({**_drop("normalizer"), "normalizer": {"type": "New"}})}, "later version"),
        ({"tokenizer.json": json.dumps(_drop("model"))}, "no model with a vocabulary"),
        ({**kinds.files_of("gpt2"), "tokenizer_config.json": "{"}, r"tokenizer_config\.json is damaged"),
        ({**kinds.files_of("gpt2"), "special_tokens_map.json": "[]"}, r"special_tokens_map\.json holds a list"),
        ({"tokenizer.json": kinds.files_of("gpt2")["tokenizer.json"].replace("<|endoftext|>", "<|x|>")}, "eos_token"),
    ],
)
def test_what_cannot_be_read_ends_with_one_line(files: dict[str, str], message: str, tmp_path: Path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        load_tokenizer(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path):
    with pytest.raises(InputError, match=r"no tokenizer .*tokenizer\.json: give a directory"):
        load_tokenizer(str(tmp_path / "tokenizer.json"))


@pytest.mark.parametrize(
    ("config", "model", "eot"),
    [
        ({"eos_token": {"content": "<|im_end|>"}}, {}, 2),
        ({}, {"eos_token_id": 1}, 1),
        ({}, {"eos_token_id": [2, 0]}, 2),
        ({}, {}, 0),  # by its usual name
        ({}, {"eos_token_id": 5000}, 0),  # no id of the tokenizer
        ({}, {"eos_token_id": -1}, 0),
        ({"eos_token": "<|im_end|>", "add_bos_token": True, "bos_token": "<|im_start|>"}, {}, 2),
    ],
)
def test_ends_and_begins_as_its_files_say(config: dict[str, Any], model: dict[str, Any], eot: int, tmp_path: Path):
    (tmp_path / "tokenizer.json").write_text(kinds.files_of("gpt2")["tokenizer.json"])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "config.json").write_text(json.dumps(model))
    found = load_tokenizer(str(tmp_path))
    assert (found.eot, found.bos) == (eot, 1 if "add_bos_token" in config else None)


# In data

TEXTS = ["The ﬁrst Model of 1999.\n\n  It  learns", "É ▁ è\x01 and forgets again"]


@pytest.mark.parametrize("kind", ["gpt2", "smollm2", "llama", "mistral", "gemma", "unigram", "wordpiece"])
def test_windows_count_the_texts_own_bytes(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """All but what precedes the first prediction."""
    tokenizer = kinds.made(kind)
    say_once.cache_clear()
    tokens = prepare_tokens([Document(text, name=text[:3]) for text in TEXTS], tokenizer, tmp_path)
    evaluation = Evaluation()
    evaluation.use_tokenizer(tokenizer, vocab_size=tokenizer.vocab_size, device=torch.device("cpu"))
    evaluation.use_text(tokens)
    windows = TokenWindows(tokens, 8, respect_documents=True)
    found = evaluation.bytes_of_targets(windows.__getitems__(list(range(len(windows)))))
    assert found is not None
    first = 0 if tokenizer.bos is not None else sum(int(_bytes_at(tokens, tokenizer, i)) for i in tokens.offsets[:-1])
    assert int(found.sum()) + first == sum(len(text.encode()) for text in TEXTS) == tokens.n_bytes
    lost = kind != "gpt2"
    assert tokens.manifest.lost == sum(tokenizer.measured(text).given_back is not None for text in TEXTS)
    assert (tokens.manifest.lost > 0) == lost
    said = [record.message for record in caplog.records if "does not give back" in record.message]
    assert len(said) == lost
    prepare_tokens([Document(text, name=text[:3]) for text in TEXTS], tokenizer, tmp_path)
    assert len([record for record in caplog.records if "does not give back" in record.message]) == lost


def _bytes_at(tokens: TokenArray, tokenizer: Tokenizer, i: int) -> int:
    return tokenizer.token_bytes()[tokens.ids[i]] + tokens.other_bytes(np.array(i))


def test_what_comes_back_needs_no_further_file(tmp_path: Path):
    for kind in ("gpt2", "smollm2", "gemma"):
        tokens = prepare_tokens([Document("The model learns")], kinds.made(kind), tmp_path)
        assert not (tokens.folder / OTHER_BYTES).exists()
        assert (tokens.manifest.lost, tokens.manifest.lost_example) == (0, None)


def test_documents_begin_and_end_as_in_training(tmp_path: Path):
    tokenizer = kinds.made("llama")
    documents = [Document("learns", prompt="The model "), Document("forgets", prompt="The other ")]
    tokens = prepare_tokens(documents, tokenizer, tmp_path)
    for document, start, end in zip(documents, tokens.offsets[:-1], tokens.offsets[1:], strict=True):
        ids = tokens.ids[start:end].tolist()
        assert (ids[0], ids[-1]) == (tokenizer.bos, tokenizer.eot)
        assert tokenizer.decode(ids[:-1]) == f"{document.prompt}{document.text}"
    batch = TokenWindows(tokens, 6).__getitems__([0, 1])
    assert tokenizer.bos in batch.input_ids
    assert tokenizer.bos not in batch.targets  # nobody has to guess it
    assert tokenizer.eot in batch.targets


def test_special_tokens_of_a_text_where_that_is_asked_for(folder: Path):
    Path("chat.txt").write_text("<|im_start|>Hello<|im_end|>" * 9)
    kinds.save("smollm2", folder / "own")
    for asked in (False, True):
        data = TextDataModule(
            train={"path": "chat.txt"},  # type: ignore[arg-type]
            tokenizer="own",
            block_size=8,
            special_tokens=asked,
        )
        data.prepare_data()
        assert (data.tokens("train").ids == 1).sum() == (9 if asked else 0)
        assert data.tokens("train").n_bytes == 9 * len("<|im_start|>Hello<|im_end|>")
        assert next(data.texts("train")) == "<|im_start|>Hello<|im_end|>" * 9


def test_a_checkpoints_tokenizer_is_taken_where_special_tokens_are_read_alike(folder: Path):
    kinds.save("smollm2", folder / "own")

    def data(asked: bool) -> TextDataModule:
        train: Any = {"path": "train.txt"}
        return TextDataModule(train=train, tokenizer="own", block_size=8, special_tokens=asked)

    saved = data(False).state_dict()
    (folder / "own" / "tokenizer.json").unlink()
    same, other = data(False), data(True)
    same.adopt_tokenizer(saved)
    assert same.tokenizer.fingerprint == saved["fingerprint"]
    same.load_state_dict(saved)
    other.adopt_tokenizer(saved)
    kinds.save("smollm2", folder / "own")
    with pytest.raises(InputError, match="gives other ids"):
        other.load_state_dict(saved)


def test_how_its_file_is_indented_does_not_change_the_fingerprint():
    files = kinds.files_of("llama")
    parsed = {**json.loads(files["tokenizer.json"]), "padding": {"pad_id": 0}, "truncation": {"max_length": 2}}
    other = {**files, "tokenizer.json": json.dumps(parsed, indent=1)}
    found = HuggingFaceTokenizer.of_files("other", {**other})
    assert found.fingerprint == kinds.made("llama").fingerprint


def test_a_length_that_its_file_asks_for_cuts_no_text():
    parsed = json.loads(kinds.files_of("unigram")["tokenizer.json"])
    cut = {"max_length": 2, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    pad = {"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": None}
    parsed |= {"truncation": cut, "padding": {**pad, "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}}
    files = {**kinds.files_of("unigram"), "tokenizer.json": json.dumps(parsed)}
    found = HuggingFaceTokenizer.of_files("cut", files)
    assert found.encode("The model learns") == kinds.made("unigram").encode("The model learns")
    assert found.prompt("The") == kinds.made("unigram").prompt("The")


def test_a_kind_of_later_code_is_named():
    with pytest.raises(InputError, match="'own' is a quantum, which this code does not know"):
        Tokenizer.from_state({"kind": "quantum", "name": "own"})
