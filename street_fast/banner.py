"""What a server says of itself when it is ready: where everything is, and who may do what."""

from __future__ import annotations

import importlib.util
import logging
from typing import TYPE_CHECKING

from street_fast.auth import ACTIONS
from street_fast.backplanes.memory import MemoryBackplane
from street_fast.backplanes.urls import without_password
from street_fast.listening import host_and_port

if TYPE_CHECKING:
    from collections.abc import Sequence

    from street_fast.options import Kept, Options
    from street_fast.realtime import Realtime

__all__ = ["facts", "tell"]

logger = logging.getLogger("street_fast")


def facts(options: Options, realtimes: Sequence[Realtime], port: int, ops_port: int) -> list[tuple[str, str]]:
    """What there is to tell: a word, and what it stands for. `port` and `ops_port` are those that it has got."""
    secure = "s" if options.tls_cert is not None else ""
    place = f"unix:{options.uds}:" if options.uds is not None else _place(options.host, port)
    told: list[tuple[str, str]] = []
    for realtime in realtimes:
        path = realtime.server.path
        below = path.rstrip("/")
        told.append(("WebSocket", f"ws{secure}://{place}{path}"))
        told.append(("SSE", f"http{secure}://{place}{below}/sse?channel=..."))
        if realtime.api_keys:
            told.append(("Publish", f"POST http{secure}://{place}{below}/publish, with the API key"))
        elif options.application is None:
            told.append(("Publish", "over HTTP: nobody; --api-key lets other programs do it"))
    if not realtimes:
        told.append(("HTTP", f"http{secure}://{place}/"))
    if options.application is None:
        told.append(("Clients", _who(options)))
        told.append(("History", _kept(options.history)))
    if realtimes:
        ops = f"http{secure}://{place}" if options.ops_port is None else f"http://{_place(options.ops_host, ops_port)}"
        told.append(("Health", f"{ops}/healthz and /readyz"))
        installed = importlib.util.find_spec("prometheus_client") is not None
        hint = "" if installed else "; they need pip install 'street_fast[metrics]'"
        told.append(("Metrics", f"{ops}/metrics{hint}"))
        told.append(("Backplane", _backplane(options, realtimes)))
    return told


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
    words = []
    for kept in history:
        where = "every channel" if kept.pattern == "*" else kept.pattern
        words.append(f"{where}: {kept.size} messages, {kept.ttl_s:g} s" if kept.size else f"{where}: none")
    return "; ".join(words)


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
