"""A byte-level BPE of Hugging Face's as a tiktoken encoding with the same ids: 6 to 8 times as fast."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import tiktoken

from lightning_app.data.bpe import GPT2_PATTERN, byte_symbols
from lightning_app.data.tokenizers.pipeline import Parsed, is_kept, parts, types
from lightning_app.data.tokenizers.tiktoken import has_long_run

if TYPE_CHECKING:
    import tokenizers

# Single digits first, then GPT-2's; white space before a digit ends a text there.
DIGITS_PATTERN = r"""\p{N}|'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?[^\s\p{L}\p{N}]++|\s+(?![^\s\p{N}])|\s+"""
SAMPLES = 300  # texts that both must encode alike


class FastEncoding:
    """Gives the ids of a `tokenizers.Tokenizer`, but for texts that it says it cannot encode.

    Args:
        ranks: of all tokens; ids from `vocab_size` up stand for bytes that are no token.
        pattern: what cuts a text.
        vocab_size: number of ids.
        nfc: texts are normalised before; one that is not yet is left to the other.
    """

    def __init__(self, ranks: dict[bytes, int], pattern: str, *, vocab_size: int, nfc: bool):
        self._encoding = tiktoken.Encoding("fast", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self._vocab_size, self._nfc = vocab_size, nfc
        self._is_whole = max(ranks.values()) < vocab_size

    def encode(self, text: str) -> np.ndarray | None:
        """(n,) uint32; None: it cannot."""
        if has_long_run(text) or (self._nfc and not unicodedata.is_normalized("NFC", text)):
            return None
        ids = self._encoding.encode_to_numpy(text, disallowed_special=())
        return ids if self._is_whole or not (ids >= self._vocab_size).any() else None


def fast_encoding(parsed: Parsed, tokenizer: tokenizers.Tokenizer, *, vocab_size: int) -> FastEncoding | None:
    """The tokenizer as a tiktoken encoding; None where there is none, or a sample shows other ids.

    Args:
        parsed: the content of its `tokenizer.json`.
        tokenizer: which takes special tokens' names as ordinary text.
        vocab_size: number of its ids.
    """
    pattern, ranks = _pattern(parsed), _ranks(parsed)
    if pattern is None or ranks is None or any(is_kept(one) for one in parsed["added_tokens"]):
        return None
    missing = [bytes([byte]) for byte in range(256) if bytes([byte]) not in ranks]
    ranks |= {byte: vocab_size + i for i, byte in enumerate(missing)}
    try:
        made = FastEncoding(ranks, pattern, vocab_size=vocab_size, nfc=types(parsed.get("normalizer")) == ["NFC"])
    except ValueError:  # a regular expression that Rust's engine does not read
        return None
    texts = list(_samples(ranks))
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    both = ((made.encode(text), one.ids) for text, one in zip(texts, encoded, strict=True))
    return made if all(ours is None or ours.tolist() == theirs for ours, theirs in both) else None


def _pattern(parsed: Parsed) -> str | None:
    """What cuts a text, where it is known to be one regular expression."""
    steps = list(parts(parsed.get("pre_tokenizer")))
    if types(parsed.get("normalizer")) not in ([], ["NFC"]) or not steps or steps[-1]["type"] != "ByteLevel":
        return None
    *before, last = steps
    if last.get("add_prefix_space"):
        return None
    if not before:
        return GPT2_PATTERN if last.get("use_regex", True) else None
    if len(before) > 1:
        return None
    if before[0]["type"] == "Digits" and before[0].get("individual_digits") and last.get("use_regex", True):
        return DIGITS_PATTERN
    is_split = before[0]["type"] == "Split" and before[0]["behavior"] == "Isolated" and not before[0].get("invert")
    if is_split and "Regex" in before[0]["pattern"] and not last.get("use_regex", True):
        return str(before[0]["pattern"]["Regex"])
    return None


def _ranks(parsed: Parsed) -> dict[bytes, int] | None:
    """Tokens in the order in which they are merged; None where that is not the order of their ids."""
    model, symbols = parsed["model"], byte_symbols()
    if model.get("type", "BPE") != "BPE" or "merges" not in model or model.get("continuing_subword_prefix"):
        return None
    special = {one["content"] for one in parsed["added_tokens"]}
    vocab: dict[str, int] = model["vocab"]
    merged = ["".join(one) if isinstance(one, list) else one.replace(" ", "", 1) for one in model["merges"]]
    order = [vocab.get(token, -1) for token in merged]
    if order != sorted(order) or (order and order[0] < 0):
        return None
    tokens = {token: i for token, i in vocab.items() if token not in special}
    if any(symbol not in symbols for token in tokens for symbol in token):
        return None
    return {bytes(symbols[symbol] for symbol in token): i for token, i in tokens.items()}


def _samples(ranks: dict[bytes, int]) -> Iterator[str]:
    """Tokens side by side, as no text has them, between letters, digits, spaces and signs of all kinds."""
    draw, tokens = random.Random(0), list(ranks)
    signs = [
        " ",
        "  ",
        "\n",
        "\n\n",
        "\r\n",
        "\t",
        "1",
        "23",
        "'s",
        "'LL",
        "é",
        "e\N{COMBINING ACUTE ACCENT}",
        "٣",
        "½",
    ]
    signs += [
        "🙂",
        "中文",
        "\N{NO-BREAK SPACE}",
        "_",
        "//",
        "a",
        "Ab",
        "<|endoftext|>",
        "\x00",
        "\N{IDEOGRAPHIC SPACE}",
    ]
    for _ in range(SAMPLES):
        words = (draw.choice(tokens).decode("utf-8", "ignore") for _ in range(20))
        yield "".join(word + draw.choice(signs) * draw.randint(0, 2) for word in words)
