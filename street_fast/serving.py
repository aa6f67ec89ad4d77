"""Serving: from the options of ``street-fast serve`` to a server that listens, in this process, and to its end.

Without an application that is a Realtime of its own, ready to use: history, presence, event streams, and an HTTP API
for back ends in any language.

A single process and each worker of a supervisor serve in the same way; the worker is given its sockets, and asks the
supervisor for what connects it to the others. An application that has a backplane of its own keeps it.
"""

from __future__ import annotations

import asyncio
import fnmatch
import functools
import logging
import re
import ssl
from typing import TYPE_CHECKING, Any, NamedTuple

from street_fast.application import made
from street_fast.auth import JwtAuth
from street_fast.backplanes import History
from street_fast.backplanes.memory import MemoryBackplane
from street_fast.banner import facts
from street_fast.http_server import HttpServer
from street_fast.integrations import add_routes
from street_fast.limits import Limits
from street_fast.operations import Operations, metrics_response, ready_response
from street_fast.options import CannotServe
from street_fast.realtime import SUBPROTOCOL, Realtime
from street_fast.server import StreetWebSocketServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from street_fast.auth import Member
    from street_fast.options import Allowed, Options
    from street_fast.request import Request, Response

__all__ = ["Fellows", "Serving", "ready_realtime", "serve", "tls_context"]

logger = logging.getLogger("street_fast")

_CLOSING_S = 3.0
"""What there is for the rest of the end, when the time for the clients is over."""


# --- the server that is served without one ---


def ready_realtime(options: Options) -> Realtime:
    """The Realtime that the options describe. Raises ConfigurationError for a bad one."""
    limits = Limits(shutdown_timeout_s=options.drain_timeout)
    server = StreetWebSocketServer(
        path=options.path,
        allowed_origins=options.allowed_origin or None,
        max_connections=options.max_connections,
        limits=limits,
        subprotocols=[SUBPROTOCOL],
    )
    auth = None
    if options.jwt_key or options.jwks is not None:
        auth = JwtAuth(
            options.jwt_key or None,
            jwks=options.jwks,
            issuer=options.jwt_issuer or None,
            audience=options.jwt_audience or None,
            limits=limits,
        )
    return Realtime(
        server,
        auth=auth,
        authorize=_authorize(options.allow) if options.allow else None,
        history={kept.pattern: History(kept.size, kept.ttl_s) if kept.size else None for kept in options.history},
        api_key=options.api_key or None,
        guests=options.guests,
    )


def _authorize(rules: Sequence[Allowed]) -> Callable[[Member, str, str], bool]:
    """The first pattern that matches says what is allowed in a channel; where none does, nothing is."""
    patterns = [(re.compile(fnmatch.translate(rule.pattern)), frozenset(rule.actions)) for rule in rules]

    @functools.lru_cache(maxsize=10_000)
    def actions(channel: str) -> frozenset[str]:
        if channel.startswith("user:"):  # what its member may do there goes without asking
            return frozenset()
        return next((allowed for pattern, allowed in patterns if pattern.match(channel)), frozenset())

    def authorize(member: Member, channel: str, action: str) -> bool:
        return action in actions(channel)

    return authorize


