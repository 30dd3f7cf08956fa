"""The bytes that each id of a Hugging Face tokenizer stands for, and those of a text that each of its tokens covers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lightning_app.data.bpe import byte_symbols
from lightning_app.data.tokenizers.pipeline import Parsed, parts, types

if TYPE_CHECKING:
    import tokenizers

ANCHOR = "a"  # a token's text is what it adds behind another one
_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


def bytes_of_ids(parsed: Parsed, tokenizer: tokenizers.Tokenizer) -> dict[int, bytes]:
    """What each id adds to a text that has begun; an added token its name."""
    vocab = tokenizer.get_vocab(with_added_tokens=True)
    added = {one["id"]: str(one["content"]) for one in parsed["added_tokens"]}
    decoders = types(parsed.get("decoder"))
    if "ByteLevel" in decoders:
        found = {i: _of_symbols(token) for token, i in vocab.items()}
        return found | {i: name.encode() for i, name in added.items()}
    fallback = "ByteFallback" in decoders or bool(parsed["model"].get("byte_fallback"))
    return {
        i: _of_fallback(token) if fallback and _BYTE.fullmatch(token) else _decoded(tokenizer, token)
        for token, i in vocab.items()
    }


_SYMBOLS = byte_symbols()


def _of_symbols(token: str) -> bytes:
    known = [_SYMBOLS.get(symbol) for symbol in token]
    return token.encode() if None in known else bytes(byte for byte in known if byte is not None)


def _of_fallback(token: str) -> bytes:
    return bytes([int(token[3:5], 16)])


def _decoded(tokenizer: tokenizers.Tokenizer, token: str) -> bytes:
    if tokenizer.decoder is None:  # the library joins tokens by spaces then
        return f" {token}".encode()
    both: str = tokenizer.decoder.decode([ANCHOR, token])
    return both.removeprefix(ANCHOR).encode()


def puts_space(parsed: Parsed, tokenizer: tokenizers.Tokenizer) -> bool:
    """Whether a document's first word gets a space before it, which decoding takes away."""
    if any(one["type"] == "ByteLevel" and one.get("add_prefix_space") for one in parts(parsed.get("pre_tokenizer"))):
        return True
    if "ByteLevel" in types(parsed.get("decoder")):
        return False
    if tokenizer.decoder is None:
        return True
    spaced = (token for token in tokenizer.get_vocab() if _decoded(tokenizer, token).startswith(b" "))
    token = next(spaced, None)
    return token is not None and tokenizer.decoder.decode([token]) == _decoded(tokenizer, token)[1:].decode()


def crosses_lines(table: dict[int, bytes]) -> bool:
    """Whether a token has a line's end before a letter or digit: then a text cannot be cut there."""
    return any(re.search(rb"\n[\w\x80-\xff]", token) for token in table.values())


def source_bytes(text: str, offsets: Sequence[tuple[int, int]]) -> np.ndarray:
    """(n,) int64, the bytes of a text that each of n tokens covers, which sum to all of the text's.

    A token covers what lies behind all tokens before it, up to its own end; the last one takes the rest.

    Args:
        text: that was encoded.
        offsets: start and end of each token in it, in characters.
    """
    if not offsets:
        return np.zeros(0, dtype=np.int64)
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    widths = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    reached = np.concatenate([[0], widths.cumsum()])
    ends = np.maximum.accumulate(np.array([end for _, end in offsets], dtype=np.int64))
    ends[-1] = len(text)
    return np.diff(reached[ends], prepend=0)
