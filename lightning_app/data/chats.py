"""Conversations of a data set: their messages as a template takes them, and what it made of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_app.data.chat_template import ROLES
from lightning_app.data.reading import unify_newlines
from lightning_app.errors import InputError

FIELDS = ("messages", "conversations", "conversation")  # where a row has them
# ShareGPT's form: its names of fields and roles, and ours.
_FROM, _VALUE = "from", "value"
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant"}


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


def chat_field(row: Mapping[str, Any]) -> str | None:
    """The field of a row that holds a conversation; None where there is none."""
    return next((field for field in FIELDS if row.get(field) is not None), None)


def chat_of(row: Mapping[str, Any], field: str, name: str) -> Chat:
    """The conversation in a row; ShareGPT's form, too: `from` and `value`, and a `system` text of the row.

    Raises:
        InputError: no messages, an unknown role, content that is not text, or nothing that the assistant says.
    """
    messages, tools = row[field], row.get("tools")
    if not isinstance(messages, list) or not messages:
        raise InputError(f"{name}: {field!r} is {messages!r:.60}; give a list of messages with role and content")
    if tools is not None and not isinstance(tools, list):
        raise InputError(f"{name}: 'tools' is {tools!r:.60}; give a list of functions' descriptions, or leave it out")
    said = [_message(_usual(one), f"{name}, message {i}") for i, one in enumerate(messages, start=1)]
    if _is_sharegpt(messages[0]) and row.get("system") and said[0]["role"] != "system":
        said.insert(0, _message({"role": "system", "content": row["system"]}, f"{name}, 'system'"))
    chat = Chat(tuple(said), tools)
    if all(message["role"] != "assistant" for message in chat.messages):
        raise InputError(f"{name}: the assistant says nothing, so there is nothing to learn; remove the row")
    return chat


def _is_sharegpt(message: Any) -> bool:
    return isinstance(message, Mapping) and _FROM in message and _VALUE in message and message.get("role") is None


def _usual(message: Any) -> Any:
    """ShareGPT's form as the usual one; all else as it is."""
    if not _is_sharegpt(message):
        return message
    others = {key: value for key, value in message.items() if key not in (_FROM, _VALUE)}
    role = message[_FROM]
    return {**others, "role": _ROLES.get(role, role) if isinstance(role, str) else role, "content": message[_VALUE]}


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
    if isinstance(calls, list):
        known["tool_calls"] = [_call(call, where) for call in calls]
    return {**known, "content": content} if "content" in known else known


def _call(call: Any, where: str) -> Any:
    """With its arguments as an object, whichever form it has: beside the name, in `function` or not."""
    if not isinstance(call, Mapping):
        return call
    if isinstance(call.get("function"), Mapping):
        return {**call, "function": _call(call["function"], where)}
    if call.get("arguments") is None:
        return call
    try:
        return {**call, "arguments": arguments_of(call["arguments"])}
    except ValueError as error:
        raise InputError(f"{where}: the arguments of a call are {call['arguments']!r:.60}: {error}") from None


def arguments_of(given: Any) -> dict[str, Any]:
    """The arguments of a call as chat templates take them: an object, where OpenAI has it as JSON in a text.

    Raises:
        ValueError: it is none.
    """
    try:
        found = json.loads(given or "{}") if isinstance(given, str) else given
    except RecursionError as error:
        raise ValueError("the arguments are nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("give an object of arguments by their names")
    return found


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
