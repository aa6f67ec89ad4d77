"""What the integrations have in common, on a wire of the test: a request adopted with its transport."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from street_fast.integrations.handover import Handover
from street_fast.limits import Limits
from street_fast.request import Response
from tests.http_harness import Wire, handshake, head, parse, settle

if TYPE_CHECKING:
    from street_fast.handshake import Upgrade
    from street_fast.server import StreetWebSocketServer


class Server:
    """As much of a StreetWebSocketServer as a Handover uses."""

    limits = Limits()

    def __init__(self) -> None:
        self.upgrades: list[Upgrade] = []
        self.drained = 0

    def handle_upgrade(self, upgrade: Upgrade) -> None:
        self.upgrades.append(upgrade)

    async def drain(self) -> None:
        self.drained += 1
        for upgrade in self.upgrades:
            upgrade.refuse(Response.text("not now\n", 503))


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
async def wire() -> Wire:
    return Wire(asyncio.get_running_loop())


@pytest.fixture
def handover(server: StreetWebSocketServer) -> Handover:
    return Handover(server)


async def test_the_server_gets_the_request_whatever_its_path(handover: Handover, server: Server, wire: Wire) -> None:
    handover.adopt(wire, handshake("/api/ws?x=1"), b"frames")
    (upgrade,) = server.upgrades
    assert (upgrade.request.path, upgrade.request.query["x"]) == ("/api/ws", "1")
    assert upgrade.request.client == ("192.0.2.7", 4711)
    wire.protocol.data_received(b" and more")
    assert upgrade.take_over() == (wire, b"frames and more")
    assert handover.connection_count == 0
    assert wire.taken == b""


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (handshake("/ws", Host=None), 400),
        (handshake("/ws", "Host: other"), 400),
        (handshake("/ws", "Content-Length: 1"), 400),
        (handshake("/ws", "Transfer-Encoding: chunked"), 400),
        (handshake("/ws", X=9_000 * "a"), 431),
        (b"GET /ws HTTP/1.1\nHost: h\r\n\r\n", 400),
    ],
    ids=["no host", "two hosts", "body", "chunks", "long line", "LF"],
)
async def test_what_our_own_server_would_refuse_is_refused(
    handover: Handover, server: Server, wire: Wire, data: bytes, status: int
) -> None:
    handover.adopt(wire, data, b"")
    (answer,) = parse(wire.taken)
    assert (answer.status, answer.closes) == (status, True)
    assert server.upgrades == []


async def test_a_refusal_is_the_last_answer(handover: Handover, server: Server, wire: Wire) -> None:
    handover.adopt(wire, handshake(), handshake())
    server.upgrades[0].refuse(Response.text("no\n", 401))
    await settle()
    assert [answer.status for answer in parse(wire.taken)] == [401]
    assert len(server.upgrades) == 1


async def test_a_client_that_leaves(handover: Handover, server: Server, wire: Wire) -> None:
    abandoned: list[bool] = []
    handover.adopt(wire, handshake(), b"")
    server.upgrades[0].on_abandoned = lambda: abandoned.append(True)
    wire.abort()
    await settle()
    assert abandoned == [True]
    assert handover.connection_count == 0


async def test_closing_drains_the_server_and_waits_for_the_last_answer(
    handover: Handover, server: Server, wire: Wire
) -> None:
    handover.adopt(wire, handshake(), b"")
    wire.stalled = True
    closing = asyncio.ensure_future(handover.close())
    await settle()
    assert (server.drained, closing.done()) == (1, False)
    wire.take(len(wire.unsent))
    await asyncio.wait_for(closing, 20)
    assert parse(wire.taken)[0].status == 503


async def test_it_still_answers_while_it_closes(handover: Handover, server: Server, wire: Wire) -> None:
    await handover.close()
    handover.adopt(wire, handshake(), b"")
    assert len(server.upgrades) == 1
    wire.abort()
    await settle()


async def test_other_requests_are_for_the_server_too(handover: Handover, server: Server, wire: Wire) -> None:
    handover.adopt(wire, head("GET", "/anything"), b"")
    assert len(server.upgrades) == 1
    wire.abort()
    await settle()
