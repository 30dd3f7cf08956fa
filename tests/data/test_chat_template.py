"""Templates of all kinds write what transformers writes, and the assistant's turns are found in it."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lightning_app.data.chat_template import PLAIN, ChatTemplate
from lightning_app.errors import InputError
from tests.data.chat_templates import CALLS, KINDS, TALK, TOOLS, WITHOUT_SYSTEM

SPECIALS = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIALS += ["<start_of_turn>", "<end_of_turn>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with the special tokens of all kinds, as transformers has it."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    texts = [json.dumps(TALK), "user assistant system INST model It is 2. Yes, indeed What is"] * 20
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=500, initial_alphabet=alphabet, show_progress=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", additional_special_tokens=SPECIALS[2:]
    )


def template_of(kind: str) -> ChatTemplate:
    return ChatTemplate(KINDS[kind].template, tokens={"bos_token": "<s>", "eos_token": "</s>"}, specials=SPECIALS)


def test_there_are_fourteen_kinds():
    assert len(KINDS) == 14


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_writes_what_transformers_writes(tokenizer, kind):
    wanted, template = KINDS[kind], template_of(kind)
    assert template.render(wanted.talk[:-1], tools=wanted.tools).startswith(wanted.starts)
    for talk, prompt in ((wanted.talk[:-1], True), (wanted.talk[:2], True), (wanted.talk, False)):
        text = template.render(talk, tools=wanted.tools, add_generation_prompt=prompt)
        assert text == tokenizer.apply_chat_template(
            talk, wanted.tools, chat_template=wanted.template, add_generation_prompt=prompt, tokenize=False
        )
    assert template.turn_end == wanted.turn_end


@pytest.mark.parametrize("kind", KINDS)
def test_the_turns_of_the_assistant_are_found(tokenizer, kind):
    wanted = KINDS[kind]
    found = template_of(kind).turns(wanted.talk, tools=wanted.tools)
    assert [found.text[start:end] for start, end in found.turns] == wanted.turns
    assert found.text == tokenizer.apply_chat_template(
        wanted.talk, wanted.tools, chat_template=wanted.template, tokenize=False
    )


def test_the_plain_template_teaches_to_end_a_line():
    found = ChatTemplate().turns(TALK)
    assert [found.text[start:end] for start, end in found.turns] == [" It is 2.\n", " Yes,\n\nindeed\n"]
    assert ChatTemplate(PLAIN).render(TALK[:2]) == "Be short.\n\nUser:  What is 1+1? \nAssistant:"


def test_a_template_that_shortens_earlier_turns():
    """As Qwen3's, which leaves out the thoughts of all turns but the last."""
    thinking = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last %}"
        "<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    found = ChatTemplate(thinking, specials=SPECIALS).turns(TALK)
    assert [found.text[start:end] for start, end in found.turns] == [
        "It is 2.<|im_end|>",
        "<think>\n\n</think>\n\nYes,\n\nindeed<|im_end|>",
    ]


def test_turns_that_nobody_can_tell_are_refused():
    changing = "{{ messages | length }}{% for m in messages %}{{ m.content | upper }}{% endfor %}"
    with pytest.raises(InputError, match=r"writes message 3 in another way once others follow.*{% generation %}"):
        ChatTemplate(changing, name="t").turns(TALK)


@pytest.mark.parametrize(
    ("kind", "talk", "said"),
    [
        ("gemma", TALK, "System role not supported"),
        ("llama-2", [TALK[1], TALK[1]], "roles must alternate"),
        ("with exceptions and a date", CALLS, "unknown role: tool"),
    ],
)
def test_what_a_template_refuses_is_said(kind, talk, said):
    with pytest.raises(InputError, match=f"cannot render these messages: {said}"):
        template_of(kind).render(talk)


def test_a_conversation_that_the_assistant_begins():
    talk = [{"role": "assistant", "content": "Welcome."}, *WITHOUT_SYSTEM]
    for kind in ("chatml", "smollm2", "alpaca"):
        found = template_of(kind).turns(talk)
        assert len(found.turns) == 3
        start, end = found.turns[0]
        assert found.text[start:end].startswith("Welcome.")


def test_tools_change_the_prompt():
    qwen = template_of("qwen with tools")
    assert json.dumps(TOOLS[0], ensure_ascii=False) in qwen.render(WITHOUT_SYSTEM, tools=TOOLS)
    assert "# Tools" not in qwen.render(WITHOUT_SYSTEM)


@pytest.mark.parametrize(
    ("template", "said"),
    [("{% for %}", "is not a readable chat template"), ("{{ ''.__class__.__mro__ }}", "cannot render")],
)
def test_bad_templates(template, said):
    with pytest.raises(InputError, match=said):
        ChatTemplate(template).render([{"role": "user", "content": "x"}])
