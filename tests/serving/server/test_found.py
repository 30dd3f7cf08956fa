"""A server puts what the memory finds before prompts and questions, and its answers name the documents."""

import json

import pytest

from lightning_app.models.generation_options import GenerationOptions
from lightning_app.serving.generate import continue_text
from lightning_app.serving.server.limits import Limits
from tests.made_models import FOUND, finding

FOX, SEA = "a brown fox jumps", "waves from the sea"
ASKED = {"temperature": 2.0, "max_tokens": 12, "seed": 1}


@pytest.fixture
def server(serve, tmp_path):
    return serve(*finding(tmp_path), limits=Limits(max_prompt_tokens=40, max_new_tokens=12))


def alone(server, prompt, stop=()):
    options = GenerationOptions(12, temperature=2.0, seed=1)
    return "".join(continue_text(prompt, server.module, server.tokenizer, options, stop=stop))


def test_completions_of_texts_and_of_ids(server):
    for prompts in ([FOX, SEA], [list(FOX.encode()), list(SEA.encode())]):
        body = server.post("/v1/completions", prompt=prompts, **ASKED).json()
        assert [choice["found_in"] for choice in body["choices"]] == [["fox.txt"], ["sea.txt"]]
        wanted = [f"{FOUND[name]}\n\n{prompt}" for name, prompt in (("fox.txt", FOX), ("sea.txt", SEA))]
        assert [choice["text"] for choice in body["choices"]] == [alone(server, prompt) for prompt in wanted]
        assert body["choices"][0]["text"] != alone(server, FOX)
        assert body["usage"]["prompt_tokens"] == sum(map(len, wanted))


def test_what_is_scored_or_echoed_stays_as_it_is(server):
    body = server.post("/v1/completions", prompt=FOX, echo=True, **ASKED).json()
    assert body["choices"][0]["text"] == FOX + alone(server, FOX)
    assert "found_in" not in body["choices"][0]


def test_a_chat_whole_and_in_events(server):
    messages = [{"role": "user", "content": FOX}]
    asked = f"Answer the question by the text.\n\nText: {FOUND['fox.txt']}\nQuestion: {FOX}"
    wanted = alone(server, f"User: {asked}\nAssistant:", server.service.template.stop)
    (choice,) = server.post("/v1/chat/completions", messages=messages, **ASKED).json()["choices"]
    assert choice["message"]["content"] == wanted.lstrip()
    assert choice["found_in"] == ["fox.txt"]
    lines = server.post("/v1/chat/completions", messages=messages, stream=True, **ASKED).text.split("\n\n")
    events = [json.loads(line[6:]) for line in lines if line and line != "data: [DONE]"]
    assert [event["choices"][0].get("found_in") for event in events[-2:]] == [None, ["fox.txt"]]


def test_the_limit_counts_what_was_sent(server):
    assert len(FOUND["fox.txt"]) + len(FOX) > 40
    refused = server.post("/v1/completions", prompt="x" * 41, **ASKED)
    assert refused.status_code == 400
    assert "the prompt has 41 tokens" in refused.json()["error"]["message"]
