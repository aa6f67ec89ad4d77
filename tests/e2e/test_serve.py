"""street-fast serve as it is used: processes, signals, and clients that notice nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from street_fast import connect
from tests.e2e.conftest import ROOT

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tests.e2e.conftest import Program

    Start = Callable[..., Awaitable[Program]]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")

SERVE = ("-m", "street_fast", "serve", "--port", "{port}")
KEY = "a key of other programs"
PATIENCE_S = 20

PLAIN = """
import os
from street_fast import HttpServer, StreetWebSocketServer

def make():
    http = HttpServer()
    http.get("/pid", lambda request: f"{os.getpid()}")
    http.get("/about", lambda request: {"cwd": os.getcwd(), "umask": os.umask(0o27)})
    StreetWebSocketServer(path="/ws").attach(http, lambda socket, request: None)
    return http
"""


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        await asyncio.sleep(0.02)


def children(pid: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return ""


def workers(supervisor: int) -> list[int]:
    return [pid for pid in children(supervisor) if "street_fast.worker" in command(pid)]


def family(pid: int) -> list[int]:
    return [pid, *(member for child in children(pid) for member in family(child))]


def living(pids: list[int]) -> list[str]:
    """The commands of those that still run; a zombie has none."""
    return [found for found in map(command, pids) if found]


def pid_of(program: Program) -> int:
    assert program.process is not None
    return program.process.pid


async def ask(port: int, path: str, pause_s: float = 0.0) -> str:
    """The body of the answer on a connection of its own; ConnectionError if the connection is refused or reset.

    The request follows the connection after a pause.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await asyncio.sleep(pause_s)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        if not head:
            raise ConnectionResetError("closed without an answer")
        return body.decode()
    finally:
        writer.close()


def send(port: int, connection: str, body: object) -> None:
    url = f"http://127.0.0.1:{port}/realtime/send?connection={connection}"
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode()), timeout=10) as answer:
        assert answer.status == 204


async def publish(port: int, channel: str, data: object) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/realtime/publish",
        json.dumps({"channel": channel, "data": data}).encode(),
        {"Authorization": f"Bearer {KEY}"},
    )
    await asyncio.to_thread(lambda: urllib.request.urlopen(request, timeout=10).read())


async def test_nothing_installed_and_no_application(start: Start) -> None:
    program = await start(*SERVE, "--api-key", KEY)
    base = f"http://127.0.0.1:{program.port}"
    for line in (f"ws://127.0.0.1:{program.port}/realtime", f"{base}/realtime/sse", f"POST {base}/realtime/publish"):
        assert line in program.output
    assert "100 messages" in program.output
    assert KEY not in program.output
    async with connect(f"{base}/realtime") as client:
        await publish(program.port, "news", "lunch")
        assert [message.data for message in (await client.history("news")).messages] == ["lunch"]
    assert json.loads(await ask(program.port, "/readyz")) == {"ready": True}
    process = program.process
    await program.stop(signal.SIGINT)
    assert process is not None
    assert process.returncode == 0


@pytest.mark.broker
async def test_workers_hear_each_other_and_one_may_die(start: Start) -> None:
    program = await start(*SERVE, "--workers", "2", "--api-key", KEY)
    await until(lambda: "is ready" in program.output)
    supervisor = pid_of(program)
    url = f"http://127.0.0.1:{program.port}/realtime"
    async with contextlib.AsyncExitStack() as stack:
        clients, seen = [], []

        async def more() -> None:
            client = await stack.enter_async_context(connect(url, backoff_s=(0.05, 0.2)))
            mine: list[object] = []
            subscription = client.subscribe("room", lambda message: mine.append(message.data))
            await subscription
            clients.append(client)
            seen.append(mine)

        while len(clients) < 4 or not await both_have_clients(program.port):
            await more()
        for number, client in enumerate(clients):
            await client.publish("room", number)
        told: list[object] = [*range(len(clients))]
        await until(lambda: all(mine == told for mine in seen))
        assert (await clients[0].presence("room")).count == len(clients)

        reader, writer = await asyncio.open_connection("127.0.0.1", program.port)
        writer.write(b"GET /realtime/sse?channel=room HTTP/1.1\r\nHost: localhost\r\n\r\n")
        stream = re.search(rb'"welcome","data":{"id":"([^"]+)"', await reader.readuntil(b'"type":"subscribed"'))
        assert stream is not None
        for number in range(50, 60):  # whichever worker the kernel chooses
            body = {"type": "publish", "channel": "room", "data": number}
            await asyncio.to_thread(send, program.port, stream[1].decode(), body)
            told.append(number)
        await until(lambda: all(mine == told for mine in seen))
        writer.close()

        before = workers(supervisor)
        os.kill(before[0], signal.SIGKILL)
        for number in range(100, 110):
            await publish(program.port, "room", number)
            told.append(number)
        await until(lambda: all(mine == told for mine in seen))  # nobody has missed one or had one twice
        await until(lambda: len(workers(supervisor)) == 2)
        assert before[1] in workers(supervisor)
        await until(lambda: "worker 1 is ready again" in program.output or "worker 2 is ready again" in program.output)
        assert "killed by SIGKILL" in program.output
    members = family(supervisor)
    assert any("nats-server" in command(pid) for pid in members)
    folder = nats_folder(members)
    process = program.process
    await program.stop()
    assert process is not None
    assert process.returncode == 0
    assert living(members) == []
    assert not folder.exists()


