"""How a WebSocket ends, and the deadlines that end it: closing, heartbeat, assembly. Compiled and pure.

The closing handshake itself: tests/conformance/test_rfc6455_connection.py.
"""

from __future__ import annotations

import asyncio
import errno
import gc
import weakref

import pytest

from street_fast.errors import CloseCode
from street_fast.limits import Limits
from tests.connection_harness import Panic, drive
from tests.frames_harness import BINARY, CONTINUATION, PING, PONG, TEXT, close, frame, text

SMALL = Limits(write_soft_bytes=1_000, write_hard_bytes=5_000)


class TestEnd:
    def test_on_close_comes_once_and_last(self, world):
        c = world.connect()
        c.ws.close(4000, "enough")
        world.turn()
        assert c.ends == []
        assert (c.ws.closed, c.ws.close_code, c.ws.close_reason) == (True, 4000, "enough")
        c.arrive(close(4000))
        world.turn()
        assert c.ends == [(4000, "enough")]
        c.ws.connection_lost(None)
        c.ws.abort()
        c.ws.close()
        world.turn()
        assert c.ends == [(4000, "enough")]
        assert world.context.stats()["connections"] == 0

    def test_a_wrong_code_is_a_mistake_at_any_time(self, world):
        c = world.connect()
        c.ws.abort()
        world.turn()
        with pytest.raises(ValueError, match="1005"):
            c.ws.close(1005)

    def test_a_peer_that_breaks_a_rule_instead_of_answering(self, world):
        c = world.connect()
        c.ws.close(4000)
        world.turn()
        c.arrive(b"\xff\xff")
        world.turn()
        assert c.ends == [(4000, "")]

    @pytest.mark.parametrize(
        ("end", "code"),
        [
            (lambda c: c.ws.close(CloseCode.GOING_AWAY), 1001),
            (lambda c: c.ws.abort(), 1006),
            (lambda c: c.transport.hang_up(), 1006),
            (lambda c: c.transport.break_down(OSError()), 1006),
            (lambda c: c.arrive(b"\xff\xff"), 1002),
            (lambda c: c.arrive(close(1001)), 1001),
        ],
    )
    def test_the_code_is_a_plain_int(self, world, end, code):
        """It is logged and compared: it must not look otherwise in the other build, or in Python 3.10."""
        c = world.connect()
        end(c)
        world.turn()
        c.ws.abort()
        world.turn()
        assert [repr(number) for number, _ in c.ends] == [repr(c.ws.close_code)] == [str(code)]

    def test_before_the_end_there_is_no_code(self, world):
        c = world.connect()
        assert (c.ws.close_code, c.ws.close_reason) == (None, "")

    def test_the_application_lets_go_of_nothing_by_hand(self, world):
        """Handlers that hold the connection are a cycle; the end breaks it."""
        c = world.connect()
        marker = Marker()
        gone = weakref.ref(marker)
        c.ws.on_message = lambda message, marker=marker, ws=c.ws: None
        c.ws.on_close = lambda code, reason, marker=marker, ws=c.ws: None
        del marker
        gc.disable()
        try:
            c.ws.abort()
            world.turn()
            assert gone() is None
        finally:
            gc.enable()

    def test_wait_closed(self, world):
        c = world.connect()
        future = next(c.ws.wait_closed().__await__())
        c.ws.abort()
        assert not future.done()
        world.turn()
        assert future.done()
        drive(c.ws.wait_closed())

    def test_on_close_that_raises_is_logged(self, world, caplog):
        c = world.connect()

        def fail(code, reason):
            raise ZeroDivisionError

        c.ws.on_close = fail
        c.ws.abort()
        world.turn()
        assert "on_close failed" in caplog.text
        assert world.context.stats()["connections"] == 0

    @pytest.mark.parametrize("error", [asyncio.CancelledError, Panic])
    def test_on_close_that_raises_what_is_no_exception(self, world, error, caplog):
        c = world.connect()

        def on_close(code, reason):
            raise error("boom")

        c.ws.on_close = on_close
        c.ws.abort()
        world.turn()
        assert "boom" in caplog.text

    def test_a_peer_that_breaks_a_rule_and_resets_takes_nobody_with_it(self, world):
        bad, *others = (world.connect(Limits(assembly_timeout_s=5)) for _ in range(3))

        def write_eof():  # asyncio, if the loop has not seen the reset yet
            raise OSError(errno.ENOTCONN, "not connected")

        bad.transport.write_eof = write_eof
        bad.arrive(text("half")[:-1])
        world.clock.now += 5.1
        world.context.wheel.advance()
        for c in others:
            c.ws.send("a")
        world.turn()
        assert [c.sent for c in others] == [[(TEXT, b"a")]] * 2
        assert bad.ends == [(1008, "a message was not complete after 5 s")]

    def test_lost_with_an_error(self, world):
        c = world.connect()
        c.transport.break_down(OSError("the cable is cut"))
        world.turn()
        assert c.ends == [(1006, "connection lost: the cable is cut")]

    def test_lost_without_one(self, world):
        c = world.connect()
        c.transport.close()
        world.turn()
        assert c.ends == [(1006, "connection lost")]

    def test_the_peer_hangs_up_without_a_close_frame(self, world):
        c = world.connect()
        c.transport.hang_up()
        assert c.ws.closed
        world.turn()
        assert c.ends == [(1006, "the peer hung up without a close frame")]

    def test_abort_drops_what_is_queued(self, world):
        c = world.connect()
        c.ws.send("a")
        c.ws.abort()
        world.turn()
        assert c.transport.taken == b""
        assert c.ends == [(1006, "aborted")]
        assert c.ws.bytes_buffered == 0

    def test_abort_and_close_before_the_start(self, world):
        c = world.connection()
        c.ws.close(1001)
        c.ws.start(c.transport, b"head")
        world.turn()
        assert c.transport.taken == b"head\x88\x02\x03\xe9"
        c = world.connection()
        c.ws.abort()
        assert c.ws.closed

    def test_repr_tells_where_it_stands(self, world):
        c = world.connection()
        assert repr(c.ws) == f"<WebSocket {c.ws.id} connecting>"
        c.ws.start(c.transport)
        assert "open" in repr(c.ws)
        c.ws.close()
        assert "closing" in repr(c.ws)
        c.ws.abort()
        world.turn()
        assert "closed" in repr(c.ws)

    def test_nothing_stays_behind(self, world):
        for _ in range(3):
            c = world.connect()
            c.arrive(text("a")[:5])
            c.ws.close()
            world.turn()
            c.arrive(text("a")[5:], close(1000))
            world.turn()
        assert len(world.context.wheel) == 0
        assert world.context.stats()["connections"] == 0


