"""Tokenizers as llama.cpp reads them: the same tokens by id, and its own name of how a text is cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from lightning_app.data.bpe import byte_symbols
from lightning_app.data.gguf_tokenizer import LLAMA3, NAMES, pre_tokenizer
from lightning_app.data.tokenizers import load_tokenizer
from lightning_app.errors import InputError
from lightning_app.export import llama_cpp
from lightning_app.export.gguf_vocabulary import Vocabulary, of_backend, vocabulary
from tests import tokenizers as kinds
from tests.gguf_files import llama, write

TEXTS = ["the teacher's 42 models", "  a\n\n b\t", "naïve 日本 ½", "x" * 50, ""]

PROSE = Path(__file__).read_text(encoding="utf-8")


def byte_level(pre: Any) -> Tokenizer:
    made = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(byte_symbols())}, merges=[]))
    made.pre_tokenizer = pre
    made.add_special_tokens([AddedToken("<end>", special=True, normalized=False)])
    made.add_tokens([AddedToken("<think>", normalized=False)])
    return made


def test_tokens_stand_by_their_ids_and_spare_ones_are_marked():
    found = of_backend(byte_level(pre_tokenizer(NAMES["gpt-2"])), 260, special={"eos": 256})
    assert found.tokens[256:] == ["<end>", "<think>", "[PAD258]", "[PAD259]"]
    assert found.kinds[255:] == [1, 3, 4, 5, 5]
    assert (found.pre, found.special, found.chat_template) == ("gpt-2", {"eos": 256}, None)


@pytest.mark.parametrize(
    ("pre", "name"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=False), "gpt-2"),
        (
            pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            ),
            "smollm",
        ),
        (
            pre_tokenizers.Sequence(
                [
                    pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
                ]
            ),
            "llama-bpe",
        ),
    ],
)
def test_how_it_cuts_has_llama_cpps_name(pre: Any, name: str):
    assert of_backend(byte_level(pre), 258, special={}).pre == name


def test_what_llama_cpp_cannot_do_is_refused():
    with pytest.raises(InputError, match=r"llama.cpp cuts no text as this tokenizer does"):
        of_backend(byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True)), 258, special={})
    lowered = byte_level(pre_tokenizer(NAMES["gpt-2"]))
    lowered.normalizer = normalizers.Lowercase()
    with pytest.raises(InputError, match=r"a BPE tokenizer with a normaliser cannot be written as GGUF"):
        of_backend(lowered, 258, special={})
    with pytest.raises(InputError, match=r"a Unigram tokenizer with no normaliser cannot be written as GGUF"):
        of_backend(Tokenizer(models.Unigram([("a", 0.0)], unk_id=0)), 1, special={})


def test_composing_characters_is_left_out_and_said(caplog: pytest.LogCaptureFixture):
    """As Qwen2 and Qwen3 have it."""
    composing = byte_level(pre_tokenizer(NAMES["qwen2"]))
    for normaliser, said in ((normalizers.Sequence([]), 0), (normalizers.NFC(), 1)):
        composing.normalizer = normaliser
        assert of_backend(composing, 258, special={}).pre == "qwen2"
        assert len(caplog.messages) == said
    assert "NFC" in caplog.text


@pytest.mark.slow
def test_llama_cpp_does_not_compose(tmp_path: Path):
    pytest.importorskip("cyllama")
    qwen = kinds.made("qwen")
    found = vocabulary(qwen, qwen.vocab_size)
    path = write(tmp_path / "model.gguf", llama(size=qwen.vocab_size), **vars_of(found))
    composed, apart = "caf\u00e9", "cafe\u0301"
    assert qwen.encode(apart) == qwen.encode(composed)
    ids = llama_cpp.token_ids(path, [*TEXTS, composed, apart])
    assert ids[:-1] == [qwen.encode(text) for text in [*TEXTS, composed]]
    assert ids[-1] != ids[-2]


def vars_of(found: Vocabulary) -> dict[str, Any]:
    return {"pre": found.pre, "tokens": found.tokens, "merges": found.merges}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    path = tmp_path_factory.mktemp("trained") / "some.tiktoken"
    return load_tokenizer(str(path), vocab_size=400, training_texts=lambda: [PROSE])


def test_a_trained_tokenizer_has_gpt2s_way(trained: Any):
    found = vocabulary(trained, 400)
    assert isinstance(found, Vocabulary)
    assert found.pre == "gpt-2"
    assert len(found.merges) >= trained.vocab_size - 257
    assert found.special == {"bos": trained.eot, "eos": trained.eot, "padding": trained.eot}
    assert not found.begins
    assert vocabulary(kinds.made("llama3"), 900).begins  # a text of LLaMA 3 begins with a token


@pytest.mark.slow
def test_a_trained_tokenizers_ids_are_those_of_llama_cpp(trained: Any, tmp_path: Path):
    pytest.importorskip("cyllama")
    found = vocabulary(trained, trained.vocab_size)
    model = llama(size=trained.vocab_size)
    path = write(tmp_path / "model.gguf", model, **vars_of(found))
    texts = [*TEXTS, PROSE]
    assert [trained.encode(text) for text in texts] == llama_cpp.token_ids(path, texts)
