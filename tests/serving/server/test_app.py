"""The official client, and requests by hand, against a server on loopback."""

import asyncio
import base64
import importlib
import json
import re
import socket
import threading
import time

import httpx
import numpy as np
import pytest
import torch
from starlette.requests import ClientDisconnect

from lightning_app.data.chat_template import ChatTemplate
from lightning_app.models.generation import BatchDecoder
from lightning_app.models.generation_options import GenerationOptions
from lightning_app.serving.generate import continue_text
from lightning_app.serving.serve import LOOPBACK
from lightning_app.serving.server import guard
from lightning_app.serving.server.app import Events, content_security_policy
from lightning_app.serving.server.limits import Limits
from lightning_app.serving.server.schema import ChatRequest
from lightning_app.training.checkpoint import load_module


@pytest.fixture(scope="module")
def openai():
    """The library of the official client, whose import takes two seconds of each process that collects tests."""
    return importlib.import_module("openai")


@pytest.fixture(scope="module")
def client(openai, server):
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=60) as made:
        yield made


def alone(server, prompt, stop=(), **options):
    """The text that `generate` gives."""
    return "".join(
        continue_text(prompt, server.module, server.tokenizer, GenerationOptions(temperature=1.0, **options), stop=stop)
    )


def events(response: httpx.Response) -> list[dict]:
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]


# The interface


def test_it_tells_what_the_model_is(server):
    about = httpx.get(f"{server.url}/about").json()
    assert (about["name"], about["kind"]) == ("tiny", "ArticleGPT")
    assert re.fullmatch(r"\d+(\.\d)? [KM] parameters", about["facts"][0])
    assert "a vocabulary of 257" in about["facts"]
    assert len(about["prompts"]) == 3


def test_the_model_is_listed(client):
    assert [m.id for m in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "lightning_app"


def test_the_models_own_sampling_counts_where_a_request_says_nothing(client, server, monkeypatch):
    monkeypatch.setattr(type(server.module.backbone.core), "sampling", {"temperature": 0.0, "repetition_penalty": 1.5})
    words = {"model": "tiny", "prompt": "the model", "max_tokens": 20, "seed": 3}
    greedy = GenerationOptions(20, temperature=0.0, repetition_penalty=1.5)
    expected = "".join(continue_text("the model", server.module, server.tokenizer, greedy))
    assert client.completions.create(**words).choices[0].text == expected
    given = client.completions.create(**words, temperature=1, extra_body={"repetition_penalty": 1})
    assert given.choices[0].text == alone(server, "the model", max_new_tokens=20, seed=3) != expected


def test_a_completion_is_the_text_that_generate_gives(client, server):
    answer = client.completions.create(model="tiny", prompt="the model", max_tokens=20, seed=3)
    assert answer.choices[0].text == alone(server, "the model", max_new_tokens=20, seed=3)
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 9,
        "completion_tokens": 20,
        "total_tokens": 29,
    }


def test_several_prompts_as_texts_or_tokens_each_n_times(client, server):
    options = {"model": "tiny", "max_tokens": 12, "seed": 5, "n": 2}
    texts = [c.text for c in client.completions.create(prompt=["the", "what"], **options).choices]
    assert texts == [alone(server, p, max_new_tokens=12, seed=s) for p in ("the", "what") for s in (5, 6)]
    ids = [server.tokenizer.encode(p) for p in ("the", "what")]
    answer = client.completions.create(prompt=ids, **options)
    assert [c.text for c in answer.choices] == texts
    assert answer.usage.prompt_tokens == 7
    assert [c.text for c in client.completions.create(prompt=ids[0], **options).choices] == texts[:2]


def test_options_that_are_not_openais(client, server):
    own = {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.2}
    answer = client.completions.create(
        model="tiny", prompt="the", max_tokens=20, seed=1, temperature=0.7, top_p=0.9, extra_body=own
    )
    options = GenerationOptions(20, temperature=0.7, top_p=0.9, seed=1, **own)
    assert answer.choices[0].text == "".join(continue_text("the", server.module, server.tokenizer, options))


