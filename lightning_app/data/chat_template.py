"""From the messages of a conversation to one text, and which parts of it are the assistant's turns.

Templates are rendered by transformers' own environment, so that a model sees what it saw in its training.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

from jinja2 import TemplateError

from lightning_app.data.reading import say_once
from lightning_app.errors import InputError
from lightning_app.utf8 import decode

# For models that were trained on no conversations: they continue what looks like the record of one.
PLAIN = """\
{%- for message in messages -%}
{%- if message.role in ("system", "developer") -%}{{ message.content }}

{% else -%}{{ message.role | capitalize }}: {{ message.content }}
{% endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}Assistant:{%- endif -%}
"""
PLAIN_STOP = ("\nUser:", "\nAssistant:")
ROLES = ("system", "developer", "user", "assistant", "tool")
_BLOCKS = re.compile(r"\{%-?\s*generation\s*-?%\}")  # what transformers looks for
_REFUSALS = (TemplateError, TypeError, ValueError, LookupError, ArithmeticError, AttributeError, RecursionError)
_SAID = "an answer"

Messages = Sequence[Mapping[str, Any]]


class Message(TypedDict):
    """Who said what: role is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Rendered:
    """A conversation as one text.

    Attributes:
        turns: first character and end of each of the assistant's turns: what it said, and the turn's end token.
    """

    text: str
    turns: tuple[tuple[int, int], ...]


