"""From tokens, as they come, to text that can be shown: whole characters, up to a stop string."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal

from lightning_app.data.tokenizers import Tokenizer

FinishReason = Literal["stop", "length"]


class TextStream:
    """Takes a token at a time and returns the text that is certain by then.

    Args:
        max_new_tokens: behind so many the text ends.
        stop: the text ends before the first of these, which may lie across tokens.
        ends: ids that end it; None: the tokenizer's end of text.
        continues: it goes on with a text, see `Tokenizer`.

    Attributes:
        finish_reason: why the text has ended: "stop" (end of text, or a stop string) or "length"; None: it has not.
        tokens: taken so far.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        max_new_tokens: int,
        stop: Sequence[str] = (),
        ends: Collection[int] | None = None,
        continues: bool = True,
    ):
        self._ends = {tokenizer.eot} if ends is None else ends
        self._decode = tokenizer.stream_decoder(continues=continues)
        self._stop, self._held = stop, ""
        self._hold = max((len(s) for s in stop), default=1) - 1  # characters that may be a stop's beginning
        self._left = max_new_tokens
        self.finish_reason: FinishReason | None = None
        self.tokens = 0

    def push(self, token: int) -> str:
        """The text that can be shown now; sets `finish_reason` where this token is the last."""
        self.tokens += 1
        self._left -= 1
        if token in self._ends:
            return self._end("stop")
        text = self._found(self._decode(token))
        if self.finish_reason is None and self._left == 0:
            return text + self._end("length")
        return text

    def _found(self, piece: str) -> str:
        """What can be shown of what was held back and the new piece."""
        self._held += piece
        ends = [self._held.index(s) for s in self._stop if s in self._held]
        if ends:
            self.finish_reason = "stop"
            return self._held[: min(ends)]
        ready = max(0, len(self._held) - self._hold)
        text, self._held = self._held[:ready], self._held[ready:]
        return text

    def _end(self, reason: FinishReason) -> str:
        text = self._found(self._decode.flush())
        if self.finish_reason is None:
            text, self.finish_reason = text + self._held, reason
        return text