def test_without_a_seed_no_two_answers_are_alike(client):
    texts = {client.completions.create(model="tiny", prompt="the", max_tokens=20).choices[0].text for _ in range(3)}
    assert len(texts) == 3


def test_echo_and_stop(client, server):
    text = alone(server, "the", max_new_tokens=30, seed=2)
    stop = text[10:12]
    answer = client.completions.create(model="tiny", prompt="the", max_tokens=30, seed=2, stop=stop, echo=True)
    assert answer.choices[0].text == "the" + text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_logprobs_are_those_of_the_plain_forward(client, server):
    options = {"model": "tiny", "prompt": "the café", "max_tokens": 3, "temperature": 0}
    choice = client.completions.create(**options, echo=True, logprobs=2).choices[0]
    found, ids = choice.logprobs, server.tokenizer.encode("the café")
    n = len(ids)
    assert found.token_logprobs[0] is found.top_logprobs[0] is None
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == n + 3
    assert (found.tokens[0], found.tokens[7]) == ("t", "bytes:\\xc3")  # the tokenizer has bytes alone
    assert found.text_offset[:4] == [0, 1, 2, 3]
    with torch.no_grad():
        logits = server.module.backbone(torch.tensor([ids]))[0, :, : server.tokenizer.vocab_size]
    expected = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
    assert found.token_logprobs[1:n] == pytest.approx((-expected).tolist(), abs=1e-4)
    assert found.top_logprobs[5][found.tokens[5]] == found.token_logprobs[5]  # beside the likeliest two
    # greedy: what was drawn was the likeliest
    assert found.token_logprobs[n:] == pytest.approx([max(top.values()) for top in found.top_logprobs[n:]])
    drawn = client.completions.create(**options, logprobs=0).choices[0].logprobs
    assert drawn.token_logprobs == pytest.approx(found.token_logprobs[n:])
    assert drawn.top_logprobs is None


@pytest.mark.parametrize("usage", [True, False])
def test_a_streamed_completion_has_the_same_text_in_pieces(client, server, usage):
    options = {"stream_options": {"include_usage": True}} if usage else {}
    stream = client.completions.create(
        model="tiny", prompt=["the", "what"], max_tokens=20, seed=3, stream=True, **options
    )
    texts, reasons, counts = ["", ""], [None, None], []
    chunks = 0
    for chunk in stream:
        counts.append(chunk.usage)
        for choice in chunk.choices:
            chunks += 1
            texts[choice.index] += choice.text
            reasons[choice.index] = choice.finish_reason
    assert texts == [alone(server, p, max_new_tokens=20, seed=3) for p in ("the", "what")]
    assert reasons == ["length", "length"]
    assert chunks > 20
    assert [c is not None for c in counts] == [False] * (len(counts) - 1) + [usage]
    if usage:
        assert (counts[-1].prompt_tokens, counts[-1].completion_tokens) == (7, 40)


def test_a_chat_goes_through_the_template(client, server):
    messages = [
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": [{"type": "text", "text": "what"}]},
    ]
    options = {"model": "tiny", "messages": messages, "seed": 3, "max_completion_tokens": 20}
    answer = client.chat.completions.create(**options)
    stop = server.service.template.stop
    text = alone(server, "Be short.\n\nUser: what\nAssistant:", stop=stop, max_new_tokens=20, seed=3).lstrip()
    assert answer.choices[0].message.content == text
    assert answer.choices[0].message.role == "assistant"
    streamed = list(client.chat.completions.create(stream=True, **options))
    assert streamed[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == text
    assert streamed[-1].choices[0].finish_reason in ("stop", "length")


def test_a_chat_without_a_limit_gets_what_the_server_gives(client):
    answer = client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "the"}], stop=["\x00"])
    assert 0 < answer.usage.completion_tokens <= 64


