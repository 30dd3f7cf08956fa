"""SentencePiece's BPE in a GGUF file: llama.cpp and transformers give the ids of the tokenizer that was exported."""

from __future__ import annotations

import json
import logging
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers
from transformers.tokenization_utils_base import generate_merges

from lightning_app.data.gguf_file import read_gguf
from lightning_app.data.gguf_tokenizer import gguf_tokenizer
from lightning_app.data.tokenizers import HuggingFaceTokenizer
from lightning_app.errors import InputError
from lightning_app.export import llama_cpp
from lightning_app.export.command import export_gguf
from lightning_app.export.gguf_vocabulary import Vocabulary, of_backend, vocabulary
from tests import tokenizers as kinds
from tests.data.test_gguf_tokenizer import some_texts
from tests.gguf_files import llama

TEXTS = [
    *some_texts(),
    "hello",
    "  hello",
    "",
    "▁x",
    "a  b   c",
    "the <s> model</s>",
    "<0x41>",
    "x\n\n  y",
    "\x00\ud7ff",
]


@cache
def converted(*, prefix: bool = True, merges: str = "all") -> str:
    """A `tokenizer.json` as a SentencePiece model becomes one: with all merges that its tokens allow."""
    state = json.loads(kinds.made("llama" if prefix else "gemma").files["tokenizer.json"])
    added = [one["content"] for one in state["added_tokens"] if not one["special"]]  # Gemma's
    state["added_tokens"] = [one for one in state["added_tokens"] if one["special"]]
    vocab = state["model"]["vocab"] = {token: i for token, i in state["model"]["vocab"].items() if token not in added}
    if merges == "all":
        every = generate_merges(vocab, {token: -float(i) for token, i in vocab.items()})
        state["model"]["merges"] = [list(pair) for pair in every]
    return json.dumps(state)


def behind_contract(state: str) -> HuggingFaceTokenizer:
    files = kinds.files_of("llama")
    found = HuggingFaceTokenizer.of_files("sp", {**files, "tokenizer.json": state})
    assert isinstance(found, HuggingFaceTokenizer)
    return found


def described(state: str) -> Vocabulary:
    return of_backend(Tokenizer.from_str(state), 900, special={})


@pytest.mark.parametrize("prefix", [True, False])
def test_kinds_scores_and_special_tokens(prefix: bool, caplog: pytest.LogCaptureFixture):
    tokenizer = behind_contract(converted(prefix=prefix))
    found = vocabulary(tokenizer, tokenizer.vocab_size + 2)
    assert caplog.records == []
    assert found.kinds[:259] == [2, 3, 3, *[6] * 256]
    assert set(found.kinds[259:-2]) == {1}
    assert found.kinds[-2:] == [5, 5]
    assert found.special == {"bos": 1, "eos": 2, "padding": 2, "unknown": 0}
    assert (found.begins, found.puts_space) == (True, prefix)
    assert found.scores is not None
    score = dict(zip(found.tokens, found.scores, strict=True))
    merged = ["".join(pair) for pair in json.loads(converted(prefix=prefix))["model"]["merges"]]
    assert [score[token] for token in dict.fromkeys(merged)] == sorted({score[token] for token in merged}, reverse=True)
    assert len(set(merged)) > 200


def exported(state: str, folder: Path, **options: Any) -> Path:
    """The GGUF file of a small LLaMA with this tokenizer."""
    tokenizer = behind_contract(state)
    model = llama(size=tokenizer.vocab_size + 3)
    model.save_pretrained(folder / "model")
    for name, text in tokenizer.files.items():
        (folder / "model" / name).write_text(text, encoding="utf-8")
    return export_gguf(folder / "model", folder / "model.gguf", **options).file


@pytest.mark.parametrize("prefix", [True, False])
def test_transformers_reads_the_same_ids_back(prefix: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(llama_cpp, "is_installed", lambda: False)  # the slow tests ask it
    file = read_gguf(exported(converted(prefix=prefix), tmp_path, dtype="f32"))
    assert file.metadata["tokenizer.ggml.model"] == "llama"
    assert file.metadata["tokenizer.ggml.add_space_prefix"] is prefix
    assert file.metadata["tokenizer.ggml.add_bos_token"] is True
    tokenizer, back = behind_contract(converted(prefix=prefix)), gguf_tokenizer(file)
    plain = [text for text in TEXTS if "<" not in text]  # names of special tokens become these there
    assert len(plain) > 300
    assert back(plain, add_special_tokens=False)["input_ids"] == [tokenizer.encode(text) for text in plain]


@pytest.mark.slow
@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("prefix", [True, False])
def test_ids_and_logits_are_those_of_llama_cpp(prefix: bool, added: bool, tmp_path: Path):
    pytest.importorskip("cyllama")
    backend = Tokenizer.from_str(converted(prefix=prefix))
    if added:
        backend.add_tokens([AddedToken("<think>", normalized=False), AddedToken("the", normalized=False)])
    texts = [*TEXTS, *(f"{text}<think> the {text[:9]}" for text in TEXTS[:50])] if added else TEXTS
    path = exported(backend.to_str(), tmp_path)  # which compares logits
    backend.encode_special_tokens = True  # the names of special ones are ordinary text, as in llama.cpp
    ours = [backend.encode(text, add_special_tokens=False).ids for text in texts]
    assert ours == llama_cpp.token_ids(path, texts)


# What llama.cpp does otherwise


def changed(change: Any) -> str:
    backend = Tokenizer.from_str(converted())
    change(backend)
    return backend.to_str()


def test_what_differs_is_said(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.WARNING)
    described(converted(merges="trained"))
    assert "llama.cpp joins all neighbours that make a token, and this tokenizer leaves some apart" in caplog.text
    caplog.clear()

    def metaspace(backend: Tokenizer) -> None:
        backend.normalizer = None  # type: ignore[assignment]
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)

    assert described(changed(metaspace)).puts_space
    assert "llama.cpp puts a space before each text and behind each special token" in caplog.text


def test_what_llama_cpp_cannot_do_is_refused():
    with pytest.raises(InputError, match=r"llama.cpp prepares no text as this tokenizer does"):
        described(changed(lambda backend: setattr(backend, "normalizer", normalizers.NFKC())))
    with pytest.raises(InputError, match=r"llama.cpp finds the added token '<think>' wherever a text has it"):
        described(changed(lambda backend: backend.add_tokens([AddedToken("<think>", normalized=True)])))
    state = json.loads(converted())
    state["model"]["vocab"]["<0x0B>x"] = state["model"]["vocab"].pop("<0x0B>")
    with pytest.raises(InputError, match="needs a token for each byte, and this tokenizer lacks <0x0B>"):
        described(json.dumps(state))
