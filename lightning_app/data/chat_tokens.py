"""What a chat template needs of a tokenizer: its own template, its special tokens, and ids of what was written."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from lightning_app.data.reading import END_OF_TEXT
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.data.tokenizers.sources import CONFIG, SPECIAL_TOKENS, TEMPLATE, TEMPLATES, TOKENIZER
from lightning_app.errors import InputError


def own_templates(tokenizer: Tokenizer) -> tuple[str | None, str | None]:
    """The text of the tokenizer's own template, and of the one for conversations with tools where it has another.

    As transformers chooses among several by name: "tool_use" with tools, else "default".

    Raises:
        InputError: something else than a text stands there, or several, none of which is the default.
    """
    named = _templates(tokenizer)
    if odd := [text for text in named.values() if not isinstance(text, str)]:
        raise InputError(
            f"the chat_template of {tokenizer.name!r} is a {type(odd[0]).__name__}, not a text: mend its {CONFIG}"
        )
    if named and "default" not in named:
        raise InputError(
            f"{tokenizer.name!r} has chat templates called {', '.join(sorted(named))}, and none is the default: give "
            "one of them as a file (--chat_template; data.chat_template in a fit)"
        )
    return named.get("default"), named.get("tool_use")


def _templates(tokenizer: Tokenizer) -> dict[str, Any]:
    """By their names; files go before what the config has."""
    files, given = _files(tokenizer), _config(tokenizer).get("chat_template")
    within = {name: text for name, text in files.items() if name.startswith(f"{TEMPLATES}/")}
    named = {name.removeprefix(f"{TEMPLATES}/").removesuffix(".jinja"): text for name, text in within.items()}
    if TEMPLATE in files:
        named["default"] = files[TEMPLATE]
    if named or given is None:
        return named
    if not isinstance(given, list):
        return {"default": given}
    try:  # in older files
        return {one["name"]: one["template"] for one in given}
    except (TypeError, KeyError):
        raise InputError(
            f"the chat templates of {tokenizer.name!r} have no names and texts: mend its {CONFIG}"
        ) from None


def template_tokens(tokenizer: Tokenizer) -> dict[str, str]:
    """Special tokens by the names that templates use, such as "eos_token"."""
    if not _files(tokenizer):
        return {"eos_token": END_OF_TEXT}
    named = {**json.loads(_files(tokenizer).get(SPECIAL_TOKENS, "{}")), **_config(tokenizer)}
    texts = {name: token["content"] if isinstance(token, dict) else token for name, token in named.items()}
    return {name: text for name, text in texts.items() if name.endswith("_token") and isinstance(text, str)}


@lru_cache(maxsize=4)  # asked for each conversation, and files are long
def special_ids(tokenizer: Tokenizer) -> dict[str, int]:
    """Ids of the tokens that a text from a template may name, by their names."""
    if not _files(tokenizer):
        return {END_OF_TEXT: tokenizer.eot}
    return {token["content"]: token["id"] for token in json.loads(_files(tokenizer)[TOKENIZER])["added_tokens"]}


def measured(text: str, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Ids (n,) of a text in which special tokens' names are those tokens, and the bytes (n,) each stands for."""
    if _files(tokenizer):
        reads_names = _reading_names(tokenizer)
        found = reads_names.measured(text)
        sizes = reads_names.token_bytes()[found.ids] if found.n_bytes is None else found.n_bytes
        return found.ids, sizes.astype(np.int64)
    return _measured_with_end_of_text(text, tokenizer)


def prompt_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Ids of what a template wrote, at least one. A begin token is the template's business."""
    ids: list[int] = measured(text, tokenizer)[0].tolist()
    return ids or [tokenizer.eot]


def _measured_with_end_of_text(text: str, tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
    ids: list[np.ndarray] = []
    for i, part in enumerate(text.split(END_OF_TEXT)):
        ids += [np.array([tokenizer.eot] * bool(i), dtype=np.uint32), tokenizer.encode_array(part)]
    joined = np.concatenate(ids)
    sizes = tokenizer.token_bytes()[joined].astype(np.int64)
    sizes[joined == tokenizer.eot] = len(END_OF_TEXT)
    return joined, sizes


@lru_cache(maxsize=4)
def _reading_names(tokenizer: Tokenizer) -> Any:
    """The same tokenizer, for which the names of special tokens are those tokens."""
    return Tokenizer.from_state({**tokenizer.state(), "special_text": True})


def _files(tokenizer: Tokenizer) -> Mapping[str, str]:
    """The files of a tokenizer of Hugging Face's, by their names; a tiktoken encoding has none."""
    return getattr(tokenizer, "files", {})


def _config(tokenizer: Tokenizer) -> dict[str, Any]:
    config: dict[str, Any] = json.loads(_files(tokenizer).get(CONFIG, "{}"))
    return config
