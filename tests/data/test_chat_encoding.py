"""Conversations from their file to a batch: which tokens are seen, and which are learned."""

import json
import logging

import pytest

from lightning_app.data.batch import IGNORE, Batch
from lightning_app.data.chat_encoding import encode_turns, template_of
from lightning_app.data.chat_template import ChatTemplate
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.tokenizers import load_tokenizer
from lightning_app.errors import InputError
from tests.data.chat_templates import TALK, WITHOUT_SYSTEM

BYTES = load_tokenizer("bytes")
EOT = BYTES.eot
ENDING = "{% for m in messages %}{{ m.role }}>{{ m.content }}{{ eos_token }}{% endfor %}"
ENDING += "{{ 'assistant>' if add_generation_prompt }}"


@pytest.fixture
def make(tmp_path):
    def make(rows, **options) -> TextDataModule:
        path = tmp_path / "chats.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        source = {"path": str(path)}
        return TextDataModule(
            **({"train": source, "val": source, "block_size": 200, "cache_dir": str(tmp_path / "cache")} | options)
        )

    return make


def learned(batch: Batch, row: int) -> bytes:
    """The targets of a row, with "$" for the end of text."""
    ids = batch.targets[row][batch.targets[row] != IGNORE].tolist()
    return bytes(ord("$") if i == EOT else i for i in ids)


def seen(batch: Batch, row: int) -> bytes:
    ids = batch.input_ids[row][batch.attention_mask[row]].tolist()
    return bytes(ord("$") if i == EOT else i for i in ids)


def test_the_assistants_turns_alone_are_learned(make):
    data = make([{"messages": TALK}, {"messages": [*TALK[:3], TALK[1]]}])
    batch = data.dataset("train").__getitems__([0, 1])
    text = "Be short.\n\nUser:  What is 1+1? \nAssistant: It is 2.\nUser: "
    assert seen(batch, 0).decode() == f"{text}And é 🙂?\nAssistant: Yes,\n\nindeed\n$"
    assert learned(batch, 0).decode() == " It is 2.\n Yes,\n\nindeed\n$"
    assert seen(batch, 1).decode() == f"{text} What is 1+1? \n$"
    assert learned(batch, 1).decode() == " It is 2.\n"  # the user's turn ends it: nothing to stop


def test_a_template_of_the_users_own_with_an_end_token(make, tmp_path):
    (tmp_path / "own.jinja").write_text(ENDING)
    data = make([{"messages": TALK}], chat_template=str(tmp_path / "own.jinja"))
    batch = data.dataset("train").__getitems__([0])
    assert learned(batch, 0).decode() == "It is 2.$Yes,\n\nindeed$"
    assert seen(batch, 0).decode().startswith("system>Be short.$user>")
    assert seen(batch, 0).count(b"$") == 6  # one behind each turn, and the document's
    assert data.state_dict()["chat_template"] == {"text": ENDING, "name": "own.jinja"}
    assert template_of(data.tokenizer, data.chat_template).turn_end == "<|endoftext|>"


