"""Conversations of a data set: their messages as a template takes them, and what it made of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_app.data.chat_template import ROLES
from lightning_app.data.reading import unify_newlines
from lightning_app.errors import InputError


@dataclass(frozen=True)
class Chat:
    """Messages with `role` and `content`, and what else a template may know, such as `tool_calls`.

    Attributes:
        tools: descriptions of functions that the assistant may call.
    """

    messages: tuple[dict[str, Any], ...]
    tools: list[Any] | None = None

    @property
    def texts(self) -> list[str]:
        """What each message says."""
        return [message["content"] for message in self.messages if message.get("content")]


def chat_of(row: Mapping[str, Any], field: str, name: str) -> Chat:
    """The conversation in a row.

    Raises:
        InputError: no messages, an unknown role, content that is not text, or nothing that the assistant says.
    """
    messages, tools = row[field], row.get("tools")
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{name}: {field!r} is {messages!r:.60}; give a list of messages with role and content")
    if tools is not None and not isinstance(tools, list):
        raise InputError(f"{name}: 'tools' is {tools!r:.60}; give a list of functions' descriptions, or leave it out")
    chat = Chat(tuple(_message(one, f"{name}, message {i}") for i, one in enumerate(messages, start=1)), tools)
    if all(message["role"] != "assistant" for message in chat.messages):
        raise InputError(f"{name}: the assistant says nothing, so there is nothing to learn; remove the row")
    return chat


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InputError(f"{where}: {message!r:.60} is not an object with role and content")
    if message.get("role") not in ROLES:
        role = f"the role {message['role']!r}" if "role" in message else f"no role (fields: {', '.join(message)})"
        raise InputError(f"{where} has {role}; a role is one of {', '.join(ROLES)}")
    calls = message.get("tool_calls")
    content = _content(message.get("content") or "", where)
    if message["role"] == "assistant" and not content.strip() and not calls:
        raise InputError(f"{where}: the assistant's content is empty; fill it in or remove the row")
    known = {key: value for key, value in message.items() if value is not None}
    return {**known, "content": content} if "content" in known else known


def _content(content: Any, where: str) -> str:
    """A text, or the texts of its parts."""
    if isinstance(content, list) and all(isinstance(part, Mapping) and "text" in part for part in content):
        content = "".join(str(part["text"]) for part in content)
    if not isinstance(content, str) or not is_unicode(content):
        raise InputError(f"{where}: the content is {content!r:.60}, not a text; only text is learned here")
    return unify_newlines(content)


def is_unicode(value: str) -> bool:
    """Whether a text can be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        return False
    return True