def test_embeddings_are_pooled_states_of_unit_length(client, server):
    texts = ["the model", "what nobody asks about, for longer than a block"]
    answer = client.embeddings.create(model="tiny", input=texts)  # the client asks for base64
    plain = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
    ids = torch.tensor([server.tokenizer.encode(texts[0])])
    pooled = server.module.backbone.states(ids).last[0].mean(0).detach()
    expected = (pooled / pooled.norm()).numpy()
    np.testing.assert_allclose(answer.data[0].embedding, expected, atol=1e-5)
    long = server.tokenizer.encode(texts[1])
    states = [server.module.backbone.states(torch.tensor([long[i : i + 16]])).last[0] for i in range(0, len(long), 16)]
    pooled = torch.cat(states).mean(0).detach()
    np.testing.assert_allclose(answer.data[1].embedding, (pooled / pooled.norm()).numpy(), atol=1e-5)
    np.testing.assert_allclose([d.embedding for d in plain.data], [d.embedding for d in answer.data], atol=1e-6)
    raw = server.post("/v1/embeddings", input="x", encoding_format="base64").json()["data"][0]["embedding"]
    assert len(base64.b64decode(raw)) == 4 * 16
    assert answer.usage.total_tokens == sum(len(t) for t in texts)


def test_health_counts_what_is_under_way(server):
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok", "requests": 0}


def test_null_is_as_if_it_was_not_said(server):
    left = dict.fromkeys(("temperature", "max_tokens", "n", "stream", "echo", "stop", "top_p", "stream_options"))
    answer = server.post("/v1/completions", prompt="the", seed=1, **left).json()
    assert answer["choices"][0]["text"] == alone(server, "the", max_new_tokens=16, seed=1)


# What goes wrong


@pytest.mark.parametrize(
    ("path", "body", "status", "param", "message"),
    [
        ("completions", {"model": "other"}, 404, "model", "there is no model 'other' here, only 'tiny'"),
        ("completions", {"max_tokens": 0}, 400, "max_tokens", "leaves nothing without echo"),
        ("completions", {"max_tokens": -1}, 400, "max_tokens", "greater than or equal to 0"),
        ("completions", {"max_tokens": 65}, 400, "max_tokens", "max_tokens is 65, and may be at most 64"),
        ("completions", {"temperature": -1}, 400, None, "temperature is -1.0; it must be"),
        ("completions", {"temperature": "hot"}, 400, "temperature", "valid number"),
        ("completions", {"top_p": 0}, 400, None, "top_p is 0.0; it must be"),
        ("completions", {"top_k": -1}, 400, None, "top_k is -1; it must be"),
        ("completions", {"seed": 2**70}, 400, None, "seed is"),
        ("completions", {"seed": 2**63 - 1, "n": 2}, 400, None, "seed is"),
        ("completions", {"prompt": "x" * 201}, 400, "prompt", "the prompt has 201 tokens, and may have at most 200"),
        ("completions", {"prompt": [999]}, 400, "prompt", "999 is not a token: ids lie from 0 up, below 257"),
        ("completions", {"prompt": [-1]}, 400, "prompt", "-1 is not a token"),
        ("completions", {"prompt": []}, 400, None, ""),
        ("completions", {"n": 17}, 400, "n", "less than or equal to 16"),
        (
            "completions",
            {"prompt": ["x"] * 129, "n": 2},
            400,
            "n",
            "258 texts are asked for, and at most 256 may be at once",
        ),
        ("completions", {"stop": ""}, 400, None, "at least 1 character"),
        ("completions", {"stop": ["x"] * 17}, 400, "stop", "at most 16"),
        ("completions", {"logprobs": 6}, 400, "logprobs", "less than or equal to 5"),
        ("completions", {"logprobs": 1, "stream": True}, 400, "logprobs", "not offered in a stream"),
        ("completions", {"logprobs": 1, "prompt": "x" * 64}, 400, "logprobs", "with logprobs they may have"),
        ("completions", {"frequency_penalty": 1}, 400, None, "Input should be 0"),
        ("completions", {"no_such": 1}, 400, "no_such", "Extra inputs"),
        ("chat/completions", {"messages": []}, 400, "messages", "at least 1 item"),
        ("chat/completions", {"messages": [{"role": "robot", "content": "x"}]}, 400, None, "'user'"),
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, None, ""),
        (
            "chat/completions",
            {"messages": [{"role": "user", "content": "x" * 300}]},
            400,
            "messages",
            "and may have at most 200",
        ),
        ("embeddings", {"input": ["x"] * 2049}, 400, "input", "at most 2048"),
        ("embeddings", {"input": "x", "dimensions": 5}, 400, "dimensions", "None"),
        ("embeddings", {"input": ["x", "y" * 201]}, 400, "input", "and may have at most 200"),
    ],
)
def test_a_bad_request_is_named(server, path, body, status, param, message):
    answer = server.post(f"/v1/{path}", **({"prompt": "x"} if path == "completions" else {}) | body)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert message in error["message"]
    assert set(error) == {"message", "type", "param", "code"}
    if param is not None:
        assert error["param"] == param
    assert not re.search(r"Traceback|\.py|/work|/tmp", answer.text)


