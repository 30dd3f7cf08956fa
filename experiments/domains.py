"""Two domains to learn one after the other: WikiText and plays, or any two texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from experiments.texts import PIECE, articles, check_apart, held_out, pieces
from lightning_app.data.corpus import Document
from lightning_app.data.token_cache import TokenArray, prepare_tokens
from lightning_app.data.tokenizers import Tokenizer, load_tokenizer
from lightning_app.errors import InputError

HELD_OUT = 0.1  # of a text without held-out one of its own: so much for validation, and as much for testing


@dataclass(frozen=True)
class Domain:
    """Tokens of a domain's three texts."""

    train: TokenArray
    val: TokenArray
    test: TokenArray


@dataclass(frozen=True)
class Domains:
    """The one that is learned first and the one that follows, in the first one's vocabulary.

    Attributes:
        token_bytes: (V,) bytes of text that each id stands for.
    """

    first: Domain
    second: Domain
    token_bytes: Tensor
    tokenizer: Tokenizer


def in_three(documents: Sequence[Document]) -> tuple[list[Document], list[Document], list[Document]]:
    """Its beginning to train on, and of the rest one half to validate on and one to test on."""
    held_out = max(1, round(HELD_OUT * len(documents)))
    if len(documents) < 3:
        raise InputError(f"a domain has {len(documents)} piece(s) of {PIECE} characters: give 3 or more")
    cut = len(documents) - 2 * held_out
    return list(documents[:cut]), list(documents[cut : cut + held_out]), list(documents[cut + held_out :])


def prepare_domains(
    first: str,
    heldout: str,
    second: str,
    test: str | None = None,
    *,
    folder: Path,
    vocab_size: int = 0,
    tokenizer: Tokenizer | None = None,
) -> Domains:
    """Encode all by a tokenizer, or by a BPE that is trained on the first domain's training text: nobody knows the
    second one yet."""
    learned = articles(first)
    tokenizer = tokenizer or load_tokenizer(
        str(folder / "bpe.tiktoken"), vocab_size=vocab_size, training_texts=lambda: (d.text for d in learned)
    )
    token_bytes = torch.zeros(max(vocab_size, tokenizer.vocab_size), dtype=torch.int64)
    token_bytes[: tokenizer.vocab_size] = torch.from_numpy(tokenizer.token_bytes()).long()

    def domain(documents: Sequence[list[Document]]) -> Domain:
        return Domain(*(prepare_tokens(some, tokenizer, folder / "tokens") for some in documents))

    first_domain = domain((learned, *held_out(heldout, test)))
    check_apart([first_domain.train, first_domain.val, first_domain.test])
    return Domains(first_domain, domain(in_three(pieces(second))), token_bytes, tokenizer)
