"""RFC 6455 sections 5.5 and 7 as a connection keeps them: answers to control frames, the closing handshake, the end.

Over real loopback sockets against a scripted peer, on asyncio and uvloop, over both implementations. What a parser can
judge alone is in test_rfc6455_frames.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct

import pytest

from street_fast.limits import Limits
from tests.connection_harness import connected, load_core, until
from tests.frames_harness import (
    BINARY,
    CLOSE,
    CONTINUATION,
    IMPLEMENTATIONS,
    PING,
    PONG,
    TEXT,
    close,
    frame,
    head,
    text,
)

pytestmark = pytest.mark.both_loops

QUICK = Limits(close_timeout_s=0.2, abort_timeout_s=0.1)  # where the deadlines are what is tried


@pytest.fixture(params=IMPLEMENTATIONS)
def core(request):
    return load_core(request.param)


def status(code: int, reason: str = "") -> bytes:
    return code.to_bytes(2, "big") + reason.encode()


async def released(link) -> None:
    """Waits for on_close, and until the descriptor is the kernel's again."""
    await until(lambda: link.ends)
    assert len(link.ends) == 1
    assert link.ws.closed
    await until(lambda: not is_open(link.descriptor))


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@contextlib.asynccontextmanager
async def linked(core, limits=None, **options):
    async with connected(core, limits, **options) as link:
        link.descriptor = link.transport.get_extra_info("socket").fileno()
        yield link


