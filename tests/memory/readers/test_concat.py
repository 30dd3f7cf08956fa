"""ConcatReader against its formula."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_app.memory.readers import ConcatReader
from lightning_app.memory.readers.base import TokenContext
from lightning_app.memory.slots import UNKNOWN, Entries
from lightning_app.models.backbone import HiddenStates

D, K = 4, 3


V = 11


def reader_with(vectors: Tensor, *, tokens: Tensor | None = None, **options: Any) -> ConcatReader:
    torch.manual_seed(0)
    reader = ConcatReader(memory_size=9, num_search_results=K, **options)
    reader.build(width=D, vocab_size=V)
    reader.bank.shared.add(vectors, UNKNOWN if tokens is None else Entries(tokens=tokens))
    return reader.eval()


def read(reader: ConcatReader, embeddings: Tensor, **options: Tensor) -> Tensor:
    """(B, T, D) embeddings -> what the backbone is given instead."""
    session = TokenContext.of_session(torch.zeros(embeddings.shape[:2], dtype=torch.int64), start=0, new=0)
    context = replace(session, embed=torch.nn.functional.one_hot(torch.arange(V), V)[:, :D].float().__getitem__)
    return reader.around(embeddings, context, lambda x: HiddenStates(x), **options)[0].last


@torch.no_grad()
def test_the_input_is_joined_by_the_nearest_first_with_the_softmax_of_their_cosines_and_what_followed():
    """However long the entries are; queries and entries have one rotation at first."""
    at, off = torch.tensor([0.1, 0, 0, 0]), torch.tensor([9.0, 9.0, 0, 0])
    reader = reader_with(torch.zeros(0, D))
    assert torch.equal(reader.fc_query.weight, reader.writer.fc_storable_vector.weight)
    assert torch.equal(reader.fc_query.weight, reader.fc_next.weight)
    rotation = reader.fc_query.weight
    reader.bank.shared.add(torch.stack([off, at]) @ rotation.T, Entries(tokens=torch.tensor([2, -1])))
    reader.log_scale.fill_(torch.tensor(3.0).log())
    first, second = torch.tensor([3.0, 3 / 2**0.5]).softmax(0)
    followed = torch.tensor([0.0, 0, 2, 0])  # the embedding of token 2, sqrt(D) long
    values = [first * rotation @ at, second * rotation @ (off + followed), torch.zeros(D)]
    embedding = torch.tensor([0.5, 0.0, 0, 0])
    shortened = 0.1 * 0.5 / 2 * torch.cat(values)  # a tenth of the embedding's length over that of a state
    joined = torch.cat([embedding, shortened])
    torch.testing.assert_close(read(reader, embedding[None, None])[0, 0], reader.fc(joined))
    assert not torch.allclose(reader.fc(joined), embedding)


@torch.no_grad()
def test_under_l2_the_input_is_joined_by_the_nearest_first_with_the_softmax_of_their_scores():
    """As it was: a checkpoint of before says so."""
    near, far = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.0, 2, 0, 0])
    reader, embedding = reader_with(torch.stack([far, near]), metric="l2"), torch.tensor([0.5, 0.0, 0, 0])
    assert ConcatReader(**reader.config()).metric == "l2"
    reader.log_scale.fill_(torch.tensor(2.0).log())
    scores = -2 / D * torch.tensor([0.25, 4.25])  # scale / M times the squared distances
    first, second = scores.softmax(0)
    joined = torch.cat([embedding, first * near, second * far, torch.zeros(D)])  # zeros where there is no entry
    torch.testing.assert_close(read(reader, embedding[None, None])[0, 0], reader.fc(joined))


@torch.no_grad()
def test_at_first_the_input_passes_unchanged_where_nothing_is_stored():
    reader = reader_with(torch.zeros(0, D))
    embeddings = torch.randn(2, 5, D)
    torch.testing.assert_close(read(reader, embeddings), embeddings)


@torch.no_grad()
def test_a_memory_input_is_searched_with_instead():
    reader = reader_with(torch.eye(D) * 3)
    reader.fc.weight.mul_(10)
    one, other = torch.randn(2, 1, 2, D)
    plain = read(reader, one)
    torch.testing.assert_close(read(reader, one, memory_input=one), plain)
    assert not torch.allclose(read(reader, one, memory_input=other), plain)
