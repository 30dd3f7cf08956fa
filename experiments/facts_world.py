"""Invented facts in documents of prose, with a question for each: `world(seed)`.

Names are made of syllables, so that a model cannot know them. A question is asked in other words: no run of three words
of it stands in its document.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from experiments.facts_forms import KINDS, POOLS, Kind, Relation, each

FACTS = 5  # of a document: three of its first subject, two of its second
RUN = 3  # words
STARTS = each("B Br D Dr F G Gr H J K Kl L M N P Pr R S Sk St T Tr V Vr W Z")
MIDDLES = each("a e i o u ei au ou")
JOINTS = each("l ld lm ln m nd nk r rb rd rk rn rv sk st t v z")
ENDS = {
    "first": each("a e i o in is ek an"),
    "last": each("ow strom ak ich ard eld unk ovic elli aan"),
    "place": each("holm wick ava ork itz ouse burg mere stad ulla"),
    "river": each("ne ra va sse lle gh tza"),
    "firm": each("ex or ix ano eum"),
    "ship": each("ia ella ora ine une"),
}
WORKS = ("Works", "Brothers", "Mills", "Company")


@dataclass(frozen=True)
class Fact:
    """A question of one to three words' answer, and what it is about."""

    relation: str
    subject: str
    question: str
    answer: str


@dataclass(frozen=True)
class Article:
    """A document, and what it says.

    Attributes:
        name: of its file.
        sentences: with {0}, {1}, ... in the place of the answers.
    """

    name: str
    sentences: tuple[str, ...]
    facts: tuple[Fact, ...]

    @property
    def text(self) -> str:
        answers = [fact.answer for fact in self.facts]
        return " ".join(sentence.format(*answers) for sentence in self.sentences)


class Names:
    """Invented names, none of which comes twice."""

    def __init__(self, random: Random):
        self._random, self._used = random, set[str]()

    def _word(self, end: str) -> str:
        while True:
            parts = [self._random.choice(choices) for choices in (STARTS, MIDDLES, JOINTS, ENDS[end])]
            if (word := "".join(parts)) not in self._used:
                self._used.add(word)
                return word

    def of(self, kind: str) -> str:
        """A name of a person, a town or place, a company, a ship or a river."""
        if kind == "person":
            return f"{self._word('first')} {self._word('last')}"
        if kind == "company":
            return f"{self._word('firm')} {self._random.choice(WORKS)}"
        return self._word({"town": "place"}.get(kind, kind))


class Writer:
    """Writes articles; all draws are of one generator."""

    def __init__(self, random: Random):
        self._random, self._names = random, Names(random)

    def article(self, name: str) -> Article:
        """Three facts of one subject, and then two of another."""
        kinds = self._random.sample(sorted(KINDS), 2)
        blocks = [self._block(kind, n, first) for kind, n, first in zip(kinds, (3, 2), (0, 3), strict=True)]
        sentences = tuple(sentence for block, _ in blocks for sentence in block)
        drawn = [fact for _, facts in blocks for fact in facts]
        whole = Article(name, sentences, tuple(fact for fact, _ in drawn))
        return replace(whole, facts=tuple(_asked(fact, forms, whole.text) for fact, forms in drawn))

    def _block(self, name: str, n: int, first: int) -> tuple[list[str], list[tuple[Fact, Sequence[str]]]]:
        """Sentences about one subject, and its facts with the questions that there are for them."""
        kind, subject = KINDS[name], self._names.of(name)
        he = self._random.choice(("he", "she"))
        words = {"he": ("he", "his"), "she": ("she", "her")}[he] if name == "person" else ("it", "its")
        said = [self._random.choice(kind.openings).format(n=subject)]
        facts: list[tuple[Fact, Sequence[str]]] = []
        for i, relation in enumerate(self._random.sample(kind.relations, n)):
            said.append(self._statement(relation, subject, words, number=first + i))
            facts.append((Fact(relation.name, subject, "", self.answer(relation)), self._questions(relation, subject)))
        return self._with_fillers(said, kind), facts

    def _statement(self, relation: Relation, subject: str, words: tuple[str, str], *, number: int) -> str:
        s, his = words
        start = self._random.choice((subject, s.capitalize()))
        form = self._random.choice(relation.statements)
        return form.format(S=start, s=s, n=subject, his=his, a=f"{{{number}}}")

    def _questions(self, relation: Relation, subject: str) -> list[str]:
        forms = self._random.sample(relation.questions, len(relation.questions))
        return [form.format(n=subject) for form in forms]

    def _with_fillers(self, said: list[str], kind: Kind) -> list[str]:
        """Two sentences more, not before the first."""
        for filler in self._random.sample(kind.fillers, 2):
            said.insert(self._random.randint(1, len(said)), filler)
        return said

    def answer(self, relation: Relation) -> str:
        """An answer of the right kind."""
        if relation.answers in POOLS:
            return self._random.choice(POOLS[relation.answers])
        if relation.answers == "year":
            return str(self._random.randint(1610, 1950))
        return self._names.of(relation.answers)

    def changed(self, article: Article) -> Article:
        """The same document with other answers."""
        return replace(article, facts=tuple(self._changed(fact) for fact in article.facts))

    def _changed(self, fact: Fact) -> Fact:
        relation = next(one for kind in KINDS.values() for one in kind.relations if one.name == fact.relation)
        while (answer := self.answer(relation)) == fact.answer:
            pass
        return replace(fact, answer=answer)


def _asked(fact: Fact, questions: Sequence[str], text: str) -> Fact:
    """With the first question that has no run of words of the text."""
    return replace(fact, question=next(one for one in questions if not runs(one) & runs(text)))


def words_of(text: str) -> list[str]:
    """In small letters, without marks."""
    return re.findall(r"\w+", text.lower())


def runs(text: str, length: int = RUN) -> set[tuple[str, ...]]:
    """All runs of so many words."""
    words = words_of(text)
    return set(zip(*(words[i:] for i in range(length)), strict=False))


@dataclass(frozen=True)
class World:
    """Documents, and the same ones with other answers.

    Attributes:
        articles, changed: by the same numbers.
    """

    articles: tuple[Article, ...]
    changed: tuple[Article, ...]

    def questions(self) -> Iterator[tuple[int, Fact]]:
        """All facts with the numbers of their documents."""
        return ((i, fact) for i, article in enumerate(self.articles) for fact in article.facts)


def world(seed: int, *, documents: int = 40) -> World:
    """The same for the same seed; a world with fewer documents has the first ones of a larger one."""
    writer = Writer(Random(seed))
    articles = tuple(writer.article(f"text-{i:02}.txt") for i in range(documents))
    return World(articles, tuple(map(writer.changed, articles)))


def write(folder: Path, articles: Sequence[Article]) -> Mapping[str, Path]:
    """A file for each -> where they are, by name."""
    folder.mkdir(parents=True, exist_ok=True)
    for article in articles:
        (folder / article.name).write_text(article.text, encoding="utf-8")
    return {article.name: folder / article.name for article in articles}
