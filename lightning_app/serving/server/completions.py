"""From a request for text to jobs of the engine, and from what they say to answers, whole or in events."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lightning_app.models.generation_options import GenerationOptions
from lightning_app.serving.batching import Job
from lightning_app.serving.before import NOTHING, Before
from lightning_app.serving.server.engine import FAILED, Engine
from lightning_app.serving.server.schema import Sampling, error, usage

Kind = Literal["completion", "chat"]
BROKEN = "the model failed at this request; the server's log says why"


class BrokenError(RuntimeError):
    """The model failed."""


@dataclass(frozen=True)
class Said:
    """A piece of the text of one choice.

    Attributes:
        finish_reason: None while more comes.
    """

    choice: int
    text: str
    finish_reason: str | None


class Answer:
    """All choices of one request.

    Args:
        prompts: tokens of each; every one is continued `n` times, with seeds that count on.
        before: what each choice's text begins with (its prompt, where `echo` asks for it).
        found: what a memory has put before each prompt, of whose documents the answer tells.
    """

    def __init__(
        self,
        kind: Kind,
        request: Sampling,
        prompts: Sequence[Sequence[int]],
        options: GenerationOptions,
        *,
        stop: Sequence[str],
        before: Sequence[str] = (),
        found: Sequence[Before] = (),
    ):
        self.kind, self.request, self.prompts = kind, request, prompts
        self.id = f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}"
        self.created = int(time.time())
        self._queue: asyncio.Queue[Said] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._before = [text for text in before for _ in range(request.n)]
        self._found = [one.said for one in found or [NOTHING] * len(prompts) for _ in range(request.n)]
        each = [ids for ids in prompts for _ in range(request.n)]
        own = [replace(options, seed=options.seed + i % request.n) for i in range(len(each))]
        self.jobs = [Job(ids, o, stop, self._listener(i)) for i, (ids, o) in enumerate(zip(each, own, strict=True))]

    def _listener(self, choice: int) -> Any:
        def on_text(text: str, finish_reason: str | None) -> None:  # in the engine's thread
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._queue.put_nowait, Said(choice, text, finish_reason))

        return on_text

    def nothing(self) -> None:
        """No token is drawn: the choices end at once."""
        for i in range(len(self.jobs)):
            self._queue.put_nowait(Said(i, "", "length"))

    async def said(self, engine: Engine) -> AsyncIterator[Said]:
        """What all choices say, as it comes, until all have ended. Who stops listening cancels the jobs.

        Raises:
            BrokenError: the model failed.
        """
        left, silent = len(self.jobs), set(range(len(self.jobs)) if self.kind == "chat" else ())
        for i, text in enumerate(self._before):
            yield Said(i, text, None)
        try:
            while left:
                piece = await self._queue.get()
                if piece.finish_reason == FAILED:
                    raise BrokenError(BROKEN)
                left -= piece.finish_reason is not None
                if piece.choice in silent:  # the space behind the template's "Assistant:" is not a part of the answer
                    piece = replace(piece, text=piece.text.lstrip())
                    silent -= {piece.choice} if piece.text else set()
                yield piece
        finally:
            if left:
                engine.cancel(*self.jobs)

    def usage(self) -> dict[str, int]:
        """A prompt counts once, however many choices continue it."""
        tokens = sum(job.stream.tokens for job in self.jobs if job.stream is not None)
        return usage(sum(len(ids) for ids in self.prompts), tokens)

    # Whole

    async def whole(self, engine: Engine) -> dict[str, Any]:
        """The body of an answer without streaming."""
        texts, reasons = [""] * len(self.jobs), [""] * len(self.jobs)
        async for piece in self.said(engine):
            texts[piece.choice] += piece.text
            reasons[piece.choice] = piece.finish_reason or ""
        choices = [self._choice(i, t, r) for i, (t, r) in enumerate(zip(texts, reasons, strict=True))]
        name = "chat.completion" if self.kind == "chat" else "text_completion"
        return {**self._head(name), "choices": choices, "usage": self.usage()}

    def _head(self, name: str) -> dict[str, Any]:
        return {"id": self.id, "object": name, "created": self.created, "model": self.request.model}

    def _choice(self, i: int, text: str, finish_reason: str | None) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text}} if self.kind == "chat" else {"text": text}
        return {"index": i, **said, "logprobs": None, "finish_reason": finish_reason, **self._said(i, finish_reason)}

    def _said(self, i: int, finish_reason: str | None) -> dict[str, Any]:
        """At the end of a choice, in which documents the memory has found what stood before its prompt."""
        return self._found[i] if finish_reason else {}

    # In events

    async def events(self, engine: Engine) -> AsyncIterator[str]:
        """Server-sent events: a chunk for each piece, the usage where it is asked for, [DONE]; or an error."""
        try:
            for i in range(len(self.jobs) if self.kind == "chat" else 0):
                yield self._event([self._delta(i, {"role": "assistant", "content": ""}, None)])
            async for piece in self.said(engine):
                if piece.text or piece.finish_reason:
                    yield self._event([self._part(piece)])
        except BrokenError as failure:
            yield _event(error(str(failure), type="server_error"))
            return
        options = self.request.stream_options
        if options is not None and options.include_usage:
            yield self._event([], usage=self.usage())
        yield "data: [DONE]\n\n"

    def _part(self, piece: Said) -> dict[str, Any]:
        if self.kind == "chat":
            return self._delta(piece.choice, {"content": piece.text} if piece.text else {}, piece.finish_reason)
        return self._choice(piece.choice, piece.text, piece.finish_reason)

    def _delta(self, i: int, delta: dict[str, str], finish_reason: str | None) -> dict[str, Any]:
        said = {"index": i, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**said, **self._said(i, finish_reason)}

    def _event(self, choices: list[dict[str, Any]], **more: Any) -> str:
        name = "chat.completion.chunk" if self.kind == "chat" else "text_completion"
        return _event({**self._head(name), "choices": choices, **more})


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"
