"""What is served, and what is said of it: options, applications, TLS, operations, the end. In this process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from street_fast import Member, connect
from street_fast.auth import ACTIONS
from street_fast.backplanes.memory import MemoryBackplane
from street_fast.errors import ConfigurationError, ListenError
from street_fast.serving import (
    Allowed,
    CannotServe,
    Fellows,
    Kept,
    Options,
    Serving,
    import_application,
    ready_realtime,
    serve,
    tell,
    tls_context,
)
from street_fast.session import Guest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.conftest import Certificate

KEY = "a key of other programs"


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Callable[..., Options]]:
    """`written(source, "made")`: options whose application is that attribute of a module with this source."""
    path, modules = sys.path[:], set(sys.modules)
    names = iter(f"application_{number}" for number in range(100))

    def write(source: str, attribute: str = "realtime", **options: Any) -> Options:
        name = next(names)
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return Options(application=f"{name}:{attribute}", app_dir=str(tmp_path), port=0, **options)

    yield write
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("application_"):
            del sys.modules[name]


async def ask(port: int, path: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


def port_of(serving: Serving) -> int:
    facts = dict(serving.facts)
    return int((facts.get("WebSocket") or facts["HTTP"]).split(":")[2].split("/")[0])


# --- the application ---


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


# --- the server that is served without one ---


def test_a_ready_realtime() -> None:
    realtime = ready_realtime(
        Options(
            path="/ws",
            history=[Kept("short", 5, 60.0), Kept("none:*", 0, 0.0), Kept("*", 10, 1.5)],
            api_key=[KEY],
            jwt_key=["0123456789abcdef0123456789abcdef"],
            guests=False,
            allowed_origin=["https://a.example"],
            max_connections=7,
            drain_timeout=3.0,
        )
    )
    assert (realtime.server.path, realtime.server.max_connections) == ("/ws", 7)
    assert realtime.server.allowed_origins == ("https://a.example",)
    assert realtime.limits.shutdown_timeout_s == 3.0
    assert not realtime.guests
    assert realtime.auth is not None
    assert realtime.authorize is None
    kept = realtime.exchange.history_of
    assert [(found.size, found.ttl_s) if found else None for found in map(kept, ("short", "none:1", "other"))] == [
        (5, 60.0),
        None,
        (10, 1.5),
    ]


def test_what_clients_may() -> None:
    rules = [
        Allowed("news:*", ["subscribe", "history"]),
        Allowed("room:*", ["publish"]),
        Allowed("u*", ["publish"]),
    ]
    authorize = ready_realtime(Options(allow=rules)).authorize
    assert authorize is not None
    for channel, action, allowed in (
        ("news:1", "subscribe", True),
        ("news:1", "publish", False),
        ("room:1", "publish", True),
        ("room:1", "subscribe", False),
        ("other", "subscribe", False),
        ("user:ada", "publish", False),  # whatever the rules say: it belongs to its member
    ):
        for member in (Member("ada"), Guest("guest-1")):
            assert authorize(member, channel, action) is allowed


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (Options(port=0, api_key=["short"]), "api_key: must be a string of at least 16"),
        (Options(port=0, backplane="ftp://ada:secret@h"), "'ftp://h': must be the address of a Redis"),
    ],
)
async def test_a_bad_option_is_an_error(options: Options, sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        await serve(options, None)
    assert "secret" not in str(caught.value)


async def test_an_address_in_use_leaves_nothing_behind() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ListenError, match="already in use"):
        await serve(Options(port=taken.getsockname()[1]), None)
    assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []


# --- TLS ---


def test_tls(certificate: Certificate, tmp_path: Path) -> None:
    assert tls_context(Options()) is None
    chain, key = str(certificate.chain), str(certificate.key)
    assert tls_context(Options(tls_cert=chain, tls_key=key)) is not None
    both = tmp_path / "both.pem"
    both.write_bytes(certificate.key.read_bytes() + certificate.chain.read_bytes())
    assert tls_context(Options(tls_cert=str(both))) is not None
    for options, sentence in (
        (Options(tls_cert="nowhere.pem"), "--tls-cert nowhere.pem: No such file or directory"),
        (Options(tls_cert=chain, tls_key="nowhere.pem"), "--tls-key nowhere.pem: No such file or directory"),
        (Options(tls_cert=chain), f"--tls-cert {chain}: must be a certificate and its key in PEM"),
        (Options(tls_cert=key, tls_key=chain), f"--tls-cert {key} and --tls-key {chain}: must be a certificate"),
    ):
        with pytest.raises(CannotServe) as caught:
            tls_context(options)
        assert str(caught.value).startswith(sentence)


async def test_tls_is_served(certificate: Certificate) -> None:
    serving = await serve(Options(port=0, tls_cert=str(certificate.chain), tls_key=str(certificate.key)), None)
    url = dict(serving.facts)["WebSocket"]
    assert url.startswith("wss://127.0.0.1:")
    async with connect(url, ssl=certificate.client) as client:
        assert client.member is not None
    await serving.close()


# --- operations ---


async def test_operations_are_where_clients_connect() -> None:
    serving = await serve(Options(port=0), None)
    port = port_of(serving)
    assert await ask(port, "/healthz") == (200, "ok\n")
    status, text = await ask(port, "/metrics")
    assert status == 200
    assert "street_fast_ready 1.0" in text
    await serving.close()


async def test_operations_have_a_port_of_their_own(tmp_path: Path) -> None:
    serving = await serve(Options(uds=str(tmp_path / "s"), ops_port=0), None)
    facts = dict(serving.facts)
    assert facts["WebSocket"] == f"ws://unix:{tmp_path}/s:/realtime"
    port = int(facts["Metrics"].split(":")[2].split("/")[0])
    assert (await ask(port, "/metrics"))[0] == 200
    closing = asyncio.create_task(serving.close())
    await asyncio.sleep(0)
    assert await ask(port, "/readyz") == (503, '{"ready":false,"reason":"it is about to end"}')
    assert (await ask(port, "/healthz"))[0] == 200
    await closing
    with pytest.raises(OSError, match="refused"):
        await ask(port, "/healthz")


# --- workers ---


async def no_backplane() -> str:
    raise AssertionError("it was asked for")


def listening() -> socket.socket:
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    return sock


async def test_a_worker_asks_the_supervisor() -> None:
    asked = []

    async def backplane() -> str:
        asked.append("backplane")
        raise CannotServe("there is none")

    async def snapshots() -> dict[str, Any]:
        raise AssertionError("it was asked for")

    with listening() as sock, pytest.raises(CannotServe, match="there is none"):
        await serve(Options(workers=2), None, Fellows([sock], backplane, snapshots))
    assert asked == ["backplane"]


async def test_a_worker_answers_for_all(written: Callable[..., Options]) -> None:
    options = written(
        """
        from street_fast import Realtime
        from street_fast.backplanes.memory import MemoryBackplane
        class Own:
            "Not in memory, for all that serving knows."
            def __init__(self): self._memory = MemoryBackplane()
            def __getattr__(self, name): return getattr(self._memory, name)
        realtime = Realtime(backplane=Own())
        """,
        workers=2,
    )
    serving: Serving

    async def snapshots() -> dict[str, Any]:
        return {"1": serving.snapshot(), "2": serving.snapshot()}

    sockets = [listening(), listening()]
    ports = [sock.getsockname()[1] for sock in sockets]
    serving = await serve(options, import_application(options), Fellows(sockets, no_backplane, snapshots))
    for port in ports:
        status, text = await ask(port, "/metrics")
        assert status == 200
        assert 'street_fast_ready{worker="1"} 1.0\nstreet_fast_ready{worker="2"} 1.0' in text
    assert dict(serving.facts)["Backplane"] == "Own"
    await serving.close()


async def test_a_backplane_of_the_application_counts(
    written: Callable[..., Options], caplog: pytest.LogCaptureFixture
) -> None:
    options = written(
        """
        from street_fast import Realtime
        from street_fast.backplanes.memory import MemoryBackplane
        realtime = Realtime(backplane=MemoryBackplane())
        """,
        backplane="redis://127.0.0.1:1",
    )
    serving = await serve(options, import_application(options))
    assert "has a backplane of its own; --backplane is not for it" in caplog.text
    assert isinstance(serving._realtimes[0].exchange.backplane, MemoryBackplane)
    await serving.close()


# --- what is told ---


@pytest.mark.parametrize(
    ("options", "word", "text"),
    [
        (Options(host="0.0.0.0", port=0), "WebSocket", "ws://localhost:"),
        (Options(port=0, path="/"), "SSE", "/sse?channel=..."),
        (Options(port=0), "Publish", "over HTTP: nobody; --api-key lets other programs do it"),
        (Options(port=0, api_key=[KEY]), "Publish", "/realtime/publish, with the API key"),
        (Options(port=0), "Clients", "anybody may subscribe and publish in every channel but user:..."),
        (
            Options(port=0, jwt_key=["0123456789abcdef0123456789abcdef"]),
            "Clients",
            "; a token says who somebody is",
        ),
        (
            Options(port=0, jwt_key=["0123456789abcdef0123456789abcdef"], guests=False),
            "Clients",
            "who has a token may subscribe and publish",
        ),
        (
            Options(
                port=0, allow=[Allowed("news:*", ["subscribe", "history"]), Allowed("x", []), Allowed("*", [*ACTIONS])]
            ),
            "Clients",
            "anybody; news:*: subscribe, history; x: nothing; *: everything",
        ),
        (Options(port=0), "History", "every channel: 100 messages, 300 s"),
        (
            Options(port=0, history=[Kept("a", 0, 0.0), Kept("b", 5, 0.5)]),
            "History",
            "a: none; b: 5 messages, 0.5 s",
        ),
        (Options(port=0), "Backplane", "none: messages and history stay in this process"),
        (Options(port=0), "Health", "/healthz and /readyz"),
    ],
)
async def test_what_is_told(options: Options, word: str, text: str) -> None:
    serving = await serve(options, None)
    assert text in dict(serving.facts)[word]
    assert KEY not in str(serving.facts)
    await serving.close()


def test_a_banner(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    facts = [("WebSocket", "ws://x/"), ("SSE", "http://x/")]
    tell(Options(), facts)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith(" is ready (Ctrl-C stops)")
    assert lines == ["  WebSocket  ws://x/", "  SSE        http://x/"]
    tell(Options(log_format="json"), facts)
    assert capsys.readouterr().out == ""
    assert caplog.records[-1].fields == {"facts": dict(facts)}  # type: ignore[attr-defined]


# --- the end ---


async def test_the_end_tells_the_clients_and_lets_in_who_is_on_the_way() -> None:
    serving = await serve(Options(port=0), None)
    port = port_of(serving)
    client = await connect(f"http://127.0.0.1:{port}/realtime", reconnect=False)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.sleep(0.05)  # it is accepted
    closing = asyncio.create_task(serving.close())
    await asyncio.sleep(0.01)
    writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"Connection: close" in answer
    writer.close()
    await closing
    await serving.wait_closed()
    await serving.close()
    with contextlib.suppress(Exception):
        await client.close()
    assert client.state == "closed"


async def test_an_end_that_takes_too_long_is_cut_short(
    written: Callable[..., Options], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("street_fast.serving._CLOSING_S", 0.0)
    options = written(
        """
        import asyncio
        from street_fast import HttpServer
        http = HttpServer()
        @http.on_shutdown
        async def wait(): await asyncio.sleep(3600)
        """,
        "http",
        drain_timeout=0.05,
    )
    serving = await serve(options, import_application(options))
    await asyncio.wait_for(serving.close(), 10)
    assert "it took more than 0.05 s to end" in caplog.text


def test_options_travel_as_json() -> None:
    import msgspec

    options = Options(application="a:b", history=[Kept("*", 1, 2.0)], allow=[Allowed("*", ["publish"])], guests=False)
    assert msgspec.json.decode(msgspec.json.encode(options), type=Options) == options
    assert json.loads(msgspec.json.encode(Options()))["workers"] == 1
