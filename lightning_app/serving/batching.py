"""Many texts at once: those that wait join a batch while it runs, and leave it as they end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from lightning_app.data.tokenizers import Tokenizer
from lightning_app.models.generation import Continuation
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.serving.streaming import TextStream
from lightning_app.training.module import LanguageModule

JOIN_EVERY = 4  # steps: who joins costs a copy of the cache, however many they are


class Decoder(Protocol):
    """What continues several texts: `BatchDecoder`, or `OneByOne`."""

    texts: list[Continuation]

    def join(self, ids: Sequence[int], options: GenerationOptions) -> Continuation: ...

    def leave(self, text: Continuation) -> None: ...

    def step(self) -> list[int]: ...


class OneByOne:
    """For a model that writes to its memory while it generates, or has one for each row: a text at a time, each from
    the stored memory on, so that no text reads what another has left."""

    def __init__(self, module: LanguageModule):
        self.module = module
        self.texts: list[Continuation] = []

    def join(self, ids: Sequence[int], options: GenerationOptions) -> Continuation:
        text = Continuation(ids, options, max_length=None, device=self.module.device)
        self._tokens = self.module.generate(torch.tensor([text.ids], device=self.module.device), options)
        self.texts = [text]
        return text

    def leave(self, text: Continuation) -> None:
        self._tokens.close()  # what the session has stored is forgotten
        self.texts = []

    def step(self) -> list[int]:
        token = int(next(self._tokens))
        self.texts[0].ids.append(token)
        self.texts[0].new += 1
        return [token]


@dataclass
class Job:
    """A text that is asked for.

    Attributes:
        ids: of the prompt, at least one token.
        options: how it is continued.
        stop: strings that end it.
        on_text: called after each token with the text that is certain by then ("" where there is none), and with the
            finish reason behind the last one.
        stream: what came; set when it has joined.
        drawn: the tokens that were added.
    """

    ids: Sequence[int]
    options: GenerationOptions
    stop: Sequence[str] = ()
    on_text: Callable[[str, str | None], None] = lambda text, finish_reason: None
    stream: TextStream | None = field(default=None, init=False)
    drawn: list[int] = field(default_factory=list, init=False)


class Batcher:
    """Continues jobs in the order in which they come, at most `batch_size` at once.

    Attributes:
        waiting: jobs that have not begun.
        running: those in the batch, each with its text there.
    """

    def __init__(self, module: LanguageModule, tokenizer: Tokenizer, *, batch_size: int):
        shared = module.texts_share_batches
        self.batch_size = batch_size if shared else 1
        self._decoder: Decoder = module.batch_decoder() if shared else OneByOne(module)
        self._tokenizer, self._module = tokenizer, module
        self.waiting: deque[Job] = deque()
        self.running: list[tuple[Job, Continuation]] = []
        self._since_join = 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def step(self) -> None:
        """Add a token to each that runs; those that have ended leave."""
        self._decoder.step()
        self._since_join += 1
        for job, text in list(self.running):
            assert job.stream is not None
            job.drawn.append(text.ids[-1])
            piece = job.stream.push(text.ids[-1])
            if job.stream.finish_reason:
                self._leave(job, text)
            job.on_text(piece, job.stream.finish_reason)

    def admit(self) -> None:
        """Let some of those that wait join."""
        if self.running and self._since_join < JOIN_EVERY:
            return
        while self.waiting and len(self.running) < self.batch_size:
            job = self.waiting.popleft()
            job.stream = TextStream(
                self._tokenizer,
                max_new_tokens=job.options.max_new_tokens,
                stop=job.stop,
                ends=self._module.end_ids,
                continues=self._tokenizer.goes_on(job.ids),
            )
            self.running.append((job, self._decoder.join(job.ids, job.options)))
            self._since_join = 0

    def _leave(self, job: Job, text: Continuation) -> None:
        self._decoder.leave(text)
        self.running = [(other, t) for other, t in self.running if other is not job]

    def cancel(self, job: Job) -> None:
        """Nobody waits for it any more; one that has ended already stays ended."""
        self.waiting = deque(other for other in self.waiting if other is not job)
        for other, text in self.running:
            if other is job:
                self._leave(job, text)
