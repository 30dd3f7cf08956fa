"""`tokenizer.json`: the ids of tiktoken on random Unicode, whatever the pattern; decoding; special tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_app.data.bpe import GPT2_PATTERN, train_ranks
from lightning_app.data.reading import END_OF_TEXT
from lightning_app.data.tokenizers import HuggingFaceTokenizer, TiktokenTokenizer, Tokenizer, load_tokenizer
from lightning_app.export.tokenizer import fast_tokenizer, merges_of, onig_pattern, write_tokenizer
from tests import tokenizers as kinds

# That of cl100k_base: possessive, with a bounded repetition, an end of text and groups of its own.
CL100K = (
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+"
    r"|\s++$|\s*[\r\n]|\s+(?!\S)|\s"
)
TEXTS = [
    "The model learns what follows. It's the model's own way; they'll see, aaaaaaa aaaa aa 1234567 12 \n\n\n  x  \r\n",
    "Überraschung \u2013 naïve café, дом дома домой, 模型学习 模型, 🙂🙂🙃 \u2019quotes\u2019 \t tabs\n" * 3,
]
ALPHABET = st.one_of(st.characters(exclude_categories=["Cs"]), st.sampled_from(list("aaab  \n\r\t'sdl12345é模🙂.,-")))


def tokenizer_with(pattern: str, size: int = 420) -> Tokenizer:
    ranks = train_ranks(TEXTS, size=size)
    return TiktokenTokenizer("own", ranks=ranks, pattern=pattern, specials={END_OF_TEXT: max(ranks.values()) + 1})


def encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    """With the end of text where its name stands."""
    first, *others = (tokenizer.encode(part) for part in text.split(END_OF_TEXT))
    return [*first, *(i for part in others for i in (tokenizer.eot, *part))]


TOKENIZERS = {"gpt2": tokenizer_with(GPT2_PATTERN), "cl100k": tokenizer_with(CL100K), "bytes": load_tokenizer("bytes")}
FAST: dict[str, Any] = {name: fast_tokenizer(tokenizer) for name, tokenizer in TOKENIZERS.items()}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(text=st.text(ALPHABET, max_size=60))
@settings(max_examples=300, deadline=None)
def test_gives_the_ids_of_tiktoken_and_the_text_back(name: str, text: str) -> None:
    ids = FAST[name].encode(text).ids
    assert ids == encoded(TOKENIZERS[name], text)
    assert FAST[name].decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("name", TOKENIZERS)
def test_gives_the_ids_of_tiktoken_on_the_texts_it_was_trained_on(name: str) -> None:
    for text in [*TEXTS, "".join(TEXTS), "a" * 200, " " * 50, "\n" * 50, "x \n \n", "12345", " 's'S'll"]:
        assert FAST[name].encode(text).ids == TOKENIZERS[name].encode(text), text


def test_every_token_is_written_and_decodes_to_its_bytes() -> None:
    tokenizer = TOKENIZERS["gpt2"]
    for i in range(tokenizer.vocab_size - 1):
        assert FAST["gpt2"].decode([i]) == tokenizer.decode([i])
    assert FAST["gpt2"].get_vocab_size() == tokenizer.vocab_size


def test_merges_stand_in_the_order_of_what_they_make() -> None:
    ranks = {b"a": 0, b"b": 1, b"ab": 2, b"aba": 3, b"ba": 4}
    assert list(merges_of(ranks)) == [(b"a", b"b"), (b"a", b"ba"), (b"ab", b"a"), (b"b", b"a")]


def test_a_pattern_is_rewritten_where_the_engines_differ() -> None:
    assert onig_pattern(r"\p{N}{1,3}+|\s++$|\p{L}++") == r"\p{N}{1,3}|\s++\z|\p{L}++"


def test_auto_tokenizer_reads_the_folder(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = TOKENIZERS["gpt2"]
    write_tokenizer(tokenizer, tmp_path, max_length=32)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = f"{TEXTS[1]}{END_OF_TEXT}they'll see"
    assert loaded(text)["input_ids"] == encoded(tokenizer, text)
    assert loaded(text, split_special_tokens=True)["input_ids"] == tokenizer.encode(text)
    assert loaded.decode(loaded(text)["input_ids"]) == text
    assert loaded.decode(loaded(text)["input_ids"], skip_special_tokens=True) == text.replace(END_OF_TEXT, "")
    assert (loaded.eos_token_id, loaded.bos_token_id, loaded.pad_token_id) == (tokenizer.eot,) * 3
    assert (loaded.model_max_length, loaded.padding_side, len(loaded)) == (32, "left", tokenizer.vocab_size)


def test_one_of_hugging_faces_is_written_as_it_was(tmp_path: Path):
    for kind in ("llama", "unigram", "smollm2"):
        folder = tmp_path / kind
        folder.mkdir()
        assert write_tokenizer(kinds.made(kind), folder, max_length=16) == kinds.made(kind).known_ids()
        files = kinds.files_of(kind)
        assert {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()} == files
        found = fast_tokenizer(kinds.made(kind)).encode("The model", add_special_tokens=False).ids
        assert found == kinds.made(kind).encode("The model")


@pytest.mark.parametrize("name", TOKENIZERS)
def test_what_is_written_is_read_again(name: str, tmp_path: Path):
    """As a tokenizer of Hugging Face's; tiktoken encodes again where a regular expression cuts the text."""
    write_tokenizer(TOKENIZERS[name], tmp_path, max_length=16)
    found = load_tokenizer(str(tmp_path))
    assert isinstance(found, HuggingFaceTokenizer)
    for text in (*TEXTS, "", "a<|endoftext|>b", "\x00\ud800é"):
        assert found.encode(text) == TOKENIZERS[name].encode(text)
        assert found.measured(text).given_back is None
    assert (found.eot, found.bos, found.pad) == (TOKENIZERS[name].eot, None, TOKENIZERS[name].eot)
    assert found.token_bytes().tolist() == TOKENIZERS[name].token_bytes().tolist()
    assert (found._fast is None) == (name == "bytes")