def test_other_mistakes_of_http(server):
    assert httpx.get(f"{server.url}/v1/nothing").status_code == 404
    assert httpx.get(f"{server.url}/v1/completions").json()["error"]["message"] == "Method Not Allowed"
    broken = httpx.post(f"{server.url}/v1/completions", content=b"{", headers={"Content-Type": "application/json"})
    assert broken.status_code == 400
    assert "JSON" in broken.json()["error"]["message"]
    untold = httpx.post(f"{server.url}/v1/completions", content=b'{"model": "tiny"}')
    assert "send the header Content-Type" in untold.json()["error"]["message"]


def test_the_clients_errors_are_those_of_openai(openai, client):
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.completions.create(model="other", prompt="x")
    with pytest.raises(openai.BadRequestError, match="and may be at most 64"):
        client.completions.create(model="tiny", prompt="x", max_tokens=1000)


def test_a_key_is_asked_for_everywhere_but_at_the_page_and_health(openai, tiny_checkpoint, serve):
    server = serve(*load_module(tiny_checkpoint), api_key="right")
    for path in ("/v1/models", "/openapi.json", "/v1/nothing"):
        for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "right"}):
            answer = httpx.get(server.url + path, headers=header)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(f"{server.url}/").status_code == httpx.get(f"{server.url}/health").status_code == 200
    right = openai.OpenAI(base_url=f"{server.url}/v1", api_key="right", max_retries=0)
    assert [m.id for m in right.models.list()] == ["tiny"]
    with pytest.raises(openai.AuthenticationError):
        right.with_options(api_key="wrong").models.list()


def test_a_server_without_a_key_answers_to_its_own_names_only(tiny_checkpoint, serve):
    server = serve(*load_module(tiny_checkpoint), hosts=LOOPBACK)
    assert httpx.get(f"{server.url}/v1/models").status_code == 200
    for name in ("localhost", "LocalHost:80", "[::1]", "[::1]:8000", "127.0.0.1:9"):
        assert httpx.get(f"{server.url}/v1/models", headers={"Host": name}).status_code == 200
    rebound = httpx.get(f"{server.url}/v1/models", headers={"Host": "evil.example:8000"})
    assert rebound.status_code == 403
    assert "tiny" not in rebound.text


def test_a_long_body_is_refused_said_or_not(tiny_checkpoint, serve):
    server = serve(*load_module(tiny_checkpoint), limits=Limits(max_body=1000))
    assert server.post("/v1/completions", prompt="x" * 2000).status_code == 413
    unsaid = httpx.post(f"{server.url}/v1/completions", content=(b"x" * 500 for _ in range(5)))  # chunked
    assert unsaid.status_code == 413
    assert server.post("/v1/completions", prompt="x" * 100, max_tokens=2).status_code == 200


def test_a_slow_body_is_not_waited_for(tiny_checkpoint, serve, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    server = serve(*load_module(tiny_checkpoint))
    address = server.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), timeout=20) as slow:
        slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        said = b""
        while b"seconds" not in said:
            said += slow.recv(4096)
    assert said.startswith(b"HTTP/1.1 408")
    assert b"the body took more than 0.2 seconds" in said


def test_the_page_may_run_its_own_script_only(server):
    answer = httpx.get(f"{server.url}/")
    policy = answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert policy == content_security_policy(answer.text)
    assert "default-src 'none'" in policy
    assert len(re.findall("'sha256-", policy)) == 2
    assert "unsafe" not in policy
    assert content_security_policy("<p></p>").count("'none'") >= 3


