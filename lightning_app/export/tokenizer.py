"""A tokenizer of this project as `tokenizer.json`, with the same ids."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning_app.data.bpe import Ranks, byte_symbols, parse_ranks
from lightning_app.data.reading import END_OF_TEXT
from lightning_app.data.tokenizers import BYTES, HuggingFaceTokenizer, Tokenizer

SYMBOLS = {byte: symbol for symbol, byte in byte_symbols().items()}


def write_tokenizer(tokenizer: Tokenizer, folder: Path, *, max_length: int | None) -> set[int]:
    """Write `tokenizer.json`, and what `AutoTokenizer` needs beside it, and return the ids that stand for something.

    Text that reads like a special token becomes one, unless `split_special_tokens=True` is asked for. Files of
    Hugging Face's are written as they were.
    """
    if isinstance(tokenizer, HuggingFaceTokenizer):
        for name, text in tokenizer.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(text.encode())
        return tokenizer.known_ids()
    made = fast_tokenizer(tokenizer)
    made.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": END_OF_TEXT,
        "eos_token": END_OF_TEXT,
        "unk_token": END_OF_TEXT,
        "pad_token": END_OF_TEXT,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
    }
    if max_length is not None:
        config["model_max_length"] = max_length
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    return set(made.get_vocab(with_added_tokens=True).values())


def fast_tokenizer(tokenizer: Tokenizer) -> Any:
    """A `tokenizers.Tokenizer` that gives the ids of `Tokenizer.encode`, but for names of special tokens."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers

    if isinstance(tokenizer, HuggingFaceTokenizer):
        return tokenizers.Tokenizer.from_str(tokenizer.files["tokenizer.json"])
    state = tokenizer.state()
    ranks = parse_ranks(state["ranks"], source=tokenizer.name)
    vocab = {_symbols(token): rank for token, rank in ranks.items()} | state["specials"]
    merges = [(_symbols(left), _symbols(right)) for left, right in merges_of(ranks)]
    plain = tokenizer.name == BYTES
    made = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=not plain))
    to_symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    pattern = tokenizers.Regex(onig_pattern(state["pattern"]))
    cut = [] if plain else [pre_tokenizers.Split(pattern, "isolated")]
    made.pre_tokenizer = pre_tokenizers.Sequence([*cut, to_symbols])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([tokenizers.AddedToken(name, special=True, normalized=False) for name in state["specials"]])
    return made


def merges_of(ranks: Ranks) -> Iterator[tuple[bytes, bytes]]:
    """All pairs of tokens that make another, in the order of what they make.

    tiktoken merges whichever neighbours make the token of the lowest rank; `tokenizers` has ranks of pairs.
    """
    for token in sorted(ranks, key=ranks.__getitem__):
        halves = ((token[:i], token[i:]) for i in range(1, len(token)))
        pairs = [(left, right) for left, right in halves if left in ranks and right in ranks]
        yield from sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))


def onig_pattern(pattern: str) -> str:
    """tiktoken's regular expression as Oniguruma reads it: `$` is the end of a line there, and `{1,3}+` repeats."""
    return re.sub(r"(\{\d+(?:,\d*)?\})\+", r"\1", pattern).replace("$", r"\z")


def _symbols(token: bytes) -> str:
    """GPT-2's printable stand-ins of the bytes."""
    return "".join(SYMBOLS[byte] for byte in token)
