"""Which ids begin, end and pad the texts of a Hugging Face tokenizer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from lightning_app.data.tokenizers.sources import CONFIG, SPECIAL_TOKENS
from lightning_app.errors import InputError

if TYPE_CHECKING:
    import tokenizers

# Where no file says what ends a text.
ENDS = ("<|endoftext|>", "</s>", "<|end_of_text|>", "<eos>", "<|eos|>", "[SEP]")


def end_of(name: str, tokenizer: tokenizers.Tokenizer, files: Mapping[str, str], config: Mapping[str, Any]) -> int:
    """The id of the end of a text: that of the files, of the model's config, or of a usual name.

    Raises:
        InputError: there is none.
    """
    if (token := named(files, "eos_token")) is not None and (found := tokenizer.token_to_id(token)) is not None:
        return found
    given = config.get("eos_token_id")
    given = given[0] if isinstance(given, list) and given else given
    if isinstance(given, int) and given >= 0 and tokenizer.id_to_token(given) is not None:
        return given
    for usual in ENDS:
        if (found := tokenizer.token_to_id(usual)) is not None:
            return found
    raise InputError(
        f"the tokenizer {name!r} does not say which token ends a text: name one of its tokens as eos_token in its "
        f"{CONFIG}"
    )


def begin_of(tokenizer: tokenizers.Tokenizer, files: Mapping[str, str]) -> int | None:
    """The id that the tokenizer puts before a text where it is asked for special tokens; None: none."""
    asked = _json(files, CONFIG).get("add_bos_token")
    if asked is not None:
        token = named(files, "bos_token") if asked else None
        return None if token is None else tokenizer.token_to_id(token)
    plain, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    before = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return whole[0] if before else None


def pad_of(tokenizer: tokenizers.Tokenizer, files: Mapping[str, str]) -> int | None:
    """The id of padding; None: the files name none."""
    token = named(files, "pad_token")
    return None if token is None else tokenizer.token_to_id(token)


def named(files: Mapping[str, str], role: str) -> str | None:
    """The token that the files give a role such as "eos_token"."""
    return next(_named(files, role), None)


def _named(files: Mapping[str, str], role: str) -> Iterator[str]:
    for file in (CONFIG, SPECIAL_TOKENS):
        token = _json(files, file).get(role)
        token = token.get("content") if isinstance(token, dict) else token
        if isinstance(token, str):
            yield token


def _json(files: Mapping[str, str], name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(files.get(name, "{}"))
    return found
