"""What ``street-fast serve`` serves: from its options to a server that listens, in this process.

Without an application that is a Realtime of its own, ready to use: history, presence, event streams, and an HTTP API
for back ends in any language. With one, ``module:attribute`` names a Realtime, an HttpServer, or a function (a
coroutine function too) that returns one; it is imported before there is an event loop, and called in it.

A single process and each worker of a supervisor serve in the same way; the worker is given its sockets, and asks the
supervisor for what connects it to the others. An application that has a backplane of its own keeps it.

What goes wrong is a `CannotServe` with one sentence, or the ConfigurationError of whatever was given a bad option.
"""

from __future__ import annotations

import asyncio
import difflib
import fnmatch
import functools
import importlib
import importlib.util
import inspect
import logging
import os
import re
import ssl
import sys
import traceback
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from street_fast.auth import ACTIONS, JwtAuth
from street_fast.backplanes import History
from street_fast.backplanes.memory import MemoryBackplane
from street_fast.backplanes.urls import without_password
from street_fast.errors import StreetError
from street_fast.http_server import HttpServer
from street_fast.integrations import add_routes
from street_fast.limits import Limits
from street_fast.listening import host_and_port
from street_fast.operations import Operations, metrics_response, ready_response
from street_fast.realtime import SUBPROTOCOL, Realtime
from street_fast.server import StreetWebSocketServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from street_fast.auth import Member
    from street_fast.request import Request, Response

__all__ = [
    "Allowed",
    "CannotServe",
    "Fellows",
    "Kept",
    "Options",
    "Serving",
    "import_application",
    "serve",
    "tell",
    "tls_context",
]

logger = logging.getLogger("street_fast")

_CLOSING_S = 3.0
"""What there is for the rest of the end, when the time for the clients is over."""


class CannotServe(StreetError):
    """Why there is nothing to serve, in one sentence; `traceback` is the application's, if it failed.

    `status` is what the process exits with: 2 for a wrong option, otherwise 1.
    """

    code = "cannot_serve"

    def __init__(self, problem: str, traceback: str = "", *, status: int = 1) -> None:
        self.traceback = traceback
        self.status = status
        super().__init__(problem)


class Kept(msgspec.Struct, frozen=True):
    """What the channels of a pattern keep: `size` messages (0: none) for `ttl_s` seconds."""

    pattern: str
    size: int
    ttl_s: float


class Allowed(msgspec.Struct, frozen=True):
    """What clients may do in the channels of a pattern."""

    pattern: str
    actions: list[str]


class Options(msgspec.Struct, frozen=True):
    """All that ``street-fast serve`` can be told; the defaults are those of the command."""

    application: str | None = None
    app_dir: str = ""
    # --- where ---
    host: str = "127.0.0.1"
    port: int = 3000
    uds: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    # --- the server that is served without an application ---
    path: str = "/realtime"
    history: list[Kept] = msgspec.field(default_factory=lambda: [Kept("*", 100, 300.0)])
    allow: list[Allowed] = []
    api_key: list[str] = []
    jwt_key: list[str] = []
    jwks: str | None = None
    jwt_issuer: list[str] = []
    jwt_audience: list[str] = []
    guests: bool = True
    allowed_origin: list[str] = []
    max_connections: int = 10_000
    # --- processes ---
    workers: int = 1
    backplane: str | None = None
    drain_timeout: float = 30.0
    # --- operations ---
    ops_host: str = "127.0.0.1"
    ops_port: int | None = None
    log_format: str = "human"
    log_level: str = "info"


# --- the application ---


