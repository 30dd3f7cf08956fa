"""Documents -> token ids, in this process or in several, with the same result.

This process reads the documents and cuts them into jobs of about 1 MB, the others encode, and the answers come back in
order. Only the jobs in flight are in memory (and the document that is being read).
"""

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lightning_app.errors import InputError
from lightning_app.text.corpus import Document
from lightning_app.text.tokenizer import Tokenizer, pieces

JOB = 2**20  # characters that a process encodes at once, or a few more


class Part(NamedTuple):
    """A piece of a prompt or of a text."""

    text: str
    is_prompt: bool
    is_last: bool  # of its document: the end-of-text id follows


@dataclass(frozen=True)
class Encoded:
    """What became of the parts of a job.

    Attributes:
        parts: (is_prompt, is_last, number of ids) of each.
        ids: those of all parts, one behind the other, end-of-text ids included.
        n_words: runs of anything but white space.
    """

    parts: list[tuple[bool, bool, int]]
    ids: np.ndarray
    n_characters: int
    n_words: int


def token_dtype(tokenizer: Tokenizer) -> np.dtype:
    """The smallest type that holds all ids."""
    return np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)


def encode_job(parts: Sequence[Part], tokenizer: Tokenizer) -> Encoded:
    """Encode each part by itself."""
    arrays, dtype = [], token_dtype(tokenizer)
    for part in parts:
        ids = tokenizer.encode(part.text)
        if part.is_last:
            ids.append(tokenizer.eot)
        arrays.append(np.array(ids, dtype=dtype))
    return Encoded(
        parts=[(part.is_prompt, part.is_last, len(ids)) for part, ids in zip(parts, arrays, strict=True)],
        ids=np.concatenate(arrays),
        n_characters=sum(len(part.text) for part in parts),
        n_words=sum(len(part.text.split()) for part in parts),  # pieces are cut at line ends, so never within a word
    )


def encode_documents(documents: Iterable[Document], tokenizer: Tokenizer, *, num_proc: int = 1) -> Iterator[Encoded]:
    """Encode prompt and text of each document, and end it with the end-of-text id.

    Args:
        documents: iterated over once, in this process.
        tokenizer: a copy of it goes to each process.
        num_proc: processes that encode; 1 encodes in this one.

    Raises:
        InputError: what reading the documents raises; or a process ended before its work did.
    """
    jobs = _jobs(documents)
    if num_proc == 1:
        yield from (encode_job(job, tokenizer) for job in jobs)
    else:
        yield from _encode_in_processes(jobs, tokenizer, num_proc)


def _jobs(documents: Iterable[Document]) -> Iterator[list[Part]]:
    job: list[Part] = []
    size = 0
    for document in documents:
        for part in _parts(document):
            job.append(part)
            size += len(part.text)
            if size >= JOB:
                yield job
                job, size = [], 0
    if job:
        yield job


def _parts(document: Document) -> Iterator[Part]:
    if document.prompt is not None:
        yield from (Part(piece, True, False) for piece in pieces(document.prompt))
    *texts, last = pieces(document.text)
    yield from (Part(piece, False, False) for piece in texts)
    yield Part(last, False, True)


def _encode_in_processes(jobs: Iterable[list[Part]], tokenizer: Tokenizer, num_proc: int) -> Iterator[Encoded]:
    """Spawned, not forked: a fork while the threads of torch or faiss run may hang."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(num_proc, mp_context=context, initializer=_start, initargs=(tokenizer,))
    try:
        yield from _in_order(pool, jobs, ahead=2 * num_proc)
    except BrokenProcessPool as error:
        raise InputError(
            f"one of the {num_proc} processes that tokenise has ended (out of memory, killed, or started by a script "
            'that does not begin its work under if __name__ == "__main__"); lower data.num_proc, 1 needs no process'
        ) from error
    finally:  # after an error or Ctrl-C, too: jobs in work are ended, others are not begun
        pool.shutdown(cancel_futures=True)


def _in_order(pool: ProcessPoolExecutor, jobs: Iterable[list[Part]], *, ahead: int) -> Iterator[Encoded]:
    waiting: deque[Future[Encoded]] = deque()
    for job in jobs:
        waiting.append(pool.submit(_work, job))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


_tokenizer: Tokenizer | None = None  # of a process that encodes


def _start(tokenizer: Tokenizer) -> None:
    global _tokenizer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the first one ends the others
    _tokenizer = tokenizer


def _work(job: list[Part]) -> Encoded:
    assert _tokenizer is not None
    return encode_job(job, _tokenizer)
