"""A conversation driven line by line, as from a terminal."""

import json

import pytest

from lightning_app.data.chat_template import PLAIN_STOP, ChatTemplate
from lightning_app.errors import InputError
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.serving.chat import Conversation, Session
from lightning_app.serving.generate import continue_text
from lightning_app.training.checkpoint import load_module

OPTIONS = GenerationOptions(12, temperature=1.0, seed=4)


@pytest.fixture
def talk(tiny_checkpoint):
    return Conversation(*load_module(tiny_checkpoint), ChatTemplate(), OPTIONS)


def run(talk: Conversation, *lines: str) -> str:
    """What is shown when these lines are typed; KeyboardInterrupt for the line "^C"."""
    left, shown = list(lines), []

    def read() -> str:
        if not left:
            raise EOFError
        line = left.pop(0)
        if line == "^C":
            raise KeyboardInterrupt
        return line

    Session(talk, read=read, write=shown.append).run()
    assert not left or lines[-len(left) - 1] == "/quit"
    return "".join(shown)


def said(talk: Conversation, prompt: str, options: GenerationOptions) -> str:
    pieces = continue_text(prompt, talk.module, talk.tokenizer, options, stop=PLAIN_STOP)
    return "".join(pieces).strip()


def test_an_answer_continues_the_history_and_the_next_one_sees_it(talk):
    shown = run(talk, "what", "and why")
    first = said(talk, "User: what\nAssistant:", OPTIONS)
    second = said(
        talk, f"User: what\nAssistant: {first}\nUser: and why\nAssistant:", GenerationOptions(12, 1.0, seed=5)
    )
    assert [m["content"] for m in talk.messages] == ["what", first, "and why", second]
    assert first in shown
    assert second in shown


def test_settings_change_on_the_fly(talk):
    shown = run(talk, "/set temperature 0", "/set max_new_tokens 5", "/set top_k 0", "what", "/set")
    assert talk.options.temperature == 0
    assert talk.options.top_k is None
    assert talk.messages[1]["content"] == said(talk, "User: what\nAssistant:", GenerationOptions(5, temperature=0))
    assert "temperature 0, top_k None" in shown


def test_a_question_that_is_refused_does_not_stay(talk, tmp_path):
    (tmp_path / "own.jinja").write_text(
        "{% for m in messages %}{% if 'no' in m.content %}{{ raise_it() }}{% endif %}{{ m.content }}{% endfor %}"
    )
    talk.template = ChatTemplate.read(tmp_path / "own.jinja")
    shown = run(talk, "no", "what")
    assert "error: own.jinja cannot render these messages" in shown
    assert [m["role"] for m in talk.messages] == ["user", "assistant"]
    said_before = list(talk.messages)
    shown = run(talk, "/system no", "/retry", "and why")
    assert shown.count("error: own.jinja cannot render these messages") == 2
    assert talk.messages == said_before


def test_a_question_that_the_model_refuses_does_not_stay(talk, monkeypatch):
    def refuse(*args, **kwargs):
        raise InputError("too long")
        yield

    run(talk, "what")
    said_before = list(talk.messages)
    monkeypatch.setattr(talk.module, "generate", refuse)
    assert run(talk, "and why", "/retry").count("error: too long") == 2
    assert talk.messages == said_before


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set top_p 3", "top_p is 3; it must be in (0, 1]"),
        ("/set temperature hot", "temperature is 'hot'; it must be a number"),
        ("/set temperature [", "temperature is '['; it must be a number"),
        ("/set max_new_tokens 2.5", "max_new_tokens is 2.5; it must be a whole number"),
        ("/set color 3", "there is no setting 'color': max_new_tokens"),
        ("/nothing", "there is no command /nothing; /help lists them"),
        ("/load none.json", "none.json holds no conversation that /save wrote"),
        ("/load", "the file holds no conversation"),
        ("/save", "/save needs the name of a file"),
        ("/retry", "nothing has been said"),
    ],
)
def test_a_mistake_is_named_and_ends_nothing(talk, line, message):
    shown = run(talk, line, "/history")
    assert f"error: {message}" in shown
    assert talk.options == OPTIONS
    assert talk.messages == []


