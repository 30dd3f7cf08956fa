"""Odd requests to a server: each is answered, none by a fault of the server's, and the next one is as before."""

from __future__ import annotations

import json
import logging
import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from lightning_app.serving.server.limits import Limits
from lightning_app.training.checkpoint import load_module
from tests.fuzz.files import run_folder
from tests.fuzz.odd import ODD, deep, spoil
from tests.fuzz.registry import ACCEPTED, REFUSED, TRACEBACK, UNCLEAR, Case, Outcome, kind
from tests.serving.server.conftest import serving

LOGGERS = ("lightning_app", "uvicorn.error", "asyncio")
PLAIN = {"model": "tiny", "prompt": "the model", "max_tokens": 2, "seed": 1}
USER = {"role": "user", "content": "what?"}
PROMPTS = ["the", "", ["the", "what"], [1, 2, 3], [[1], [2, 3]], "é" * 9, ["the"] * 20]
SAMPLING: dict[str, list[Any]] = {
    "temperature": [0, 1, 0.7],
    "top_p": [1, 0.5],
    "top_k": [1, 5, 0],
    "min_p": [0, 0.2],
    "n": [1, 2, 16],
    "repetition_penalty": [1, 1.3],
    "seed": [0, 7, 2**63 - 1],
    "stop": ["e", ["a", "b"]],
    "stream": [True, False],
    "stream_options": [{"include_usage": True}],
    "presence_penalty": [0],
    "logit_bias": [{}],
    "user": ["x"],
    "metadata": [{"a": "b"}],
    "store": [False],
}
OPTIONS: dict[str, dict[str, list[Any]]] = {  # of each route what may be said
    "/v1/completions": SAMPLING
    | {"prompt": PROMPTS, "max_tokens": [0, 1, 3, 16], "echo": [True, False], "logprobs": [0, 5, False]}
    | {"best_of": [1], "suffix": [""]},
    "/v1/chat/completions": SAMPLING
    | {"max_tokens": [1, 3], "max_completion_tokens": [2], "tools": [[]], "tool_choice": ["none"]}
    | {"response_format": [{"type": "text"}], "logprobs": [False], "top_logprobs": [0], "modalities": [["text"]]},
    "/v1/embeddings": {"encoding_format": ["float", "base64"], "user": ["x"]},
    "/explain": {},
}
NEEDED: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "tiny", "max_tokens": 3},
    "/v1/chat/completions": {"model": "tiny", "max_tokens": 3, "messages": [USER]},
    "/v1/embeddings": {"model": "tiny", "input": ["the", "what"]},
    "/explain": {"text": "the model learns"},
}
LOOKS = ("/", "/health", "/v1/models", "/v1/models/tiny", "/openapi.json")
PATHS = ("/v1/models/", "/v1/models/%00", "/v1/models/%ED%A0%80", "/v1/models/é", "//", "/v1/../v1/models", "/v2", "/%")
METHODS = ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "X")
TYPES = (
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data",
    "application/json; charset=x",
    "",
    "é",
)
OF_JSON = [*ODD, 2**31, 2**63, -(2**63) - 1, 10**30, 1e-320, deep(1, 60), [2**70], [1] * 3000, ["x"] * 3000, "é" * 5000]
OF_JSON += [{"\ud800": 1}, ["\ud800"], [USER] * 40, [{"role": "tool"}], [{"type": "text", "text": 1}]]
RAW = (b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"9" * 5000, b"[" * 10**5, b'{"a":' * 10**4, b"\0" * 9, b"NaN")


@kind("request")
@contextmanager
def request(folder: Path) -> Iterator[Case]:
    made = load_module(run_folder() / "checkpoints/best.ckpt")
    with serving(*made, limits=Limits(max_prompt_tokens=200, max_new_tokens=16)) as server:
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # `serving` hides all
        with httpx.Client(base_url=server.url, timeout=60) as client, tracebacks() as logged:
            whole = client.post("/v1/completions", json=PLAIN).json()["choices"]

            def case(draw: random.Random) -> Outcome:
                logged.clear()
                method, path, body, content_type = drawn(draw)
                note = f"{method} {path} {content_type} {body[:300]!r}"
                found = answer_judged(*_sent(client, method, path, body, content_type, draw), head=method == "HEAD")
                after = client.post("/v1/completions", json=PLAIN)
                if logged or after.status_code != 200 or after.json()["choices"] != whole:
                    found = Outcome(TRACEBACK, f"{found.note}; then {after.text[:200]}\n{''.join(logged)}")
                return Outcome(found.name, f"{note}: {found.note}")

            yield case


