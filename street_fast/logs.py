"""What is logged, as lines for people or as JSON objects for programs, on stderr.

The root logger is set up, so that what the application and other libraries log looks the same. A record that is about a
connection says so with its id: in ``extra={"connection": id}``, or as the first argument of a message that begins with
``connection %s``, which is how street_fast writes it.
"""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import TextIO

__all__ = ["LEVELS", "HumanFormatter", "JsonFormatter", "connection_of", "set_up"]

LEVELS = ("debug", "info", "warning", "error")

_ABOUT_A_CONNECTION = "connection %s"


def set_up(style: str, level: str, worker: int | None = None, stream: TextIO | None = None) -> None:
    """Log to `stream` (stderr) from now on: `style` is "human" or "json", `level` one of LEVELS.

    `worker` is the number that this process has among those of a supervisor. Done again, it replaces what was there.
    """
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter(worker) if style == "json" else HumanFormatter(worker))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    if level == "debug":
        logging.getLogger("asyncio").setLevel(logging.INFO)  # its "Using selector" is no news


def connection_of(record: logging.LogRecord) -> str | None:
    """The id of the connection that a record is about, if it is about one."""
    connection = getattr(record, "connection", None)
    if connection is None and isinstance(record.msg, str) and record.msg.startswith(_ABOUT_A_CONNECTION):
        connection = record.args[0] if isinstance(record.args, tuple) and record.args else None
    return None if connection is None else str(connection)


class HumanFormatter(logging.Formatter):
    """``2026-08-01 12:30:05.123 WARNING worker 2: the message``, in local time; a traceback on lines of its own."""

    def __init__(self, worker: int | None = None) -> None:
        who = "" if worker is None else f"worker {worker}: "
        super().__init__(f"%(asctime)s.%(msecs)03d %(levelname)s {who}%(message)s", "%Y-%m-%d %H:%M:%S")


class JsonFormatter(logging.Formatter):
    """One object a line: ``ts`` (UTC), ``level``, ``logger``, ``message``; ``connection``, ``worker`` and
    ``traceback`` where there is one; and what else was given in ``extra={"fields": {...}}``."""

    def __init__(self, worker: int | None = None) -> None:
        super().__init__()
        self._worker = worker

    def format(self, record: logging.LogRecord) -> str:
        moment = dt.datetime.fromtimestamp(record.created, dt.timezone.utc)
        told: dict[str, object] = {
            "ts": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        connection = connection_of(record)
        if connection is not None:
            told["connection"] = connection
        if self._worker is not None:
            told["worker"] = self._worker
        told |= getattr(record, "fields", {})
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        if record.stack_info:
            told["stack"] = self.formatStack(record.stack_info)
        return json.dumps(told, default=repr, separators=(",", ":"))
