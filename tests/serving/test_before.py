"""What a memory finds for a prompt stands before it in all that generates, and answers name its document."""

from pathlib import Path

import pytest

from lightning_app.cli import main
from lightning_app.data.chat_template import PLAIN_STOP, ChatTemplate
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.serving import generate
from lightning_app.serving.before import NOTHING, Before
from lightning_app.serving.chat import Conversation, Session
from lightning_app.serving.generate import continue_text
from lightning_app.serving.prompts import answers_as_completed, in_order
from tests.made_models import FOUND, Made, finding

OPTIONS = GenerationOptions(12, temperature=2.0, seed=4)
FOX, SEA = "a brown fox jumps", "waves from the sea"


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return finding(tmp_path)


def said(made: Made, prompt: str, stop: tuple[str, ...] = ()) -> str:
    return "".join(continue_text(prompt, *made, OPTIONS, stop=stop))


def asked_by(text: str, question: str) -> str:
    return f"Answer the question by the text.\n\nText: {text}\nQuestion: {question}"


def test_nothing_changes_nothing():
    messages = [{"role": "user", "content": "what"}]
    assert NOTHING.put("what") == NOTHING.ask("what") == "what"
    assert NOTHING.put_in(messages) is messages
    assert NOTHING.said == {}


def test_documents_are_named_once_and_without_folders(made):
    found = made[0].found_for(FOX, made[1])
    assert Before.of([*found, *found]).documents == ("fox.txt",)
    assert Before.of(found).texts == (FOUND["fox.txt"],)


def test_only_the_last_message_of_a_user_is_searched_for(made):
    asked = [{"role": "user", "content": SEA}, {"role": "assistant", "content": "so"}]
    assert Before.chat(asked, *made) == NOTHING
    before = Before.chat([*asked, {"role": "user", "content": FOX}], *made)
    assert before.documents == ("fox.txt",)
    assert before.put_in([*asked, {"role": "user", "content": FOX}]) == [
        *asked,
        {"role": "user", "content": asked_by(FOUND["fox.txt"], FOX)},
    ]


def test_the_prompts_of_a_file(made):
    rows = [{"prompt": FOX}, {"prompt": SEA}]
    answers = list(in_order(answers_as_completed(rows, *made, OPTIONS, num_samples=2)))
    assert [answer["found_in"] for answer in answers] == [["fox.txt"]] * 2 + [["sea.txt"]] * 2
    for answer, name in zip(answers[::2], FOUND, strict=True):
        assert answer["text"] == said(made, f"{FOUND[name]}\n\n{answer['prompt']}") != said(made, answer["prompt"])


def test_the_command_shows_the_prompt_alone_and_names_the_document(made, monkeypatch, capsys):
    monkeypatch.setattr(generate, "load", lambda _: (Path("tiny.ckpt"), *made))
    main(
        [
            "generate",
            "--ckpt_path",
            "tiny.ckpt",
            "--prompt",
            FOX,
            "--temperature",
            "2",
            "--top_k",
            "0",
            "--max_new_tokens",
            "12",
            "--seed",
            "4",
        ]
    )
    printed = capsys.readouterr()
    assert printed.out == FOX + said(made, f"{FOUND['fox.txt']}\n\n{FOX}") + "\n"
    assert printed.err == "found in fox.txt\n"


def test_a_conversation(made):
    shown: list[str] = []
    talk = Conversation(*made, ChatTemplate(), OPTIONS)
    lines = iter([FOX, SEA, "/prompt", "/quit"])
    Session(talk, read=lambda: next(lines), write=shown.append).run()
    first = f"User: {asked_by(FOUND['fox.txt'], FOX)}\nAssistant:"
    assert talk.messages[1]["content"] == said(made, first, PLAIN_STOP).strip()
    assert [one for one in shown if one.startswith("[found")] == ["[found in fox.txt]\n", "[found in sea.txt]\n"]
    assert talk.messages[0]["content"] == FOX  # what was found is not a part of what was said
