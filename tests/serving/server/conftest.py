"""A server on loopback, in a thread of the test's process."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn

from lightning_app.data.tokenizers import Tokenizer
from lightning_app.serving.server.app import create_app
from lightning_app.serving.server.engine import Engine
from lightning_app.serving.server.limits import Limits
from lightning_app.serving.server.service import Service
from lightning_app.serving.turns import take_turns
from lightning_app.training.checkpoint import load_module
from lightning_app.training.module import LanguageModule


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    url: str
    service: Service

    @property
    def module(self) -> LanguageModule:
        return self.service.module

    @property
    def tokenizer(self) -> Tokenizer:
        return self.service.tokenizer

    def post(self, path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json={"model": "tiny", **body}, timeout=60)


@contextmanager
def serving(module: LanguageModule, tokenizer: Tokenizer, *, limits: Limits, **app: Any) -> Iterator[Running]:
    engine = Engine(module, tokenizer, batch_size=limits.batch_size, max_waiting=limits.max_requests)
    service = Service(module, tokenizer, engine, "tiny", 0, limits, take_turns(module, tokenizer))
    config = uvicorn.Config(create_app(service, **app), host="127.0.0.1", port=0, log_level="critical", lifespan="on")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield Running(f"http://127.0.0.1:{port}", service)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture
def serve() -> Iterator[Callable[..., Running]]:
    """`serve(module, tokenizer, limits=Limits(...), api_key="k")`: a server of its own."""
    stack = []

    def start(module: LanguageModule, tokenizer: Tokenizer, *, limits: Limits | None = None, **app: Any) -> Running:
        stack.append(serving(module, tokenizer, limits=limits or Limits(), **app))
        return stack[-1].__enter__()

    yield start
    for context in stack:
        context.__exit__(None, None, None)


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Any) -> Iterator[Running]:
    """One server of the tiny run for all tests of a file that change nothing of it."""
    with serving(*load_module(tiny_checkpoint), limits=Limits(max_prompt_tokens=200, max_new_tokens=64)) as running:
        yield running
