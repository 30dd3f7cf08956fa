"""Invented facts are asked in other words, answers count if they are exact, and an edited memory answers otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch
import transformers

from experiments import facts, facts_page, plans, store
from experiments.facts_arms import ARMS, mixed_settings
from experiments.facts_asked import Asker, exact
from experiments.facts_forms import KINDS, POOLS
from experiments.facts_library import Overlap
from experiments.facts_world import ENDS, RUN, Names, runs, words_of, world
from lightning_app.data.corpus import Document
from lightning_app.data.tokenizers import load_tokenizer
from lightning_app.memory.extension import VardaGPT
from lightning_app.memory.readers import PromptReader
from lightning_app.memory.tools.build import Text, fill
from lightning_app.models.extension import Found
from lightning_app.models.pretrained import PretrainedLM
from tests import tokenizers


def test_no_run_of_three_words_of_a_question_stands_in_its_document():
    asked = 0
    for seed in (0, 1000, 7):
        made = world(seed)
        for article in (*made.articles, *made.changed):
            for fact in article.facts:
                assert not runs(fact.question) & runs(article.text), fact.question
                assert exact(article.text, fact.answer)
                assert len(fact.answer.split()) <= RUN
                assert fact.subject in fact.question
                asked += 1
    assert asked == 3 * 2 * 200


def test_a_world_follows_from_its_seed_and_others_differ():
    assert world(3) == world(3)
    assert world(3, documents=5).articles == world(3).articles[:5]
    first, second = ({fact.subject for article in world(seed).articles for fact in article.facts} for seed in (0, 1000))
    assert len(first) == 80
    assert len(first & second) <= 1  # syllables may meet


def test_a_changed_document_has_the_same_sentences_and_other_answers():
    made = world(0)
    for before, after in zip(made.articles, made.changed, strict=True):
        assert (before.name, before.sentences) == (after.name, after.sentences)
        for old, new in zip(before.facts, after.facts, strict=True):
            assert (old.question, old.subject) == (new.question, new.subject)
            assert old.answer != new.answer


def test_documents_are_prose_with_sentences_between():
    for article in world(0).articles:
        says = [sentence for sentence in article.sentences if "{" in sentence]
        assert len(says) == len(article.facts) == 5
        assert len(article.sentences) == 11
        assert all(sentence.endswith(".") for sentence in article.sentences)


def test_all_forms_are_used_and_answers_are_known():
    relations = [relation for kind in KINDS.values() for relation in kind.relations]
    assert len({relation.name for relation in relations}) == 20
    assert all(len(relation.statements) >= 3 and len(relation.questions) >= 2 for relation in relations)
    assert {relation.answers for relation in relations} - {*POOLS} == {"person", "place", "river", "year"}


def test_no_name_comes_twice():
    names = Names(Random(0))
    made = [names.of(kind) for kind in ("person", "town", "place", "company", "ship", "river") for _ in range(60)]
    assert len({name.split()[0] for name in made}) == len(made)
    assert {*ENDS} == {"first", "last", "place", "river", "firm", "ship"}


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("It is Zelman Hostak.", "Zelman Hostak", True),
        ("the *blue* tower", "blue", True),
        ("a bluebell", "blue", False),
        ("Zelman the Hostak", "Zelman Hostak", False),
        ("in 1858, or so", "1858", True),
        ("in 18", "1858", False),
        ("", "blue", False),
    ],
)
def test_an_exact_answer(text: str, answer: str, right: bool):
    assert exact(text, answer) is right


def test_words_find_the_document_of_a_question():
    made, tokenizer = world(0), tokenizers.made("smollm2")
    found = Overlap.of(made.articles, tokenizer, length=10_000)
    assert [*found.texts] == [article.text.strip() for article in made.articles]
    right = [found.before(fact.question, passages=1).documents == (a.name,) for a in made.articles for fact in a.facts]
    assert sum(right) > 190
    cut = Overlap.of(made.articles[:1], tokenizer, length=24)
    assert len(cut.texts) > 3
    whole = [words_of(text)[1:-1] for text in cut.texts]  # a word may be cut in two
    assert {word for words in whole for word in words} <= {*words_of(made.articles[0].text)}


def test_each_arm_with_something_to_choose_has_as_many_settings_as_the_plan_says():
    plan = plans.read("facts")
    assert list(ARMS) == list(plan.arms)
    chosen = {name: ARMS[name].settings[0] for name in ("n-grams", "cache", "knn")}
    sizes = {arm: len(ARMS[arm].settings) for arm in plan.arms} | {facts.MIXTURE: len(mixed_settings(chosen))}
    assert {arm for arm, size in sizes.items() if size == plan.trials} == {*plan.arms} - {
        "no memory",
        "document in the prompt",
    }
    assert set(sizes.values()) == {0, plan.trials}


# A run in small


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaMA with random weights and a tokenizer of its own."""
    path = tokenizers.save("smollm2", tmp_path_factory.mktemp("model") / "tiny-llama")
    tokenizer = tokenizers.made("smollm2")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=tokenizer.vocab_size,
        num_hidden_layers=2,
        max_position_embeddings=1024,
        initializer_range=0.5,
        bos_token_id=tokenizer.bos,
        eos_token_id=tokenizer.eot,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def ran(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run."""
    work = tmp_path_factory.mktemp("work")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(work)
        facts.main(["--quick", "--model", str(directory), "--work", str(work / "runs")])
    (folder,) = (work / "runs").iterdir()
    return folder


@pytest.mark.slow
def test_all_arms_and_stages_are_run_and_kept(ran: Path):
    answers = [record for record in store.records(ran) if record["kind"] == "answers"]
    assert [record["arm"] for record in answers if record["stage"] == "told"] == list(ARMS)
    assert {(r["arm"], r["stage"], r["asked"]) for r in answers if r["stage"] != "told"} == {
        (arm, stage, n) for arm in ("knn", "prompt") for stage, n in (("deleted", 4), ("changed", 2))
    }
    assert not list(ran.glob("*/*-deleted.*")) + list(ran.glob("*/*-changed.*"))


@pytest.mark.slow
def test_what_stands_before_the_question_names_its_document(ran: Path):
    by = {(r["arm"], r["stage"]): r["said"] for r in store.records(ran) if r["kind"] == "answers"}
    assert all(one["named"] == one["document"] for one in by["document in the prompt", "told"])
    assert all(one["named"] is None for arm in ("no memory", "n-grams") for one in by[arm, "told"])
    for arm in ("knn", "cache", "prompt", "word overlap"):
        assert all(one["named"] in {f"text-{i:02}.txt" for i in range(4)} for one in by[arm, "told"])
    gone = {f"text-{i:02}.txt" for i in range(2)}
    for arm in ("knn", "prompt"):
        assert not {one["named"] for one in by[arm, "deleted"]} & gone


@pytest.mark.slow
def test_a_second_call_does_nothing_anew(ran: Path, directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    before = (ran / store.RESULTS).read_bytes()
    monkeypatch.setattr(Asker, "ask", None)
    facts.main(["--quick", "--model", str(directory), "--work", str(ran.parent), "--out", str(tmp_path)])
    assert (ran / store.RESULTS).read_bytes() == before
    page = (tmp_path / "facts.md").read_text()
    assert page.startswith(facts_page.SECTION)
    assert "CPU hours" in page
    assert all(f"| {arm} |" in page for arm in ARMS)
    kept = [json.loads(line) for line in (tmp_path / "results" / "facts.jsonl").read_text().splitlines()]
    assert kept[0]["plan"]["seed"] == 0
    assert [len(one["named"]) for one in kept if one.get("stage") == "told"] == [4] * len(ARMS)
    assert all(set(one["said"]) <= {0, 1} for one in kept if one.get("stage"))


@pytest.mark.slow
def test_the_page_keeps_what_stands_before_the_results(ran: Path, tmp_path: Path):
    (tmp_path / "facts.md").write_text(f"# Head\n\n{facts_page.SECTION}\n\nold\n")
    facts_page.write(ran, json.loads((ran / "plan.json").read_text()), tmp_path)
    page = (tmp_path / "facts.md").read_text()
    assert page.startswith(f"# Head\n\n{facts_page.SECTION}\n\nWritten by `make experiment-facts`")
    assert "\n\nold\n" not in page


@pytest.mark.slow
def test_smollm2_finds_the_documents_of_questions_in_other_words(tmp_path: Path):
    """All of them, and their text comes back letter by letter: 10 questions about 5 documents."""
    if not (facts.ROOT / "models" / "smollm2").is_dir():
        pytest.skip("`make smollm2` has not run")
    made, tokenizer = world(1000, documents=5), load_tokenizer(str(facts.ROOT / "models" / "smollm2"))
    reader = PromptReader(memory_size=2000)
    module = VardaGPT(PretrainedLM(pretrained=str(facts.ROOT / "models" / "smollm2"), freeze=True), [reader]).eval()
    documents = [Document(article.text, name=article.name) for article in made.articles]
    text = Text.of(documents, tokenizer, str(tmp_path), block_size=512, stride=None)
    fill(module.memory, reader, text, range(5), skipped=[])
    found = [module.found_for(fact.question, tokenizer) for article in made.articles for fact in article.facts[::3]]
    assert found == [[Found(article.text, article.name)] for article in made.articles for _ in range(2)]
