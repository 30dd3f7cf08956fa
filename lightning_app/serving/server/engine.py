"""The thread that alone touches the model of a server: batches of texts, and other work between their tokens."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError
from lightning_app.serving.batching import Batcher, Job
from lightning_app.training.module import LanguageModule

log = logging.getLogger(__name__)
T = TypeVar("T")

FAILED = "error"  # the finish reason of a text that could not be ended
STOPPED = "the engine has stopped"


class QueueFullError(InputError):
    """More is asked for than may wait."""


class StoppedError(InputError):
    """Nothing is taken any more."""


class Engine:
    """Takes work from any thread.

    Args:
        module: in eval mode, on its device.
        batch_size: texts that are continued at once.
        max_waiting: texts and calls that may wait or run; more are refused.
    """

    def __init__(self, module: LanguageModule, tokenizer: Tokenizer, *, batch_size: int, max_waiting: int):
        self._module, self._tokenizer, self._batch_size, self.max_waiting = module, tokenizer, batch_size, max_waiting
        self._batcher = self._new_batcher()
        self._calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()  # holds for the batcher's queue, too
        self._cancelled: list[Job] = []
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def _new_batcher(self) -> Batcher:
        return Batcher(self._module, self._tokenizer, batch_size=self._batch_size)

    @property
    def alive(self) -> bool:
        """Whether work is still done."""
        return self._thread.is_alive()

    @property
    def load(self) -> int:
        """Texts and calls that wait or run."""
        return len(self._batcher.waiting) + len(self._batcher.running) + len(self._calls)

    def submit(self, *jobs: Job) -> None:
        """Continue them all, or none. Their `on_text` is called from the engine's thread.

        Raises:
            QueueFullError: too many wait.
            StoppedError: the engine was closed, or has failed.
        """
        with self._changed:
            self._check_room(len(jobs))
            self._batcher.waiting.extend(jobs)
            self._changed.notify()

    def call(self, work: Callable[[], T]) -> Future[T]:
        """Do something else with the model, between two tokens.

        Raises:
            QueueFullError: too many wait.
            StoppedError: the engine was closed, or has failed.
        """
        future: Future[T] = Future()
        with self._changed:
            self._check_room(1)
            self._calls.append((future, work))
            self._changed.notify()
        return future

    def _check_room(self, n: int) -> None:
        if self._closing or not self.alive:
            raise StoppedError("the server is stopping")
        if self.load + n > self.max_waiting:
            raise QueueFullError(
                f"{self.load} requests are under way, and no more than {self.max_waiting} may be: try again later"
            )

    def cancel(self, *jobs: Job) -> None:
        """Nobody waits for them any more."""
        with self._changed:
            self._cancelled += jobs
            self._changed.notify()

    def close(self) -> None:
        """End what is under way, take nothing more, and stop."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()

    # In the engine's thread

    def _run(self) -> None:
        try:
            while self._wait():
                self._do_call()
                if self._batcher.busy:
                    self._step()
        finally:
            self._fail_all()  # an error that is none of the model's: nobody shall wait for ever

    def _wait(self) -> bool:
        """For something to do; False: it is time to stop."""
        with self._changed:
            while not (self._batcher.busy or self._calls or self._cancelled or self._closing):
                self._changed.wait()
            self._drop_cancelled()
            return bool(self._batcher.busy or self._calls or not self._closing)

    def _drop_cancelled(self) -> None:
        for job in self._cancelled:
            self._batcher.cancel(job)
        self._cancelled.clear()

    def _do_call(self) -> None:
        """One, so that texts go on however many wait."""
        if not self._calls:
            return
        future, work = self._calls.popleft()
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(work())
        except (RuntimeError, ValueError, LookupError) as error:
            future.set_exception(error)
        finally:
            if not future.done():  # the engine ends by this error
                future.set_exception(RuntimeError(STOPPED))

    def _step(self) -> None:
        try:
            with self._changed:
                self._drop_cancelled()  # those who left during a call
                self._batcher.admit()
            if self._batcher.running:
                self._batcher.step()
        except (RuntimeError, ValueError, LookupError):  # such as no memory left on the device
            log.exception("a batch of %d texts failed", len(self._batcher.running))
            self._fail_running()

    def _fail_running(self) -> None:
        with self._changed:
            failed, waiting = self._batcher.running, self._batcher.waiting
            self._batcher = self._new_batcher()
            self._batcher.waiting = waiting
        for job, _ in failed:
            job.on_text("", FAILED)

    def _fail_all(self) -> None:
        self._fail_running()
        with self._changed:
            self._closing = True
            waiting, self._batcher.waiting = list(self._batcher.waiting), deque()
        for job in waiting:
            job.on_text("", FAILED)
        while self._calls:
            future, _ = self._calls.popleft()
            if future.set_running_or_notify_cancel():
                future.set_exception(RuntimeError(STOPPED))
