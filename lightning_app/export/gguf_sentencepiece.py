"""SentencePiece's BPE with byte fallback, as LLaMA has it, in the words of a GGUF file.

llama.cpp has no list of merges for it: of all neighbours whose text together is a token it joins those of the highest
score, the leftmost of equal ones, and spells in bytes what is not a token (`llm_tokenizer_spm`). So a token's score is
the rank of its first merge.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from lightning_app.data.tokenizers.pipeline import parts
from lightning_app.errors import InputError

log = logging.getLogger(__name__)

SPACE = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
NO_MERGE = -1e9  # the score of what is not merged from others: nobody compares it
ELSE = "export without --format gguf"
OTHERWISE = ("normalized", "lstrip", "rstrip", "single_word")  # how an added token may be found
Pair = tuple[str, str]


def is_sentencepiece(state: Mapping[str, Any]) -> bool:
    """Whether a `tokenizer.json` is a BPE of this kind."""
    return state["model"]["type"] == "BPE" and bool(state["model"].get("byte_fallback"))


def puts_space(state: Mapping[str, Any]) -> bool:
    """Whether a space goes before a text; that, and a sign for each space, is all that llama.cpp does to it.

    Raises:
        InputError: the tokenizer does something else.
    """
    steps, cut = list(parts(state["normalizer"])), state["pre_tokenizer"]
    prepend = {"type": "Prepend", "prepend": SPACE}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if cut is None and steps in ([prepend, replace], [replace]):
        return steps[0] == prepend
    if not steps and cut is not None and cut["type"] == "Metaspace" and cut["replacement"] == SPACE:
        if cut["prepend_scheme"] != "never":
            log.warning(
                "llama.cpp puts a space before each text and behind each special token; this tokenizer does not where "
                "a text begins with a space, or goes on behind such a token: the ids of these texts differ"
            )
        return bool(cut["prepend_scheme"] != "never")
    raise InputError(f"llama.cpp prepares no text as this tokenizer does ({steps}, then {cut}): {ELSE}")


def scores(state: Mapping[str, Any], tokens: list[str]) -> list[float]:
    """The score of each token: the earlier it is merged, the higher. A line says where llama.cpp may give other ids.

    Args:
        state: the content of the `tokenizer.json`.
        tokens: all that the file has, by id.

    Raises:
        InputError: llama.cpp cannot do what the tokenizer does.
    """
    _check_model(state)
    merges = [(left, right) for left, right in map(_pair, state["model"]["merges"])]
    ranks: dict[str, int] = {}
    for rank, pair in enumerate(merges):
        ranks.setdefault("".join(pair), rank)
    added = {one["content"] for one in state["added_tokens"]}
    _say_apart([token for token in state["model"]["vocab"] if token not in added and token not in BYTES], set(merges))
    return [-float(ranks[token]) if token in ranks else NO_MERGE for token in tokens]


def _pair(merge: str | list[str]) -> list[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _check_model(state: Mapping[str, Any]) -> None:
    model = state["model"]
    if lacking := [name for name in BYTES if name not in model["vocab"]]:
        raise InputError(f"llama.cpp needs a token for each byte, and this tokenizer lacks {lacking[0]}: {ELSE}")
    for name in ("ignore_merges", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name):
            raise InputError(f"llama.cpp has no BPE with byte fallback whose {name} is {model[name]!r}: {ELSE}")
    for added in state["added_tokens"]:
        if not added["special"] and any(added[name] for name in OTHERWISE):
            raise InputError(
                f"llama.cpp finds the added token {added['content']!r} wherever a text has it; this tokenizer looks "
                f"for it otherwise ({', '.join(OTHERWISE)}: one is set): {ELSE}"
            )


def _say_apart(tokens: Iterable[str], merges: Collection[Pair]) -> None:
    """Name what llama.cpp would join and the tokenizer does not: a converted SentencePiece model has nothing of it."""
    known = set(tokens)
    apart = [pair for token in sorted(known) for pair in _neighbours(token, known) if pair not in merges]
    if apart:
        log.warning(
            "llama.cpp joins all neighbours that make a token, and this tokenizer leaves some apart, such as %r and %r "
            "(%d pairs): where such meet in a text its ids are others there",
            *apart[0],
            len(apart),
        )


def _neighbours(token: str, known: set[str]) -> Iterator[Pair]:
    """What llama.cpp may find side by side and join to a token: each is a token, too, or one character."""
    for i in range(1, len(token)):
        pair = token[:i], token[i:]
        if all(len(half) == 1 or half in known for half in pair):
            yield pair
