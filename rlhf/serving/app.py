"""The ASGI application of a server, apart from machines: who may ask, how much, and errors in OpenAI's shape.

Nothing that clients send is kept; what is logged is the server's own failures.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import time
from typing import TYPE_CHECKING, Any

from rlhf.errors import DataError, RequestError, WorkerLostError
from rlhf.serving.batcher import Batcher
from rlhf.serving.config import ServingConfig
from rlhf.serving.service import Service, refused

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

_LOG = logging.getLogger(__name__)
_RETRY_SECONDS = 1


class Endpoint:
    """Answers requests of one service with one engine."""

    def __init__(self, config: ServingConfig, service: Service, batcher: Batcher, token_sha256: str | None) -> None:
        """`token_sha256` is of the token that clients must send, as hexadecimal digits; None lets everybody ask."""
        self._config, self._service, self._batcher, self._token = config, service, batcher, token_sha256
        self._pending = 0
        self._created = int(time.time())

    def application(self) -> Starlette:
        """The ASGI application."""
        from starlette.applications import Starlette
        from starlette.exceptions import HTTPException
        from starlette.routing import Route

        routes = [
            Route(self._service.path, self.answer, methods=["POST"]),
            Route("/v1/models", self.models, methods=["GET"]),
            Route("/health", self.health, methods=["GET"]),
        ]
        return Starlette(routes=routes, exception_handlers={RequestError: _refuse, HTTPException: _refuse_http})

    async def answer(self, request: Request) -> Response:
        """One request of the service."""
        from starlette.responses import JSONResponse

        self._authorise(request)
        limits = self._config.http
        if self._pending >= limits.max_pending:
            raise RequestError(f"{self._pending} requests are waiting already; try again", 503, "overloaded")
        began = time.perf_counter()
        self._pending += 1
        try:
            content = await read_body(request, int(limits.max_body_mb * 2**20), limits.body_seconds)
            call = await asyncio.to_thread(self._service.read, content)
            said = await self._batcher.ask(call)
            return JSONResponse(call.respond(said, time.perf_counter() - began))
        except DataError as error:
            raise refused(error) from error
        except RequestError:
            raise
        except Exception as error:
            _LOG.exception("a request failed")
            raise RequestError("the server failed; it was logged there", 500, "server_error") from error
        finally:
            self._pending -= 1

    async def models(self, request: Request) -> Response:
        """OpenAI's list of models: one, with what the service says of itself."""
        from starlette.responses import JSONResponse

        self._authorise(request)
        about = {"id": self._config.name, "object": "model", "created": self._created, "owned_by": "safevl"}
        return JSONResponse({"object": "list", "data": [{**about, **self._service.about()}]})

    async def health(self, request: Request) -> Response:
        """Whether this replica can answer; needs no token."""
        from starlette.responses import JSONResponse

        try:
            await self._batcher.check()
        except WorkerLostError:
            raise RequestError("the engine does not answer", 503, "unhealthy") from None
        return JSONResponse({"status": "ok", "model": self._config.name, "pending": self._pending})

    def _authorise(self, request: Request) -> None:
        if self._token is None:
            return
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(token.strip().encode()).hexdigest()
        if scheme.lower() != "bearer" or not hmac.compare_digest(digest, self._token):
            raise RequestError('the header "Authorization: Bearer ..." lacks the right token', 401, "invalid_api_key")


async def read_body(request: Request, limit: int, seconds: float) -> bytes:
    """The body of a request of at most `limit` bytes that is there within `seconds`. Raises RequestError."""
    from starlette.requests import ClientDisconnect

    too_large = RequestError(f"the request is larger than {limit} bytes", 413, "request_too_large")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    content = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                content += chunk
                if len(content) > limit:
                    raise too_large
    except TimeoutError:
        raise RequestError(f"the request was not there within {seconds:g} s", 408, "request_timeout") from None
    except ClientDisconnect:
        raise RequestError("the client went away", 400, "client_disconnected") from None
    return bytes(content)


async def _refuse(request: Request, error: Any) -> Response:
    from starlette.responses import JSONResponse

    kind = "server_error" if error.status >= 500 else "invalid_request_error"
    body = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": str(_RETRY_SECONDS)}}.get(error.status)
    return JSONResponse({"error": body}, error.status, headers)


async def _refuse_http(request: Request, error: Any) -> Response:
    """Paths and methods that are not there."""
    problem = f"{request.method} {request.url.path[:80]}: {error.detail}"
    response = await _refuse(request, RequestError(problem, error.status_code, "not_found"))
    response.headers.update(error.headers or {})
    return response