# Several at once


def test_60_clients_at_once_and_none_is_lost(server):
    prompts = ["the model"[: 1 + i % 9] for i in range(60)]
    steps = count_steps(server)

    async def all_of_them() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as http:
            bodies = [
                {"model": "tiny", "prompt": p, "max_tokens": 6 + i % 5, "seed": i, "stream": i % 2 == 1}
                for i, p in enumerate(prompts)
            ]
            return await asyncio.gather(*(http.post("/v1/completions", json=body) for body in bodies))

    answers = asyncio.run(all_of_them())
    assert [a.status_code for a in answers] == [200] * 60
    for i in range(0, 60, 7):
        expected = alone(server, prompts[i], max_new_tokens=6 + i % 5, seed=i)
        streamed = i % 2 == 1
        said = "".join(e["choices"][0]["text"] for e in events(answers[i])) if streamed else None
        assert (said if streamed else answers[i].json()["choices"][0]["text"]) == expected
    assert steps() < 60 * 6 / 4  # together, not one after the other
    assert server.service.engine.load == 0


def count_steps(server):
    """A function that says how many steps the server's decoder has done from here on."""
    decoder = server.service.engine._batcher._decoder
    assert isinstance(decoder, BatchDecoder)
    step, done = decoder.step, [0]

    def counted():
        done[0] += 1
        return step()

    decoder.step = counted

    def so_far():
        decoder.step = step
        return done[0]

    return so_far


def slowed(module, seconds):
    """The model takes so long for each step."""
    hidden = module.backbone.hidden

    def slow(*args, **options):
        time.sleep(seconds)
        return hidden(*args, **options)

    module.backbone.hidden = slow


def test_more_than_may_wait_are_sent_away(tiny_checkpoint, serve):
    module, tokenizer = load_module(tiny_checkpoint)
    slowed(module, 0.02)
    server = serve(module, tokenizer, limits=Limits(max_requests=3, batch_size=2))
    answers = []
    threads = [
        threading.Thread(target=lambda: answers.append(server.post("/v1/completions", prompt="x", max_tokens=20)))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(a.status_code for a in answers) == [200, 200, 200, 429, 429, 429]
    refused = next(a for a in answers if a.status_code == 429)
    assert refused.headers["retry-after"] == "1"
    assert "no more than 3 may be" in refused.json()["error"]["message"]
    assert server.service.engine.load == 0


def begin_to_read(url, body):
    with httpx.stream("POST", url, json=body, timeout=0.3) as response:
        for _ in response.iter_raw():
            raise httpx.ReadTimeout("enough")


@pytest.mark.parametrize("stream", [True, False])
def test_who_goes_away_is_not_written_for(tiny_checkpoint, serve, stream):
    module, tokenizer = load_module(tiny_checkpoint)
    slowed(module, 0.02)
    server = serve(module, tokenizer)
    body = {"model": "tiny", "prompt": "x", "max_tokens": 1000, "stream": stream}
    with pytest.raises(httpx.ReadTimeout):
        begin_to_read(f"{server.url}/v1/completions", body)
    deadline = time.monotonic() + 15  # less than the 20 s that the text would take
    while server.service.engine.load and time.monotonic() < deadline:
        time.sleep(0.02)
    assert server.service.engine.load == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/embeddings", {"model": "tiny", "input": ["x"] * 500}),
        ("/explain", {"text": "x"}),
        ("/v1/completions", {"model": "tiny", "prompt": ["x"] * 100, "max_tokens": 1, "logprobs": 0}),
    ],
)
def test_work_that_nobody_waits_for_is_left_undone(tiny_checkpoint, serve, path, body):
    module, tokenizer = load_module(tiny_checkpoint)
    server, hidden, calls = serve(module, tokenizer), module.backbone.hidden, []

    def counted(*args, **options):
        calls.append(1)
        return hidden(*args, **options)

    module.backbone.hidden = counted
    engine, release = server.service.engine, threading.Event()
    busy = engine.call(release.wait)
    until(lambda: engine.load == 0)  # the engine is at it
    with socket.create_connection(httpx.URL(server.url).netloc.decode().split(":")) as connection:
        connection.sendall(as_request(path, body))
        until(lambda: engine.load > 0)  # what is asked for waits
    until(lambda: is_given_up(engine))
    release.set()
    busy.result()
    engine.call(lambda: None).result()  # behind whatever was asked for
    assert calls == []
    assert engine.load == 0


