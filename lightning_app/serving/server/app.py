"""The routes of a server that speaks OpenAI's HTTP interface, and has a page."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send
from torch import Tensor

from lightning_app.errors import InputError
from lightning_app.serving.before import NOTHING, Before
from lightning_app.serving.embeddings import embed
from lightning_app.serving.explain import explain
from lightning_app.serving.server.completions import BROKEN, Answer, BrokenError
from lightning_app.serving.server.engine import QueueFullError, StoppedError
from lightning_app.serving.server.guard import Guard
from lightning_app.serving.server.logprobs import logprobs
from lightning_app.serving.server.schema import (
    ChatRequest,
    CompletionRequest,
    EmbeddingRequest,
    ExplainRequest,
    each_of,
    error,
)
from lightning_app.serving.server.service import RefusedError, Service

log = logging.getLogger(__name__)
PAGE = Path(__file__).parent.parent / "page.html"
T = TypeVar("T")


def create_app(service: Service, *, api_key: str | None = None, hosts: Sequence[str] = ()) -> FastAPI:
    """The server's routes.

    Args:
        api_key: see `Guard`, as is `hosts`.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(service.engine.close)

    app = FastAPI(title="lightning_app", docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(Guard, api_key=api_key, max_body=service.limits.max_body, hosts=hosts)
    _add_errors(app)
    _add_looks(app, service)
    _add_texts(app, service)
    return app


def _add_looks(app: FastAPI, service: Service) -> None:
    """What tells of the server."""
    page = PAGE.read_text(encoding="utf-8")
    headers = {
        "Content-Security-Policy": content_security_policy(page),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }

    @app.get("/", include_in_schema=False)
    async def root() -> HTMLResponse:
        return HTMLResponse(page, headers=headers)

    @app.get("/about")
    async def about() -> dict[str, Any]:
        return service.about()

    @app.get("/health")
    async def health() -> JSONResponse:
        alive = service.engine.alive
        body = {"status": "ok" if alive else "the engine has stopped", "requests": service.engine.load}
        return JSONResponse(body, status_code=200 if alive else 503)

    model = {"id": service.name, "object": "model", "created": service.created, "owned_by": "lightning_app"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [model]}

    @app.get("/v1/models/{name:path}")
    async def one_model(name: str) -> dict[str, Any]:
        service.check_model(name)
        return model


def _add_texts(app: FastAPI, service: Service) -> None:
    """What the model does."""

    @app.post("/v1/completions", response_model=None)
    async def completions(request: CompletionRequest, http: Request) -> Response:
        answer = service.completion(request, await _found(request, service, http))
        if request.stream:
            return Events(answer, service)
        whole = answer.whole(service.engine) if request.logprobs is None else _scored(answer, request, service)
        return JSONResponse(await _whole(whole, answer, service, http))

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: ChatRequest, http: Request) -> Response:
        answer = service.chat(request, await _found(request, service, http))
        if request.stream:
            return Events(answer, service)
        return JSONResponse(await _whole(answer.whole(service.engine), answer, service, http))

    @app.post("/v1/embeddings")
    async def embeddings(request: EmbeddingRequest, http: Request) -> dict[str, Any]:
        service.check_model(request.model)
        texts = service.all_ids(request.input, "input")
        vectors = await _unless_gone(_embedded(texts, service), http)
        packed = request.encoding_format == "base64"
        each = [_packed(vector) if packed else vector.tolist() for vector in vectors]
        data = [{"object": "embedding", "index": i, "embedding": vector} for i, vector in enumerate(each)]
        count = sum(len(ids) for ids in texts)
        said = {"prompt_tokens": count, "total_tokens": count}
        return {"object": "list", "data": data, "model": service.name, "usage": said}

    @app.post("/explain")
    async def explained(request: ExplainRequest, http: Request) -> dict[str, Any]:
        work = partial(explain, service.module, service.tokenizer, request.text)
        return await _unless_gone(_called(service, work), http)


async def _found(request: CompletionRequest | ChatRequest, service: Service, http: Request) -> list[Before]:
    """What the memory puts before each prompt; no model waits for a call that finds nothing."""
    if not service.module.finds:
        return [NOTHING] * (1 if isinstance(request, ChatRequest) else len(each_of(request.prompt)))
    service.check_model(request.model)
    return await _unless_gone(_called(service, partial(service.found, request)), http)


