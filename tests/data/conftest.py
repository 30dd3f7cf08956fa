"""Texts that the tests make themselves."""

import random

import pytest

SYLLABLES = [
    "ka",
    "to",
    "mi",
    "the",
    "ing",
    "er",
    "über",
    "ß",
    "st",
    "ra",
    "lo",
    "né",
    "qu",
    "wi",
    "你",
    "好",
    "да",
    "🙂",
]
CODE_POINTS = [*range(0x20, 0xD800), *range(0xE000, 0x110000, 97)]


@pytest.fixture(scope="session")
def prose() -> list[str]:
    """Two documents of made-up words in lines, with enough different pairs for some 600 merges."""
    rng = random.Random(0)
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(400)]
    separators = [" "] * 8 + [". ", ", ", "\n", "\n\n\n  ", " 12 ", "'s "]
    return ["".join(rng.choice(words) + rng.choice(separators) for _ in range(1_500)) for _ in range(2)]


@pytest.fixture(scope="session")
def wild(prose) -> list[str]:
    """Prose mixed with any code points but surrogates: controls, emoji sequences, runs of white space."""
    rng = random.Random(1)
    words = prose[0].split(" ")
    kinds = [
        lambda: " " + rng.choice(words),
        lambda: chr(rng.choice(CODE_POINTS)),
        lambda: chr(rng.randrange(0x20)),
        lambda: chr(rng.randrange(0x1F300, 0x1F650)) + "\u200d\ufe0f",
        lambda: "".join(rng.choices(" \n\t\u00a0\u2003\u0085", k=rng.randrange(6))),
        lambda: rng.choice(["'s", "'ll", "1234", "...", "ab12", " the"]),
    ]
    return ["".join(rng.choice(kinds)() for _ in range(40)) for _ in range(300)]
