"""Taking requests over from another HTTP server: what the integrations have in common.

Plain requests are read and answered by the other server; `answer` asks a handler as our own HttpServer would.

WebSocket requests become ours. The other server accepts the connection and reads the request; then it lets go of the
transport and `Handover.adopt` takes it, with the head of the request as bytes. From there on everything is as it is
with our own HttpServer: the head is judged again, by the same rules; the handshake has its deadline (counted from the
adoption); a refusal closes the connection; what the client sends behind its request is kept. Nothing of the other
server stays with a connection that became a WebSocket.
"""

from __future__ import annotations

import inspect
import logging
from typing import TYPE_CHECKING

from street_fast._core import LoopContext
from street_fast.errors import HandshakeRefused
from street_fast.handshake import refusal
from street_fast.http_connection import HttpConnection, as_response, internal_error
from street_fast.http_server import HttpServer
from street_fast.request import Headers
from street_fast.sse import SseStream

if TYPE_CHECKING:
    import asyncio

    from street_fast.http_connection import Handler
    from street_fast.request import Request, Response
    from street_fast.server import StreetWebSocketServer

__all__ = ["Handover", "answer"]

logger = logging.getLogger("street_fast")


class Handover(HttpServer):
    """An HttpServer that does not listen: `server` answers whatever comes in on the connections that it adopts.

    `close` drains the server.
    """

    def __init__(self, server: StreetWebSocketServer) -> None:
        super().__init__(limits=server.limits)
        self.accepting = True
        self.on_shutdown(server.drain)
        self._handle_upgrade = server.handle_upgrade

    def adopt(self, transport: asyncio.Transport, head: bytes, behind: bytes) -> None:
        """Answer the request that begins with `head`. `behind` is what was read after it.

        Nobody else may use the transport any more. Connections whose other server saw a body get a refusal at once:
        how much of the body that server has taken is not known.
        """
        connection = HttpConnection(self, LoopContext.of())
        transport.set_protocol(connection)
        connection.connection_made(transport)
        headers = Headers(head[head.find(b"\r\n") :])
        if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
            error = HandshakeRefused(400, "body", "a WebSocket handshake has no body")
            connection.respond(refusal(error), last=True)
        else:
            connection.data_received(head + behind)

    def serve(self, connection: HttpConnection, request: Request) -> None:
        """Every request is for the server: it was chosen by its path already."""
        connection.hand_on(request, self._handle_upgrade)

    def stop_accepting(self) -> None:
        """Nothing: the other server accepts, and who comes late is turned away by the one that drains."""


async def answer(handler: Handler, request: Request) -> Response | SseStream:
    """What `handler` says to `request`, and can be sent. One that fails is logged, and the answer is 500."""
    result: object = None
    try:
        result = handler(request)
        if inspect.isawaitable(result):
            result = await result
        if isinstance(result, SseStream):
            if result.started:
                raise RuntimeError(f"{result!r} is the answer to another request; make one for each")
            result.head()
            return result
        response = as_response(result)
        response.encode(keep_alive=True)
    except Exception:
        logger.exception("the handler of %r failed", request)
        if isinstance(result, SseStream) and not result.started:
            result.abort()
        return internal_error()
    return response
