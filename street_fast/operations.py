"""Operations: what those who run a Realtime ask it: does it live, can it take clients, what do its numbers say.

    GET /healthz   200 while the event loop turns. For whoever restarts what hangs; a broker that is away is no reason.
    GET /readyz    200, or 503 with the reason: not started, about to end, or the backplane is cut off. For whoever
                   sends new clients here.
    GET /metrics   the numbers, in the text format of Prometheus; 501 without the package prometheus-client.

`Operations.snapshot` is one process as plain numbers; `render` makes the text of any number of them. So a supervisor
has its workers send their snapshots, and answers for all.
"""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING, Any

from street_fast._core import COMPILED, LoopContext
from street_fast.errors import ConfigurationError
from street_fast.exposition import CONTENT_TYPE, Snapshot, render
from street_fast.integrations import add_routes
from street_fast.process_stats import gc_stats, process_stats
from street_fast.realtime import Realtime
from street_fast.request import Response
from street_fast.stream_context import StreamContext

if TYPE_CHECKING:
    from collections.abc import Mapping

    from street_fast.http_connection import Route
    from street_fast.request import Request
    from street_fast.server import Front

__all__ = ["Operations", "metrics_response", "ready_response", "render"]

_NOT_STORED = [("Cache-Control", "no-store")]
_NOT_INSTALLED = "metrics need the package prometheus-client: pip install 'street_fast[metrics]'\n"


class Operations:
    """What is asked of `realtime` by those who run it. Raises ConfigurationError if it is no Realtime."""

    def __init__(self, realtime: Realtime) -> None:
        if not isinstance(realtime, Realtime):
            raise ConfigurationError(f"realtime={realtime!r}: must be a Realtime")
        self._realtime = realtime

    def attach(self, http: Front) -> None:
        """Serves the three paths on an HttpServer, a `uvicorn.Config` or an `aiohttp.web.Application`.

        It may be another one than that of the clients: on a port that is not for everybody. Raises ConfigurationError
        for any other `http`, and for a path that is taken.
        """
        add_routes(http, self.routes(), self._realtime.limits)

    def routes(self) -> list[Route]:
        """Method, path and handler of each."""
        return [
            ("GET", "/healthz", self._healthz),
            ("GET", "/readyz", self._readyz),
            ("GET", "/metrics", self._metrics),
        ]

    def not_ready(self) -> str:
        """Why no new clients should come here, in a few words; empty if they should."""
        realtime = self._realtime
        if realtime.server.draining:
            return "it is about to end"
        if realtime.exchange.monotonic is None:
            return "it has not started"
        health = realtime.exchange.backplane.health()
        return "" if health.ok else f"backplane: {health.detail}"

    def snapshot(self) -> dict[str, Any]:
        """All that `metric_names` has a name for, of this process, now: dicts of numbers, and a few words.

        It can be written as JSON; a supervisor adds ``supervisor``, with what it knows, to one of its own.
        To be called in the event loop of the Realtime.
        """
        realtime = self._realtime
        server, exchange = realtime.server, realtime.exchange
        told: dict[str, Any] = {**realtime.stats()}
        for name, context in (("loop", LoopContext), ("sse", StreamContext)):
            told[name] = told[name] or context.of().stats()  # zeros, rather than nothing before the first client
        reason = self.not_ready()
        health = exchange.backplane.health()
        stats = getattr(exchange.backplane, "stats", None)
        return {
            **told,
            "server": {
                **told["server"],
                "connections": server.connection_count,
                "max_connections": server.max_connections,
            },
            "ready": int(not reason),
            "reason": reason,
            "fan_out": exchange.fan_out_s.as_dict(),
            "backplane": {**(stats() if callable(stats) else {}), "up": int(health.ok)},
            "process": process_stats(),
            "gc": gc_stats(),
            "about": {**_about(), "backplane": type(exchange.backplane).__name__},
        }

    # --- the handlers ---

    def _healthz(self, request: Request) -> Response:
        return Response.text("ok\n", headers=_NOT_STORED)

    def _readyz(self, request: Request) -> Response:
        return ready_response(self.not_ready())

    def _metrics(self, request: Request) -> Response:
        return metrics_response({"": self.snapshot()})


def ready_response(reason: str) -> Response:
    """The answer of /readyz: ``{"ready": true}``, or 503 and the `reason` why not."""
    if not reason:
        return Response.json({"ready": True}, headers=_NOT_STORED)
    return Response.json({"ready": False, "reason": reason}, 503, headers=_NOT_STORED)


def metrics_response(snapshots: Mapping[str, Snapshot]) -> Response:
    """The answer of /metrics: what `render` makes of the snapshots, or 501 if it cannot."""
    try:
        body = render(snapshots)
    except ImportError:
        return Response.text(_NOT_INSTALLED, 501, _NOT_STORED)
    return Response(200, body, [("Content-Type", CONTENT_TYPE), *_NOT_STORED])


def _about() -> dict[str, str]:
    from street_fast import __version__

    build = "compiled" if COMPILED else "pure"
    return {"version": __version__, "python": platform.python_version(), "build": build}