class TestControlFrames:
    async def test_5_5_2_every_ping_has_its_pong_with_the_same_data(self, core):
        """Autobahn 2.1 to 2.4 and 2.10."""
        async with linked(core) as link:
            data = [b"", b"Hello, world!", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", b"\xfe" * 125]
            data += [b"payload-%d" % i for i in range(10)]
            await link.peer.send(b"".join(frame(PING, payload) for payload in data))
            for payload in data:
                assert await link.peer.frame() == (PONG, payload)

    async def test_5_5_2_byte_by_byte(self, core):
        """Autobahn 2.6 and 2.11."""
        async with linked(core) as link:
            for octet in frame(PING, b"\xfe" * 125):
                await link.peer.send(bytes((octet,)))
                await asyncio.sleep(0)
            assert await link.peer.frame() == (PONG, b"\xfe" * 125)

    async def test_5_5_3_an_unasked_pong_is_not_answered(self, core):
        """Autobahn 2.7 to 2.9."""
        async with linked(core) as link:
            await link.peer.send(frame(PONG) + frame(PONG, b"unsolicited") + frame(PING, b"ping"))
            assert await link.peer.frame() == (PONG, b"ping")

    async def test_5_4_a_ping_inside_of_a_message_is_answered_before_its_end(self, core):
        """Autobahn 5.6 to 5.8, 5.19 and 5.20."""
        async with linked(core) as link:
            link.ws.on_message = link.ws.send
            await link.peer.send(frame(TEXT, b"fragment1", fin=False) + frame(PING, b"pongme 1!"))
            assert await link.peer.frame() == (PONG, b"pongme 1!")
            await link.peer.send(frame(CONTINUATION, b"fragment2", fin=False) + frame(PING, b"pongme 2!"))
            assert await link.peer.frame() == (PONG, b"pongme 2!")
            await link.peer.send(frame(CONTINUATION, b"fragment3"))
            assert await link.peer.frame() == (TEXT, b"fragment1fragment2fragment3")

    async def test_5_5_2_no_pong_after_a_close_frame(self, core):
        """Autobahn 7.1.3, and the same for our own close frame."""
        async with linked(core) as link:
            await link.peer.send(close(1000) + frame(PING))
            assert await link.peer.frame() == (CLOSE, status(1000))
            assert await link.peer.end() == b""
        async with linked(core) as link:
            link.ws.close(1000)
            await link.peer.send(frame(PING))
            assert await link.peer.frame() == (CLOSE, status(1000))
            await link.peer.send(frame(PING) + close(1000))
            assert await link.peer.end() == b""


class TestThePeerCloses:
    @pytest.mark.parametrize("code", [1000, 1001, 1003, 1011, 1014, 3000, 4999])
    async def test_5_5_1_the_answer_carries_the_same_status(self, core, code):
        """Autobahn 7.3.3 and 7.7."""
        async with linked(core) as link:
            await link.peer.send(close(code))
            assert await link.peer.frame() == (CLOSE, status(code))
            assert await link.peer.end() == b""
            await released(link)
            assert link.ends == [(code, "")]

    async def test_7_1_6_the_reason_reaches_the_application(self, core):
        """Autobahn 7.3.4 and 7.3.5."""
        for reason in ("Hello World!", "à bientôt", "*" * 123):
            async with linked(core) as link:
                await link.peer.send(close(1001, reason))
                assert await link.peer.frame() == (CLOSE, status(1001))
                await released(link)
                assert link.ends == [(1001, reason)]

    async def test_7_1_5_without_a_status_it_is_1005_and_the_answer_is_empty(self, core):
        """Autobahn 7.3.1. Section 7.4.1: 1005 MUST NOT be sent."""
        async with linked(core) as link:
            await link.peer.send(frame(CLOSE))
            assert await link.peer.frame() == (CLOSE, b"")
            assert await link.peer.end() == b""
            await released(link)
            assert link.ends == [(1005, "")]

    async def test_7_1_1_the_server_closes_first_and_cleanly(self, core):
        """The peer sees the end of the stream, no reset, and need not hang up itself."""
        async with linked(core) as link:
            await link.peer.send(text("a") + close(1000))
            assert await link.peer.frame() == (CLOSE, status(1000))
            assert not await link.peer.read()
            await released(link)
            assert link.messages == ["a"]

    async def test_5_5_1_what_was_queued_goes_before_the_answer_and_nothing_after(self, core):
        """Autobahn 7.1.1."""
        async with linked(core) as link:
            link.ws.on_message = link.ws.send
            await link.peer.send(text("Hello World!") + close(1000))
            assert await link.peer.frame() == (TEXT, b"Hello World!")
            assert await link.peer.frame() == (CLOSE, status(1000))
            assert link.ws.send("late") is False
            assert await link.peer.end() == b""

    async def test_5_5_1_a_second_close_frame_and_data_behind_it_are_ignored(self, core):
        """Autobahn 7.1.2, 7.1.4 and 7.1.5."""
        for behind in (close(1001), text("Hello World!"), frame(CONTINUATION, b"fragment2"), b"\xff" * 100):
            async with linked(core) as link:
                await link.peer.send(frame(TEXT, b"fragment1", fin=False) + close(1000) + behind)
                assert await link.peer.frame() == (CLOSE, status(1000))
                assert await link.peer.end() == b""
                await released(link)
                assert (link.messages, link.ends) == ([], [(1000, "")])

    async def test_5_5_1_after_a_big_message(self, core):
        """Autobahn 7.1.6."""
        async with linked(core) as link:
            link.ws.on_message = link.ws.send
            big = b"BAsd7&jh23" * 26_214 + b"BAsd"
            sending = asyncio.ensure_future(link.peer.send(text(big) + close(1000) + frame(PING)))
            assert await link.peer.frame() == (TEXT, big)
            assert await link.peer.frame() == (CLOSE, status(1000))
            assert await link.peer.end() == b""
            await sending

    async def test_a_peer_that_does_not_read_our_answer_is_let_go(self, core):
        """Its window is full: the close frame cannot leave, and the deadline ends it."""
        limits = Limits(write_soft_bytes=1 << 20, write_hard_bytes=1 << 26, abort_timeout_s=0.1)
        async with linked(core, limits) as link:
            for _ in range(100):
                link.ws.send(bytes(100_000))
            await asyncio.sleep(0.01)
            assert link.ws.bytes_buffered > 0
            await link.peer.send(close(1000))
            await released(link)
            assert link.ends[0][0] == 1000


class TestWeClose:
    async def test_7_1_2_close_frame_out_close_frame_in_end(self, core):
        async with linked(core) as link:
            link.ws.send("before")
            link.ws.close(1001, "bye")
            assert link.ws.send("after") is False
            assert await link.peer.frame() == (TEXT, b"before")
            assert await link.peer.frame() == (CLOSE, status(1001, "bye"))
            assert link.ends == []
            await link.peer.send(close(1001))
            assert await link.peer.end() == b""
            await released(link)
            assert link.ends == [(1001, "bye")]

    async def test_1_4_data_that_crosses_our_close_frame_is_dropped(self, core):
        async with linked(core) as link:
            link.ws.close()
            await link.peer.send(text("crossed") + frame(BINARY, b"crossed") + close(1000))
            await released(link)
            assert link.messages == []

    async def test_1_4_both_close_at_once(self, core):
        async with linked(core) as link:
            link.ws.close(1000)
            await link.peer.send(close(1001))
            assert await link.peer.frame() == (CLOSE, status(1000))
            assert await link.peer.end() == b""
            await released(link)

    async def test_5_5_1_only_one_close_frame_is_sent(self, core):
        async with linked(core) as link:
            link.ws.close(1000)
            link.ws.close(1001)
            await link.peer.send(close(1000))
            link.ws.close(1002)
            assert await link.peer.frame() == (CLOSE, status(1000))
            assert await link.peer.end() == b""

    @pytest.mark.parametrize("code", [0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65_536])
    async def test_7_4_1_a_reserved_code_is_never_sent(self, core, code):
        async with linked(core) as link:
            with pytest.raises(ValueError, match=str(code)):
                link.ws.close(code)
            assert not link.ws.closed
            await link.peer.send(frame(PING))
            assert await link.peer.frame() == (PONG, b"")

    async def test_5_5_a_long_reason_is_cut_to_a_control_frame(self, core):
        async with linked(core) as link:
            link.ws.close(1000, "€" * 100)
            assert await link.peer.frame() == (CLOSE, status(1000, "€" * 41))

    async def test_a_peer_that_never_answers_is_let_go(self, core):
        async with linked(core, QUICK) as link:
            link.ws.close()
            await released(link)

    async def test_a_peer_that_keeps_sending_does_not_keep_the_connection(self, core):
        """Frames do not extend the deadline of the closing handshake."""
        async with linked(core, QUICK) as link:
            link.ws.close()
            with contextlib.suppress(ConnectionError):
                for i in range(500):
                    await link.peer.send(frame(PING) if i % 50 == 0 else text("still here"))
                    await asyncio.sleep(0.002)
                    if link.ends:
                        break
            await released(link)
            assert link.messages == []

    async def test_a_peer_that_sends_half_a_close_frame_is_let_go(self, core):
        async with linked(core, QUICK) as link:
            link.ws.close()
            await link.peer.send(close(1000)[:-1])
            await released(link)

    async def test_a_peer_that_breaks_a_rule_instead_of_answering(self, core):
        async with linked(core) as link:
            link.ws.close()
            await link.peer.send(b"\xff\xff\xff")
            assert await link.peer.frame() == (CLOSE, status(1000))
            assert await link.peer.end() == b""
            await released(link)

    async def test_a_peer_that_hangs_up_instead_of_answering(self, core):
        async with linked(core) as link:
            link.ws.close()
            assert (await link.peer.frame())[0] == CLOSE
            link.peer.close()
            await released(link)

    async def test_a_peer_that_shuts_down_its_side_first(self, core):
        async with linked(core) as link:
            link.ws.close()
            await link.peer.send(close(1000))
            with contextlib.suppress(OSError):
                link.peer.socket.shutdown(socket.SHUT_WR)
            await released(link)

    async def test_a_peer_that_does_not_read_is_let_go(self, core):
        limits = Limits(write_soft_bytes=1 << 20, write_hard_bytes=1 << 26, close_timeout_s=0.2)
        async with linked(core, limits) as link:
            for _ in range(100):
                link.ws.send(bytes(100_000))
            link.ws.close()
            await released(link)


class TestFail:
    """Section 7.1.7: the close frame with the right code, then the end, whatever the peer sends."""

    @pytest.mark.parametrize(
        ("wire", "code"),
        [
            pytest.param(frame(TEXT, b"a", mask=None), 1002, id="5.1_unmasked"),
            pytest.param(text("a", rsv=1), 1002, id="5.2_rsv"),
            pytest.param(frame(3), 1002, id="5.2_opcode"),
            pytest.param(head(BINARY, 5, extended=8), 1002, id="5.2_length_encoding"),
            pytest.param(frame(CONTINUATION, b"a"), 1002, id="5.4_continuation"),
            pytest.param(frame(TEXT, b"a", fin=False) + text("b"), 1002, id="5.4_interleaved"),
            pytest.param(frame(PING, fin=False), 1002, id="5.5_fragmented"),
            pytest.param(head(PING, 126), 1002, id="5.5_long"),
            pytest.param(frame(CLOSE, b"a"), 1002, id="5.5.1_one_byte"),
            pytest.param(close(1005), 1002, id="7.4.1_reserved_code"),
            pytest.param(close(1000, b"\xff"), 1007, id="5.5.1_reason"),
            pytest.param(text(b"\xff"), 1007, id="8.1_utf8"),
            pytest.param(head(BINARY, 1 << 40), 1009, id="10.4_too_big"),
        ],
    )
    async def test_7_1_7_the_peer_is_told_why(self, core, wire, code):
        async with linked(core) as link:
            await link.peer.send(text("good") + wire + text("ignored") + b"\xff" * 50)
            opcode, payload = await link.peer.frame()
            assert (opcode, payload[:2]) == (CLOSE, status(code))
            assert payload[2:].decode()
            assert await link.peer.end() == b""
            link.peer.close()
            await released(link)
            assert link.messages == ["good"]
            assert link.ends == [(code, payload[2:].decode())]

    async def test_7_1_7_what_was_queued_goes_out_before_the_close_frame(self, core):
        async with linked(core) as link:
            link.ws.on_message = link.ws.send
            await link.peer.send(text("good") + b"\xff\xff")
            assert await link.peer.frame() == (TEXT, b"good")
            assert (await link.peer.frame())[0] == CLOSE
            assert link.ws.send("late") is False

    async def test_7_1_1_the_close_frame_arrives_although_the_peer_goes_on_sending(self, core):
        """Unread bytes at close() would make the kernel reset the connection and lose the close frame."""
        async with linked(core) as link:
            await link.peer.send(b"\xff\xff" + bytes(200_000))
            opcode, payload = await link.peer.frame()
            assert (opcode, payload[:2]) == (CLOSE, status(1002))

    async def test_a_peer_that_stays_is_let_go(self, core):
        async with linked(core, QUICK) as link:
            await link.peer.send(b"\xff\xff")
            await released(link)
            assert link.ends[0][0] == 1002

    async def test_a_peer_that_keeps_sending_is_let_go(self, core):
        async with linked(core, QUICK) as link:
            with contextlib.suppress(ConnectionError):
                for _ in range(500):
                    await link.peer.send(b"\xff" * 100)
                    await asyncio.sleep(0.002)
                    if link.ends:
                        break
            await released(link)


class TestAbnormalEnd:
    async def test_7_1_5_no_close_frame_is_1006(self, core):
        for wire in (b"", text("a"), text("a")[:3], text("a")[:1], frame(TEXT, b"a", fin=False), close(1000)[:5]):
            async with linked(core) as link:
                await link.peer.send(wire)
                link.peer.close()
                await released(link)
                assert [code for code, _ in link.ends] == [1006]

    async def test_7_1_5_a_reset_is_1006(self, core):
        async with linked(core) as link:
            link.peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            link.peer.close()
            await released(link)
            assert [code for code, _ in link.ends] == [1006]

    async def test_7_2_1_abort_is_1006(self, core):
        async with linked(core) as link:
            link.ws.send("lost")
            link.ws.abort()
            await released(link)
            assert link.ends == [(1006, "aborted")]


class TestClientRole:
    async def test_5_1_masks_and_takes_unmasked(self, core):
        async with linked(core, client=True) as link:
            link.ws.send("masked")
            assert await link.peer.frame() == (TEXT, b"masked")
            await link.peer.send(text("plain", mask=None) + frame(PING, b"p", mask=None))
            assert await link.peer.frame() == (PONG, b"p")
            assert link.messages == ["plain"]

    async def test_5_1_fails_on_a_masked_frame(self, core):
        async with linked(core, client=True) as link:
            await link.peer.send(text("masked"))
            opcode, payload = await link.peer.frame()
            assert (opcode, payload[:2]) == (CLOSE, status(1002))

    async def test_7_1_1_waits_for_the_server_to_close_and_not_for_ever(self, core):
        async with linked(core, client=True) as link:
            await link.peer.send(close(1000, "bye", mask=None))
            assert await link.peer.frame() == (CLOSE, status(1000))
            assert link.ends == []
            link.peer.close()
            await released(link)
            assert link.ends == [(1000, "bye")]
        async with linked(core, QUICK, client=True) as link:
            await link.peer.send(close(1000, mask=None))
            await released(link)  # by the deadline
            assert link.ends == [(1000, "")]
