"""What stays under a budget: by priorities at once, as by a memory that evicts entry after entry."""

from __future__ import annotations

import pytest
import torch

from experiments import storing
from experiments.storing import Text
from lightning_app.memory.knn import p_of_target
from lightning_app.memory.slots import Entries
from lightning_app.memory.store import AssociativeMemory

D, N, T, V = 4, 40, 8, 5


def text(seed: int = 0, documents: tuple[int, ...] = (0, 13)) -> Text:
    torch.manual_seed(seed)
    first = torch.zeros(N, dtype=torch.int64)
    for start in documents:
        first[start:] = start
    blocks = torch.maximum(first, torch.arange(N) // T * T)
    return Text(torch.randn(N, D), torch.rand(N) * 6, torch.randint(0, V, (N,)), first, blocks)


@pytest.mark.parametrize(
    ("rule", "eviction"), [("recency", "oldest"), ("surprise 0.25", "least_surprising"), ("learned", "lowest_score")]
)
def test_a_memory_that_evicts_the_lowest_has_what_is_best_so_far(rule: str, eviction: str):
    """Block after block; a score that fades by 0.25 with each entry is one that is 0.25 higher for a later one."""
    given, size, theta = text(), 6, 3.0
    options = storing.Options(thetas=(theta,), decays=(0.25,))
    score = storing.Score(D, 0.25).requires_grad_(False)
    torch.nn.init.normal_(score.of_state.weight)
    priorities = {**storing.ruled(given, options), "learned": score.of(given)}
    found = storing.read_under(given, {(rule, size): priorities[rule]}, options.thetas)[:, 0, 0]
    worth = given.nats if rule != "learned" else given.nats + score.of_state(given.states)[:, 0]
    expected = []
    for first, start, end in given.parts():
        memory = AssociativeMemory(size, D, eviction=eviction, fading=0.25 * size)
        for begin in range(first, start):  # one by one: how many at once must not matter
            memory.add(given.states[[begin]], Entries(given.targets[[begin]], strengths=worth[[begin]]))
        known = memory.get_all_embeddings(), memory.payload(memory.ids()).tokens
        for t in range(start, end):
            states, tokens = (
                torch.cat([x, y[start:t]]) for x, y in zip(known, (given.states, given.targets), strict=True)
            )
            distances, match = -(given.states[[t]] @ states.T), (tokens == given.targets[t])[None]
            expected.append(float(p_of_target(distances, match, temperature=D / theta)) if len(tokens) else -1.0)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert (found == -1).sum() == 2  # the first token of each document
    assert len(set(found.tolist())) > N / 2


def test_a_score_learns_which_entries_will_be_asked_for():
    """One token in five comes back, told by the state; the others, as surprising as it, never do."""
    generator = torch.Generator().manual_seed(0)
    n = 400
    wanted = torch.rand(n, generator=generator) < 0.2
    states = torch.randn(n, D, generator=generator) * 0.1
    states[:, 0] = torch.where(wanted, 2.0, -2.0)
    tokens = torch.where(wanted, torch.randint(0, 4, (n,), generator=generator), torch.arange(10, 10 + n))
    first, blocks = torch.zeros(n, dtype=torch.int64), torch.arange(n) // T * T
    given = Text(states, torch.full((n,), 3.0), tokens, first, blocks)
    options = storing.Options(budgets=(16,), steps=60, lr=0.03, theta=1.0)
    before, after = (
        storing.taught(given, 16, 0.01, options if steps else storing.replace(options, steps=0)) for steps in (0, 1)
    )
    kept = [storing.best(score.of(given), 16) for score in (before, after)]
    assert wanted[kept[0]].float().mean() < 0.5 < 0.9 < wanted[kept[1]].float().mean()


def test_runs_of_numbers_begin_where_they_change():
    assert storing._first_of(torch.tensor([7, 7, 2, 2, 2, 7])).tolist() == [0, 0, 2, 2, 2, 5]
