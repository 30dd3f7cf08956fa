"""A tokenizer as llama.cpp reads it from a GGUF file: byte-level BPE with the name of how its text is cut, or
SentencePiece's BPE with scores."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from lightning_app.data.bpe import GPT2_PATTERN
from lightning_app.data.gguf_tokenizer import NAMES, pre_tokenizer
from lightning_app.data.tokenizers import BYTES as OF_BYTES
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError
from lightning_app.export.gguf_sentencepiece import BYTES, is_sentencepiece, puts_space, scores
from lightning_app.export.tokenizer import fast_tokenizer, onig_pattern

if TYPE_CHECKING:
    import tokenizers

log = logging.getLogger(__name__)
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # kinds of tokens in the format
GPT2 = "gpt-2"


@dataclass(frozen=True)
class Vocabulary:
    """What the file says of a tokenizer.

    Attributes:
        tokens: by id; of a byte-level BPE in GPT-2's printable stand-ins of bytes.
        kinds: of each token.
        merges: "left right", first ones first; of a byte-level BPE.
        pre: llama.cpp's name of how a text is cut before it is merged; of a byte-level BPE.
        special: ids by the format's names: "bos", "eos", "padding", "unknown".
        chat_template: in Jinja.
        begins: the begin token goes before a text.
        scores: one for each token of a SentencePiece BPE; None where the tokenizer is a byte-level BPE.
        puts_space: a space goes before a text; of SentencePiece's BPE.
    """

    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    pre: str
    special: dict[str, int] = field(default_factory=dict)
    chat_template: str | None = None
    begins: bool = False
    scores: list[float] | None = None
    puts_space: bool = False


def vocabulary(tokenizer: Tokenizer, size: int, *, chat_template: str | None = None) -> Vocabulary:
    """What the file says of a tokenizer of this project.

    Args:
        size: rows of the model's embedding; spare ids are marked as unused.

    Raises:
        InputError: llama.cpp cuts no text as it does.
    """
    begin = tokenizer.eot if tokenizer.bos is None else tokenizer.bos
    special = {"bos": begin, "eos": tokenizer.eot, "padding": tokenizer.pad}
    pre = GPT2 if tokenizer.name == OF_BYTES else None  # nothing is merged, however it is cut
    found = of_backend(fast_tokenizer(tokenizer), size, special=special, pre=pre, chat_template=chat_template)
    return replace(found, begins=tokenizer.bos is not None)


def of_backend(
    backend: tokenizers.Tokenizer,
    size: int,
    *,
    special: dict[str, int],
    pre: str | None = None,
    chat_template: str | None = None,
) -> Vocabulary:
    """What the file says of a tokenizer of the Hugging Face library (its `backend_tokenizer`); see `vocabulary`.

    Args:
        pre: None: found by how the tokenizer cuts.
    """
    state = json.loads(backend.to_str())
    if is_sentencepiece(state):
        return _of_sentencepiece(state, size, special, chat_template)
    normalisers = _normalisers(state["normalizer"])
    if state["model"]["type"] != "BPE" or normalisers not in ([], ["NFC"]):
        raise InputError(
            f"a {state['model']['type']} tokenizer with {'a' if normalisers else 'no'} normaliser cannot be "
            "written as GGUF: only byte-level BPE and SentencePiece's with byte fallback can; export without --format "
            "gguf"
        )
    if normalisers:
        log.warning(
            "the tokenizer composes characters first (NFC), llama.cpp does not: accents apart get other ids there"
        )
    tokens, kinds = _tokens(state, size)
    merges = [one if isinstance(one, str) else " ".join(one) for one in state["model"]["merges"]]
    return Vocabulary(tokens, kinds, merges, pre or _pre(state["pre_tokenizer"]), special, chat_template)


def _normalisers(state: dict[str, Any] | None) -> list[str]:
    return [] if state is None else [step["type"] for step in state.get("normalizers", [state])]


def _tokens(state: dict[str, Any], size: int) -> tuple[list[str], list[int]]:
    """By id, with what stands for the ids that the vocabulary leaves to spare."""
    tokens, kinds = [f"[PAD{i}]" for i in range(size)], [UNUSED] * size
    for token, i in state["model"]["vocab"].items():
        tokens[i], kinds[i] = token, NORMAL
    for added in state["added_tokens"]:
        tokens[added["id"]], kinds[added["id"]] = added["content"], CONTROL if added["special"] else USER_DEFINED
    return tokens, kinds


def _of_sentencepiece(
    state: dict[str, Any], size: int, special: dict[str, int], chat_template: str | None
) -> Vocabulary:
    tokens, kinds = _tokens(state, size)
    for name in BYTES:
        if name in state["model"]["vocab"]:
            kinds[state["model"]["vocab"][name]] = BYTE
    if (unknown := state["model"]["unk_token"]) is not None:
        special = {**special, "unknown": state["model"]["vocab"][unknown]}
        kinds[special["unknown"]] = UNKNOWN
    found = Vocabulary(tokens, kinds, [], "", special, chat_template)
    return replace(found, scores=scores(state, tokens), puts_space=puts_space(state))


def _pre(state: dict[str, Any] | None) -> str:
    names = {tuple(_cuts(_state(pre_tokenizer(steps)))): name for name, steps in reversed(NAMES.items())}
    names[("Split", onig_pattern(GPT2_PATTERN), "Isolated", False), ("ByteLevel",)] = GPT2
    found = tuple(_cuts(state))
    if found not in names:
        raise InputError(f"llama.cpp cuts no text as this tokenizer does ({state}): export without --format gguf")
    return names[found]


def _state(pre_tokenizer: Any) -> dict[str, Any]:
    return json.loads(pre_tokenizer.__getstate__())


def _cuts(state: dict[str, Any] | None) -> Iterator[tuple[Any, ...]]:
    """One entry for each step, without what changes no id."""
    for step in [] if state is None else state.get("pretokenizers", [state]):
        if step["type"] == "ByteLevel":
            yield (
                "ByteLevel",
                *(["regex"] if step["use_regex"] else []),
                *(["prefix"] if step["add_prefix_space"] else []),
            )
        elif step["type"] == "Split":
            yield ("Split", step["pattern"].get("Regex", step["pattern"]), step["behavior"], step["invert"])
        else:
            yield tuple(step.items())
