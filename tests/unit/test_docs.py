"""The documents say what the code does: their Python runs, their tables are complete, their links lead somewhere."""

from __future__ import annotations

import ast
import inspect
import json
import logging
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import uvicorn
from websockets.asyncio.client import connect

import street_fast
from street_fast import CloseCode, HttpServer, Limits, StreetWebSocketServer
from street_fast.messages import UNSET
from street_fast.testing import memory_client

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted(path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def python_blocks(document: str) -> list[tuple[int, str]]:
    """(line of the first line, code) of each Python block."""
    text = (ROOT / document).read_text(encoding="utf-8")
    return [
        (text.count("\n", 0, block.start(1)) + 1, block[1])
        for block in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    ]


@pytest.fixture
def run_blocks(monkeypatch):
    """`await run_blocks(document, names)`: runs its blocks; nothing blocks, and every server gets a free port."""
    started = []
    listen = HttpServer.listen

    async def listen_anywhere(self, host="127.0.0.1", port=3000, **options):
        await listen(self, host, 0, **options)

    monkeypatch.setattr(HttpServer, "listen", listen_anywhere)
    monkeypatch.setattr(StreetWebSocketServer, "run", lambda self, *arguments, **_: started.append((self, *arguments)))
    monkeypatch.setattr(uvicorn.Server, "run", lambda self: started.append((self,)))

    async def run(document, names):
        for line, code in python_blocks(document):
            tree = compile(
                "\n" * (line - 1) + code, ROOT / document, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
            )
            result = eval(tree, names)
            if inspect.iscoroutine(result):
                await result
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


async def test_the_example_of_the_readme_is_a_chat(run_blocks):
    names = {"__name__": "readme", "config": HttpServer()}
    [(server, handler)] = await run_blocks("README.md", names)
    assert server is names["server"]
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
    assert [record.getMessage() for record in complaints] == []


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
