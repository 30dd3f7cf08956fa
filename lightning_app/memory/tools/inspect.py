"""What a memory holds: its documents, the neighbours of a text, and whether it is whole.

Shapes: T tokens, D width of the backbone, M memory_dim, N entries, Q queries, K results.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_app.data.tokenizers import Tokenizer
from lightning_app.errors import InputError
from lightning_app.memory.exact_search import nearest
from lightning_app.memory.extension import Memory, name_of
from lightning_app.memory.readers.base import Reader
from lightning_app.memory.store import AssociativeMemory

SAMPLE = 500  # stored vectors that `check` searches for
NOISE = 0.1  # of the noisy ones, times the root mean square of a vector
HALF = "\N{REPLACEMENT CHARACTER}"  # for bytes that are not a character
SAME = 1e-4  # relative difference of two distances that count as equal


def n_bytes(memory: AssociativeMemory) -> int:
    """The bytes of all that a checkpoint keeps of a memory."""
    return sum(buffer.numel() * buffer.element_size() for buffer in memory.buffers())


def card_line(module: nn.Module) -> str:
    """What all memories of a model hold, in one line; "" for a model without."""
    memories = [part for part in module.modules() if isinstance(part, AssociativeMemory)]
    if not memories:
        return ""
    documents = len({int(key) for m in memories for key in m.documents[: m.size()].unique()} - {-1})
    entries = sum(m.size() for m in memories)
    return f"{entries:,} entries from {documents} documents; it is read, and nothing is written to it"


# Documents


def entries_by_document(memories: Iterable[AssociativeMemory]) -> dict[int, int]:
    """Number of entries by content key, the document with most of them first; -1: unknown."""
    counts: Counter[int] = Counter()
    for memory in memories:
        keys, numbers = memory.documents[: memory.size()].unique(return_counts=True)
        counts.update(dict(zip(keys.tolist(), numbers.tolist(), strict=True)))
    return dict(counts.most_common())


def keys_of(document: str, held: Iterable[int], names: dict[int, str]) -> list[int]:
    """Content keys of the documents with this name, or the one whose path ends in it.

    Raises:
        InputError: there is none, or the end fits several; the message names those that there are.
    """
    by_name = {key: name_of(key, names) for key in held}
    if exact := [key for key, name in by_name.items() if name == document]:
        return exact
    ends = [key for key, name in by_name.items() if document and name.endswith(f"/{document}")]
    if len(ends) == 1:
        return ends
    there = sorted(by_name[key] for key in ends) or sorted(by_name.values())
    shown = ", ".join(there[:20]) + (f" and {len(there) - 20} more" if len(there) > 20 else "")
    problem = f"{len(ends)} documents end in {document!r}" if ends else f"there is no document {document!r}"
    raise InputError(f"{problem}; {'those are' if ends else 'there are'}: {shown or 'none'}")


def remove_documents(memories: Iterable[AssociativeMemory], keys: Iterable[int]) -> int:
    """Remove all entries of these documents -> their number."""
    gone, removed = torch.tensor(sorted(keys), dtype=torch.int64), 0
    for memory in memories:
        ids = memory.ids()
        ids = ids[torch.isin(memory.payload(ids).documents, gone.to(ids.device))]
        memory.remove(ids)
        removed += len(ids)
    return removed


# Search


@dataclass(frozen=True)
class Neighbour:
    """An entry that was found.

    Attributes:
        id: in its memory.
        distance: to the query, in the memory's metric.
        span: the text up to the entry.
        next: the token that followed.
        document, position: where it stood.
    """

    id: int
    distance: float
    span: str
    next: str
    document: str
    position: int


def search(of: Memory, reader: Reader, tokenizer: Tokenizer, text: str, *, k: int, block: int) -> list[Neighbour]:
    """The k entries nearest to the state behind a text, of which the last `block` tokens count; nearest first."""
    ids = tokenizer.prompt(text)[-min(block, of.lm.max_length or block) :]
    if not text:
        raise InputError("the query is empty: give the text whose continuation is looked for")
    query = of.queries(reader, ids)[-1:]
    found: list[Neighbour] = []
    for memory in reader.bank.memories:
        nearest_ids, distances = memory.search(query[0], k)
        found += neighbours(memory, nearest_ids, distances, tokenizer, of.documents)
    return sorted(found, key=lambda neighbour: neighbour.distance)[:k]


def neighbours(
    memory: AssociativeMemory, ids: Tensor, distances: Tensor, tokenizer: Tokenizer, names: dict[int, str]
) -> list[Neighbour]:
    """What is known of entries (K,) at these distances (K,); an id of -1 is none."""
    known = memory.payload(ids)
    texts = [shown(tokenizer, *pair) for pair in zip(known.spans.tolist(), known.tokens.tolist(), strict=True)]
    return [
        Neighbour(
            id=int(ids[i]),
            distance=float(distances[i]),
            span=texts[i][0],
            next=texts[i][1],
            document=name_of(int(known.documents[i]), names),
            position=int(known.positions[i]),
        )
        for i in (ids >= 0).nonzero()[:, 0].tolist()
    ]


def shown(tokenizer: Tokenizer, span: Sequence[int], following: int) -> tuple[str, str]:
    """The texts of a span and of the token behind it (-1: unknown), to which a character belongs that it ends."""
    decoder = tokenizer.stream_decoder(continues=True)
    text = "".join(decoder(i) for i in span if i >= 0).lstrip(HALF)  # it may begin within a character, too
    return (text, decoder(following) + decoder.flush()) if following >= 0 else (text + decoder.flush(), "")


# Check


@dataclass(frozen=True)
class Recall:
    """Share of the K nearest entries by brute force that the index returns, of Q stored vectors and of noisy ones."""

    stored: float
    noisy: float
    k: int
    queries: int


@torch.no_grad()
def recall(memory: AssociativeMemory, *, k: int, seed: int = 0) -> Recall:
    """Compare the memory's search with a brute-force one; entries at equal distances stand for each other."""
    vectors, generator = memory.get_all_embeddings(), torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(vectors), generator=generator)[:SAMPLE].to(vectors.device)
    sample = vectors[chosen]
    noise = torch.randn(sample.shape, generator=generator).to(sample.device)
    noisy = sample + NOISE * sample.square().mean(-1, keepdim=True).sqrt() * noise
    k = min(k, len(vectors))
    return Recall(_share(memory, vectors, sample, k), _share(memory, vectors, noisy, k), k, len(sample))


