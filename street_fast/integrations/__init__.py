"""HTTP servers of others that a StreetWebSocketServer can be attached to; each is imported only when it is used.

`add_routes` puts plain routes on any of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from street_fast.errors import ConfigurationError
from street_fast.http_server import HttpServer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from aiohttp.web import Application
    from uvicorn import Config

    from street_fast.http_connection import Route
    from street_fast.limits import Limits

__all__ = ["add_routes"]


def add_routes(http: HttpServer | Config | Application, routes: Iterable[Route], limits: Limits) -> HttpServer:
    """Serve `routes` on `http`, an HttpServer, a ``uvicorn.Config`` or an ``aiohttp.web.Application``.

    A handler gets a `Request` and returns what one of HttpServer may, an `SseStream` too. What is returned has
    `on_startup` and `on_shutdown`, which hold for `http`. `limits` are those of the requests, except on an HttpServer,
    which has its own. Raises ConfigurationError for any other `http`, and for a path that is taken.
    """
    kinds = {(base.__module__.partition(".")[0], base.__name__) for base in type(http).__mro__}
    if isinstance(http, HttpServer):
        for method, path, handler in routes:
            http.add_route(method, path, handler)
        return http
    if ("uvicorn", "Config") in kinds:
        from street_fast.integrations.uvicorn import add_routes as add_to_uvicorn

        return add_to_uvicorn(cast("Config", http), routes, limits)
    if ("aiohttp", "Application") in kinds:
        from street_fast.integrations.aiohttp import add_routes as add_to_aiohttp

        return add_to_aiohttp(cast("Application", http), routes, limits)
    raise ConfigurationError(
        f"{http!r}: must be a street_fast.HttpServer, a uvicorn.Config (for FastAPI, Starlette and other ASGI "
        f"applications: the one that uvicorn.Server gets) or an aiohttp.web.Application"
    )
