"""Conversations as a template writes them, as tokens, and which of these are the assistant's."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import NamedTuple

import numpy as np

from lightning_app.data.chat_template import ChatTemplate
from lightning_app.data.chat_tokens import measured, own_templates, special_ids, template_tokens
from lightning_app.data.chats import is_unicode
from lightning_app.data.corpus import Document
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError


def template_of(
    tokenizer: Tokenizer, given: ChatTemplate | None = None, *, stop: Sequence[str] | None = None
) -> ChatTemplate:
    """How conversations are written for a tokenizer: the given way, else its own, else the plain one."""
    if given is None:
        own, with_tools = own_templates(tokenizer)
        name = f"the chat template of {tokenizer.name}"
        given = ChatTemplate(own, name=name, with_tools=with_tools) if own else ChatTemplate()
    return given.adapted(template_tokens(tokenizer), special_ids(tokenizer), stop=stop)


class EncodedTurns(NamedTuple):
    """The tokens of a conversation, with the end of text behind it.

    Attributes:
        ids: (n,) uint32.
        n_bytes: (n,) int64 bytes of the text that each stands for; 0 for special ids, as in `token_bytes`.
        scored: (n,) bool, which are the assistant's.
    """

    ids: np.ndarray
    n_bytes: np.ndarray
    scored: np.ndarray


def encode_turns(text: str, turns: Sequence[tuple[int, int]], tokenizer: Tokenizer) -> EncodedTurns:
    """The tokens of a conversation whose turns of the assistant have these characters.

    As in transformers, a token is the assistant's if any of it lies in a turn. The end of text is, where a turn ends
    the conversation without a special token of its own: else nothing would teach the model to stop.
    """
    ids, sizes = measured(text, tokenizer)
    ends = np.cumsum(sizes)
    scored = np.zeros(len(ids) + 1, dtype=bool)
    for start, end in turns:
        first, behind = len(text[:start].encode()), len(text[:end].encode())
        scored[:-1] |= (ends > first) & (ends - sizes < behind)
    ends_itself = int(ids[-1]) in special_ids(tokenizer).values()
    scored[-1] = scored[-2] and not ends_itself
    ids = np.append(ids, np.array([tokenizer.eot], dtype=ids.dtype))
    return EncodedTurns(ids, np.where(tokenizer.token_bytes()[ids] > 0, np.append(sizes, 0), 0), scored)


@dataclass(frozen=True)
class WrittenChats:
    """Documents, conversations among them as a template writes them. Iterated over any number of times.

    Attributes:
        template: makes it; called where there is a conversation.
    """

    documents: Iterable[Document]
    template: Callable[[], ChatTemplate]

    def __iter__(self) -> Iterator[Document]:
        template = cache(self.template)
        return (document if document.chat is None else written(document, template()) for document in self.documents)


def written(document: Document, template: ChatTemplate) -> Document:
    """A conversation as one text, with the assistant's turns.

    Raises:
        InputError: the template refuses it; its row is named.
    """
    assert document.chat is not None
    try:
        rendered = template.turns(document.chat.messages, tools=document.chat.tools)
    except InputError as error:
        raise InputError(f"{document.name}: {error}") from None
    if not rendered.turns or not is_unicode(rendered.text):
        what = "marks nothing as the assistant's" if not rendered.turns else "writes half of a surrogate pair"
        raise InputError(f"{document.name}: {template.name} {what}; see data.chat_template")
    return replace(document, text=rendered.text, chat=None, turns=rendered.turns)