class ChatTemplate:
    """A template in Jinja, as Hugging Face's tokenizers have them.

    Args:
        text: the template.
        name: for messages; clients of a server read it, so no folder.
        tokens: special tokens by the names that templates use, such as "eos_token".
        specials: names of all special tokens, to find those that end a turn; those of `tokens` are among them.
        stop: strings that end an answer; None: the beginning of the next turn with the plain template, else none.
        with_tools: the template of conversations with tools, if that is another.

    Raises:
        InputError: the text is not a template.
    """

    def __init__(
        self,
        text: str = PLAIN,
        *,
        name: str = "the plain template",
        tokens: Mapping[str, str] | None = None,
        specials: Collection[str] = (),
        stop: Sequence[str] | None = None,
        with_tools: str | None = None,
    ) -> None:
        self.text, self.name, self.tokens, self.with_tools = text, name, dict(tokens or {}), with_tools
        self.specials = tuple({*specials, *self.tokens.values()})
        default = PLAIN_STOP if text == PLAIN else ()
        self.stop = tuple(default if stop is None else stop)
        try:
            self._transformers([])
            self._transformers([], tools=[])
        except TemplateError as error:
            raise InputError(f"{name} is not a readable chat template: {error}") from None

    @classmethod
    def read(cls, path: str | Path, **options: Any) -> ChatTemplate:
        """The template in a file. Raises InputError where it cannot be read."""
        try:
            text = decode(Path(path).read_bytes())
        except OSError as error:
            raise InputError(f"{path} is not a readable chat template: {error}") from None
        return cls(text, name=Path(path).name, **options)

    def adapted(
        self, tokens: Mapping[str, str], specials: Collection[str], *, stop: Sequence[str] | None = None
    ) -> ChatTemplate:
        """This template with a tokenizer's special tokens, and with other stop strings if given."""
        stop = self.stop if stop is None else stop
        options: dict[str, Any] = {"specials": specials, "stop": stop, "with_tools": self.with_tools}
        return ChatTemplate(self.text, name=self.name, tokens=tokens, **options)

    def text_for(self, tools: list[Any] | None) -> str:
        """What renders a conversation with these tools, or without any."""
        return self.text if tools is None or self.with_tools is None else self.with_tools

    def _transformers(
        self, conversations: Sequence[Messages], tools: list[Any] | None = None, **options: Any
    ) -> tuple[list[str], list[Any]]:
        from transformers.utils.chat_template_utils import render_jinja_template

        chats: Any = [[_without_nulls(message) for message in messages] for messages in conversations]
        render: Any = render_jinja_template  # its annotation says str, and it returns two lists
        written = {"chat_template": self.text_for(tools), "tools": tools}
        texts, turns = render(chats, **written, **{**self.tokens, **options})
        return list(texts), list(turns)

    def _render(self, messages: Messages, **options: Any) -> tuple[str, list[tuple[int, int]]]:
        try:
            (text,), turns = self._transformers([messages], **options)
        except _REFUSALS as error:
            raise InputError(f"{self.name} cannot render these messages: {error}") from None
        return text, turns[0] if turns else []

    def render(self, messages: Messages, *, tools: list[Any] | None = None, add_generation_prompt: bool = True) -> str:
        """The prompt that an answer continues; or the whole conversation.

        Args:
            messages: as Hugging Face's templates take them.
            tools: descriptions of functions that the assistant may call.
            add_generation_prompt: end with what stands before an answer.

        Raises:
            InputError: the template refuses these messages.
        """
        return self._render(messages, tools=tools, add_generation_prompt=add_generation_prompt)[0]

    def turns(self, messages: Messages, *, tools: list[Any] | None = None) -> Rendered:
        """The whole conversation, and where the assistant speaks.

        That is what a template has between {% generation %} and {% endgeneration %}; without these it is what a turn
        adds to the prompt before it, up to the token that ends it.

        Raises:
            InputError: the template refuses these messages, or changes what stood before a turn.
        """
        template = self.text_for(tools)
        if "strftime_now" in template:
            say_once(f"{self.name} may write the day's date into each conversation: another day's data differ")
        if _BLOCKS.search(template):
            return Rendered(*_plain(self._render(messages, tools=tools, return_assistant_tokens_mask=True)))
        text, _ = self._render(messages, tools=tools)
        return Rendered(text, tuple(self._added(text, messages, tools)))

    def _added(self, text: str, messages: Messages, tools: list[Any] | None) -> Iterator[tuple[int, int]]:
        behind = 0
        for i, message in enumerate(messages):
            if message["role"] == "assistant":
                start = self._start(text, behind, messages[: i + 1], tools)
                end = self._end(text, start, messages[: i + 1], tools)
                if end <= max(start, behind):
                    raise self._changed(i)
                behind = end
                yield start, end

    def _start(self, text: str, behind: int, messages: Messages, tools: list[Any] | None) -> int:
        """Behind the prompt of the last of these; else where what it said stands, behind the messages before it."""
        for prompted in (True, False):
            before = self._or_none(messages[:-1], tools=tools, add_generation_prompt=prompted)
            if before is not None and text.startswith(before):
                behind = max(behind, len(before))
                if prompted:
                    return behind
                break
        found = text.find(_said(messages[-1]), behind)
        if found < 0:
            raise self._changed(len(messages) - 1)
        return found

    def _end(self, text: str, start: int, messages: Messages, tools: list[Any] | None) -> int:
        """Behind the token that ends the turn of the last of these; else behind all that the turn adds."""
        whole, said = self._or_none(messages, tools=tools), _said(messages[-1])
        limit = len(whole) if whole is not None and text.startswith(whole) else None
        found = text.find(said, start, limit)
        if found < 0 and limit is None:
            raise self._changed(len(messages) - 1)
        behind = start if found < 0 else found + len(said)
        ends = -1 if self.turn_end is None else text.find(self.turn_end, behind, limit)
        if self.turn_end is not None and ends >= 0:
            return ends + len(self.turn_end)
        return behind if limit is None else limit

    def _or_none(self, messages: Messages, **options: Any) -> str | None:
        """What transformers itself does not render is not a prefix of anything."""
        try:
            return self._render(messages, **options)[0]
        except InputError:
            return None

    def _changed(self, i: int) -> InputError:
        return InputError(
            f"{self.name} writes message {i + 1} in another way once others follow, so nobody can tell which part is "
            "the assistant's; mark it in the template by {% generation %} and {% endgeneration %}"
        )

    @cached_property
    def turn_end(self) -> str | None:
        """The special token that ends the assistant's turn; None where there is none."""
        talk = [{"role": "user", "content": "a question"}, {"role": "assistant", "content": _SAID}]
        text = self._or_none(talk) or ""
        tail = text[text.rfind(_SAID) + len(_SAID) :] if _SAID in text else ""
        found = [name for name in self.specials if name in tail]
        return min(found, key=lambda name: (tail.index(name), -len(name)), default=None)


def _plain(rendered: tuple[str, list[tuple[int, int]]]) -> tuple[str, tuple[tuple[int, int], ...]]:
    text, turns = rendered
    return text, tuple((start, end) for start, end in turns if end > start)


def _said(message: Mapping[str, Any]) -> str:
    return str(message.get("content") or "").strip()


def _without_nulls(message: Mapping[str, Any]) -> dict[str, Any]:
    """A template would write them as None; transformers drops them as well."""
    return {name: value for name, value in message.items() if value is not None}