def _share(memory: AssociativeMemory, vectors_ND: Tensor, queries_QD: Tensor, k: int) -> float:
    limit = nearest(queries_QD, vectors_ND, k=k, metric=memory.metric, use_faiss=False)[0][:, -1:]
    _, distances = memory.search(queries_QD, k)
    return float((distances <= limit + SAME * limit.abs() + 1e-6).float().mean())


def problems(memory: AssociativeMemory, *, vocab_size: int, distinct: bool) -> list[str]:
    """What is wrong with the entries, a sentence each; nothing: the memory is whole.

    Args:
        distinct: whether no two entries may stand at the same place, as in a memory that was filled in one pass.
    """
    ids = memory.ids()
    known, vectors = memory.payload(ids), memory.get_all_embeddings()
    n = memory.size()
    places = torch.stack([known.documents, known.positions], dim=1)[known.documents >= 0]
    counts = {
        "vectors are not finite": int((~vectors.isfinite().all(-1)).sum()),
        f"next tokens lie outside of the {vocab_size} ids": int(_outside(known.tokens, vocab_size).sum()),
        f"spans hold ids outside of the {vocab_size}": int(_outside(known.spans, vocab_size).any(-1).sum()),
        "ids are not below the next one": int((ids >= memory.next_id).sum()),
        "documents are known without the position": int(((known.documents >= 0) & (known.positions < 0)).sum()),
        "entries stand at a place that another one has": distinct * (len(places) - len(places.unique(dim=0))),
        "free slots are not blank": int(memory.vectors[n:].count_nonzero()) + int((memory.tokens[n:] != -1).sum()),
    }
    return [f"{count} {what}" for what, count in counts.items() if count]


def _outside(ids: Tensor, vocab_size: int) -> Tensor:
    return (ids < -1) | (ids >= vocab_size)
