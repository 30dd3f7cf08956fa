"""What stands before a server's routes: the key, the size of a body, the name it is called by."""

from __future__ import annotations

import asyncio
import hmac
import re
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lightning_app.serving.server.schema import error

OPEN = ("/", "/health")  # the page asks for the key itself
BODY_SECONDS = 30


class Guard:
    """Answers 401 without the key, 403 for a strange host name, 413 for a body that is too long and 408 for one that is
    too slow; else passes on.

    Args:
        api_key: None: everybody may ask.
        max_body: bytes.
        hosts: names that the server may be called by: a page of another site that has its own name point here could
            otherwise read the answers (DNS rebinding). Empty: any.
    """

    def __init__(self, app: ASGIApp, *, api_key: str | None, max_body: int, hosts: Sequence[str] = ()):
        self.app, self.api_key, self.max_body, self.hosts = app, api_key, max_body, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        found = self._refusal(scope) or await self._body_in_time(scope, receive)
        if isinstance(found, JSONResponse):
            await found(scope, receive, send)
        else:
            await self.app(scope, _replayed(found, receive), send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        headers = Headers(scope=scope)
        host = re.sub(r":\d*$", "", headers.get("host", "").lower())
        if self.hosts and host not in self.hosts:
            return _answer(403, f"this server is not called {host!r}", code="unknown_host")
        given = headers.get("authorization", "")
        if self.api_key is None or scope["path"] in OPEN:
            return None
        if hmac.compare_digest(given.encode(), f"Bearer {self.api_key}".encode()):
            return None
        message = "a key is needed: send the header `Authorization: Bearer KEY`"
        answer = _answer(401, message, code="invalid_api_key")
        answer.headers["WWW-Authenticate"] = "Bearer"
        return answer

    async def _body_in_time(self, scope: Scope, receive: Receive) -> bytes | JSONResponse:
        try:
            body = await asyncio.wait_for(self._body(scope, receive), BODY_SECONDS)
        except TimeoutError:
            return _answer(408, f"the body took more than {BODY_SECONDS} seconds", code="body_too_slow")
        if body is None:
            return _answer(413, f"the body has more than {self.max_body:,} bytes", code="body_too_large")
        return body

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """All of it; None where it is too long, whatever the client said before."""
        declared = Headers(scope=scope).get("content-length", "0")
        if not declared.isdecimal() or int(declared) > self.max_body:
            return None
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > self.max_body:
                return None
        return body


def _replayed(body: bytes, receive: Receive) -> Receive:
    """The body as one message, then what comes."""
    left: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return left.pop() if left else await receive()

    return replay


def _answer(status: int, message: str, *, code: str) -> JSONResponse:
    return JSONResponse(error(message, code=code), status_code=status)
