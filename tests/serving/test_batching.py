"""Who runs, who waits, and when those who wait join."""

import pytest
import torch

from lightning_app.models.generation_options import GenerationOptions
from lightning_app.serving.batching import JOIN_EVERY, Batcher, Job
from lightning_app.training.checkpoint import load_module
from tests.made_models import READERS


def job(tokens: int, said: list | None = None) -> Job:
    said = [] if said is None else said
    return Job([104, 105], GenerationOptions(tokens, temperature=0), on_text=lambda *piece: said.append(piece))


@pytest.fixture
def batcher(tiny_checkpoint):
    return Batcher(*load_module(tiny_checkpoint), batch_size=2)


def step(batcher: Batcher) -> list[int]:
    """Tokens so far of those that run, after one step."""
    batcher.admit()
    batcher.step()
    return [text.new for _, text in batcher.running]


def test_who_comes_while_a_batch_runs_joins_at_most_every_few_steps(batcher):
    batcher.waiting.append(job(100))
    assert step(batcher) == [1]
    batcher.waiting.extend([job(3), job(100)])
    runs = [step(batcher) for _ in range(JOIN_EVERY + 3)]
    assert runs[JOIN_EVERY - 2] == [JOIN_EVERY]  # not yet
    assert runs[JOIN_EVERY - 1] == [JOIN_EVERY + 1, 1]  # one place, the other waits
    assert runs[-1] == [JOIN_EVERY + 4]  # it has ended, and the next may not join yet
    assert len(batcher.waiting) == 1


def test_who_finds_nobody_running_need_not_wait(batcher):
    batcher.waiting.append(job(2))
    assert [step(batcher), step(batcher)] == [[1], []]
    batcher.waiting.append(job(2))
    assert step(batcher) == [1]


def test_each_hears_all_of_its_text_and_why_it_ended(batcher):
    said: list[tuple[str, str | None]] = []
    batcher.waiting.append(job(3, said))
    while batcher.busy:
        step(batcher)
    assert [reason for _, reason in said] == [None, None, "length"]


def test_a_cancelled_job_leaves_its_place(batcher):
    jobs = [job(50) for _ in range(3)]
    batcher.waiting.extend(jobs)
    assert step(batcher) == [1, 1]
    batcher.cancel(jobs[0])
    batcher.cancel(jobs[2])
    batcher.cancel(jobs[2])  # twice is once
    assert step(batcher) == [2]
    assert not batcher.waiting


@pytest.mark.parametrize(
    ("name", "scope", "segment_length"),
    [
        *(pytest.param(name, "shared", None, marks=pytest.mark.slow) for name in READERS),
        ("attention", "shared", 8),
        ("knn", "stream", None),
    ],
)
def test_a_text_of_a_batch_reads_what_it_reads_alone(reading, name, scope, segment_length):
    source, options = "the model learns what it reads", {"writes": "never", "scope": scope, "streams": 4}
    module, tokenizer = reading(name, source, segment_length=segment_length, **options)
    for parameter in module.backbone.readers.parameters():
        torch.nn.init.normal_(parameter, std=0.5)  # what was read shows
    jobs = [
        Job(list(source[i : 9 * i + 4].encode()), GenerationOptions(12 + i, temperature=0.7, seed=i)) for i in range(3)
    ]
    expected = [torch.cat(list(module.generate(torch.tensor([j.ids]), j.options))).tolist() for j in jobs]
    batcher, found = Batcher(module, tokenizer, batch_size=3), {}
    batcher.waiting.extend(jobs)
    while batcher.busy:
        batcher.admit()
        found |= {id(j): text for j, text in batcher.running}
        batcher.step()
    assert [found[id(j)].ids[len(j.ids) :] for j in jobs] == expected


def test_a_model_that_writes_takes_one_after_the_other(reading):
    module, tokenizer = reading("attention", "the model learns what it reads")
    batcher = Batcher(module, tokenizer, batch_size=8)
    jobs = [job(3), job(20), job(3)]
    batcher.waiting.extend(jobs)
    running = [step(batcher) for _ in range(4)]
    assert running == [[1], [2], [], [1]]
    batcher.cancel(jobs[1])
    assert not module.backbone.readers[0].bank.in_evaluation  # its session is over
    assert step(batcher) == [1]
    assert batcher.running[0][0] is jobs[2]
