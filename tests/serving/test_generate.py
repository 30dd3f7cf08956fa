"""The command's texts are those of the module's own generation; a file of prompts gives the same texts, in batches."""

import json

import pytest
import torch

from lightning_app.models.generation_options import GenerationOptions
from lightning_app.serving.generate import continue_text
from lightning_app.serving.prompts import answers_as_completed, in_order, read_prompts, write_answers
from lightning_app.training.checkpoint import load_module

PROMPTS = ["the model", "what", "", "the teacher shows what nobody asks about again", "forgets"]


def test_what_is_streamed_is_what_the_module_generates(tiny_checkpoint):
    module, tokenizer = load_module(tiny_checkpoint)
    options = GenerationOptions(40, temperature=1.0, seed=5)
    tokens = [int(t) for t in module.generate(torch.tensor([tokenizer.encode("the")]), options, eot=tokenizer.eot)]
    text = tokenizer.decode([t for t in tokens if t != tokenizer.eot])
    assert "".join(continue_text("the", module, tokenizer, options)) == text
    half = text[len(text) // 2 :]
    assert "".join(continue_text("the", module, tokenizer, options, stop=[half])) == text.removesuffix(half)


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_each_prompt_of_a_file_gets_the_text_that_it_gets_alone(tiny_checkpoint, batch_size):
    module, tokenizer = load_module(tiny_checkpoint)
    options = GenerationOptions(30, temperature=1.0, seed=2)
    rows = [{"prompt": prompt, "id": i} for i, prompt in enumerate(PROMPTS)]
    rows[1] |= {"temperature": 0.5, "max_new_tokens": 7}
    numbered = answers_as_completed(rows, module, tokenizer, options, stop=["e "], num_samples=2, batch_size=batch_size)
    answers = list(in_order(numbered))
    assert [(a["id"], a["seed"]) for a in answers] == [(i, seed) for i in range(5) for seed in (2, 3)]
    for answer in answers:
        own = GenerationOptions(
            answer.get("max_new_tokens", 30), temperature=answer.get("temperature", 1.0), seed=answer["seed"]
        )
        assert answer["text"] == "".join(continue_text(answer["prompt"], module, tokenizer, own, stop=["e "]))
        assert answer["finish_reason"] in ("stop", "length")
    assert {a["finish_reason"] for a in answers} == {"stop", "length"}


def test_a_file_of_prompts_through_the_command(tiny_checkpoint, main, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("the model\n\nwhat\n")
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "the model", "seed": 7}\n{"prompt": "what", "top_k": 1}\n')
    words = ["--max_new_tokens", 5, "--ckpt_path", tiny_checkpoint]
    main("generate", "--prompts", "prompts.txt", "--output", "answers.jsonl", *words)
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert [a["prompt"] for a in answers] == ["the model", "what"]
    assert all(a["tokens"] == 5 and a["seed"] == 0 for a in answers)
    capsys.readouterr()
    main("generate", "--prompts", "prompts.jsonl", *words)
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(a["prompt"], a["seed"]) for a in answers] == [("the model", 7), ("what", 0)]
    main("generate", "--prompt", "what", "--top_k", 1, *words)
    assert capsys.readouterr().out == f"what{answers[1]['text']}\n"


def test_a_row_has_its_own_top_k_and_stop(tiny_checkpoint):
    module, tokenizer = load_module(tiny_checkpoint)
    options = GenerationOptions(30, temperature=1.0, top_k=2, seed=3)
    rows = [{"prompt": "what", **own} for own in ({}, {"top_k": 0}, {"top_k": None}, {"stop": "e"}, {"stop": ["a"]})]
    few, *both, e, a = in_order(answers_as_completed(rows, module, tokenizer, options, stop=["e", "a"]))
    every = "".join(continue_text("what", module, tokenizer, GenerationOptions(30, 1.0, seed=3), stop=["e", "a"]))
    assert few["text"] == "".join(continue_text("what", module, tokenizer, options, stop=["e", "a"])) != every
    assert [row["text"] for row in both] == [every, every]
    assert e["text"] == "".join(continue_text("what", module, tokenizer, options, stop=["e"]))
    assert a["text"] == "".join(continue_text("what", module, tokenizer, options, stop=["a"]))
    assert [e["stop"], a["stop"]] == ["e", ["a"]]


