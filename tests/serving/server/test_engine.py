"""The engine's own promises: nobody waits for ever, whatever happens in its thread."""

import threading

import pytest

from lightning_app.models.generation_options import GenerationOptions
from lightning_app.serving.batching import Job
from lightning_app.serving.server.engine import FAILED, Engine, QueueFullError, StoppedError
from lightning_app.training.checkpoint import load_module


class Heard:
    """What a job said, and an event for its end."""

    def __init__(self) -> None:
        self.text, self.reason, self.ended = "", None, threading.Event()

    def __call__(self, text: str, finish_reason: str | None) -> None:
        self.text += text
        self.reason = finish_reason
        if finish_reason:
            self.ended.set()


@pytest.fixture
def engine(tiny_checkpoint):
    made = Engine(*load_module(tiny_checkpoint), batch_size=2, max_waiting=4)
    yield made
    made.close()


def job(tokens: int = 5) -> tuple[Job, Heard]:
    heard = Heard()
    return Job([104], GenerationOptions(tokens, temperature=0), on_text=heard), heard


def test_closing_ends_what_is_under_way_and_takes_nothing_more(engine):
    jobs = [job(20) for _ in range(4)]  # two run, two wait
    engine.submit(*(j for j, _ in jobs))
    engine.close()
    assert [heard.reason for _, heard in jobs] == ["length"] * 4
    assert len({heard.text for _, heard in jobs}) == 1
    assert not engine.alive
    with pytest.raises(StoppedError, match="is stopping"):
        engine.submit(job()[0])
    with pytest.raises(StoppedError, match="is stopping"):
        engine.call(lambda: 1)


def test_all_jobs_of_a_request_are_taken_or_none(engine):
    jobs = [job() for _ in range(5)]
    with pytest.raises(QueueFullError, match="no more than 4"):
        engine.submit(*(j for j, _ in jobs))
    assert engine.load == 0
    engine.submit(*(j for j, _ in jobs[:4]))
    assert all(heard.ended.wait(20) for _, heard in jobs[:4])


def test_calls_are_done_between_tokens_and_their_errors_come_back(engine):
    assert engine.call(lambda: threading.current_thread().name).result(20) == "engine"

    def wrong() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        engine.call(wrong).result(20)
    one, heard = job()
    engine.submit(one)
    assert heard.ended.wait(20)
    assert heard.reason == "length"


def test_a_text_goes_on_while_calls_keep_coming(engine):
    one, heard = job(20)
    calls: list = []

    def again() -> None:
        if not heard.ended.is_set() and len(calls) < 500:
            calls.append(engine.call(again))

    engine.submit(one)
    engine.call(again).result(20)
    assert heard.ended.wait(20)
    assert len(calls) < 50  # a call for a token


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_that_is_no_models_stops_the_engine_and_everybody_is_told(tiny_checkpoint):
    engine = Engine(*load_module(tiny_checkpoint), batch_size=1, max_waiting=9)
    hold = threading.Event()

    def unheard_of() -> None:
        hold.wait(20)
        raise KeyboardInterrupt

    calls = [engine.call(unheard_of), engine.call(lambda: 1)]
    jobs = [job() for _ in range(3)]
    engine.submit(*(j for j, _ in jobs))
    hold.set()
    assert all(heard.ended.wait(20) for _, heard in jobs)
    assert [heard.reason for _, heard in jobs] == [FAILED] * 3
    for call in calls:
        with pytest.raises(RuntimeError, match="the engine has stopped"):
            call.result(20)
    engine.close()
    assert not engine.alive


def test_a_cancelled_job_says_no_more(engine):
    (long, heard), (other, _) = job(1000), job(1000)
    engine.submit(long, other)
    engine.cancel(long, other)
    one, last = job()
    engine.submit(one)
    assert last.ended.wait(20)
    assert not heard.ended.is_set()
    assert engine.load == 0
