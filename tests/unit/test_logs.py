"""Logs: one line for people, one object for programs, and the connection that it is about."""

from __future__ import annotations

import io
import json
import logging
import sys
from typing import TYPE_CHECKING, Any

import pytest

from street_fast.logs import connection_of, set_up

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    """What is logged to; afterwards logging is as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield io.StringIO()
    root.handlers[:] = handlers
    root.setLevel(level)


def record(message: Any, *arguments: object, **extra: object) -> logging.LogRecord:
    return logging.getLogger("street_fast").makeRecord(
        "street_fast", logging.WARNING, __file__, 1, message, arguments, None, extra=extra
    )


def test_a_line_for_people(stream: io.StringIO) -> None:
    set_up("human", "info", worker=2, stream=stream)
    logging.getLogger("street_fast").warning("%s is slow", "it")
    logging.getLogger("street_fast").debug("nobody sees this")
    moment, _, rest = stream.getvalue().partition(" WARNING ")
    assert len(moment) == len("2026-08-01 12:30:05.123")
    assert rest == "worker 2: it is slow\n"


def test_an_object_for_programs(stream: io.StringIO) -> None:
    set_up("json", "debug", worker=2, stream=stream)
    try:
        raise ValueError("Grüße\n")
    except ValueError:
        logging.getLogger("app").exception("connection %s: a handler of event %.100r failed", "c1", "say")
    logging.getLogger("app").info("ready", extra={"fields": {"port": 3000}})
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert first.pop("ts").endswith("Z")
    assert "ValueError: Grüße" in first.pop("traceback")
    assert first == {
        "level": "error",
        "logger": "app",
        "message": "connection c1: a handler of event 'say' failed",
        "connection": "c1",
        "worker": 2,
    }
    assert (second["message"], second["port"]) == ("ready", 3000)
    assert "connection" not in second


def test_what_cannot_be_written_as_json_is_written_all_the_same(stream: io.StringIO) -> None:
    set_up("json", "info", stream=stream)
    logging.getLogger("app").info("it", extra={"fields": {"odd": {1}, "odder": object}})
    logging.getLogger("app").info("\ud800")
    assert [json.loads(line)["logger"] for line in stream.getvalue().splitlines()] == ["app", "app"]


def test_set_up_again_replaces_what_was_there(stream: io.StringIO) -> None:
    set_up("human", "info", stream=io.StringIO())
    set_up("human", "error", stream=stream)
    logging.getLogger("app").warning("no")
    logging.getLogger("app").error("yes")
    assert stream.getvalue().endswith(" ERROR yes\n")
    assert stream.getvalue().count("\n") == 1


def test_it_goes_to_stderr(stream: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    set_up("human", "info")
    assert logging.getLogger().handlers[0].stream is sys.stderr  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("told", "connection"),
    [
        (record("connection %s: on_close failed", "c1"), "c1"),
        (record("anything", connection="c2"), "c2"),
        (record("connection %s: x", "c1", connection="c2"), "c2"),
        (record("the connection is %s", "slow"), None),
        (record("connection %s"), None),
        (record(ValueError("connection %s")), None),
    ],
)
def test_which_connection_it_is_about(told: logging.LogRecord, connection: str | None) -> None:
    assert connection_of(told) == connection
