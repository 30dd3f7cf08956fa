"""Any bytes are tokens of text and single bytes, whatever the tokenizer loses."""

import random

import pytest

from lightning_app.compression.symbols import bytes_of, symbols_of
from lightning_app.data.tokenizers import load_tokenizer
from tests.tokenizers import KINDS, LOSSY, made

TEXT = "The Café's menu: 12 crêpes,\n\n\tfor <|im_end|> or </s>; ▁\u2581 naïve \U0001f600 ﬁn\u0301 e\u0301\r\n  end "


def files(number: int) -> list[bytes]:
    """Texts, bytes, and both in turn."""
    draw, found = random.Random(0), []
    for _ in range(number):
        parts = []
        for _ in range(draw.randrange(4)):
            start = draw.randrange(len(TEXT))
            parts.append(TEXT[start : start + draw.randrange(90)].encode()[draw.randrange(2) :])
            parts.append(draw.randbytes(draw.randrange(12)) if draw.random() < 0.5 else b"")
        found.append(b"".join(parts))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_come_back_by_any_tokenizer(kind):
    tokenizer = made(kind)
    for data in files(60):
        symbols = symbols_of(data, tokenizer)
        assert bytes_of(symbols, tokenizer) == data


@pytest.mark.parametrize("kind", sorted({*KINDS} - LOSSY))
def test_what_a_tokenizer_keeps_is_all_tokens(kind):
    text = "The model learns what the teacher shows, and forgets what nobody asks about again."
    assert all(symbol >= 0 for symbol in symbols_of(text.encode(), made(kind)))


def test_only_what_is_lost_stands_as_bytes():
    tokenizer = made("llama")  # loses U+2581, which it takes for a space
    symbols = symbols_of("the model ▁ learns what the teacher shows".encode(), tokenizer)
    assert [-1 - symbol for symbol in symbols if symbol < 0] == list("▁".encode())


def test_a_picture_is_bytes_although_some_of_them_are_letters():
    tokenizer = load_tokenizer("bytes")
    data = random.Random(1).randbytes(5000)
    assert sum(symbol >= 0 for symbol in symbols_of(data, tokenizer)) < 50
    assert symbols_of(b"", tokenizer) == []
