"""A `tokenizer.json` as plain data: its parts, and what has to be changed in it before texts are encoded."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lightning_app.errors import InputError

if TYPE_CHECKING:
    import tokenizers

SPACES = " \t\r\n\N{LOWER ONE EIGHTH BLOCK}"  # SentencePiece writes a space as the last
WITH_WHOLE_WORDS = ("Unigram", "WordPiece", "WordLevel")  # whose vocabulary may match a special token's name in a text
NO_TEXT = "\uffff"  # a code point that is not a character

Parsed = dict[str, Any]


def parts(component: Parsed | None) -> Iterator[Parsed]:
    """The steps of a normalizer, pre-tokenizer, decoder or post-processor."""
    if component is None:
        return
    if component["type"] != "Sequence":
        yield component
        return
    for name in ("normalizers", "pretokenizers", "decoders", "processors"):
        for one in component.get(name, ()):
            yield from parts(one)


def types(component: Parsed | None) -> list[str]:
    """The kind of each step."""
    return [str(one["type"]) for one in parts(component)]


def is_kept(added: Parsed) -> bool:
    """Whether an added token is part of the vocabulary like any other: runs of white space, as Pythia has them."""
    return not added["special"] and not str(added["content"]).strip(SPACES)


def variant(parsed: Parsed, *, ordinary: bool, continues: bool) -> tokenizers.Tokenizer:
    """A tokenizer that encodes all of a text, each time in the same way.

    Args:
        parsed: the content of a `tokenizer.json`.
        ordinary: names of special and added tokens are ordinary text.
        continues: no space is put before the first word.
    """
    import json

    import tokenizers

    made = copy.copy(parsed)
    made |= {"truncation": None, "padding": None, "model": {**made["model"]}}
    if made["model"].get("dropout") is not None:
        made["model"]["dropout"] = None
    if continues:
        made |= {
            "normalizer": _without_prefix(made.get("normalizer")),
            "pre_tokenizer": _without_prefix(made.get("pre_tokenizer")),
        }
    if ordinary:
        made["added_tokens"] = [one if is_kept(one) else {**one, "special": True} for one in made["added_tokens"]]
        _hide_names(made)
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(made))
    except Exception as error:
        if type(error) is not Exception:  # what the library raises has no type of its own
            raise
        raise InputError(
            f"the tokenizer.json cannot be read by tokenizers {tokenizers.__version__} ({error}): it is damaged, or of "
            "a later version"
        ) from error
    tokenizer.encode_special_tokens = ordinary
    return tokenizer


def _without_prefix(component: Parsed | None) -> Parsed | None:
    if component is None or component["type"] == "Prepend":
        return None
    changed = dict(component)
    for name in ("normalizers", "pretokenizers"):
        if name in changed:
            inner = [_without_prefix(one) for one in changed[name]]
            changed[name] = [one for one in inner if one is not None]
    if "add_prefix_space" in changed:
        changed["add_prefix_space"] = False
    if changed["type"] == "Metaspace":
        changed["prepend_scheme"] = "never"
    return changed


def _hide_names(made: Parsed) -> None:
    """Give special tokens names that no text has, where the vocabulary would match them as words.

    Those that are kept come first: an added token that the vocabulary lacks gets the next free id.
    """
    model = made["model"]
    if model.get("type") not in WITH_WHOLE_WORDS:
        return
    hidden = {one["content"] for one in made["added_tokens"] if not is_kept(one)} - {model.get("unk_token")}
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        model["vocab"] = {f"{NO_TEXT}{i}" if token in hidden else token: i for token, i in vocab.items()}
    else:
        unknown = model.get("unk_id")
        model["vocab"] = [
            [f"{NO_TEXT}{i}" if token in hidden and i != unknown else token, score]
            for i, (token, score) in enumerate(vocab)
        ]
    made["added_tokens"] = sorted(made["added_tokens"], key=is_kept, reverse=True)