def is_given_up(engine):
    """Whether the server has noticed that who asked for what waits has gone."""
    return engine._cancelled or (engine._calls and all(future.cancelled() for future, _ in engine._calls))


def until(happens, within=60.0):
    """Wait for something that another thread does."""
    deadline = time.monotonic() + within
    while not happens():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def as_request(path, body):
    data = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data


def test_a_stream_that_was_never_begun_is_not_written(tiny_checkpoint, serve):
    module, tokenizer = load_module(tiny_checkpoint)
    slowed(module, 0.02)
    service = serve(module, tokenizer).service

    async def left_at_once() -> None:
        request = ChatRequest(model="tiny", messages=[{"role": "user", "content": "x"}], max_tokens=1000, stream=True)
        events = Events(service.chat(request), service)

        async def send(message):
            raise OSError("gone")

        with pytest.raises(ClientDisconnect):
            await events({"type": "http", "asgi": {"spec_version": "2.4"}}, None, send)

    asyncio.run(left_at_once())
    service.engine.call(lambda: None).result()
    assert service.engine.load == 0


def test_a_field_at_its_off_value_is_accepted(server):
    off = {"presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "n": 1, "stop": [], "store": False}
    of_chats = {"tools": [], "functions": [], "tool_choice": "none", "function_call": "auto", "top_logprobs": 0}
    of_chats |= {"parallel_tool_calls": False, "logprobs": False, "modalities": ["text"]}
    messages = [{"role": "user", "content": "x"}]
    chat = server.post("/v1/chat/completions", messages=messages, max_tokens=2, **off, **of_chats)
    assert chat.status_code == 200, chat.text
    of_completions = {"suffix": "", "best_of": 1, "echo": False, "logprobs": False}
    answer = server.post("/v1/completions", prompt="x", max_tokens=2, **off, **of_completions)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["logprobs"] is None
    tool = {"type": "function", "function": {"name": "f"}}
    for field, value in (
        ("tools", [tool]),
        ("top_logprobs", 1),
        ("tool_choice", "required"),
        ("modalities", ["audio"]),
    ):
        refused = server.post("/v1/chat/completions", messages=messages, **{field: value})
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, field)


WITH_TOOLS = (
    "{% for t in tools or [] %}[{{ t.function.name }}: {{ t.function.parameters | tojson }}]{% endfor %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}"
    "{% for c in m.tool_calls or [] %}({{ c.function.name }} {{ c.function.arguments.x }}){% endfor %}{% endfor %}"
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}


def test_tools_reach_a_template_that_takes_them(openai, tiny_checkpoint, serve):
    module, tokenizer = load_module(tiny_checkpoint)
    module.chat_template = ChatTemplate(WITH_TOOLS, name="own.jinja")
    server = serve(module, tokenizer)
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 3}'}}
    talk = [
        {"role": "user", "content": "add"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "5"},
    ]
    described = '[f: {"type": "object", "properties": {}}]'
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=60) as client:
        for choice, begin in (("auto", described), ("none", "")):
            answer = client.chat.completions.create(
                model="tiny", messages=talk, tools=[TOOL], tool_choice=choice, max_tokens=8, seed=1
            )
            prompt = f"{begin}<user>add<assistant>(f 3)<tool>5"
            assert answer.usage.prompt_tokens == len(tokenizer.encode(prompt))
            assert answer.choices[0].message.content == alone(server, prompt, max_new_tokens=8, seed=1)


