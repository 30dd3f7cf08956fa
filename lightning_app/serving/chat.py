"""`python main.py chat`: a conversation with a trained model, in the terminal.

What begins with a slash is a command: /help lists them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml

from lightning_app.data.chat_template import ChatTemplate, Message
from lightning_app.data.chat_tokens import prompt_ids
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError
from lightning_app.io import write_atomic
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.serving.before import Before
from lightning_app.serving.generate import continue_text
from lightning_app.serving.turns import take_turns
from lightning_app.training.command_options import ModelOptions, SamplingOptions
from lightning_app.training.loading import load, read_template
from lightning_app.training.module import LanguageModule
from lightning_app.utf8 import as_text, decode

HELP = """\
/set NAME VALUE   change a setting, such as /set temperature 0.5; /set alone shows them all
/stop TEXT        end answers before TEXT, too; /stop alone: only where the template says
/system TEXT      what stands before the conversation; /system alone: nothing
/history          the conversation so far
/prompt           the prompt that the model would see next
/retry            the last answer again, with another seed
/undo             forget the last question and its answer
/reset            begin a new conversation
/save FILE        write the conversation as JSON, which /load FILE takes up again
/quit             (or Ctrl-D) end
Ctrl-C ends an answer; \"\"\" begins a message of several lines, and ends it."""


@dataclass
class Conversation:
    """What was said, and how answers are drawn.

    Attributes:
        stop: strings that end an answer, beside the template's.
        system: what stands before the conversation; "": nothing.
        found_in: documents whose text stood before the last question.
    """

    module: LanguageModule
    tokenizer: Tokenizer
    template: ChatTemplate
    options: GenerationOptions
    stop: list[str] = field(default_factory=list)
    system: str = ""
    messages: list[Message] = field(default_factory=list)
    found_in: Sequence[str] = ()

    def prompt(self) -> str:
        """What the model sees, as the template writes it, with what its memory finds for the last question."""
        system: list[Message] = [{"role": "system", "content": self.system}] if self.system else []
        before = Before.chat(self.messages, self.module, self.tokenizer)
        self.found_in = before.documents
        return self.template.render([*system, *before.put_in(self.messages)])

    def answer(self) -> Iterator[str]:
        """Pieces of an answer to the last message, as they are drawn; what came is kept, even if it was interrupted."""
        prompt, stop, said = self.prompt(), [*self.template.stop, *self.stop], ""
        try:
            ids = prompt_ids(prompt, self.tokenizer)
            for piece in continue_text(ids, self.module, self.tokenizer, self.options, stop=stop):
                piece = piece if said else piece.lstrip()
                said += piece
                yield piece
        finally:
            self.messages.append({"role": "assistant", "content": said.rstrip()})
            self.options = replace(self.options, seed=(self.options.seed + 1) % 2**31)  # no answer draws as another did

    def ask(self, text: str) -> Iterator[str]:
        """The answer to a new message."""
        with self._unless_refused():
            self.messages.append({"role": "user", "content": text})
            yield from self.answer()

    def ask_again(self) -> Iterator[str]:
        """Another answer to the last message.

        Raises:
            InputError: there is none.
        """
        if not self.messages:
            raise InputError("nothing has been said: there is no answer to draw again")
        with self._unless_refused():
            if self.messages[-1]["role"] == "assistant":
                self.messages.pop()
            yield from self.answer()

    @contextmanager
    def _unless_refused(self) -> Iterator[None]:
        """A question that the template or the model refuses leaves the conversation as it was."""
        before = list(self.messages)
        try:
            yield
        except InputError:
            self.messages[:] = before
            raise

    def undo(self) -> bool:
        """Forget the last question and its answer; whether there was one."""
        asked = [i for i, message in enumerate(self.messages) if message["role"] == "user"]
        del self.messages[asked[-1] if asked else len(self.messages) :]
        return bool(asked)

    def set(self, name: str, value: str) -> None:
        """Change one setting.

        Raises:
            InputError: an unknown name, or a value that makes no sense.
        """
        names = [f.name for f in fields(GenerationOptions)]
        if name not in names:
            raise InputError(f"there is no setting {name!r}: {', '.join(names)}")
        try:
            number: Any = yaml.safe_load(value)
            change: dict[str, Any] = {name: None if name == "top_k" and not number else number}
            self.options = replace(self.options, **change)
        except (TypeError, yaml.YAMLError):
            raise InputError(f"{name} is {value!r}; it must be a number") from None


