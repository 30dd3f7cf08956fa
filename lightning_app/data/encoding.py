"""Documents -> token ids, in this process or in several, with the same result.

This process reads the documents and cuts them into jobs. The others have a few of them at hand at all times; this one
encodes, too, whenever they have. The answers come in order. In memory are the document that is being read, the texts
that the others have at hand, and the tokens that wait for an earlier job's.
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from lightning_app.data.chat_encoding import encode_turns
from lightning_app.data.corpus import Document
from lightning_app.data.tokenizers import Tokenizer
from lightning_app.data.tokenizers.base import Measured
from lightning_app.errors import InputError

JOB = 2**18  # characters that a process encodes at once (some 20 ms), or a few more
AT_HAND = 3  # jobs per other process: one in work, and two for as long as this one encodes
AHEAD = 32  # jobs per process whose tokens may wait: more than this one does while the others start
_IS_SPACE = np.array([chr(code).isspace() for code in range(0x3002)])  # no character above is white space


class Part(NamedTuple):
    """A piece of a prompt or of a text."""

    text: str
    is_prompt: bool
    is_last: bool  # of its document: the end-of-text id follows
    is_first: bool = False  # of its document: the begin token stands before it, where the tokenizer has one
    turns: tuple[tuple[int, int], ...] | None = None  # of a whole conversation, see `Document`


@dataclass(frozen=True)
class Encoded:
    """What became of the parts of a job.

    Attributes:
        parts: (is_prompt, is_last, number of ids) of each.
        ids: those of all parts, one behind the other, end-of-text and begin tokens included.
        n_words: runs of anything but white space.
        other_bytes: (2, k) int64: positions of ids that cover more bytes of the text than `token_bytes` says (or less:
            below 0), and how many more.
        lost: text and what its ids decode to, around the first difference, of each part that does not come back.
        scored: (n,) bool, which of the ids of conversations are to be predicted; None where there are none.
    """

    parts: list[tuple[bool, bool, int]]
    ids: np.ndarray
    n_characters: int
    n_words: int
    other_bytes: np.ndarray = field(default_factory=lambda: np.empty((2, 0), dtype=np.int64))
    lost: list[tuple[str, str]] = field(default_factory=list)
    scored: np.ndarray | None = None


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """The smallest type that holds all ids."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)


def encode_job(parts: Sequence[Part], tokenizer: Tokenizer) -> Encoded:
    """Encode each part by itself; all are of one kind."""
    if parts[0].turns is not None:
        return _encode_conversations(parts, tokenizer)
    begin = [] if tokenizer.bos is None else [tokenizer.bos]
    measured = [tokenizer.measured(part.text, continues=not part.is_first) for part in parts]
    around = [(begin if part.is_first else [], [tokenizer.eot] if part.is_last else []) for part in parts]
    arrays = [
        np.concatenate([before, one.ids, behind], dtype=token_dtype(tokenizer), casting="unsafe")
        for one, (before, behind) in zip(measured, around, strict=True)
    ]
    starts = np.cumsum([0, *map(len, arrays)])[:-1] + [len(before) for before, _ in around]
    return Encoded(
        parts=[(part.is_prompt, part.is_last, len(ids)) for part, ids in zip(parts, arrays, strict=True)],
        ids=np.concatenate(arrays),
        n_characters=sum(len(part.text) for part in parts),
        n_words=count_words("\n".join(part.text for part in parts)),  # pieces are cut at line ends, never within a word
        other_bytes=_other_bytes(measured, starts, tokenizer),
        lost=[
            around_loss(part.text, one.given_back)
            for part, one in zip(parts, measured, strict=True)
            if one.given_back is not None
        ],
    )


def _encode_conversations(parts: Sequence[Part], tokenizer: Tokenizer) -> Encoded:
    """What stands before the first turn counts as the prompt."""
    each = [encode_turns(part.text, part.turns or (), tokenizer) for part in parts]
    firsts = [int(one.scored.argmax()) for one in each]
    sizes = [len(one.ids) for one in each]
    starts = np.cumsum([0, *sizes])[:-1]
    return Encoded(
        parts=[
            run
            for first, n in zip(firsts, sizes, strict=True)
            for run in ((True, False, first), (False, True, n - first))
        ],
        ids=np.concatenate([one.ids for one in each], dtype=token_dtype(tokenizer), casting="same_kind"),
        n_characters=sum(len(part.text) for part in parts),
        n_words=count_words("\n".join(part.text for part in parts)),
        other_bytes=_other_bytes([Measured(one.ids, one.n_bytes) for one in each], starts, tokenizer),
        scored=np.concatenate([one.scored for one in each]),
    )


