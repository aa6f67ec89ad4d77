"""What ``street-fast serve`` can be told, as a value that travels to the workers; and why it cannot serve."""

from __future__ import annotations

import msgspec

from street_fast.errors import StreetError

__all__ = ["Allowed", "CannotServe", "Kept", "Options"]


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
