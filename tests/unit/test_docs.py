"""The documents say what the code does: their Python runs, their tables are complete, their links lead somewhere."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import json
import logging
import re
import subprocess
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError

import street_fast
from street_fast import CloseCode, HttpServer, Limits, Realtime, RealtimeError, StreetWebSocketServer
from street_fast import connect as connect_client
from street_fast.messages import UNSET
from street_fast.testing import memory_client
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "docs/*.md", "clients/*/README.md")
    for path in ROOT.glob(pattern)
)


def python_blocks(document: str) -> list[tuple[int, str]]:
    """(line of the first line, code) of each Python block."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, block.start(1)) + 1, block[1])
        for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


async def run_block(path: Path, line: int, code: str, names: dict[str, Any]) -> None:
    """Run a block that begins on a line of a file; it may await."""
    tree = compile("\n" * (line - 1) + code, path, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    result = eval(tree, names)
    if inspect.iscoroutine(result):
        await result


@pytest.fixture
def run_blocks(monkeypatch):
    """`await run_blocks(document, names)`: runs its blocks; nothing blocks, and every server gets a free port."""
    started = []
    listen = HttpServer.listen

    async def listen_anywhere(self, host="127.0.0.1", port=3000, **options):
        await listen(self, host, 0, **options)

    monkeypatch.setattr(HttpServer, "listen", listen_anywhere)
    for kind in (StreetWebSocketServer, Realtime, uvicorn.Server):
        monkeypatch.setattr(kind, "run", lambda *arguments, **_: started.append(arguments))

    async def run(document, names):
        for line, code in python_blocks(document):
            await run_block(ROOT / document, line, code, names)
        return started

    return run


async def test_the_guide_runs(run_blocks):
    async def session_of(cookie):
        return SimpleNamespace(id="7", roles=["staff"], name="Ada") if cookie else None

    names = {"__name__": "guide", "session_of": session_of}
    started = await run_blocks("docs/guide.md", names)
    assert [type(server) for server, *_ in started] == [StreetWebSocketServer, uvicorn.Server]
    for handler in (names["chat"], names["rooms"]):
        await provoke(handler)


async def test_the_examples_of_the_readme_are_chats(run_blocks):
    names = {"__name__": "readme", "config": HttpServer()}
    [(realtime,), (server, handler)] = await run_blocks("README.md", names)
    assert server is names["server"]
    await realtime.serve(port=0)
    async with connect_client(f"ws://127.0.0.1:{realtime.port}/realtime") as ada:
        await ada.publish("room:general", "hello")
        assert [message.data for message in (await ada.history("room:general")).messages] == ["hello"]
        with pytest.raises(RealtimeError, match="forbidden"):
            await ada.publish("elsewhere", "hello")
    await realtime.close()
    server = StreetWebSocketServer()
    await server.serve(handler, port=0)
    url = f"ws://127.0.0.1:{server.port}/"
    async with connect(f"{url}?user=ada") as ada, connect(f"{url}?user=ben") as ben:
        ben_joined = json.loads(await ada.recv())["data"]
        assert ben_joined["info"] == {"name": "ben"}
        await ben.send(json.dumps({"type": "typing", "data": True}))
        assert json.loads(await ada.recv())["data"] == {"memberId": ben_joined["memberId"], "typing": True}
        await ben.send(json.dumps({"type": "chat", "data": {"text": "hello"}}))
        for client in (ada, ben):
            message = json.loads(await client.recv())
            assert (message["type"], message["data"]) == ("chat", {"from": "ben", "text": "hello"})
    await server.close()
    await provoke(handler)


class Follower:
    """Follows a document: what it runs is running, at a port of its own instead of 3000, until the next."""

    def __init__(self, document: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: dict[str, Any] = {"__name__": "follower"}
        self.blocks = python_blocks(document)
        self.path = ROOT / document
        self.port = free_port()
        self.started: list[tuple[Any, ...]] = []
        self.stop: Callable[[], Awaitable[object]] | None = None
        for kind in (StreetWebSocketServer, Realtime, uvicorn.Server):
            monkeypatch.setattr(kind, "run", lambda *arguments, **_: self.started.append(arguments))

    async def follow(self, heading: str) -> dict[str, Any]:
        """Run the blocks of the section with this heading; returns all names that are known after it."""
        text = self.path.read_text(encoding="utf-8")
        begin = text.index(f"\n## {heading}")
        end = text.find("\n## ", begin + 1)
        lines = range(text.count("\n", 0, begin), text.count("\n", 0, end if end > 0 else len(text)))
        for line, code in self.blocks:
            if line in lines:
                code = re.sub(r"\b3000\b", str(self.port), code)
                await run_block(self.path, line, code, self.names)
                await self.serve()
        return self.names

    async def serve(self) -> None:
        for server, *arguments in self.started:
            await self.close()
            if isinstance(server, uvicorn.Server):
                await self.serve_uvicorn(server)
            else:
                await server.serve(*arguments, port=self.port)
                self.stop = server.close
        self.started.clear()

    async def serve_uvicorn(self, server: uvicorn.Server) -> None:
        task = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110 - it has no event for that
            await asyncio.sleep(0.01)

        async def stop() -> None:
            server.should_exit = True
            await task

        self.stop = stop

    async def close(self) -> None:
        if self.stop is not None:
            await self.stop()
            self.stop = None


@contextlib.asynccontextmanager
async def talk(port: int, path: str) -> AsyncIterator[tuple[Callable[..., Any], Callable[[], Any]]]:
    """`send(**event)` and `receive()` of a client."""
    async with connect(f"ws://127.0.0.1:{port}{path}") as connection:

        async def receive() -> Any:
            return json.loads(await asyncio.wait_for(connection.recv(), 20))

        async def send(**event: object) -> None:
            await connection.send(json.dumps(event))

        yield send, receive


async def fetch(port: int, path: str, body: bytes | None = None) -> bytes:
    def request() -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", body, timeout=10) as response:
            return response.read()

    return await asyncio.to_thread(request)


async def test_the_tutorial(monkeypatch, capsys):
    monkeypatch.setattr(uvicorn.Server, "install_signal_handlers", lambda self: None, raising=False)
    tutorial = Follower("docs/tutorial.md", monkeypatch)
    port = tutorial.port
    try:
        await tutorial.follow("1. Attach")
        async with talk(port, "/chat") as (send, _), talk(port, "/chat") as (_, receive):
            await send(type="message", data={"user": "ada", "text": "hi"})
            assert await receive() == {"type": "chat", "data": {"user": "ada", "text": "hi"}}

        await tutorial.follow("2. Channels")
        async with talk(port, "/?user=ada") as (send, _), talk(port, "/?user=ben") as (_, receive):
            snapshot = {"channel": "general", "members": ["ada", "ben"]}
            assert await receive() == {"type": "presence:snapshot", "data": snapshot}
            await send(type="typing", data=True)
            await send(type="chat", data={"text": "hi"})
            assert [(await receive())["type"], (await receive())["data"]] == ["typing", {"from": "ada", "text": "hi"}]

        await tutorial.follow("3. The same")
        async with talk(port, "/realtime") as (send, receive):
            assert (await receive())["type"] == "welcome"
            await send(type="subscribe", channel="news", id=1)
            assert (await receive())["id"] == 1
            for channel in ("news", "elsewhere"):
                await send(type="publish", channel=channel, data=1, id=2)
                assert (await receive())["data"]["code"] == "forbidden"
            await send(type="publish", channel="room:1", data=1, id=3)
            assert (await receive())["type"] == "reply"

        await tutorial.follow("4. Live")
        assert await fetch(port, "/orders/7/sent", b"") == b'{"ok":true}'
        assert (await fetch(port, "/progress")).endswith(b'event: progress\ndata: {"percent":100}\n\n')
        async with talk(port, "/realtime") as (_, receive):
            assert (await receive())["type"] == "welcome"

        await tutorial.follow("3. The same")
        await tutorial.follow("6. Use it from Python")
        assert "hello" in capsys.readouterr().out
        await tutorial.follow("7. Who")
        async with talk(port, "/realtime?token=x.y.z") as (_, receive):
            with pytest.raises(ConnectionClosedError, match="4001"):
                await receive()
        await tutorial.follow("8. History")
    finally:
        await tutorial.close()


BAD_USERS = ["", "?user=", "?user=%00", "?user=%ff", f"?user={'x' * 2_000}"]
BAD_DATA = [UNSET, None, 5, -1, 1e308, True, "x", "\0", [], {}, {"text": 5}, {"room": "\0", "text": "x", "typing": 1}]


async def provoke(handler):
    """Whatever a client sends to an example, the example says nothing of it in the log."""
    complaints = []
    watcher = logging.Handler()
    watcher.emit = complaints.append
    logging.getLogger("street_fast").addHandler(watcher)
    server = StreetWebSocketServer(limits=Limits(messages_per_second=None))
    server.attach(HttpServer(), handler)
    for user in BAD_USERS:
        async with memory_client(server, f"/{user}") as client:
            for kind in ("join", "say", "chat", "typing", "*", "close", "message"):
                for data in BAD_DATA:
                    client.emit(kind, data)
            for room in range(200):
                client.emit("join", {"room": f"room {room}"})
            for seconds in ("x", -1, 1e308):
                client.emit("slow", seconds)
            assert "error" in [event["type"] for event in await client.settle()]
    logging.getLogger("street_fast").removeHandler(watcher)
    said = [record.getMessage() for record in complaints]
    assert [text for text in said if "kept the event loop" not in text] == []  # that is the business of the machine


def test_the_guide_lists_every_close_code():
    rows = re.findall(r"^\| (\d{4}) \| (.*?) \| (yes|no) \|$", (ROOT / "docs/guide.md").read_text(), re.MULTILINE)
    assert rows == [
        (str(int(code)), code.explanation, "yes" if code.may_reconnect else "no") for code in sorted(CloseCode)
    ]


def test_the_limits_are_those_of_the_code(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from limits_table import TABLE, table

    assert TABLE.read_text(encoding="utf-8") == table(), "run tools/limits_table.py"


def test_the_guide_names_everything_public():
    guide = "".join(
        (ROOT / document).read_text() for document in ("docs/guide.md", "README.md", "docs/architecture.md")
    )
    assert [name for name in street_fast.__all__ if name[0] != "_" and not re.search(rf"\b{name}\b", guide)] == []


JS_CLIENT = ROOT / "clients/js"
TYPESCRIPT = {
    "compilerOptions": {
        "strict": True,
        "noEmit": True,
        "skipLibCheck": True,
        "target": "es2022",
        "module": "esnext",
        "moduleResolution": "bundler",
        "moduleDetection": "force",  # each block is a file of its own
        "jsx": "react-jsx",
        "lib": ["es2022", "dom", "dom.iterable"],
        "types": [],
        "paths": {
            "street-fast": [f"{JS_CLIENT}/src/index.ts"],
            "street-fast/*": [f"{JS_CLIENT}/src/*.ts"],
        },
    }
}


@pytest.mark.skipif(not (JS_CLIENT / "node_modules").exists(), reason="clients/js is not installed (npm ci)")
def test_the_compiler_takes_the_typescript(tmp_path):
    (tmp_path / "node_modules").symlink_to(JS_CLIENT / "node_modules")
    (tmp_path / "tsconfig.json").write_text(json.dumps(TYPESCRIPT))
    count = 0
    for document in DOCUMENTS:
        text = (ROOT / document).read_text(encoding="utf-8")
        for block in re.finditer(r"^```(tsx?)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            count += 1
            line = text.count("\n", 0, block.start(2)) + 1
            name = f"{document.replace('/', '_').removesuffix('.md')}_{line}.{block[1]}"
            (tmp_path / name).write_text(block[2], encoding="utf-8")
    assert count
    compiler = JS_CLIENT / "node_modules/.bin/tsc"
    done = subprocess.run([compiler, "-p", tmp_path], capture_output=True, text=True, timeout=100, check=False)
    assert done.stdout == ""
    assert done.returncode == 0


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document):
    path = ROOT / document
    text = path.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = path.parent / file if file else path
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in slugs, target


def test_the_architecture_has_every_module():
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    package = ROOT / "street_fast"
    modules = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    assert [name for name in sorted(modules) if not name.startswith("__") and f"`{name}" not in text] == []