def _other_bytes(measured: Sequence[Measured], starts: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """See `Encoded`; `starts` are the positions of the first ids."""
    found = [np.empty((2, 0), dtype=np.int64)]
    always = None if all(one.n_bytes is None for one in measured) else tokenizer.token_bytes()
    for one, start in zip(measured, starts, strict=True):
        if one.n_bytes is not None and always is not None:
            more = one.n_bytes - always[one.ids]
            places = more.nonzero()[0]
            found.append(np.stack([places + start, more[places]]))
    return np.concatenate(found, axis=1)


def around_loss(text: str, given_back: str, *, width: int = 12) -> tuple[str, str]:
    """What stands around the first difference of two texts, in each."""
    same = next((i for i, (a, b) in enumerate(zip(text, given_back, strict=False)) if a != b), None)
    start = max(0, (min(len(text), len(given_back)) if same is None else same) - width)
    return text[start : start + 2 * width], given_back[start : start + 2 * width]


def count_words(text: str) -> int:
    """`len(text.split())`, without the words."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    is_space = np.concatenate([[True], _IS_SPACE[np.minimum(codes, len(_IS_SPACE) - 1)]])
    return int(np.count_nonzero(is_space[:-1] > is_space[1:]))


def encode_documents(documents: Iterable[Document], tokenizer: Tokenizer, *, num_proc: int = 1) -> Iterator[Encoded]:
    """Encode prompt and text of each document, and end it with the end-of-text id.

    Args:
        documents: iterated over once, in this process.
        tokenizer: a copy of it goes to each process.
        num_proc: processes that encode, this one among them.

    Raises:
        InputError: what reading the documents raises; or a process ended before its work did.
    """
    jobs = _jobs(documents, tokenizer)
    if num_proc == 1:
        yield from (encode_job(job, tokenizer) for job in jobs)
    else:
        yield from _encode_in_processes(jobs, tokenizer, num_proc)


def _jobs(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[list[Part]]:
    job: list[Part] = []
    size = 0
    for document in documents:
        for part in parts_of(document, tokenizer):
            job.append(part)
            size += len(part.text)
            if size >= JOB:
                yield job
                job, size = [], 0
    if job:
        yield job


def parts_of(document: Document, tokenizer: Tokenizer) -> Iterator[Part]:
    """A document cut where that changes no ids. The text behind a prompt continues it; a conversation is one piece."""
    if document.turns is not None:
        yield Part(document.text, False, True, True, document.turns)
        return
    prompts = [] if document.prompt is None else tokenizer.pieces(document.prompt)
    texts = tokenizer.pieces(document.text)
    for i, text in enumerate([*prompts, *texts]):
        yield Part(text, i < len(prompts), i == len(prompts) + len(texts) - 1, i == 0)


def _encode_in_processes(jobs: Iterable[list[Part]], tokenizer: Tokenizer, num_proc: int) -> Iterator[Encoded]:
    """Spawned, not forked: a fork while the threads of torch or faiss run may hang."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_proc - 1, mp_context=context, initializer=_start, initargs=(tokenizer,))
    try:
        yield from _in_order(pool, jobs, tokenizer, num_proc)
    except BrokenProcessPool as error:
        raise InputError(
            f"one of the {num_proc} processes that tokenise has ended (out of memory, killed, or started by a script "
            'that does not begin its work under if __name__ == "__main__"); lower data.num_proc, 1 needs no process'
        ) from error
    finally:  # after an error or Ctrl-C, too: jobs in work are ended, others are not begun
        pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, jobs: Iterable[list[Part]], tokenizer: Tokenizer, num_proc: int
) -> Iterator[Encoded]:
    waiting: deque[Future[Encoded]] = deque()
    for job in jobs:
        at_hand = sum(not future.done() for future in waiting)
        to_others = at_hand < AT_HAND * (num_proc - 1)
        waiting.append(pool.submit(_work, job) if to_others else _done(encode_job(job, tokenizer)))
        while waiting and (waiting[0].done() or len(waiting) > AHEAD * num_proc):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _done(encoded: Encoded) -> Future[Encoded]:
    future: Future[Encoded] = Future()
    future.set_result(encoded)
    return future


_tokenizer: Tokenizer | None = None  # of a process that encodes


def _start(tokenizer: Tokenizer) -> None:
    global _tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    _tokenizer = tokenizer


def _work(job: list[Part]) -> Encoded:
    assert _tokenizer is not None
    return encode_job(job, _tokenizer)