def test_a_template_without_conversations_is_named(make, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    (tmp_path / "own.jinja").write_text(ENDING)
    make([{"messages": TALK}], chat_template=str(tmp_path / "own.jinja")).prepare_data()
    assert "chat_template" not in caplog.text
    make([{"prompt": "a", "target": "b"}], chat_template=str(tmp_path / "own.jinja")).prepare_data()
    assert "data.chat_template is own.jinja, and no source has conversations" in caplog.text


def test_another_template_is_another_cache(make, tmp_path):
    (tmp_path / "own.jinja").write_text(ENDING)
    plain = make([{"messages": TALK}]).tokens("train")
    again = make([{"messages": TALK}]).tokens("train")
    own = make([{"messages": TALK}], chat_template=str(tmp_path / "own.jinja")).tokens("train")
    assert plain.folder == again.folder != own.folder
    assert plain.scored.tolist() == again.scored.tolist()
    assert plain.manifest.content_sha256 != own.manifest.content_sha256


def test_the_turns_decide_the_cache_too(make, tmp_path):
    block = "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}BODY{% endgeneration %}{% else %}"
    folders = set()
    for body in ("{{ m.content }}#{{ '' }}", "{{ m.content }}{% endgeneration %}#{% generation %}"):
        text = block.replace("BODY", body) + "{{ m.content }}{% endif %}{% endfor %}"
        (tmp_path / "own.jinja").write_text(text)
        folders.add(make([{"messages": TALK}], chat_template=str(tmp_path / "own.jinja")).tokens("train").folder)
    assert len(folders) == 2


def test_a_long_conversation_loses_its_end_and_only_then_its_start(make, caplog):
    caplog.set_level(logging.WARNING)
    asked = {"role": "user", "content": "x" * 50}
    data = make([{"messages": [asked, *WITHOUT_SYSTEM[1:]]}, {"messages": WITHOUT_SYSTEM}], block_size=60)
    batch = data.dataset("train").__getitems__([0, 1])
    assert seen(batch, 0).decode() == f"{'x' * 40}\nAssistant: It is 2."  # and a line's end as the last target
    assert learned(batch, 0).decode() == " It is 2.\n"
    assert seen(batch, 1).decode().startswith("User:  What is 1+1? \nAssistant: It is 2.\nUser: ")
    assert learned(batch, 1).decode() == " It is 2.\n"
    assert "2 of 2 conversations are longer than block_size 60: 1 lost the start of the prompt, 2" in caplog.text


def test_a_row_that_the_template_refuses_is_named(make, tmp_path):
    said = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    (tmp_path / "own.jinja").write_text(said + "{% for m in messages %}{{ m.content }}|{% endfor %}")
    rows = [{"messages": WITHOUT_SYSTEM}, {"messages": TALK}]
    with pytest.raises(InputError, match=r"chats.jsonl:2: own.jinja cannot render these messages: no system"):
        make(rows, chat_template=str(tmp_path / "own.jinja")).tokens("train")
    (tmp_path / "own.jinja").write_text("{{ messages | length }}")
    with pytest.raises(InputError, match=r"chats.jsonl:1: own.jinja writes message 3 in another way"):
        make([{"messages": TALK}], chat_template=str(tmp_path / "own.jinja")).tokens("train")
    with pytest.raises(InputError, match=r"none.jinja is not a readable chat template"):
        make([], chat_template=str(tmp_path / "none.jinja"))


def test_several_processes_write_the_same(make, monkeypatch):
    monkeypatch.setattr("lightning_app.data.token_cache.WORTH_A_PROCESS", 1)
    monkeypatch.setattr("lightning_app.data.encoding.JOB", 100)
    rows = [{"messages": [TALK[1], {"role": "assistant", "content": f"{i}" * i}]} for i in range(1, 20)]
    one = make(rows).tokens("train")
    two = make(rows, num_proc=2, cache_dir=str(one.folder.parent / "other")).tokens("train")
    assert one.folder != two.folder
    assert one.scored.tolist() == two.scored.tolist()
    assert one.ids.tolist() == two.ids.tolist()
    assert one.prompt_lengths.tolist() == two.prompt_lengths.tolist()


def test_a_token_is_learned_if_any_of_it_lies_in_a_turn():
    text = "aé🙂b"
    for start, end, wanted in ((1, 2, [1, 2]), (2, 3, [3, 4, 5, 6]), (0, 4, list(range(8))), (3, 4, [7])):
        scored = encode_turns(text, ((start, end),), BYTES).scored
        own = scored[:-1].nonzero()[0].tolist()
        assert own == wanted
        assert scored[-1] == (end == 4)


def test_templates_see_only_what_they_are_given():
    template = template_of(BYTES, ChatTemplate("{{ eos_token }}{{ bos_token }}{{ tools }}"))
    assert template.render([]) == "<|endoftext|>None"