def drawn(draw: random.Random) -> tuple[str, str, bytes, str]:
    """Method, path, body and its type."""
    if draw.random() < 0.1:
        return draw.choice(("GET", "GET", "GET", "POST", *METHODS)), draw.choice((*LOOKS, *PATHS)), b"", ""
    path = draw.choice(list(NEEDED))
    body = NEEDED[path] | {k: draw.choice(v) for k, v in OPTIONS[path].items() if draw.random() < 0.2}
    body = json.loads(json.dumps(body))  # a copy
    for _ in range(draw.choice((0, 1, 1, 1, 2, 3))):
        spoil(body, draw, OF_JSON)
    method = "POST" if draw.random() < 0.95 else draw.choice(METHODS)
    content_type = "application/json" if draw.random() < 0.95 else draw.choice(TYPES)
    return method, path, _raw(json.dumps(body), draw), content_type


def _raw(text: str, draw: random.Random) -> bytes:
    if draw.random() < 0.85:
        return text.encode()
    content = bytearray(text.encode())
    change = draw.randrange(4)
    if change == 0:
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    elif change == 1:
        del content[draw.randrange(len(content)) :]
    elif change == 2:
        return text.encode(draw.choice(("utf-16", "utf-32", "utf-8-sig", "utf-7")))
    else:
        return draw.choice(RAW)
    return bytes(content)


def _sent(
    client: httpx.Client, method: str, path: str, body: bytes, content_type: str, draw: random.Random
) -> tuple[int, str, str]:
    """Status, type and text of the answer; the text of a stream may be its beginning, after which the client leaves."""
    headers = {"Content-Type": content_type.encode()}
    with client.stream(method, path, content=body, headers=headers) as answer:
        said = answer.headers.get("content-type", "")
        if "event-stream" in said and draw.random() < 0.3:
            return answer.status_code, "", next(answer.iter_text())
        return answer.status_code, said, answer.read().decode()


def answer_judged(status: int, content_type: str, text: str, *, head: bool) -> Outcome:
    if status >= 500:
        return Outcome(TRACEBACK, f"{status} {text[:300]}")
    try:
        clear = head or (is_an_error(text) if status >= 400 else _is_valid(content_type, text))
    except ValueError as error:
        return Outcome(UNCLEAR, f"{status}, {error}: {text[:300]}")
    note = f"{status} {text[:200]}"
    return Outcome((REFUSED if status >= 400 else ACCEPTED) if clear else UNCLEAR, note)


def is_an_error(text: str) -> bool:
    """Whether it has OpenAI's form."""
    body = _read(text)
    if (
        not isinstance(body, dict)
        or list(body) != ["error"]
        or set(body["error"]) != {"message", "type", "param", "code"}
    ):
        return False
    message = body["error"]["message"]
    return isinstance(message, str) and bool(message.strip()) and "Traceback" not in message


def _is_valid(content_type: str, text: str) -> bool:
    if "json" in content_type:
        return isinstance(_read(text), dict)
    if "event-stream" in content_type:
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
        return events[-1] == "[DONE]" and all("error" not in _read(event) for event in events[:-1])
    return bool(text)


def _read(text: str) -> Any:
    """JSON as others read it: without NaN."""
    return json.loads(text, parse_constant=_refuse)


def _refuse(word: str) -> float:
    raise ValueError(f"{word} is no JSON ({math.nan})")


@contextmanager
def tracebacks() -> Iterator[list[str]]:
    """What a block logs as an error."""
    logged: list[str] = []
    handler = _Keeps(logged)
    for name in LOGGERS:
        logging.getLogger(name).addHandler(handler)
    try:
        yield logged
    finally:
        for name in LOGGERS:
            logging.getLogger(name).removeHandler(handler)


class _Keeps(logging.Handler):
    def __init__(self, logged: list[str]) -> None:
        super().__init__(level=logging.ERROR)
        self._logged = logged

    def emit(self, record: logging.LogRecord) -> None:
        self._logged.append(self.format(record))
