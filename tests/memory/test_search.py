"""SlotSearch: what a query may see, and when the index does not suffice."""

from typing import Any

import pytest
import torch

from lightning_app.errors import InputError
from lightning_app.memory.search import SlotSearch, origin_of
from lightning_app.memory.slots import UNKNOWN, Entries

VECTORS = torch.arange(6.0)[:, None]  # of the documents 1, 1, 1, 2, 2, -1
DOCUMENTS, POSITIONS = torch.tensor([1, 1, 1, 2, 2, -1]), torch.tensor([0, 1, 2, 0, 1, 0])


class Index:
    """Knows only some slots."""

    def __init__(self, *slots: int):
        self.slots, self.asked = torch.tensor(slots), 0

    def candidates(self, queries_QD: torch.Tensor, vectors_ND: torch.Tensor, *, k: int) -> torch.Tensor:
        self.asked += 1
        return self.slots.expand(len(queries_QD), -1)


def searched(index: Any = None) -> SlotSearch:
    return SlotSearch(Entries(vectors=VECTORS, documents=DOCUMENTS, positions=POSITIONS), "l2", index)


@pytest.mark.parametrize("own_document_only", [False, True])
def test_a_query_sees_what_lies_before_it(own_document_only):
    origin = Entries(documents=torch.tensor([1, 2, -1]), positions=torch.tensor([2, 1, 9]))
    slots = searched().nearest(torch.zeros(3, 1), 6, origin=origin, own_document_only=own_document_only)[1]
    seen = [[slot for slot in row if slot >= 0] for row in slots.tolist()]
    assert seen == ([[0, 1], [3], []] if own_document_only else [[0, 1, 3, 4, 5], [0, 1, 2, 3, 5], [0, 1, 2, 3, 4, 5]])


def test_the_index_is_asked_first_and_its_order_is_exact():
    index = Index(2, 4, 1)
    distances, slots = searched(index).nearest(torch.tensor([[3.9]]), 2)
    assert slots.tolist() == [[4, 2]]  # 3 and 5 are nearer, but the index does not know them
    torch.testing.assert_close(distances, torch.tensor([[0.01, 3.61]]))
    assert index.asked == 1


def test_a_query_that_the_index_leaves_short_is_searched_exactly():
    # all of the first document is hidden from the first query
    origin = Entries(documents=torch.tensor([1, 2]), positions=torch.tensor([0, 0]))
    slots = searched(Index(0, 1)).nearest(torch.zeros(2, 1), 2, origin=origin)[1]
    assert slots.tolist() == [[3, 4], [0, 1]]


def test_own_documents_are_searched_without_the_index():
    index = Index(0)
    origin = Entries(documents=torch.tensor([1]), positions=torch.tensor([2]))
    searched(index).nearest(torch.zeros(1, 1), 1, origin=origin, own_document_only=True)
    assert index.asked == 0


def test_an_origin_has_the_shape_of_its_queries():
    device = torch.device("cpu")
    origin = Entries(documents=torch.zeros(2, 3), positions=torch.zeros(2, 3))
    checked = origin_of(origin, shape=(2, 3), width=1, own_document_only=False, device=device)
    assert checked.documents.shape == checked.positions.shape == (6,)
    with pytest.raises(InputError, match=r"\(2, 3\), but the queries are \(6, 1\): give \(6,\)"):
        origin_of(origin, shape=(6,), width=1, own_document_only=False, device=device)
    with pytest.raises(InputError, match="origin has no documents"):
        origin_of(UNKNOWN, shape=(6,), width=1, own_document_only=True, device=device)