async def both_have_clients(port: int) -> bool:
    text = await ask(port, "/metrics")
    found = re.findall(r'^street_fast_connections\{transport="websocket",worker="(\d)"\} (\d+)', text, re.MULTILINE)
    return len(found) == 2 and all(int(count) for _, count in found)


def nats_folder(members: list[int]) -> Path:
    (server,) = (found for found in map(command, members) if "nats-server" in found and "guardian" not in found)
    return Path(server.split()[-1]).parent


@pytest.mark.broker
async def test_a_supervisor_that_is_killed_leaves_nothing(start: Start) -> None:
    program = await start(*SERVE, "--workers", "2")
    await until(lambda: "is ready" in program.output)
    members = family(pid_of(program))
    assert len(members) == 5  # it, two workers, the guardian and the NATS server
    folder = nats_folder(members)
    async with connect(f"http://127.0.0.1:{program.port}/realtime", reconnect=False) as client:
        await program.stop(signal.SIGKILL)
        await until(lambda: client.state == "closed")  # it was told
    await until(lambda: not living(members))
    assert not folder.exists()
    with pytest.raises(OSError, match="refused"):
        await ask(program.port, "/healthz")


@pytest.fixture
def plain(tmp_path: Path) -> tuple[str, ...]:
    """Arguments for an application that needs no broker."""
    (tmp_path / "plain.py").write_text(PLAIN)
    return (*SERVE, "plain:make", "--app-dir", str(tmp_path))


async def test_all_workers_are_replaced_and_nobody_is_refused(start: Start, plain: tuple[str, ...]) -> None:
    program = await start(*plain, "--workers", "2")
    await until(lambda: "is ready" in program.output)
    supervisor = pid_of(program)
    before = workers(supervisor)
    answers: list[str] = []
    going_on = True

    async def stream(pause_s: float) -> None:
        while going_on:
            answers.append(await ask(program.port, "/pid", pause_s))

    streams = [asyncio.create_task(stream(pause_s)) for pause_s in (0.0, 0.0, 0.01, 0.02, 0.05, 0.1)]
    for turn in (1, 2):
        os.kill(supervisor, signal.SIGHUP)
        await until(lambda turn=turn: program.output.count("all workers are replaced") == turn)
    going_on = False
    await asyncio.gather(*streams)  # which raises what one of them was refused with
    now = workers(supervisor)
    assert set(answers) >= {str(pid) for pid in now}
    assert len(set(answers)) >= 6
    assert not set(before) & set(now)
    assert len(now) == 2


async def test_a_broken_new_version_replaces_nobody(start: Start, plain: tuple[str, ...], tmp_path: Path) -> None:
    program = await start(*plain, "--workers", "2")
    await until(lambda: "is ready" in program.output)
    supervisor = pid_of(program)
    before = workers(supervisor)
    (tmp_path / "plain.py").write_text("1 / 0")
    os.kill(supervisor, signal.SIGHUP)
    await until(lambda: "the other workers stay as they are" in program.output)
    assert "ZeroDivisionError" in program.output
    await until(lambda: workers(supervisor) == before)
    assert await ask(program.port, "/pid") in map(str, before)
    # what the fixture looks for was meant here
    program.written.seek(0)
    program.written.truncate()


async def test_workers_are_as_the_supervisor_was_started(start: Start, plain: tuple[str, ...]) -> None:
    program = await start(*plain, "--workers", "2")
    about = json.loads(await ask(program.port, "/about"))
    assert about["cwd"] == str(ROOT)
    umask = os.umask(0o22)
    os.umask(umask)
    assert about["umask"] == umask
    pid = workers(pid_of(program))[0]
    names = [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd") if int(number) > 2]
    assert sum(name.startswith("socket:") for name in names) <= 6  # its listening socket, its channel, and its loop's
    assert [name for name in names if name.startswith("/") and name != "/dev/null" and "/proc" not in name] == []


async def test_a_second_signal_does_not_wait(start: Start, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import asyncio\n"
        "from street_fast import HttpServer\n"
        "http = HttpServer()\n"
        "@http.on_shutdown\n"
        "async def wait(): await asyncio.sleep(3600)\n"
    )
    program = await start(*SERVE, "slow:http", "--app-dir", str(tmp_path), "--workers", "2")
    await until(lambda: "is ready" in program.output)
    process, members = program.process, family(pid_of(program))
    assert process is not None
    process.send_signal(signal.SIGTERM)
    await asyncio.sleep(0.3)
    assert process.poll() is None
    await program.stop(signal.SIGTERM)
    assert living(members) == []


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["broken:make"], 1, "broken:make() failed: ZeroDivisionError: division by zero"),
        (["--api-key", "short"], 2, "api_key: must be a string of at least 16"),
    ],
)
def test_workers_that_cannot_start_are_one_sentence(
    tmp_path: Path, arguments: list[str], status: int, sentence: str
) -> None:
    (tmp_path / "broken.py").write_text("def make():\n    return 1 / 0\n")
    ran = subprocess.run(
        [sys.executable, "-m", "street_fast", "serve", "--port", "0", "--workers", "2", *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "STREET_FAST_APP_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (ran.returncode, ran.stdout) == (status, "")
    *traceback, last = ran.stderr.splitlines()
    assert last.startswith("street-fast serve: ")
    assert sentence in last
    if "broken" in arguments[0]:
        assert traceback[0] == "Traceback (most recent call last):"
        assert [line.split('"')[1] for line in traceback if "File" in line] == [str(tmp_path / "broken.py")]
    else:
        assert traceback == []
