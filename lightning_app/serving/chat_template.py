"""From the messages of a conversation to one prompt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lightning_app.errors import InputError
from lightning_app.utf8 import decode

# For models that were trained on no conversations: they continue what looks like the record of one.
PLAIN = """\
{%- for message in messages -%}
{%- if message.role == "system" -%}{{ message.content }}

{% else -%}{{ message.role | capitalize }}: {{ message.content }}
{% endif -%}
{%- endfor -%}
Assistant:"""
PLAIN_STOP = ("\nUser:", "\nAssistant:")


class Message(TypedDict):
    """Who said what: role is "system", "user" or "assistant"."""

    role: str
    content: str


class ChatTemplate:
    """A template in Jinja, the language of Hugging Face's chat templates; it sees `messages` and
    `add_generation_prompt`.

    Args:
        path: of a template; None: the project's own, for models that have none.
        stop: strings that end an answer; None: the beginning of the next turn with the own template, else none.

    Raises:
        InputError: no such file, or one that is not a template.
    """

    def __init__(self, path: str | Path | None = None, *, stop: Sequence[str] | None = None):
        self._name = Path(path).name if path else "the plain template"  # clients of a server read it: no folder
        default = () if path else PLAIN_STOP
        self.stop = tuple(default if stop is None else stop)
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        try:
            self._template = environment.from_string(decode(Path(path).read_bytes()) if path else PLAIN)
        except (OSError, TemplateError) as error:
            raise InputError(f"{path} is not a readable chat template: {error}") from None

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt that an answer continues.

        Raises:
            InputError: the template refuses these messages.
        """
        try:
            return self._template.render(messages=list(messages), add_generation_prompt=True)
        except (TemplateError, TypeError, ValueError) as error:
            raise InputError(f"{self._name} cannot render these messages: {error}") from None
