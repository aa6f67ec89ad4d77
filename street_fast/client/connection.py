"""From a URL to an open WebSocket: TCP or a Unix socket, TLS, and the opening handshake, on any event loop.

`dial` either hands the transport over, within the read of the answer, so that nothing that follows is missed; or it
raises, or is cancelled, and has closed whatever it had opened.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from street_fast.client.handshake import Opening, Target
from street_fast.errors import HandshakeRefused, StreetError

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import Callable

__all__ = ["CannotConnect", "dial"]


class CannotConnect(StreetError, ConnectionError):
    """There is no way to the server, or nothing there that answers in time: the sentence says what it was."""

    code = "cannot_connect"


class _Dialling(asyncio.Protocol):
    """The handshake on one transport. `answered` is done when it is over."""

    def __init__(self, opening: Opening, on_open: Callable[[asyncio.Transport, bytes], object]) -> None:
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._opening = opening
        self._on_open = on_open
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self.answered.done():  # given up
            self._transport.abort()
        else:
            self._transport.write(self._opening.request)

    def data_received(self, data: bytes) -> None:
        if self.answered.done() or self._transport is None:
            return
        try:
            tail = self._opening.feed(data)
        except HandshakeRefused as error:
            self.answered.set_exception(error)
            return
        if tail is not None:
            transport, self._transport = self._transport, None
            self._on_open(transport, tail)
            self.answered.set_result(None)

    def eof_received(self) -> bool:
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if not self.answered.done():
            gone = error or ConnectionResetError("the connection was closed before there was an answer")
            self.answered.set_exception(self._opening.end() or gone)

    def give_up(self) -> None:
        """Nobody waits any more; what is open is closed, unless it was handed over."""
        self.answered.cancel()
        if self._transport is not None:
            self._transport.abort()


async def dial(
    target: Target,
    on_open: Callable[[asyncio.Transport, bytes], object],
    *,
    headers: tuple[tuple[str, str], ...] = (),
    ssl: tls.SSLContext | None = None,
    uds: str | None = None,
) -> None:
    """Connect and shake hands; `on_open(transport, tail)` gets the transport and what came behind the answer.

    Raises HandshakeRefused for an answer that is no 101, CannotConnect if there is none. The caller sets the deadline.
    """
    dialling = _Dialling(Opening(target, headers), on_open)
    loop = asyncio.get_running_loop()
    server_hostname = target.host if ssl is not None else None
    try:
        if uds is not None:
            await loop.create_unix_connection(lambda: dialling, uds, ssl=ssl, server_hostname=server_hostname)
        else:
            await loop.create_connection(
                lambda: dialling, target.host, target.port, ssl=ssl, server_hostname=server_hostname
            )
        await dialling.answered
    except (OSError, UnicodeError) as error:
        where = f"{target} (at {uds})" if uds is not None else str(target)
        raise CannotConnect(f"cannot connect to {where}: {_sentence_of(error)}") from error
    finally:
        dialling.give_up()


def _sentence_of(error: Exception) -> str:
    """Why there is no way, for people."""
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there; is the server running, and is the port right?"
    if getattr(error, "reason", None) == "WRONG_VERSION_NUMBER":
        return "no TLS is spoken there; should the URL begin with ws:// and not wss://?"
    return str(error)
