"""ConcatReader against its formula."""

import torch
from torch import Tensor

from lightning_app.memory.readers import ConcatReader
from lightning_app.memory.readers.base import TokenContext
from lightning_app.models.backbone import HiddenStates

D, K = 4, 3


def reader_with(vectors: Tensor) -> ConcatReader:
    torch.manual_seed(0)
    reader = ConcatReader(memory_size=9, num_search_results=K)
    reader.build(width=D, vocab_size=11)
    reader.bank.shared.add(vectors)
    return reader.eval()


def read(reader: ConcatReader, embeddings: Tensor, **options: Tensor) -> Tensor:
    """(B, T, D) embeddings -> what the backbone is given instead."""
    context = TokenContext.of_session(torch.zeros(embeddings.shape[:2], dtype=torch.int64), start=0, new=0)
    return reader.around(embeddings, context, lambda x: HiddenStates(x), **options)[0].last


@torch.no_grad()
def test_the_input_is_joined_by_the_nearest_first_with_the_softmax_of_their_scores():
    near, far = torch.tensor([1.0, 0, 0, 0]), torch.tensor([0.0, 2, 0, 0])
    reader, embedding = reader_with(torch.stack([far, near])), torch.tensor([0.5, 0.0, 0, 0])
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