def tls_context(options: Options) -> ssl.SSLContext | None:
    """The context with the certificate, if there is one. Raises CannotServe."""
    if options.tls_cert is None:
        return None
    for option, path in (("--tls-cert", options.tls_cert), ("--tls-key", options.tls_key)):
        if path is not None:
            try:
                open(path, "rb").close()
            except OSError as error:
                raise CannotServe(f"{option} {path}: {error.strerror or error}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(options.tls_cert, options.tls_key)
    except (ssl.SSLError, ValueError, OSError) as error:
        reason = getattr(error, "reason", None) or str(error)
        where = f"--tls-cert {options.tls_cert}"
        if options.tls_key is not None:
            where += f" and --tls-key {options.tls_key}"
        hint = "" if options.tls_key is not None else "; or give --tls-key too"
        raise CannotServe(f"{where}: must be a certificate and its key in PEM ({reason}){hint}") from None
    return context


# --- serving ---


class Fellows(NamedTuple):
    """What a worker has beside it: a supervisor that knows the others."""

    sockets: Sequence[socket.socket]
    backplane: Callable[[], Awaitable[str]]
    """The address of what connects the workers. May raise CannotServe."""
    snapshots: Callable[[], Awaitable[Mapping[str, Any]]]
    """What can be measured of all of them, by number."""


class Serving:
    """A server that listens, or is about to. Made by `serve`."""

    def __init__(self, options: Options, http: HttpServer, fellows: Fellows | None) -> None:
        self._options = options
        self._http = http
        self._fellows = fellows
        self._realtimes = _realtimes_of(http)
        self._operations = Operations(self._realtimes[0]) if self._realtimes else None
        self._ops_http: HttpServer | None = None
        self._listens = False
        self._closing: asyncio.Task[None] | None = None

    async def listen(self) -> None:
        """Start, and return when clients can connect."""
        options, http, fellows = self._options, self._http, self._fellows
        tls = tls_context(options)
        await _connect(options, self._realtimes, fellows)
        if options.ops_port is None:
            self._attach_operations(http)
        elif fellows is None:
            self._ops_http = HttpServer()
            self._attach_operations(self._ops_http)
        if fellows is None:
            await http.listen(options.host, options.port, uds=options.uds, ssl=tls)
        else:
            for sock in fellows.sockets:
                await http.listen(sock=sock, ssl=tls)
        if self._ops_http is not None:
            assert options.ops_port is not None
            await self._ops_http.listen(options.ops_host, options.ops_port)
        self._listens = True

    @property
    def facts(self) -> list[tuple[str, str]]:
        """What there is to tell about it to people: a word, and what it stands for."""
        ops_port = self._http.port if self._ops_http is None else self._ops_http.port
        return facts(self._options, self._realtimes, self._http.port, self._options.ops_port or ops_port)

    # --- operations ---

    def _attach_operations(self, http: HttpServer) -> None:
        """The paths of `operations` that the application does not have itself."""
        if self._operations is None:
            return
        own = {"/readyz": self._readyz, "/metrics": self._metrics}
        routes = self._operations.routes()
        free = [(method, path, handler) for method, path, handler in routes if http.handlers_of(path) is None]
        add_routes(http, [(method, path, own.get(path, handler)) for method, path, handler in free], http.limits)

    def not_ready(self) -> str:
        """Why no new clients should come here; empty if they should."""
        if self._closing is not None:
            return "it is about to end"
        return "" if self._operations is None else self._operations.not_ready()

    def snapshot(self) -> dict[str, Any]:
        """What can be measured here; little, if there is no Realtime."""
        reason = self.not_ready()
        told = {} if self._operations is None else self._operations.snapshot()
        return {**told, "ready": int(not reason), "reason": reason}

    def _readyz(self, request: Request) -> Response:
        return ready_response(self.not_ready())

    async def _metrics(self, request: Request) -> Response:
        """A worker answers for all."""
        return metrics_response({"": self.snapshot()} if self._fellows is None else await self._fellows.snapshots())

    # --- the end ---

    async def close(self) -> None:
        """End it: who is on the way is let in, nobody else is; clients are told when to come back.

        Who is still there when the time is over is cut off. Returns when all is done.
        """
        if self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        http = self._http
        if self._fellows is None and self._listens:
            logger.info("it ends, within %g s; a second signal does not wait", self._options.drain_timeout)
        await http.hand_over()
        try:
            await asyncio.wait_for(http.close(), self._options.drain_timeout + _CLOSING_S)
        except asyncio.TimeoutError:
            logger.warning("it took more than %g s to end; what was left is cut off", self._options.drain_timeout)
        if self._ops_http is not None:
            await self._ops_http.close()

    async def wait_closed(self) -> None:
        """Return when it has ended, whoever ended it."""
        await self._http.wait_closed()
        if self._closing is not None:
            await asyncio.shield(self._closing)


async def serve(options: Options, found: object, fellows: Fellows | None = None) -> Serving:
    """Serve what `import_application` has found, as `options` say; returns when clients can connect.

    A worker has `fellows`. Raises CannotServe, ConfigurationError, ListenError.
    """
    served = ready_realtime(options) if options.application is None else await made(options.application, found)
    if isinstance(served, Realtime):
        http = HttpServer(limits=served.limits)
        served.attach(http)
    else:
        http = served
    serving = Serving(options, http, fellows)
    try:
        await serving.listen()
    except BaseException:
        await serving.close()
        raise
    return serving


def _realtimes_of(http: HttpServer) -> list[Realtime]:
    """The Realtimes that are attached: those that start when it does."""
    owners = (getattr(hook, "__self__", None) for hook in http.startup_hooks)
    return [owner for owner in owners if isinstance(owner, Realtime)]


async def _connect(options: Options, realtimes: Sequence[Realtime], fellows: Fellows | None) -> None:
    """Gives the Realtimes what connects them to those of other processes, unless they have it."""
    address = options.backplane
    alone = any(isinstance(realtime.exchange.backplane, MemoryBackplane) for realtime in realtimes)
    if address is None and alone and fellows is not None:
        address = await fellows.backplane()
    if address is not None:
        for realtime in realtimes:
            if not realtime.use_backplane(address) and options.backplane is not None:
                logger.warning("%r has a backplane of its own; --backplane is not for it", realtime)
