"""The token arrays of several sources, read as if they were one."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import sha256

import numpy as np

from lightning_app.data.token_array import Manifest, TokenArray


class JoinedIds:
    """Reads like the (N,) array that the parts make up: by number, slice, or array of positions (any shape)."""

    def __init__(self, parts: Sequence[TokenArray]) -> None:
        self._parts = [part.ids for part in parts]
        self._ends = np.cumsum([part.n_tokens for part in parts])
        self.dtype = np.result_type(*(part.ids.dtype for part in parts))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int | slice | np.ndarray) -> np.ndarray:
        """Copies what is asked for; negative positions do not count from the end."""
        positions = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index)
        number = np.searchsorted(self._ends, positions, side="right")
        found = np.empty(positions.shape, self.dtype)
        for i in np.unique(number):
            start = self._ends[i - 1] if i else 0
            found[number == i] = self._parts[i][positions[number == i] - start]
        return found


class JoinedTokens(TokenArray):
    """The documents of several arrays, one behind the other; those without a prompt have one of 0 tokens.

    Attributes:
        arrays: the parts.
        document_ends: (n_parts,) int64, the number behind the last document of each.
    """

    def __init__(self, arrays: Sequence[TokenArray]) -> None:
        self.arrays = list(arrays)
        self.folder = arrays[0].folder
        self.manifest = _joined([array.manifest for array in arrays])
        self.ids = JoinedIds(arrays)  # type: ignore[assignment]
        self.document_ends = np.cumsum([array.n_documents for array in arrays])
        starts = np.cumsum([0, *(array.n_tokens for array in arrays)])
        self.offsets = np.concatenate([[0], *(a.offsets[1:] + s for a, s in zip(arrays, starts, strict=False))])
        prompts = [a.prompt_lengths for a in arrays]
        self.prompt_lengths = _filled(prompts, [a.n_documents for a in arrays], np.dtype(np.int64))
        self.scored = None  # each part's samples know their own
        others = [
            (a._other_bytes, start) for a, start in zip(arrays, starts, strict=False) if a._other_bytes is not None
        ]
        moved = [other + np.array([[start], [0]]) for other, start in others]
        self._other_bytes = np.concatenate(moved, axis=1) if moved else None
        self._keys = np.zeros(self.n_documents, dtype=np.int64)

    def __reduce__(self) -> tuple[type["JoinedTokens"], tuple[list[TokenArray]]]:  # type: ignore[override]
        return JoinedTokens, (self.arrays,)

    @cached_property
    def names(self) -> list[str]:
        return [name for array in self.arrays for name in array.names]


def _filled(parts: Sequence[np.ndarray | None], sizes: Sequence[int], dtype: np.dtype) -> np.ndarray | None:
    """One behind the other, with zeros for those that are not there; None where none is."""
    if all(part is None for part in parts):
        return None
    return np.concatenate([np.zeros(n, dtype) if p is None else p for p, n in zip(parts, sizes, strict=True)])


def _joined(manifests: Sequence[Manifest]) -> Manifest:
    sums = ("n_documents", "n_tokens", "n_bytes", "n_characters", "n_words")
    return replace(
        manifests[0],
        content_sha256=sha256("".join(one.content_sha256 for one in manifests).encode()).hexdigest(),
        **{name: sum(getattr(one, name) for one in manifests) for name in sums},
    )