def test_retry_draws_another_answer_to_the_same_question(talk):
    run(talk, "what")
    first = talk.messages[1]["content"]
    run(talk, "/retry")
    assert [m["role"] for m in talk.messages] == ["user", "assistant"]
    again = said(talk, "User: what\nAssistant:", GenerationOptions(12, 1.0, seed=5))
    assert talk.messages[1]["content"] == again != first


def test_undo_and_reset(talk):
    run(talk, "one", "two", "/undo")
    assert [m["content"] for m in talk.messages[::2]] == ["one"]
    assert "nothing has been said" in run(talk, "/reset", "/undo")
    assert talk.messages == []


def test_the_system_text_stands_before_the_conversation(talk):
    run(talk, "/system Be short.")
    talk.messages.append({"role": "user", "content": "what"})
    assert talk.prompt() == "Be short.\n\nUser: what\nAssistant:"


def test_a_message_of_several_lines(talk):
    run(talk, '"""', "one", "two", '"""')
    assert talk.messages[0]["content"] == "one\ntwo"


def test_what_was_said_is_saved_and_taken_up_again(talk, tmp_path):
    file = tmp_path / "talk.json"
    run(talk, "/system Be short.", "what", f"/save {file}")
    kept = list(talk.messages)
    assert json.loads(file.read_text()) == {"system": "Be short.", "messages": kept}
    run(talk, "/reset", "/system", f"/load {file}")
    assert (talk.messages, talk.system) == (kept, "Be short.")


def test_a_stop_of_the_users_own(talk):
    run(talk, "what")
    answer = talk.messages[1]["content"]
    talk.options = OPTIONS
    run(talk, "/reset", f"/stop {answer[-2:].strip() or 'e'}", "what")
    assert len(talk.messages[1]["content"]) < len(answer)


def test_an_interrupted_answer_is_kept_as_far_as_it_came(talk):
    shown, options = [], GenerationOptions(60, temperature=1.0, seed=4)
    talk.options = options

    def write(text: str) -> None:
        shown.append(text)
        if len(shown) == 3:  # the sign of the prompt, and two pieces
            raise KeyboardInterrupt

    lines = iter(["what", "/history"])
    Session(talk, read=lambda: next(lines, "/quit"), write=write).run()
    assert " [interrupted]" in shown
    pieces = said(talk, "User: what\nAssistant:", options)
    assert 0 < len(talk.messages[1]["content"]) < len(pieces)
    assert pieces.startswith(talk.messages[1]["content"])


def test_ctrl_c_at_the_prompt_ends_nothing(talk):
    assert "user: what" in run(talk, "^C", "what", "/history")


def test_the_command(tiny_checkpoint, main, monkeypatch, capsys):
    lines = iter(["what", "/history"])

    def read() -> str:
        for line in lines:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", read)
    main("chat", "--ckpt_path", tiny_checkpoint, "--max_new_tokens", 5, "--system", "Be short.")
    assert "user: what\nassistant: " in capsys.readouterr().out


def test_a_memory_sees_the_history_but_keeps_none_of_it(reading):
    module, tokenizer = reading("knn", "the model learns what it reads")
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    talk = Conversation(module, tokenizer, ChatTemplate(), GenerationOptions(8, temperature=0))
    run(talk, "the model", "what it")
    assert len(talk.messages) == 4
    assert all(tensor.equal(before[name]) for name, tensor in module.state_dict().items())


def test_templates_of_the_users_own(tmp_path):
    file = tmp_path / "chatml.jinja"
    file.write_text(
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</s>\n{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    template = ChatTemplate.read(file)
    messages = [{"role": "user", "content": "{{ x }}"}]
    assert template.render(messages) == "<user>{{ x }}</s>\n<assistant>"
    assert template.stop == ()
    assert ChatTemplate.read(file, stop=["</s>"]).stop == ("</s>",)


@pytest.mark.parametrize(
    ("template", "message"),
    [("{% for %}", "is not a readable chat template"), ("{{ ''.__class__.__mro__ }}", "cannot render these messages")],
)
def test_bad_templates(tmp_path, template, message):
    file = tmp_path / "t.jinja"
    file.write_text(template)
    with pytest.raises(InputError, match=message):
        ChatTemplate.read(file).render([{"role": "user", "content": "x"}])
    with pytest.raises(InputError, match="is not a readable chat template"):
        ChatTemplate.read(tmp_path / "none.jinja")