async def _embedded(texts: Sequence[Sequence[int]], service: Service) -> list[Tensor]:
    """One call each: other clients' tokens come in between."""
    return [await _called(service, partial(embed, service.module, ids)) for ids in texts]


async def _scored(answer: Answer, request: CompletionRequest, service: Service) -> dict[str, Any]:
    """The body of a completion with `logprobs`."""
    body = await answer.whole(service.engine)
    for choice, job in zip(body["choices"], answer.jobs, strict=True):
        ids, first = [*job.ids, *job.drawn], 0 if request.echo else len(job.ids)
        work = partial(logprobs, service.module, service.tokenizer, ids, first=first, most=request.logprobs or 0)
        choice["logprobs"] = await _called(service, work)
    return body


def _packed(vector: Tensor) -> str:
    """Little-endian fp32 in base64, which clients ask for as it is shorter."""
    return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()


async def _called(service: Service, work: Callable[[], T]) -> T:
    """The result of work in the engine's thread."""
    try:
        return await asyncio.wrap_future(service.engine.call(work))
    except (RuntimeError, LookupError) as failure:
        log.exception("the model failed")
        raise BrokenError(BROKEN) from failure


class Events(StreamingResponse):
    """An answer in server-sent events; its jobs end with it, even where the client left before the first event."""

    def __init__(self, answer: Answer, service: Service):
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(answer.events(service.engine), media_type="text/event-stream", headers=headers)
        self._answer, self._engine = answer, service.engine

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._engine.cancel(*self._answer.jobs)


async def _whole(work: Coroutine[Any, Any, T], answer: Answer, service: Service, http: Request) -> T:
    """What `work` makes of an answer, whose jobs end with it."""
    try:
        return await _unless_gone(work, http)
    finally:
        service.engine.cancel(*answer.jobs)


async def _unless_gone(work: Coroutine[Any, Any, T], http: Request) -> T:
    """What `work` gives; it is cancelled if the client goes away meanwhile."""

    async def gone() -> None:
        while (await http.receive())["type"] != "http.disconnect":
            pass

    asked, left = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({asked, left}, return_when=asyncio.FIRST_COMPLETED)
        if not asked.done():
            raise RefusedError(499, "the client has gone")
        return asked.result()
    finally:
        for task in (asked, left):
            task.cancel()


def _add_errors(app: FastAPI) -> None:
    """Every error has OpenAI's form, without a path or a traceback."""

    def answered(status: int, body: dict[str, Any], headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse(body, status_code=status, headers=headers)

    async def refused(_request: Request, failure: RefusedError) -> Response:
        return answered(failure.status, failure.body)

    async def mistaken(_request: Request, failure: InputError) -> Response:
        return answered(400, error(str(failure)))

    async def full(_request: Request, failure: QueueFullError) -> Response:
        body = error(str(failure), type="rate_limit_error", code="too_many_requests")
        return answered(429, body, {"Retry-After": "1"})

    async def stopped(_request: Request, failure: StoppedError) -> Response:
        return answered(503, error(str(failure), type="server_error"))

    async def malformed(request: Request, failure: RequestValidationError) -> Response:
        # of a field that may be of several types: what is wrong with a value of the right type says more
        first = min(failure.errors(), key=lambda e: e["type"].endswith(("_type", "_parsing")))
        names = [part for part in first["loc"] if isinstance(part, str) and part != "body"]
        param = names[0] if names else None
        if param is None and "json" not in request.headers.get("content-type", ""):
            return answered(400, error("the body is no JSON: send the header Content-Type: application/json"))
        return answered(400, error(f"{param or 'the body'}: {first['msg']}", param=param))

    async def unknown(_request: Request, failure: HTTPException) -> Response:
        return answered(failure.status_code, error(str(failure.detail)), dict(failure.headers or {}))

    async def broken(_request: Request, _failure: Exception) -> Response:
        return answered(500, error(BROKEN, type="server_error"))

    handlers: dict[type[Exception], Any] = {
        RefusedError: refused,
        InputError: mistaken,
        QueueFullError: full,
        StoppedError: stopped,
        RequestValidationError: malformed,
        HTTPException: unknown,
        BrokenError: broken,
        Exception: broken,
    }
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, handler)


def content_security_policy(page: str) -> str:
    """Only the page's own script and style may run, and it may talk to this server alone."""

    def hashes(tag: str) -> str:
        texts = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page, flags=re.DOTALL)
        digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in texts]
        return " ".join(f"'sha256-{digest}'" for digest in digests) or "'none'"

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