def test_tools_without_effect_are_refused(server):
    talk = [{"role": "user", "content": "x"}]
    refused = server.post("/v1/chat/completions", messages=talk, tools=[TOOL])
    assert refused.status_code == 400
    assert "has no place for tools" in refused.json()["error"]["message"]
    calls = [[{"function": {"name": "f", "arguments": text}}] for text in ("{x", "[" * 100_000)]
    broken = [{"role": "assistant", "tool_calls": call} for call in calls]
    for message in (*broken, {"role": "user", "content": None}):
        refused = server.post("/v1/chat/completions", messages=[*talk, message])
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "messages")
    refused = server.post("/v1/chat/completions", messages=talk, tools=[{"type": "function"}])
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "tools")


@pytest.mark.parametrize("stream", [False, True])
def test_no_tokens_with_echo_are_the_prompt_and_its_score(client, server, stream):
    options = {"model": "tiny", "prompt": ["the café", "what"], "max_tokens": 0, "echo": True}
    if stream:
        chunks = list(client.completions.create(**options, stream=True))
        texts = ["".join(c.text for x in chunks for c in x.choices if c.index == i) for i in range(2)]
        assert texts == ["the café", "what"]
        return
    answer = client.completions.create(**options, logprobs=1)
    one = client.completions.create(**options | {"max_tokens": 1}, logprobs=1)
    assert [c.text for c in answer.choices] == ["the café", "what"]
    assert [c.finish_reason for c in answer.choices] == ["length", "length"]
    assert answer.usage.completion_tokens == 0
    for choice, longer in zip(answer.choices, one.choices, strict=True):
        n = len(choice.text.encode())
        assert len(choice.logprobs.tokens) == n
        assert choice.logprobs.token_logprobs[1:] == pytest.approx(longer.logprobs.token_logprobs[1:n], abs=1e-5)


def test_a_failure_in_the_middle_of_a_stream_is_an_event_and_the_server_goes_on(openai, tiny_checkpoint, serve, caplog):
    module, tokenizer = load_module(tiny_checkpoint)
    server = serve(module, tokenizer)
    hidden, calls = module.backbone.hidden, [0]

    def failing(*args, **options):
        calls[0] += 1
        if calls[0] == 8:
            raise RuntimeError("no memory left in /secret/place.py")
        return hidden(*args, **options)

    module.backbone.hidden = failing
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0)
    stream = client.completions.create(model="tiny", prompt="x", max_tokens=20, stream=True)
    pieces = [next(stream) for _ in range(2)]
    with pytest.raises(openai.APIError, match="the model failed at this request") as caught:
        pieces.extend(stream)
    assert "secret" not in str(caught.value)
    assert 0 < len(pieces) < 8
    calls[0] = 7
    answer = server.post("/v1/completions", prompt="x", max_tokens=20)
    assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
    assert "secret" not in answer.text
    assert server.post("/v1/completions", prompt="x", max_tokens=20).status_code == 200
    calls[0] = 7
    caplog.clear()
    assert server.post("/v1/embeddings", input="x").status_code == 500
    assert "no memory left" in caplog.text  # the answer says that the log has the reason


# Models with a memory


def test_a_model_that_writes_while_it_generates_forgets_each_client(reading, serve):
    module, tokenizer = reading("attention", "the model learns what it reads")
    assert not module.texts_share_batches
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    server = serve(module, tokenizer)
    answers = []
    threads = [
        threading.Thread(
            target=lambda: answers.append(server.post("/v1/completions", prompt="the", max_tokens=20, seed=1))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {a.json()["choices"][0]["text"] for a in answers} == {alone(server, "the", max_new_tokens=20, seed=1)}
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_what_the_model_did_is_explained(reading, serve):
    server = serve(*reading("attention", "the model learns what it reads"))
    answer = httpx.post(f"{server.url}/explain", json={"text": "the model"})
    assert answer.status_code == 200
    assert answer.json()["tokens"] == list("the model")
    assert answer.json()["memory"]


def test_a_server_whose_engine_has_stopped_says_so(tiny_checkpoint, serve):
    server = serve(*load_module(tiny_checkpoint))
    server.service.engine.close()
    for answer in (
        httpx.get(f"{server.url}/health"),
        server.post("/v1/completions", prompt="x"),
        server.post("/v1/embeddings", input="x"),
    ):
        assert answer.status_code == 503
