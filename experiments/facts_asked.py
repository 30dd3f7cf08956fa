"""How a model is asked, what counts as an exact answer, and which document an answer is from."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import torch

from experiments.facts_world import runs, words_of
from lightning_app.data.batch import Batch
from lightning_app.data.chat_tokens import prompt_ids
from lightning_app.data.seen_text import SeenText
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.memory.extension import memory_of
from lightning_app.memory.model import MemoryStates
from lightning_app.memory.tools.attribution import reads_of
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.serving.before import NOTHING, Before
from lightning_app.serving.chat import Conversation
from lightning_app.serving.turns import take_turns
from lightning_app.training.module import LanguageModule

MOST = 16  # tokens of an answer
READ = 16  # entries of each token that say which document it is from
EXACT = (
    f"A model answers in a chat, greedily, with at most {MOST} tokens. An answer is exact if the words that are looked "
    "for, without marks and in small letters, stand in it one behind the other."
)


@dataclass(frozen=True)
class Said:
    """An answer.

    Attributes:
        document: that it names: of the first text before the prompt, or of the entries with the highest weights; None:
            it names none.
        seconds: CPU time.
    """

    text: str
    document: str | None
    seconds: float


class Asker:
    """Asks a model in its own chat template."""

    def __init__(self, module: LanguageModule, tokenizer: Tokenizer):
        self.module, self.tokenizer = module, tokenizer
        self.template = take_turns(module, tokenizer)
        self.options = GenerationOptions(max_new_tokens=MOST, temperature=0.0)

    def ask(self, question: str, before: Before = NOTHING) -> Said:
        """Each question in a conversation of its own."""
        start = time.process_time()
        talk = Conversation(self.module, self.tokenizer, self.template, self.options)
        text = "".join(talk.ask(before.ask(question))).strip()
        seconds = time.process_time() - start
        named = [*before.documents, *talk.found_in]
        return Said(text, named[0] if named else self._read(question, text), seconds)

    @torch.inference_mode()
    def _read(self, question: str, text: str) -> str | None:
        """The document of the entries that the answer's tokens were read from."""
        memory = memory_of(self.module)
        asked = prompt_ids(self.template.render([{"role": "user", "content": question}]), self.tokenizer)
        ids = [*asked, *self.tokenizer.encode(text)]
        if memory is None or not any(reader.bank.memories for reader in memory.readers) or len(ids) == len(asked):
            return None
        forward = self.module.outputs(Batch.of_texts(torch.tensor([ids]))).forward
        assert isinstance(forward, MemoryStates)
        seen = SeenText(ids, [""] * len(ids), self.tokenizer)
        last = len(ids) - len(asked) + 1  # from the last token of the question on
        return _heaviest(reads_of(memory, forward, seen, positions=last, entries=READ))


def _heaviest(readers: Sequence[dict]) -> str | None:
    weights: Counter[str] = Counter()
    for reader in readers:
        for entry in (entry for read in reader["reads"][:-1] for entry in read["entries"]):
            if entry["document"]:
                weights[PurePath(entry["document"]).name] += entry["weight"]
    return weights.most_common(1)[0][0] if weights else None


def exact(text: str, answer: str) -> bool:
    """Whether the words of the answer stand in the text one behind the other."""
    wanted = tuple(words_of(answer))
    return wanted in runs(text, len(wanted))
