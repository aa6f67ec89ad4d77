"""Applications of all kinds, and all that can be wrong with them: one sentence, and their own traceback."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from street_fast import connect
from street_fast.application import import_application
from street_fast.options import CannotServe, Options
from street_fast.serving import serve
from tests.served import ask, port_of, written

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["written"]  # a fixture


@pytest.mark.parametrize(
    "source",
    [
        "from street_fast import Realtime\nrealtime = Realtime()",
        "from street_fast import Realtime\ndef realtime(): return Realtime()",
        "from street_fast import Realtime\nasync def realtime(): return Realtime()",
        "from street_fast import Realtime\nclass realtime:\n    def __new__(cls): return Realtime()",
        "from street_fast import HttpServer, Realtime\nrealtime = HttpServer()\nRealtime().attach(realtime)",
    ],
)
async def test_an_application_of_any_kind(written: Callable[..., Options], source: str) -> None:
    options = written(source)
    serving = await serve(options, import_application(options))
    async with connect(f"http://127.0.0.1:{port_of(serving)}/realtime") as client:
        await client.publish("room", 1)
    assert await ask(port_of(serving), "/readyz") == (200, '{"ready":true}')
    await serving.close()


async def test_an_application_without_a_realtime(written: Callable[..., Options]) -> None:
    options = written(
        """
        from street_fast import HttpServer, StreetWebSocketServer
        class Chat:
            http = HttpServer()
            http.get("/", lambda request: "hello")
        """,
        "Chat.http",
    )
    serving = await serve(options, import_application(options))
    assert await ask(port_of(serving), "/") == (200, "hello")
    assert [word for word, _ in serving.facts] == ["HTTP"]
    assert serving.snapshot() == {"ready": 1, "reason": ""}
    await serving.close()
    assert serving.snapshot()["ready"] == 0


async def test_an_application_may_have_a_path_of_operations_itself(written: Callable[..., Options]) -> None:
    options = written(
        """
        from street_fast import HttpServer, Realtime
        http = HttpServer()
        http.get("/healthz", lambda request: "mine")
        Realtime().attach(http)
        """,
        "http",
    )
    serving = await serve(options, import_application(options))
    assert await ask(port_of(serving), "/healthz") == (200, "mine")
    assert (await ask(port_of(serving), "/readyz"))[0] == 200
    await serving.close()


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("1 / 0", "cannot be imported: ZeroDivisionError: division by zero"),
        ("import there_is_no_such_module", "cannot be imported: No module named 'there_is_no_such_module'"),
        ("def (", "cannot be imported: SyntaxError: invalid syntax"),
        ("raise SystemExit(3)", "ends the process while it is imported (SystemExit: 3)"),
        ("realtimes = 1", "has no 'realtime'; did you mean 'realtimes'?"),
        ("", "has no 'realtime'"),
        ("realtime = 5", "is an int: must be a Realtime, an HttpServer, or a function that returns one"),
        (
            "from street_fast import StreetWebSocketServer\nrealtime = StreetWebSocketServer()",
            "; attach it to an HttpServer, with its handler, and name that one",
        ),
        (
            "import fastapi\nrealtime = fastapi.FastAPI()",
            "is a FastAPI: must be a Realtime, an HttpServer, or a function that returns one; run it with its own "
            "server, and attach a Realtime to that",
        ),
        ("def realtime(): return 1 / 0", "() failed: ZeroDivisionError: division by zero"),
        ("def realtime(needed): pass", "() failed: TypeError: realtime() missing 1 required positional argument"),
        ("def realtime(): pass", "() returned None: must be a Realtime, an HttpServer, or a function"),
        ("async def realtime(): return 5", "() returned an int: must be"),
    ],
)
async def test_an_application_that_cannot_be_served(
    written: Callable[..., Options], tmp_path: Path, source: str, sentence: str
) -> None:
    options = written(source)
    with pytest.raises(CannotServe) as caught:
        await serve(options, import_application(options))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.status == 1
    told = caught.value.traceback
    assert (str(tmp_path) in told) == (told != "")
    assert bool(told) == ("cannot be imported" in sentence or "ends the process" in sentence or "division" in sentence)
    assert "serving.py" not in told
    assert "importlib" not in told


def test_a_module_that_is_not_there(tmp_path: Path) -> None:
    path = sys.path[:]
    with pytest.raises(CannotServe, match=r"there is no module 'there_is_none' in .*; --app-dir names another folder"):
        import_application(Options(application="there_is_none.at_all:it", app_dir=str(tmp_path)))
    sys.path[:] = path


def test_no_application() -> None:
    assert import_application(Options()) is None