class Session:
    """Reads lines, writes answers.

    Args:
        read: gives the next line, or raises EOFError at the end (`input`).
        write: shows a text without a line's end.
    """

    def __init__(self, talk: Conversation, *, read: Callable[[], str], write: Callable[[str], Any]):
        self.talk, self._read, self._write = talk, read, write
        self._commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: self._say(HELP),
            "set": self._set,
            "stop": self._stop,
            "system": self._system,
            "history": lambda _: self._say("\n".join(f"{m['role']}: {m['content']}" for m in talk.messages)),
            "prompt": lambda _: self._say(talk.prompt()),
            "retry": self._retry,
            "undo": lambda _: self._say("forgotten" if talk.undo() else "nothing has been said"),
            "reset": self._reset,
            "save": self._save,
            "load": self._load,
        }

    def run(self) -> None:
        """Until /quit or the end of the input."""
        while (line := self._line()) is not None:
            command, _, rest = line.strip().partition(" ")
            if command == "/quit":
                return
            try:
                if command.startswith("/"):
                    self._command(command[1:], rest.strip())
                elif line.strip():
                    self._stream(self.talk.ask(line))
            except InputError as error:
                self._say(f"error: {error}")

    def _line(self) -> str | None:
        """The next message: a line, or what stands between two lines of three quotes; None at the end."""
        self._write("\n> ")
        try:
            line = self._read()
            if line.strip() != '"""':
                return line
            lines: list[str] = []
            while (line := self._read()).strip() != '"""':
                lines.append(line)
            return "\n".join(lines)
        except EOFError:
            self._write("\n")
            return None
        except KeyboardInterrupt:
            return ""

    def _say(self, text: str) -> None:
        self._write(text + "\n")

    def _stream(self, pieces: Iterator[str]) -> None:
        try:
            for piece in pieces:
                self._write(piece)
        except KeyboardInterrupt:
            self._write(" [interrupted]")
        self._write("\n")
        if self.talk.found_in:
            self._say(f"[found in {', '.join(self.talk.found_in)}]")

    def _command(self, name: str, rest: str) -> None:
        if name not in self._commands:
            raise InputError(f"there is no command /{name}; /help lists them")
        self._commands[name](rest)

    def _set(self, rest: str) -> None:
        name, _, value = rest.partition(" ")
        if name:
            self.talk.set(name, value)
        own = vars(self.talk.options)
        self._say(", ".join(f"{key} {own[key]}" for key in ([name] if name else own)))

    def _stop(self, text: str) -> None:
        self.talk.stop = [*self.talk.stop, text] if text else []
        self._say(f"answers end before {[*self.talk.template.stop, *self.talk.stop]}")

    def _system(self, text: str) -> None:
        self.talk.system = text

    def _retry(self, _rest: str) -> None:
        self._stream(self.talk.ask_again())

    def _reset(self, _rest: str) -> None:
        self.talk.messages.clear()
        self._say("a new conversation")

    def _save(self, file: str) -> None:
        if not file:
            raise InputError("/save needs the name of a file")
        told = {"system": self.talk.system, "messages": self.talk.messages}
        write_atomic(Path(file), json.dumps(told, ensure_ascii=False, indent=1).encode("utf-8", "backslashreplace"))
        self._say(f"{len(self.talk.messages)} messages in {file}")

    def _load(self, file: str) -> None:
        try:
            told = json.loads(decode(Path(file).read_bytes()))
            messages = [Message(role=str(m["role"]), content=str(m["content"])) for m in told["messages"]]
            system = str(told.get("system", ""))
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise InputError(f"{file or 'the file'} holds no conversation that /save wrote: {error}") from None
        self.talk.messages, self.talk.system = messages, system
        self._say(f"{len(messages)} messages")


def talk(model: ModelOptions, sampling: SamplingOptions, *, system: str, chat_template: Path | None) -> None:
    """Talk until the input ends. The options: see `commands.chat`."""
    given = read_template(chat_template)
    path, module, tokenizer = load(model)
    options = sampling.over(module.backbone.core.sampling)
    template = take_turns(module, tokenizer, given)
    print(f"{path}: write something, /help lists the commands, /quit ends")
    conversation = Conversation(module, tokenizer, template, options, list(sampling.stop), system)
    Session(conversation, read=lambda: as_text(input()), write=lambda text: print(text, end="", flush=True)).run()