def test_answers_are_on_disk_as_they_end_and_in_order_once_all_have(tiny_checkpoint, tmp_path):
    module, tokenizer = load_module(tiny_checkpoint)
    path, rows = tmp_path / "out.jsonl", [{"prompt": "what", "max_new_tokens": n, "id": n} for n in (9, 3, 6)]
    seen = []

    def watched():
        for answer in answers_as_completed(rows, module, tokenizer, GenerationOptions()):
            yield answer
            seen.append([json.loads(line)["id"] for line in path.read_text().splitlines()])

    write_answers(watched(), path)
    assert seen == [[3], [3, 6], [3, 6, 9]]
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [9, 3, 6]
    before = path.read_bytes()
    with pytest.raises(ValueError, match="top_p is 2"):  # before the file is opened
        write_answers(answers_as_completed([{"prompt": "x", "top_p": 2}], module, tokenizer, GenerationOptions()), path)
    assert path.read_bytes() == before


def test_a_prompt_may_hold_any_character_that_json_may(tmp_path):
    prompts = ["one\u2028line", "and\x85 one", "\N{FIGURE SPACE}"]
    rows = [json.dumps({"prompt": prompt}, ensure_ascii=False) for prompt in prompts]
    (tmp_path / "a.jsonl").write_text("\r\n".join(rows) + "\n", encoding="utf-8", newline="")
    assert [row["prompt"] for row in read_prompts(tmp_path / "a.jsonl")] == prompts


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.txt", None, "none.txt is not a readable file of prompts"),
        ("empty.txt", "\n", "empty.txt holds no prompt"),
        ("a.jsonl", "{", r"a.jsonl, line 1 is no JSON"),
        ("a.jsonl", '{"prompt": "x"}\n["x"]', r"a.jsonl, line 2 must be an object"),
        ("a.jsonl", '{"prompt": "x", "tokens": 3}', r"line 1 has 'tokens', which the answer has, too"),
        ("a.jsonl", '{"prompt": "x", "text": ""}', r"line 1 has 'text', which the answer has, too"),
        ("a.jsonl", '{"prompt": "x", "a": ' + "[" * 100_000, "line 1 is no JSON"),
        ("a.jsonl", '{"text": "x"}', r"line 1 must be an object such as .*prompt"),
    ],
)
def test_bad_files_of_prompts(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_prompts(tmp_path / name)


def test_bad_options(tiny_checkpoint, fails, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.jsonl").write_text('{"prompt": "x", "temperature": "hot"}')
    words = ["generate", "--ckpt_path", tiny_checkpoint]
    assert "are not numbers" in fails(*words, "--prompts", "p.jsonl")
    (tmp_path / "p.jsonl").write_text('{"prompt": "x", "top_p": 2}')
    assert "top_p is 2; it must be in (0, 1]" in fails(*words, "--prompts", "p.jsonl")
    for stop in ('""', "[1]", '["a", ""]', "{}"):
        (tmp_path / "p.jsonl").write_text(f'{{"prompt": "x", "stop": {stop}}}')
        assert "give a text, or a list of them" in fails(*words, "--prompts", "p.jsonl", "--output", "o.jsonl")
    assert not (tmp_path / "o.jsonl").exists()
    assert "there are no prompts" in fails(*words, "--output", "x.jsonl")
    assert "give one of them" in fails(*words, "--prompt", "x", "--prompts", "p.jsonl")
    assert "batch_size 0: at least 1" in fails(*words, "--prompts", "p.jsonl", "--batch_size", 0)
    assert "an empty text would end" in fails(*words, "--stop", "")
    assert "min_p is 2.0; it must be in [0, 1]" in fails(*words, "--min_p", 2)