def import_application(options: Options) -> object:
    """The attribute that the application is, imported; None if there is none. Raises CannotServe."""
    if options.application is None:
        return None
    folder = os.path.abspath(options.app_dir or os.getcwd())
    if folder not in sys.path[:1]:
        sys.path.insert(0, folder)
    name, _, attribute = options.application.partition(":")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _failed(f"{name} cannot be imported: {error}", error) from None
        raise CannotServe(
            f"there is no module {error.name!r} in {folder} or where Python looks else; --app-dir names another folder"
        ) from None
    except SystemExit as error:
        raise _failed(f"{name} ends the process while it is imported (SystemExit: {error.code})", error) from None
    except Exception as error:
        raise _failed(f"{name} cannot be imported: {type(error).__name__}: {error}", error) from None
    found: object = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            close = difflib.get_close_matches(part, [known for known in dir(found) if known[:1] != "_"], 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise CannotServe(f"module {name!r} has no {attribute!r}{hint}") from None
    if not (isinstance(found, Realtime | HttpServer) or _is_factory(found)):
        raise CannotServe(_wrong_kind(options.application, "is", found))
    return found


def _is_factory(found: object) -> bool:
    return callable(found) and not _is_asgi(found)


def _is_asgi(found: object) -> bool:
    kinds = {base.__module__.partition(".")[0] for base in type(found).__mro__}
    return bool(kinds & {"starlette", "fastapi", "aiohttp"})


def _wrong_kind(application: str, verb: str, found: object) -> str:
    kind = type(found).__name__
    hint = ""
    if isinstance(found, StreetWebSocketServer):
        hint = "; attach it to an HttpServer, with its handler, and name that one"
    elif _is_asgi(found):
        hint = "; run it with its own server, and attach a Realtime to that"
    what = "None" if found is None else f"{'an' if kind[0] in 'aeiouAEIO' else 'a'} {kind}"
    return f"{application} {verb} {what}: must be a Realtime, an HttpServer, or a function that returns one{hint}"


async def _made(application: str, found: object) -> Realtime | HttpServer:
    """What is to be served; calls the function, if it is one."""
    if isinstance(found, Realtime | HttpServer):
        return found
    assert callable(found)
    try:
        made = found()
        if inspect.isawaitable(made):
            made = await made
    except Exception as error:
        raise _failed(f"{application}() failed: {type(error).__name__}: {error}", error) from None
    if not isinstance(made, Realtime | HttpServer):
        raise CannotServe(_wrong_kind(f"{application}()", "returned", made))
    return made


def _failed(problem: str, error: BaseException) -> CannotServe:
    return CannotServe(problem, _traceback_of(error))


def _traceback_of(error: BaseException) -> str:
    """Without the frames of this module and of the import system: those of the application are left, if any."""
    told = traceback.TracebackException.from_exception(error)
    seen: traceback.TracebackException | None = told
    while seen is not None:
        seen.stack = traceback.StackSummary.from_list([f for f in seen.stack if not _is_ours(f.filename)])
        seen = seen.__cause__ or seen.__context__
    return "".join(told.format()) if told.stack or isinstance(error, SyntaxError) else ""


def _is_ours(filename: str) -> bool:
    return filename in (__file__, importlib.__file__) or filename.startswith("<frozen importlib")


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
        return _facts(self._options, self._realtimes, self._http.port, self._options.ops_port or ops_port)

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
    served = ready_realtime(options) if options.application is None else await _made(options.application, found)
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


# --- what there is to tell ---


def _facts(options: Options, realtimes: Sequence[Realtime], port: int, ops_port: int) -> list[tuple[str, str]]:
    secure = "s" if options.tls_cert is not None else ""
    place = f"unix:{options.uds}:" if options.uds is not None else _place(options.host, port)
    facts: list[tuple[str, str]] = []
    for realtime in realtimes:
        path = realtime.server.path
        below = path.rstrip("/")
        facts.append(("WebSocket", f"ws{secure}://{place}{path}"))
        facts.append(("SSE", f"http{secure}://{place}{below}/sse?channel=..."))
        if realtime.api_keys:
            facts.append(("Publish", f"POST http{secure}://{place}{below}/publish, with the API key"))
        elif options.application is None:
            facts.append(("Publish", "over HTTP: nobody; --api-key lets other programs do it"))
    if not realtimes:
        facts.append(("HTTP", f"http{secure}://{place}/"))
    if options.application is None:
        facts.append(("Clients", _who(options)))
        facts.append(("History", _kept(options.history)))
    if realtimes:
        ops = f"http{secure}://{place}" if options.ops_port is None else f"http://{_place(options.ops_host, ops_port)}"
        facts.append(("Health", f"{ops}/healthz and /readyz"))
        installed = importlib.util.find_spec("prometheus_client") is not None
        hint = "" if installed else "; they need pip install 'street_fast[metrics]'"
        facts.append(("Metrics", f"{ops}/metrics{hint}"))
        facts.append(("Backplane", _backplane(options, realtimes)))
    return facts


def _place(host: str, port: int) -> str:
    return host_and_port("localhost" if host in ("", "0.0.0.0", "::") else host, port)  # noqa: S104


def _who(options: Options) -> str:
    tokens = bool(options.jwt_key) or options.jwks is not None
    who = "anybody" if not tokens or options.guests else "who has a token"
    guests = "; a token says who somebody is" if tokens and options.guests else ""
    if not options.allow:
        return f"{who} may subscribe and publish in every channel but user:...{guests}"
    rules = (f"; {rule.pattern}: {_actions(rule.actions)}" for rule in options.allow)
    return f"{who}{''.join(rules)}{guests}"


def _actions(actions: Sequence[str]) -> str:
    return "everything" if ACTIONS.issubset(actions) else ", ".join(actions) or "nothing"


def _kept(history: Sequence[Kept]) -> str:
    told = []
    for kept in history:
        where = "every channel" if kept.pattern == "*" else kept.pattern
        told.append(f"{where}: {kept.size} messages, {kept.ttl_s:g} s" if kept.size else f"{where}: none")
    return "; ".join(told)


def _backplane(options: Options, realtimes: Sequence[Realtime]) -> str:
    if options.backplane is not None:
        return without_password(options.backplane)
    backplane = realtimes[0].exchange.backplane
    if isinstance(backplane, MemoryBackplane):
        return "none: messages and history stay in this process"
    return type(backplane).__name__


def tell(options: Options, facts: Sequence[tuple[str, str]]) -> None:
    """Say that it serves: a few lines on stdout for people, or a record in the log for programs."""
    from street_fast import __version__

    if options.log_format == "json":
        logger.info("street_fast %s is ready", __version__, extra={"fields": {"facts": dict(facts)}})
        return
    lines = [f"street_fast {__version__} is ready (Ctrl-C stops)", *(f"  {word:<10} {text}" for word, text in facts)]
    print("\n".join(lines), flush=True)  # noqa: T201