class Marker:
    pass


class TestHeartbeat:
    def test_a_silent_peer_is_pinged_and_then_dropped(self, world):
        c = world.connect()
        world.advance(24.9)
        assert c.sent == []
        world.advance(0.3)
        assert c.sent == [(PING, b"")]
        world.advance(19.7)
        assert not c.transport.aborted
        world.advance(0.5)
        assert c.transport.aborted
        assert [code for code, _ in c.ends] == [1006]
        assert "20 s" in c.ends[0][1]

    def test_a_peer_that_answers_stays(self, world):
        c = world.connect()
        for _ in range(10):
            world.advance(25.1)
            c.arrive(frame(PONG))
        assert not c.ws.closed
        assert c.sent == [(PING, b"")] * 10

    def test_any_byte_is_a_sign_of_life(self, world):
        c = world.connect()
        for octet in frame(BINARY, bytes(20)):
            world.advance(2.0)
            c.arrive(bytes((octet,)))
        assert c.sent == []
        world.advance(23.0)
        assert c.sent == []

    def test_an_answer_after_the_ping_and_half_a_message(self, world):
        c = world.connect()
        world.advance(25.1)
        c.arrive(text("a")[:3])
        world.advance(20.1)
        assert not c.ws.closed

    def test_a_heartbeat_of_ones_own_comes_in_place_of_the_ping(self, core, world):
        c = world.connect()
        c.ws.heartbeat = core.Frame.text("beat")
        world.advance(24.9)
        assert c.sent == []
        world.advance(0.3)
        assert c.sent == [(TEXT, b"beat")]
        world.advance(19.7)
        assert not c.transport.aborted
        world.advance(0.5)
        assert c.sent == [(TEXT, b"beat")]
        assert [code for code, _ in c.ends] == [1006]
        assert "20 s" in c.ends[0][1]

    def test_a_heartbeat_is_sent_to_who_talks_too_and_any_byte_answers_it(self, core, world):
        c = world.connection()
        c.ws.heartbeat = core.Frame.text("beat")
        c.ws.start(c.transport)
        for _ in range(25):
            world.advance(4.0)
            c.arrive(text("x"))
            world.advance(6.1)
        assert c.sent == [(TEXT, b"beat")] * 10
        assert not c.ws.closed

    def test_heartbeats_that_come_faster_than_answers_must(self, core, world):
        """Each is sent, and the first that is not answered counts."""
        c = world.connect(Limits(ping_interval_s=6.0, pong_timeout_s=20.0))
        c.ws.heartbeat = core.Frame.text("beat")
        world.advance(6.3)
        c.arrive(text("x"))
        world.advance(25.0)
        assert not c.transport.aborted
        assert len(c.sent) == 5
        world.advance(1.5)
        assert c.transport.aborted

    def test_a_slow_peer_gets_no_heartbeats_and_need_not_answer_them(self, core, world):
        c = world.connect(Limits(write_soft_bytes=1_000, write_hard_bytes=100_000, write_stall_timeout_s=1_000))
        c.ws.heartbeat = core.Frame.text("beat")
        c.block()
        c.ws.send(bytes(100))
        for _ in range(10):
            world.advance(10.0)
            c.transport.take(1)
        assert not c.ws.closed
        assert world.context.stats()["messages_dropped"] == 3
        c.transport.take(None)
        world.advance(26.0)
        assert [data for opcode, data in c.sent if opcode == TEXT] == [b"beat"]

    def test_a_heartbeat_while_we_do_not_read_demands_no_answer(self, core, world):
        c = world.connect()
        c.ws.heartbeat = core.Frame.text("beat")
        c.ws.pause_reading()
        world.advance(102.0)
        assert c.sent == [(TEXT, b"beat")] * 4
        c.ws.resume_reading()
        world.advance(24.0)
        assert not c.ws.closed
        world.advance(22.0)
        assert c.ws.closed

    def test_a_heartbeat_can_be_set_and_taken_back_at_any_time(self, core, world):
        c = world.connect()
        world.advance(30.0)
        c.arrive(frame(PONG))
        c.ws.heartbeat = core.Frame.text("beat")
        world.advance(25.1)
        assert c.sent == [(PING, b""), (TEXT, b"beat")]
        c.arrive(frame(PONG))
        c.ws.heartbeat = None
        world.advance(25.1)
        assert c.sent == [(PING, b""), (TEXT, b"beat"), (PING, b"")]

    def test_the_heartbeat_of_a_client_is_masked(self, core, world):
        c = world.connect(client=True)
        c.ws.heartbeat = core.Frame.text("beat")
        world.advance(25.1)
        assert c.sent == [(TEXT, b"beat")]

    def test_off(self, world):
        c = world.connect(Limits(ping_interval_s=None))
        world.advance(1_000.0)
        assert c.sent == []
        assert not c.ws.closed
        assert len(world.context.wheel) == 0

    def test_silence_that_we_asked_for_is_not_held_against_the_peer(self, world):
        c = world.connect()
        world.advance(25.1)
        c.ws.pause_reading()
        world.advance(100.0)
        assert not c.ws.closed
        c.ws.resume_reading()
        world.advance(24.0)
        assert not c.ws.closed

    def test_while_we_do_not_read_a_ping_now_and_then_finds_out_whether_the_peer_is_gone(self, world):
        c = world.connect()
        c.ws.pause_reading()
        world.advance(52.0)
        assert c.sent == [(PING, b"")] * 2

        def write(data):
            raise OSError(errno.EPIPE, "broken pipe")

        c.transport.write = write
        world.advance(25.1)
        assert c.ends == [(1006, "connection lost: [Errno 32] broken pipe")]

    def test_silence_counts_from_the_moment_that_we_read_again(self, world):
        c = world.connect()
        c.ws.pause_reading()
        world.advance(24.9)
        c.ws.resume_reading()
        world.advance(24.9)
        assert c.sent == []
        world.advance(0.3)
        assert c.sent == [(PING, b"")]

    def test_after_the_process_was_stopped_bytes_are_read_before_pongs_are_judged(self, world):
        c = world.connect()
        world.advance(25.1)
        assert c.sent == [(PING, b"")]
        world.clock.now += 60.0  # SIGSTOP, SIGCONT: every timer is late, the pong is in the kernel
        world.loop.timers.sort(key=lambda timer: timer.when)
        late = world.loop.timers.pop(0)
        late.callback(*late.args)
        world.turn()
        assert not c.transport.aborted
        c.arrive(frame(PONG))
        world.advance(1.0)
        assert not c.ws.closed


