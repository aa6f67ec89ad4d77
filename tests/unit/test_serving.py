"""What is served: options, TLS, operations, workers, the end. In this process."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from street_fast import Member, connect
from street_fast.application import import_application
from street_fast.backplanes.memory import MemoryBackplane
from street_fast.errors import ConfigurationError, ListenError
from street_fast.options import Allowed, CannotServe, Kept, Options
from street_fast.serving import Fellows, Serving, ready_realtime, serve, tls_context
from street_fast.session import Guest
from tests.served import ask, port_of, written

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.conftest import Certificate

__all__ = ["written"]  # a fixture

KEY = "a key of other programs"


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


async def test_what_cannot_be_served_is_closed(written: Callable[..., Options]) -> None:
    options = written(
        """
        from street_fast import Realtime
        from street_fast.backplanes.memory import MemoryBackplane
        class Own:
            closed = False
            def __init__(self): self._memory = MemoryBackplane()
            def __getattr__(self, name): return getattr(self._memory, name)
            async def close(self, **options): self.closed = True
        realtime = Realtime(backplane=Own())
        """
    )
    found: Any = import_application(options)
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ListenError, match="already in use"):
        await serve(msgspec.structs.replace(options, port=taken.getsockname()[1]), found)
    assert found.exchange.backplane.closed


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


# --- the end ---


async def test_the_end_tells_the_clients_and_lets_in_who_is_on_the_way() -> None:
    serving = await serve(Options(port=0), None)
    port = port_of(serving)
    client = await connect(f"http://127.0.0.1:{port}/realtime", reconnect=False)
    before = serving._http.connection_count
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while serving._http.connection_count == before:  # noqa: ASYNC110 - until it is accepted
        await asyncio.sleep(0.01)
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
    await asyncio.wait_for(serving.close(), 20)
    assert "it took more than 0.05 s to end" in caplog.text
