"""Prompts with what a model's memory finds for them put before them, as text; see `Extension.found_for`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from lightning_app.data.chat_template import Messages
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.models.extension import Found
from lightning_app.training.module import LanguageModule

BETWEEN = "\n\n"


@dataclass(frozen=True)
class Before:
    """What stands before a prompt: texts, and names of their documents without folders, the nearest first."""

    texts: tuple[str, ...] = ()
    documents: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Sequence[Found]) -> Before:
        names = [PurePath(one.document).name for one in found]
        return cls(tuple(one.text for one in found), tuple(dict.fromkeys(names)))

    @classmethod
    def prompt(cls, prompt: str, module: LanguageModule, tokenizer: Tokenizer) -> Before:
        """What the memory finds for a prompt."""
        return cls.of(module.found_for(prompt, tokenizer))

    @classmethod
    def chat(cls, messages: Messages, module: LanguageModule, tokenizer: Tokenizer) -> Before:
        """What the memory finds for the last message, if that is the user's."""
        return cls.prompt(_asked(messages), module, tokenizer)

    def put(self, prompt: str) -> str:
        """The prompt with it."""
        return BETWEEN.join([*self.texts, prompt])

    def ask(self, question: str) -> str:
        """The question with it. Told what to do with it SmolLM2-135M answered 6 of 12 by the text, else 1."""
        if not self.texts:
            return question
        return f"Answer the question by the text.\n\nText: {BETWEEN.join(self.texts)}\nQuestion: {question}"

    def put_in(self, messages: Messages) -> Messages:
        """The conversation with it in its last message."""
        if not self.texts:
            return messages
        return [*messages[:-1], {**messages[-1], "content": self.ask(_asked(messages))}]

    @property
    def said(self) -> dict[str, Any]:
        """What an answer says of it; nothing where nothing was found."""
        return {"found_in": list(self.documents)} if self.documents else {}


NOTHING = Before()


def _asked(messages: Messages) -> str:
    """The last message, if it is the user's; else nothing."""
    last = messages[-1] if messages else {}
    return str(last.get("content") or "") if last.get("role") == "user" else ""
