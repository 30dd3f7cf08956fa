"""The arms of `experiments.facts`: ways to answer a question, each with as many settings to choose from."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from experiments.facts_asked import Asker, Said
from experiments.facts_library import Library, Overlap, reader_of
from experiments.facts_world import Article, Fact
from lightning_app.memory.readers import CacheReader, KNNReader, NGramReader
from lightning_app.memory.slots import Entries
from lightning_app.serving.before import Before

Setting = Mapping[str, Any]
Answer = Callable[[Article, Fact], Said]
ORDER = 5  # of the n-grams
LAMS = (0.3, 0.6, 0.9)
FLATNESS = (1 / 64, 1 / 16, 1 / 4)  # temperatures, times the scale of the distances
SINGLE = ("n-grams", "cache", "knn")  # which the mixture has


@dataclass(frozen=True)
class Arm:
    """An arm.

    Attributes:
        settings: to choose from; without any there is nothing to choose.
        make: what answers with a setting.
    """

    settings: Sequence[Setting]
    make: Callable[[Library, Setting], Answer]


def no_memory(library: Library, _: Setting) -> Answer:
    asker = Asker(*library.with_readers())
    return lambda article, fact: asker.ask(fact.question)


def whole_document(library: Library, _: Setting) -> Answer:
    """Nobody searches: the right document is given, as it is now."""
    asker = Asker(*library.with_readers())
    texts = {article.name: article.text.strip() for article in library.articles}

    def answer(article: Article, fact: Fact) -> Said:
        return asker.ask(fact.question, Before((texts[article.name],), (article.name,)))

    return answer


def word_overlap(library: Library, setting: Setting) -> Answer:
    module, tokenizer = library.with_readers()
    asker = Asker(module, tokenizer)
    found = Overlap.of(library.articles, tokenizer, length=setting["length"])
    return lambda article, fact: asker.ask(fact.question, found.before(fact.question, passages=setting["passages"]))


def prompt(library: Library, setting: Setting) -> Answer:
    module, tokenizer = library.module("PromptReader")
    reader = reader_of(module)
    reader.passages, reader.passage_length = setting["passages"], setting["length"]
    asker = Asker(module, tokenizer)
    return lambda article, fact: asker.ask(fact.question)


def mixture(*names: str) -> Callable[[Library, Setting], Answer]:
    """Of the model with some of `SINGLE`."""

    def make(library: Library, setting: Setting) -> Answer:
        asker = Asker(*library.with_readers(*(READERS[name](library, _own(setting, name)) for name in names)))
        memory = asker.module.memory  # type: ignore[attr-defined]  # of a VardaGPT
        for reader in memory.readers:
            _fill(reader, library)
        return lambda article, fact: asker.ask(fact.question)

    return make


def _own(setting: Setting, name: str) -> Setting:
    """The setting of one reader of a mixture."""
    return setting.get(name, setting)


def _ngrams(library: Library, setting: Setting) -> NGramReader:
    return NGramReader(order=setting["order"], lam=setting["lam"], memory_size=len(library.text))


def _cache(library: Library, setting: Setting) -> CacheReader:
    """A cache of the documents alone: one that has read the question says it again."""
    theta, size = 1 / (setting["flatness"] * library.square), len(library.entries.tokens)
    return CacheReader(lam=setting["lam"], theta=theta, memory_size=size, scope="shared", writes="never")


def _knn(library: Library, setting: Setting) -> KNNReader:
    size = library.knn.bank.shared.memory_size
    k = library.knn.bank.shared.num_search_results
    temperature = setting["flatness"] * library.distance
    return KNNReader(lam=setting["lam"], temperature=temperature, memory_size=size, num_search_results=k)


READERS: dict[str, Callable[[Library, Setting], Any]] = {"n-grams": _ngrams, "cache": _cache, "knn": _knn}


def _fill(reader: Any, library: Library) -> None:
    if isinstance(reader, NGramReader):
        reader.bank.hold(library.text)
        return
    entries = library.entries
    reader.bank.shared.add(entries.vectors, Entries(entries.tokens, entries.documents, entries.positions))


def grid(**values: Sequence[Any]) -> list[Setting]:
    return [dict(zip(values, one, strict=True)) for one in product(*values.values())]


PASSAGES = grid(passages=(1, 2, 3), length=(64, 128, 256))
ARMS: dict[str, Arm] = {
    "no memory": Arm((), no_memory),
    "n-grams": Arm(grid(lam=LAMS, order=(3, 4, ORDER)), mixture("n-grams")),
    "cache": Arm(grid(lam=LAMS, flatness=FLATNESS), mixture("cache")),
    "knn": Arm(grid(lam=LAMS, flatness=FLATNESS), mixture("knn")),
    "n-grams + cache + knn": Arm((), mixture(*SINGLE)),  # settings: those of the three, with lam lowered
    "word overlap": Arm(PASSAGES, word_overlap),
    "prompt": Arm(PASSAGES, prompt),
    "document in the prompt": Arm((), whole_document),
}
SHARES = tuple(i / 10 for i in range(1, 10))  # of the lams of its parts, that the mixture tries


def mixed_settings(chosen: Mapping[str, Setting]) -> list[Setting]:
    """What the mixture chooses from, after its parts were chosen."""
    return [
        {name: {**chosen[name], "lam": round(share * chosen[name]["lam"], 3)} for name in SINGLE} for share in SHARES
    ]
