"""Conversations with tokenizers of Hugging Face's: token for token what transformers makes of them."""

import json

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lightning_app.data.chat_encoding import encode_turns, template_of
from lightning_app.data.chat_tokens import own_templates, prompt_ids, special_ids, template_tokens
from lightning_app.data.datamodule import TextDataModule
from lightning_app.data.tokenizers import load_tokenizer
from lightning_app.errors import InputError
from lightning_app.export.tokenizer import write_tokenizer
from tests.data.chat_templates import KINDS, TALK
from tests.data.test_chat_template import SPECIALS
from tests.tokenizers import save

pytest.importorskip("lightning_app.data.tokenizers.hugging_face")

TEXTS = [json.dumps(TALK), "user assistant system INST model It is 2. Yes, indeed What is "] * 20


def byte_level() -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def sentence_piece() -> Tokenizer:
    """As LLaMA's: a space becomes U+2581, one is put before the text, unknown characters fall back to bytes."""
    made = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    known = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=known, limit_alphabet=40, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    parsed = json.loads(made.to_str())
    parsed["added_tokens"] = [token for token in parsed["added_tokens"] if token["content"] == "<unk>"]
    return Tokenizer.from_str(json.dumps(parsed))


@pytest.fixture(scope="module", params=[byte_level, sentence_piece], ids=["byte-level", "sentence-piece"])
def folder(request, tmp_path_factory):
    """A model's directory with a tokenizer, and a template that each test replaces."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = PreTrainedTokenizerFast(
        tokenizer_object=request.param(), bos_token="<s>", eos_token="</s>", additional_special_tokens=SPECIALS[2:]
    )
    made.save_pretrained(folder)
    return folder


def with_template(folder, template: str):
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return load_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_and_mask_are_those_of_transformers(folder, kind):
    wanted = KINDS[kind]
    ours, theirs = with_template(folder, wanted.template)
    found = template_of(ours).turns(wanted.talk, tools=wanted.tools)
    encoded = encode_turns(found.text, found.turns, ours)
    blocks = "{% generation %}" in wanted.template
    answer = theirs.apply_chat_template(
        wanted.talk, wanted.tools, tokenize=True, return_dict=True, return_assistant_tokens_mask=blocks
    )
    assert encoded.ids[:-1].tolist() == answer["input_ids"]
    assert encoded.ids[-1] == ours.eot
    mask = answer["assistant_masks"] if blocks else _overlapping(found.text, wanted.turns, theirs)
    assert encoded.scored[:-1].astype(int).tolist() == mask
    assert sum(mask) > 5
    assert encoded.scored[-1] == (wanted.turn_end is None)  # the end of text teaches to stop where nothing else does


def _overlapping(text: str, turns: list[str], tokenizer) -> list[int]:
    """By the rule of transformers, from the strings that a turn must have."""
    spans, behind = [], 0
    for turn in turns:
        behind = text.index(turn, behind) + len(turn)
        spans.append((behind - len(turn), behind))
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return [int(any(start < b and end > a for a, b in spans)) for start, end in offsets]


@pytest.mark.parametrize("kind", ["chatml", "llama-2", "mistral", "vicuna", "alpaca", "qwen with tools"])
def test_the_prefix_of_a_turn_is_what_is_not_learned(folder, kind):
    """Independent of characters: the ids of the prompt before the first turn are those that come before its mask."""
    wanted = KINDS[kind]
    ours, theirs = with_template(folder, wanted.template)
    found = template_of(ours).turns(wanted.talk, tools=wanted.tools)
    encoded = encode_turns(found.text, found.turns, ours)
    first = next(i for i, message in enumerate(wanted.talk) if message["role"] == "assistant")
    options = {"tokenize": True, "return_dict": True, "add_generation_prompt": True}
    prompt = theirs.apply_chat_template(wanted.talk[:first], wanted.tools, **options)["input_ids"]
    assert encoded.ids[: len(prompt)].tolist() == prompt
    assert encoded.scored.argmax() == len(prompt)
    assert prompt_ids(template_of(ours).render(wanted.talk[:first], tools=wanted.tools), ours) == prompt


def test_the_tokenizer_says_what_a_template_sees(folder):
    ours, theirs = with_template(folder, KINDS["chatml"].template)
    assert own_templates(ours) == (KINDS["chatml"].template, None)
    tokens = template_tokens(ours)
    assert {name: tokens[name] for name in ("bos_token", "eos_token")} == {"bos_token": "<s>", "eos_token": "</s>"}
    ids = special_ids(ours)
    assert all(ids[name] == theirs.convert_tokens_to_ids(name) for name in SPECIALS)


def test_names_of_special_tokens_in_a_message_are_these_tokens(folder):
    talk = [{"role": "user", "content": "a<|im_end|> é</s>b"}, {"role": "assistant", "content": "x <s>"}]
    ours, theirs = with_template(folder, KINDS["chatml"].template)
    found = template_of(ours).turns(talk)
    ids = theirs.apply_chat_template(talk, tokenize=True, return_dict=True)["input_ids"]
    assert encode_turns(found.text, found.turns, ours).ids[:-1].tolist() == ids


def test_bytes_are_those_of_the_text_alone(folder, tmp_path):
    ours, _ = with_template(folder, KINDS["llama-3"].template)
    (tmp_path / "chats.json").write_text(json.dumps([{"messages": TALK}]))
    data = TextDataModule(
        train={"path": str(tmp_path / "chats.json")}, tokenizer=str(folder), cache_dir=str(tmp_path), block_size=300
    )
    tokens = data.tokens("train")
    sizes = ours.token_bytes()[tokens.ids] + tokens.other_bytes(np.arange(tokens.n_tokens))
    named = sum(len(name.encode()) * int((tokens.ids == i).sum()) for name, i in special_ids(ours).items())
    text = template_of(ours).turns(TALK).text
    eot = len("</s>")  # behind the document, of no text
    assert sizes.sum() == len(text.encode()) - named + eot


def test_a_template_that_is_not_a_text_is_refused(tmp_path):
    save("gpt2", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": {"a": 1}}))
    with pytest.raises(InputError, match=r"chat_template of .* is a dict, not a text"):
        own_templates(load_tokenizer(str(tmp_path)))


NAMED = {
    "default": "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}",
    "tool_use": "{{ tools[0].function.name if tools else 'none' }}: {% for m in messages %}{{ m.content }}{% endfor %}",
    "rag": "never",
}


def with_named(folder, named: dict[str, str], *, files: bool):
    """As older files have several templates, or as newer ones do."""
    save("gpt2", folder)
    if not files:
        config = json.loads((folder / "tokenizer_config.json").read_text())
        config["chat_template"] = [{"name": name, "template": text} for name, text in named.items()]
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        return load_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)
    (folder / "additional_chat_templates").mkdir()
    for name, text in named.items():
        place = "chat_template" if name == "default" else f"additional_chat_templates/{name}"
        (folder / f"{place}.jinja").write_text(text)
    return load_tokenizer(str(folder)), AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("files", [False, True])
def test_of_several_templates_it_takes_the_one_that_transformers_takes(tmp_path, files):
    ours, theirs = with_named(tmp_path, NAMED, files=files)
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    function = {"type": "function", "function": {"name": "sum", "parameters": {}}}
    found = []
    for tools in (None, [function], []):
        found.append(template_of(ours).turns(talk, tools=tools).text)
        assert found[-1] == theirs.apply_chat_template(talk, tools, tokenize=False)
    assert found == ["a<|endoftext|>b<|endoftext|>", "sum: ab", "none: ab"]
    again = tmp_path / "again"
    again.mkdir()
    write_tokenizer(ours, again, max_length=None)
    assert AutoTokenizer.from_pretrained(again).chat_template == NAMED


@pytest.mark.parametrize("files", [False, True])
def test_several_templates_without_a_default_are_refused(tmp_path, files):
    ours, theirs = with_named(tmp_path, {"tool_use": NAMED["tool_use"], "rag": "never"}, files=files)
    with pytest.raises(ValueError, match="no default"):
        theirs.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    with pytest.raises(InputError, match=r"called rag, tool_use, and none is the default: give one of them as a file"):
        template_of(ours)
