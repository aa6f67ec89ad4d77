"""Plain routes in front of an ASGI application: requests for exactly these paths are answered here, the rest goes on.

An event stream takes the transport over, if the server can be made to let go of it (`let_go`). Otherwise it goes out as
chunks of the response, and ``http.disconnect`` ends it. Then a client that does not take its chunks waits in ``send``;
when its stream has ended (see `sse`) an exception tells the server to end the connection, which is all that an ASGI
application can do.

The lifespan of the application is accompanied: startup hooks run before the application's startup, shutdown hooks
after its shutdown. If the application knows no lifespan, or is not to get one, the server talks to us alone.

A body has ``Limits.handshake_timeout_s`` to arrive and ``Limits.request_body_bytes`` of room.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeAlias
from urllib.parse import quote

from street_fast.errors import HandshakeRefused
from street_fast.handshake import refusal
from street_fast.http_server import HttpServer, method_not_allowed
from street_fast.integrations.handover import answer
from street_fast.request import Request, Response
from street_fast.sse import SseStream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from street_fast.http_connection import Route
    from street_fast.limits import Limits

__all__ = ["AsgiRoutes"]

logger = logging.getLogger("street_fast")

Scope: TypeAlias = dict[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Any]]
Send: TypeAlias = Callable[[Any], Awaitable[None]]
AsgiApp: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]


class AsgiRoutes(HttpServer):
    """An HttpServer that does not listen, with `routes`: it answers what comes in through an application that it wraps.

    `lifespan` is how the server treats the application: "on", "auto" (it may know none), or "off" (it gets none).
    """

    def __init__(self, routes: Iterable[Route], limits: Limits, lifespan: str) -> None:
        super().__init__(limits=limits)
        self.lifespan = lifespan
        for method, path, handler in routes:
            self.add_route(method, path, handler)

    def wrap(self, app: AsgiApp) -> AsgiApp:
        """The application with the routes in front of it."""
        return functools.partial(self._serve_scope, app)

    def let_go(self, send: Send) -> asyncio.Transport | None:
        """Make the server forget the connection behind `send`; its transport, or None if that cannot be done."""
        return None

    async def _serve_scope(self, app: AsgiApp, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"].removeprefix(scope.get("root_path", ""))
            handlers = self.handlers_of(path)
            if handlers is not None:
                await self._serve_request(handlers, scope, receive, send)
                return
        elif scope["type"] == "lifespan":
            await self._accompany(app, scope, receive, send)
            return
        await app(scope, receive, send)

    # --- requests ---

    async def _serve_request(
        self, handlers: dict[str, Callable[[Request], Any]], scope: Scope, receive: Receive, send: Send
    ) -> None:
        method = scope["method"]
        handler = handlers.get("GET" if method == "HEAD" else method)
        if handler is None:
            await _respond(method_not_allowed(handlers), send)
            return
        try:
            body = await asyncio.wait_for(self._read_body(receive), self.limits.handshake_timeout_s)
            if body is None:
                return  # the client is gone
            request = _make_request(scope, body)
        except HandshakeRefused as error:
            await _respond(refusal(error), send, close=True)
        except asyncio.TimeoutError:
            await _respond(Response.text("the request did not come in time\n", 408), send, close=True)
        else:
            result = await answer(handler, request)
            if isinstance(result, SseStream):
                await self._stream(result, method, receive, send)
            else:
                await _respond(result, send)

    async def _read_body(self, receive: Receive) -> bytes | None:
        body = b""
        limit = self.limits.request_body_bytes
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part: bytes = message.get("body", b"")
            body += part
            if len(body) > limit:
                raise HandshakeRefused(413, "body", f"the body is over {limit} bytes")
            if not message.get("more_body", False):
                return body

    async def _stream(self, stream: SseStream, method: str, receive: Receive, send: Send) -> None:
        if method == "HEAD":
            stream.abort()
            await send(_start(200, stream.headers))
            await send({"type": "http.response.body"})
            return
        transport = self.let_go(send)
        self.stream_begins(stream)
        if transport is not None:
            stream.start(transport, stream.head())
        else:
            await self._send_chunks(stream, receive, send)

    async def _send_chunks(self, stream: SseStream, receive: Receive, send: Send) -> None:
        sending = asyncio.current_task()
        stuck = False  # the stream has ended while the client did not take what it was given
        waits_for_client = False
        gone = False

        def ended(_: SseStream) -> None:
            nonlocal stuck
            if waits_for_client and not gone and sending is not None:
                stuck = True
                sending.cancel()

        async def end_with_the_client() -> None:
            nonlocal gone
            while (await receive())["type"] != "http.disconnect":
                pass
            gone = True
            stream.abort()

        stream.add_close_callback(ended)
        watching = asyncio.ensure_future(end_with_the_client())
        chunks = stream.__aiter__()
        try:
            await send(_start(200, [*stream.headers, ("Connection", "close")]))
            async for chunk in chunks:
                waits_for_client = True
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                waits_for_client = False
            await asyncio.wait_for(send({"type": "http.response.body"}), self.limits.abort_timeout_s)
        except (asyncio.CancelledError, asyncio.TimeoutError) as error:
            if stuck or isinstance(error, asyncio.TimeoutError):
                raise ConnectionAbortedError("the client does not take what is sent to it") from None
            raise
        finally:
            watching.cancel()
            waits_for_client = False
            stream.abort()
            await chunks.aclose()

    # --- lifespan ---

    async def _accompany(self, app: AsgiApp, scope: Scope, receive: Receive, send: Send) -> None:
        startup = [await receive()]
        try:
            await self.start()
        except Exception as error:
            logger.exception("a startup hook failed")
            await send({"type": "lifespan.startup.failed", "message": f"{type(error).__name__}: {error}"})
            return
        if self.lifespan == "off" or not await self._run_lifespan(app, startup, scope, receive, send):
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await self.close()
            await send({"type": "lifespan.shutdown.complete"})

    async def _run_lifespan(self, app: AsgiApp, startup: list[Any], scope: Scope, receive: Receive, send: Send) -> bool:
        """Run the application's own; False if it has none, and has said nothing."""
        said = ""
        asked_to_end = False

        async def receive_for_app() -> Any:
            nonlocal asked_to_end
            if startup:
                return startup.pop()
            message = await receive()
            asked_to_end = True
            return message

        async def send_for_app(message: Any) -> None:
            nonlocal said
            said = message["type"]
            if said != "lifespan.startup.complete":  # it has shut down, or will not start
                await self.close()
            await send(message)

        try:
            await app(scope, receive_for_app, send_for_app)
        except Exception:
            if not said and self.lifespan == "auto":
                return False
            if said == "lifespan.startup.complete" and not asked_to_end:
                logger.exception("the lifespan of the application failed; the server goes on")
                await receive()
            await self.close()
            raise
        if said == "lifespan.startup.complete" and not asked_to_end:
            await receive()
        if said == "lifespan.startup.complete":
            await self.close()
            await send({"type": "lifespan.shutdown.complete"})
        return bool(said)


def _make_request(scope: Scope, body: bytes) -> Request:
    raw_path = scope.get("raw_path") or quote(scope["path"]).encode()
    target = raw_path.decode("latin-1").removeprefix(scope.get("root_path", ""))
    query = scope.get("query_string", b"").decode("latin-1")
    client = scope.get("client")
    try:
        return Request.from_pairs(
            scope["method"],
            f"{target}?{query}" if query else target,
            scope["headers"],
            http_version="1.0" if scope.get("http_version") == "1.0" else "1.1",
            client=None if client is None else (client[0], client[1]),
            body=body,
        )
    except ValueError as error:
        raise HandshakeRefused(400, "headers", str(error)) from None


async def _respond(response: Response, send: Send, *, close: bool = False) -> None:
    headers = [*response.headers, ("Content-Length", str(len(response.body)))]
    if close:
        headers.append(("Connection", "close"))
    await send(_start(response.status, headers if response.status not in {204, 304} else response.headers))
    await send({"type": "http.response.body", "body": response.body})


def _start(status: int, headers: Iterable[tuple[str, str]]) -> dict[str, Any]:
    pairs = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    return {"type": "http.response.start", "status": status, "headers": pairs}
