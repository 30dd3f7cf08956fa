"""A file as symbols: tokens of its text, and single bytes where there is none that stands for them.

A symbol is a token's id, or -1 - b for the byte b.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from lightning_app.data.tokenizers import Tokenizer

NO_TEXT = re.compile("[\udc80-\udcff]+")  # what `surrogateescape` makes of bytes that are not UTF-8
SHORTEST = 16  # bytes of text beside others that are not; shorter ones are chance, as in a picture


def symbols_of(data: bytes, tokenizer: Tokenizer) -> list[int]:
    """The symbols that `bytes_of` makes these bytes of."""
    symbols: list[int] = []
    for part, is_text in _parts(data):
        own = part.encode("utf-8", "surrogateescape")
        if is_text and (len(own) >= SHORTEST or len(own) == len(data)):
            symbols += _of_text(part, tokenizer, continues=bool(symbols))
        else:
            symbols += _escaped(own)
    return symbols if bytes_of(symbols, tokenizer) == data else _escaped(data)


def bytes_of(symbols: Sequence[int], tokenizer: Tokenizer) -> bytes:
    """The bytes that symbols stand for; tokens that follow each other are decoded together."""
    data = bytearray()
    for is_text, of_kind in groupby(symbols, lambda symbol: symbol >= 0):
        run = list(of_kind)
        data += tokenizer.decode_bytes(run, continues=bool(data)) if is_text else bytes(-1 - symbol for symbol in run)
    return bytes(data)


def _parts(data: bytes) -> Iterator[tuple[str, bool]]:
    """Its parts in their order, each with whether it is text."""
    text, at = data.decode("utf-8", "surrogateescape"), 0
    for match in NO_TEXT.finditer(text):
        if match.start() > at:
            yield text[at : match.start()], True
        yield match.group(), False
        at = match.end()
    if text[at:]:
        yield text[at:], True


def _of_text(text: str, tokenizer: Tokenizer, *, continues: bool) -> list[int]:
    """Halves the text until what the tokenizer loses is a character by itself."""
    ids, own = tokenizer.encode(text, continues=continues, special=False), text.encode()
    if tokenizer.decode_bytes(ids, continues=continues) == own:
        return ids
    if len(text) == 1:
        return _escaped(own)
    first, second = text[: len(text) // 2], text[len(text) // 2 :]
    return [*_of_text(first, tokenizer, continues=continues), *_of_text(second, tokenizer, continues=True)]


def _escaped(data: bytes) -> list[int]:
    return [-1 - byte for byte in data]