class TestAssembly:
    LIMITS = Limits(assembly_timeout_s=60.0)

    def test_a_message_that_does_not_end(self, world):
        c = world.connect(self.LIMITS)
        c.arrive(frame(TEXT, b"a", fin=False))
        for _ in range(11):
            world.advance(5.0)
            c.arrive(frame(CONTINUATION, b"a", fin=False))
            assert not c.ws.closed
        world.advance(5.2)
        assert c.ws.close_code == 1008
        assert "60 s" in c.ws.close_reason
        c.arrive(frame(CONTINUATION, bytes(1_000), fin=False), b"\xff\xff")
        assert c.ws.buffered == 0
        assert world.context.stats()["protocol_errors"] == 1
        world.advance(2.1)
        assert len(c.ends) == 1

    def test_a_frame_header_that_does_not_end(self, world):
        c = world.connect(self.LIMITS)
        c.arrive(text("a")[:1])
        for _ in range(12):
            world.advance(5.05)
            c.arrive(b"")
        assert c.ws.close_code == 1008

    def test_every_message_has_its_own_time(self, world):
        c = world.connect(self.LIMITS)
        wire = text("a")
        c.arrive(wire[:3])
        for _ in range(20):  # a message is unfinished all the time, but never the same one for long
            world.advance(10.0)
            c.arrive(wire[3:] + wire[:3])
        assert not c.ws.closed
        assert len(c.messages) == 20

    def test_pings_inside_do_not_extend_it(self, world):
        c = world.connect(self.LIMITS)
        c.arrive(frame(TEXT, b"a", fin=False))
        for _ in range(13):
            world.advance(5.0)
            c.arrive(frame(PING))
        assert c.ws.close_code == 1008

    def test_time_while_we_do_not_read_does_not_count_against_the_peer(self, world):
        c = world.connect(self.LIMITS)
        c.arrive(text("abc")[:7])
        c.ws.pause_reading()
        world.advance(100.0)
        assert not c.ws.closed
