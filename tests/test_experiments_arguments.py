"""An experiment's texts are its arguments: what is chosen on, what is scored, and what its page says of both."""

from __future__ import annotations

import argparse
import shlex
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import pytest

from experiments import art_page, continual, memory, novelty, plans, plasticity, plasticity_page
from experiments.arguments import ARTICLES, add_texts, command_of, digests, take_texts, told
from experiments.arms import ARMS, PLAIN, TEXTS
from experiments.chosen import BY_ART
from experiments.domains import prepare_domains
from experiments.texts import held_out, prepare
from lightning_app.errors import InputError
from tests.test_experiments import article
from tests.test_experiments_art import texts
from tests.test_experiments_plasticity import SMALL

ROOT = Path(__file__).parent.parent


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_texts(parser, second="another one")
    return take_texts(parser.parse_args(words))


def test_without_texts_it_is_the_articles():
    found = options()
    assert (found.train, found.heldout, found.test) == (str(ARTICLES / "train"), str(ARTICLES / "val"), None)
    assert all(Path(path).is_dir() for path in (found.train, found.heldout))


def test_old_words_are_still_read():
    found = options("--first", "a", "--heldout", "b", "--unseen", "c")
    assert (found.train, found.heldout, found.second) == ("a", "b", "c")


@pytest.mark.parametrize("words", [("--train", "a"), ("--heldout", "b"), ("--test", "c")])
def test_one_text_alone_is_refused(words: tuple[str, str]):
    """The articles would be held out of another text."""
    with pytest.raises(InputError, match="belong together"):
        options(*words)


def test_the_command_of_a_page_names_the_texts():
    found = options("--train", "x/a.txt", "--heldout", "x/b.txt", "--test", "c.txt", "--second", "d")
    assert command_of("experiment-art", found) == "make experiment-art TRAIN=a.txt HELDOUT=b.txt TEST=c.txt SECOND=d"
    found.seeds = [3, 4]
    assert command_of("experiment-art", found).endswith(' SECOND=d SEEDS="3 4"')


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("experiment-memory TRAIN=a HELDOUT=b TEST=c", 'memory --train "a" --heldout "b" --test "c"'),
        ("experiment-art FIRST=a HELDOUT=b SECOND=d", 'novelty --train "a" --heldout "b" --second "d"'),
        ("experiment-plasticity TRAIN=a HELDOUT=b TEST=c", 'plasticity --train "a" --heldout "b" --test "c"'),
        ("experiment-plasticity ARGS=--quick", "plasticity --quick"),
        ("experiment-memory SEEDS='3 4'", "memory --seeds 3 4"),
        ("experiment-facts SEED=3 ARGS=--quick", "facts --seed 3 --quick"),
    ],
)
def test_make_hands_them_on(words: str, said: str):
    done = subprocess.run(["make", "-n", *shlex.split(words)], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"experiments.{said}" in " ".join(done.stdout.split())


def test_a_text_of_its_own_is_scored(tmp_path: Path):
    """All of HELDOUT is then to choose on."""
    train, heldout, _ = texts(tmp_path)
    test = tmp_path / "test.txt"
    test.write_text("".join(article(f"C{i}", 30 + i) for i in range(3)))
    found = prepare(train, heldout, str(test), vocab_size=300, folder=tmp_path)
    assert (found.val.n_documents, found.test.n_documents) == (4, 3)
    both = prepare_domains(train, heldout, str(test), str(test), vocab_size=300, folder=tmp_path).first
    assert (both.val.n_documents, both.test.n_documents) == (4, 3)
    with pytest.raises(InputError, match="in two of the texts"):
        prepare_domains(train, heldout, str(test), heldout, vocab_size=300, folder=tmp_path)


def test_a_text_without_documents_is_cut_into_some(tmp_path: Path):
    play = tmp_path / "play.txt"
    play.write_text("\n\n".join(f"A {i}:\n" + "word " * 30 for i in range(300)))
    chosen, scored = held_out(str(play), None)
    assert len(chosen) > 3 < len(scored)
    assert sum(len(document.text) for document in [*chosen, *scored]) == len(play.read_text())


def test_the_same_content_is_the_same_experiment(tmp_path: Path):
    """Whatever kind of source it is; without TEST there is one digest less."""
    one, two = tmp_path / "one.txt", tmp_path / "two.jsonl"
    one.write_text("the sea was calm")
    two.write_text('{"text": "the sea was calm"}\n')
    assert digests([str(one), None]) == digests([str(two)])


def test_the_words_say_what_was_chosen_on():
    half, other = told({"heldout": "x/b.txt", "test": None}), told({"heldout": "x/b.txt", "test": "y/c.txt"})
    assert half == ("the first half of b.txt (whole documents; no TEST was given)", "its second half (b.txt)")
    assert other == ("b.txt", "c.txt")


# In small, from the command line, on texts that no default names


def slices(tmp_path: Path) -> list[str]:
    """Two articles to learn, one to choose on, one to score, and another text."""
    files = sorted((ARTICLES / "train").glob("*.txt"))
    for name, some in (("train", files[:2]), ("heldout", files[2:3]), ("test", files[3:4])):
        (tmp_path / name).mkdir()
        for file in some:
            (tmp_path / name / file.name).write_text(file.read_text(encoding="utf-8"), encoding="utf-8")
    second = tmp_path / "second.txt"
    second.write_text("\n".join(f"KING {i}:\nwhat say you, {i * 7919 % 101} of you?\n" for i in range(900)))
    words = [word for name in ("train", "heldout", "test") for word in (f"--{name}", str(tmp_path / name))]
    return [*words, "--quick", "--workers", "1", "--work", str(tmp_path / "work")]


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some arms, since each takes seconds."""
    monkeypatch.setattr(continual, "ARMS", {arm: ARMS[arm] for arm in (PLAIN, TEXTS[BY_ART])})
    monkeypatch.setattr(novelty, "LENGTHS", (32, 16))
    monkeypatch.setattr(plasticity, "arms", lambda: SMALL[:4])


@pytest.mark.slow
@pytest.mark.usefixtures("few")
@pytest.mark.parametrize(
    ("mains", "page"),
    [((memory.main,), "memory"), ((continual.main, novelty.main), "art"), ((plasticity.main,), "plasticity")],
)
def test_it_runs_in_small_on_any_text(mains: Sequence[Callable[[list[str]], None]], page: str, tmp_path: Path):
    words = slices(tmp_path)
    for main in mains:
        main([*words, *(["--second", str(tmp_path / "second.txt")] if page == "art" else [])])
    (folder,) = (tmp_path / "work").iterdir()
    written = (folder / f"{page}.md").read_text(encoding="utf-8")
    assert "TRAIN=train HELDOUT=heldout TEST=test" in written
    assert "half of heldout" not in written
    assert "nan" not in written


@pytest.mark.parametrize("setting", [art_page._setting, plasticity_page._setting])
def test_a_page_says_that_a_half_was_scored(setting: Callable[..., str]):
    plan = continual.Plan("a", "b", "d") if setting is art_page._setting else plasticity.Plan("a", "b")
    said = setting(asdict(plan), "make it")
    assert "the first half of b (whole documents; no TEST was given)" in said
    assert "its second half (b)" in said
    assert plans.commit() in said
