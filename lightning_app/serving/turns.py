"""How a model takes turns in a conversation."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_app.data.chat_encoding import template_of
from lightning_app.data.chat_template import ChatTemplate
from lightning_app.data.chat_tokens import special_ids
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.training.module import LanguageModule


def take_turns(
    module: LanguageModule,
    tokenizer: Tokenizer,
    given: ChatTemplate | None = None,
    *,
    stop: Sequence[str] | None = None,
) -> ChatTemplate:
    """The template of a conversation: the given one, else that of the model's training, else the tokenizer's, else the
    plain one. From now on the model's texts end where a turn of it does."""
    template = template_of(tokenizer, given or module.chat_template, stop=stop)
    end = special_ids(tokenizer).get(template.turn_end or "")
    module.end_ids |= set() if end is None else {end}
    return template
