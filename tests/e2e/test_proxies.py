"""WebSockets and event streams through nginx, HAProxy and Caddy, with the files of deploy/ as they are, but for
addresses, ports and certificates. What is not installed is skipped."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Origin

from street_fast import History, HttpServer, Limits, Operations, Realtime
from tests.ports import free_port
from tests.sse_harness import EventSource

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator

    from tests.conftest import Certificate

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
PATIENCE_S = 20
KEY = "the key of other programs"
LIMITS = Limits(
    ping_interval_s=0.2, sse_ping_interval_s=0.2, retry_hint_s=0.1, abort_timeout_s=0.2, shutdown_timeout_s=2
)


def program(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


@pytest.fixture(params=["nginx", "haproxy", "caddy"])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if program(name) is None:
        pytest.skip(f"{name} is not installed")
    return name


def written(kind: str, folder: Path, certificate: Certificate, nodes: list[int], http: int, https: int) -> Path:
    """The file of deploy/ for these ports, in `folder`."""
    name = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg", "caddy": "Caddyfile"}[kind]
    text = (DEPLOY / name).read_text()
    changes = {"10.0.0.1:3000": f"127.0.0.1:{nodes[0]}", "10.0.0.2:3000": f"127.0.0.1:{nodes[1]}"}
    both = folder / "both.pem"
    both.write_bytes(certificate.chain.read_bytes() + certificate.key.read_bytes())
    before = ""
    if kind == "nginx":
        changes |= {" 80;": f" 127.0.0.1:{http};", " 443 ": f" 127.0.0.1:{https} "}
        changes |= {"/etc/nginx/tls/fullchain.pem": str(certificate.chain)}
        changes |= {"/etc/nginx/tls/privkey.pem": str(certificate.key)}
        paths = "".join(f"{what}_temp_path {folder}/{what};" for what in ("proxy", "fastcgi", "uwsgi", "scgi"))
        changes |= {"http {\n": f"http {{ access_log off; client_body_temp_path {folder}/body; {paths}\n"}
        before = f"daemon off; pid {folder}/pid; error_log {folder}/log;"
        before += "user root;\n" if os.geteuid() == 0 else "\n"
        changes |= {"worker_processes auto": "worker_processes 2", "131072": "1024", "65536": "512"}
    elif kind == "haproxy":
        changes |= {" :80\n": f" 127.0.0.1:{http}\n", " :443 ": f" 127.0.0.1:{https} "}
        changes |= {"/etc/haproxy/tls/realtime.pem": str(both), "maxconn 100000": "maxconn 200"}
    else:
        site = f"https://127.0.0.1:{https} {{\n\ttls {certificate.chain} {certificate.key}"
        changes |= {"\nrealtime.example.com {": f"\n{site}"}
        before = "{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n}\n"
    for old, new in changes.items():
        assert old in text, f"{name} has no {old!r}"
        text = text.replace(old, new)
    path = folder / name
    path.write_text(before + text)
    return path


def command(kind: str, path: Path, *, check: bool) -> list[str]:
    found = program(kind)
    assert found is not None
    if kind == "nginx":
        return [found, "-e", f"{path.parent}/log", "-c", str(path), *(["-t"] if check else [])]
    if kind == "haproxy":
        return [found, "-f", str(path), *(["-c"] if check else ["-db"])]
    return [found, "validate" if check else "run", "--adapter", "caddyfile", "--config", str(path)]


def home(folder: Path) -> dict[str, str]:
    """Where Caddy keeps what it keeps."""
    return {**os.environ, "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}


def test_the_program_takes_the_file(kind: str, tmp_path: Path, certificate: Certificate) -> None:
    path = written(kind, tmp_path, certificate, [3001, 3002], 8080, 8443)
    arguments = command(kind, path, check=True)
    done = subprocess.run(arguments, capture_output=True, text=True, check=False, env=home(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "[WARNING]" not in done.stderr
    assert "[warn]" not in done.stderr


class Node:
    """One machine."""

    def __init__(self) -> None:
        self.realtime = Realtime(history={"*": History()}, limits=LIMITS, api_key=KEY)
        self.http = HttpServer(limits=LIMITS)
        self.realtime.attach(self.http)
        Operations(self.realtime).attach(self.http)


class Site:
    """Two nodes behind a proxy, at `url`."""

    def __init__(self, port: int, tls: ssl.SSLContext, nodes: list[Node]) -> None:
        self.place = f"127.0.0.1:{port}"
        self.tls = tls
        self.nodes = nodes

    def websocket(self) -> connect:
        return connect(f"wss://{self.place}/realtime", ssl=self.tls, origin=Origin(f"https://{self.place}"))

    async def answers(self) -> bool:
        """Whether the proxy listens, and knows that the nodes are well."""
        with contextlib.suppress(aiohttp.ClientConnectionError):
            url, tls = self.url("/realtime"), self.tls
            async with aiohttp.ClientSession() as session, session.get(url, ssl=tls) as response:
                return response.status == 426
        return False

    def url(self, path: str) -> str:
        return f"https://{self.place}{path}"


@pytest.fixture
async def site(kind: str, tmp_path: Path, certificate: Certificate) -> AsyncIterator[Site]:
    nodes = [Node(), Node()]
    for node in nodes:
        await node.http.listen(port=0)
    http, https = free_port(), free_port()
    path = written(kind, tmp_path, certificate, [node.http.port for node in nodes], http, https)
    with (tmp_path / "output").open("wb") as output:
        process = await asyncio.create_subprocess_exec(
            *command(kind, path, check=False), stdout=output, stderr=output, env=home(tmp_path)
        )
    site = Site(https, certificate.client, nodes)
    try:
        for _ in range(400):
            assert process.returncode is None, (tmp_path / "output").read_text()
            if await site.answers():
                break
            await asyncio.sleep(0.05)
        yield site
    finally:
        process.terminate()
        await process.wait()
        for node in nodes:
            await node.http.close()


async def next_of(ws: Any, type_: str) -> dict[str, Any]:
    while True:
        event: dict[str, Any] = json.loads(await asyncio.wait_for(ws.recv(), PATIENCE_S))
        if event["type"] == type_:
            return event


async def test_websockets_go_through_and_come_back_after_a_drain(site: Site) -> None:
    async with site.websocket() as ws:
        await ws.send(json.dumps({"type": "subscribe", "channel": "room"}))
        await ws.send(json.dumps({"type": "publish", "channel": "room", "data": {"n": 1}}))
        assert (await next_of(ws, "message"))["data"] == {"n": 1}
        await next_of(ws, "ping")
        (node,) = [node for node in site.nodes if node.realtime.session_count]
        await node.http.close()
        with pytest.raises(ConnectionClosed) as ended:
            await next_of(ws, "never")
    assert ended.value.rcvd is not None
    assert ended.value.rcvd.code == 1012
    assert "retry in" in ended.value.rcvd.reason
    for _ in range(4):  # at once, whichever node the proxy would take
        async with site.websocket() as ws:
            await next_of(ws, "welcome")


async def test_event_streams_go_through_and_their_clients_send(site: Site) -> None:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as session:
        options: Any = {"ssl": site.tls, "headers": {"Origin": f"https://{site.place}"}}
        async with session.get(site.url("/realtime/sse?channel=room"), **options) as response:
            assert response.headers["content-type"] == "text/event-stream"
            source = EventSource()

            async def next_event(type_: str) -> Any:
                while True:
                    while source.events:
                        event = json.loads(source.events.pop(0).data)
                        if event["type"] == type_:
                            return event
                    source.feed(await response.content.readany())

            connection = (await next_event("welcome"))["data"]["id"]
            for n in range(4):  # each may be on another connection to a node
                message = json.dumps({"type": "publish", "channel": "room", "data": n})
                url = site.url(f"/realtime/send?connection={connection}")
                async with session.post(url, data=message, **options) as sent:
                    assert sent.status == 204
                assert (await next_event("message"))["data"] == n
            await next_event("ping")


async def test_other_programs_publish_and_strangers_see_no_metrics(site: Site) -> None:
    async with aiohttp.ClientSession() as session:
        body, headers = {"channel": "room", "data": 1}, {"Authorization": f"Bearer {KEY}"}
        async with session.post(site.url("/realtime/publish"), json=body, headers=headers, ssl=site.tls) as response:
            assert response.status == 200
        for path in ("/healthz", "/readyz", "/metrics"):
            async with session.get(site.url(path), ssl=site.tls) as response:
                assert response.status == 404
                assert b"street_fast" not in await response.read()
