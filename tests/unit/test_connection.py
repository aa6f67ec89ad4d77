"""WebSocket and LoopContext, compiled and pure: one class of tests for both.

They use a loop, a clock and a transport that are turned by hand; test_connection_sockets.py has what the kernel
decides. The handshakes of RFC 6455 section 7 have a file of their own in tests/conformance.
"""

from __future__ import annotations

import array
import asyncio
import dataclasses
import gc
import logging
import time

import pytest

from street_fast import slow_consumers
from street_fast.errors import ConnectionClosed
from street_fast.limits import Limits
from tests.connection_harness import MemoryTransport, Panic, codes, drive
from tests.frames_harness import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close, frame, text

SMALL = Limits(write_soft_bytes=1_000, write_hard_bytes=5_000)


class TestStart:
    def test_head_goes_first_and_what_was_sent_before_follows(self, world):
        c = world.connection()
        assert c.ws.send("early")
        assert c.ws.send("bird")
        world.turn()
        c.ws.start(c.transport, b"HTTP/1.1 101\r\n\r\n")
        c.ws.send("late")
        world.turn()
        assert c.transport.taken.startswith(b"HTTP/1.1 101\r\n\r\n\x81\x05early\x81\x04bird\x81\x04late")
        assert c.transport.writes == 1

    def test_becomes_the_protocol_of_the_transport(self, world):
        c = world.connect()
        assert c.transport.get_protocol() is c.ws
        assert c.ws.transport is c.transport
        assert not c.ws.closed
        assert c.ws.get_extra_info("peername") == ("127.0.0.1", 1)
        assert c.ws.get_extra_info("nothing", "default") == "default"

    def test_connection_made_starts_it(self, world):
        c = world.connection()
        c.ws.connection_made(c.transport)
        c.ws.send("a")
        world.turn()
        assert c.sent == [(TEXT, b"a")]

    def test_connection_made_after_start_changes_nothing(self, world):
        c = world.connect()
        c.ws.connection_made(c.transport)
        assert world.context.stats()["connections_opened"] == 1

    def test_tail_is_parsed_in_the_next_turn_before_later_bytes(self, world):
        c = world.connection()
        c.ws.start(c.transport, b"", text("a") + text("b")[:3])
        assert c.messages == []
        c.arrive(text("b")[3:], text("c"))
        assert c.messages == ["a", "b", "c"]
        world.turn()
        assert c.messages == ["a", "b", "c"]

    def test_tail_waits_for_who_paused_at_once(self, world):
        c = world.connection()
        c.ws.start(c.transport, b"", text("a"))
        c.ws.pause_reading()
        world.turn()
        assert c.messages == []
        c.ws.resume_reading()
        assert c.messages == ["a"]

    def test_an_error_in_the_tail_is_answered(self, world):
        c = world.connection()
        c.ws.start(c.transport, b"", b"\x83\x80")
        world.turn()
        assert c.sent[0][1][:2] == codes(1002)

    def test_starts_once(self, world):
        c = world.connect()
        with pytest.raises(RuntimeError, match="already"):
            c.ws.start(c.transport)
        c.ws.abort()
        world.turn()
        with pytest.raises(RuntimeError, match="already"):
            c.ws.start(c.transport)

    def test_on_a_transport_that_is_gone_already(self, world):
        c = world.connection()
        c.transport.closing = True
        c.ws.start(c.transport, b"head", text("a"))
        world.turn()
        assert [code for code, _ in c.ends] == [1006]
        assert c.messages == []
        assert world.context.stats()["connections"] == 0

    @pytest.mark.parametrize("early", [b"", b"head"])
    def test_behind_a_backlog_of_the_transport(self, world, early):
        c = world.connection()
        c.transport.room = 0
        c.transport.write(b"HTTP response before")
        c.ws.start(c.transport, early)
        c.ws.send("a")
        world.turn()
        c.transport.take(None)
        world.turn()
        assert c.transport.taken == b"HTTP response before" + early + b"\x81\x01a"

    def test_takes_a_context_and_options_by_name(self, core, world):
        with pytest.raises(TypeError):
            core.WebSocket(None)
        ws = core.WebSocket(world.context, client=True, subprotocol="chat")
        assert (ws.client, ws.subprotocol) == (True, "chat")

    def test_a_subclass_that_forgets_to_initialize_it(self, core, world):
        class Forgetful(core.WebSocket):
            def __init__(self, context):
                pass

        c = world.connect()
        ws = Forgetful(world.context)
        for use in (lambda: ws.id, lambda: repr(ws), lambda: ws.start(c.transport)):
            with pytest.raises((AttributeError, RuntimeError)):
                use()

    def test_ids_are_unique_and_short_text(self, core, world):
        other = core.LoopContext(world.loop, world.clock)
        ids = {core.WebSocket(context).id for context in (world.context, other) for _ in range(100)}
        assert len(ids) == 200
        assert all(name.isalnum() and len(name) < 32 for name in ids)


class TestReceive:
    def test_text_is_str_and_binary_is_bytes(self, world):
        c = world.connect()
        c.arrive(text("plain"), text("κόσμε"), text(""), frame(BINARY, b"\xff\x00"), frame(BINARY))
        assert c.messages == ["plain", "κόσμε", "", b"\xff\x00", b""]
        assert [type(m) for m in c.messages] == [str, str, str, bytes, bytes]

    def test_text_as_bytes(self, world):
        c = world.connect()
        c.ws.text_as_bytes = True
        c.arrive(text("κόσμε"), frame(BINARY, b"\xff"))
        assert c.messages == ["κόσμε".encode(), b"\xff"]
        assert [type(m) for m in c.messages] == [bytes, bytearray]  # so that they can be told apart

    def test_byte_by_byte_and_in_fragments(self, world):
        c = world.connect()
        wire = frame(TEXT, "κόσμε".encode()[:3], fin=False) + frame(CONTINUATION, "κόσμε".encode()[3:]) + text("b")
        for octet in wire:
            c.arrive(bytes((octet,)))
        assert c.messages == ["κόσμε", "b"]

    def test_two_connections_share_a_buffer_but_no_bytes(self, world):
        a, b = world.connect(), world.connect()
        for i in range(0, 20, 3):
            a.arrive(text("of a, a message")[i : i + 3])
            b.arrive(text("of b, and longer")[i : i + 3])
        a.arrive(text("of a, a message")[21:])
        b.arrive(text("of b, and longer")[21:])
        assert (a.messages, b.messages) == (["of a, a message"], ["of b, and longer"])

    def test_without_a_handler_messages_are_dropped_and_pings_answered(self, world):
        c = world.connect()
        c.ws.on_message = None
        c.arrive(text("a"), frame(PING, b"p"))
        assert c.sent == [(PONG, b"p")]
        c.ws.on_message = c.messages.append
        c.arrive(text("b"))
        assert c.messages == ["b"]

    def test_a_handler_that_raises_is_logged_and_harms_nobody(self, world, caplog):
        c = world.connect()

        def fail(message):
            c.messages.append(message)
            raise ZeroDivisionError

        c.ws.on_message = fail
        c.arrive(text("a"), text("b"))
        assert c.messages == ["a", "b"]
        assert not c.ws.closed
        assert [r.levelno for r in caplog.records] == [logging.ERROR] * 2
        assert c.ws.id in caplog.text
        assert "ZeroDivisionError" in caplog.text

    @pytest.mark.parametrize("error", [asyncio.CancelledError, Panic])
    def test_a_handler_that_raises_what_is_no_exception(self, world, error, caplog):
        for tail in (b"", text("a")):
            c = world.connection()

            def handler(message, c=c):
                c.messages.append(message)
                raise error("boom")

            c.ws.on_message = handler
            c.ws.start(c.transport, tail=tail)
            c.arrive(text("b"))
            world.turn()
            assert c.messages[-1] == "b"
            assert not c.ws.closed
            assert c.ws.id in caplog.text

    def test_a_handler_that_stops_the_process_does(self, world):
        c = world.connect()

        def handler(message):
            raise KeyboardInterrupt

        c.ws.on_message = handler
        with pytest.raises(KeyboardInterrupt):
            c.arrive(text("a"))

    @pytest.mark.parametrize("name", ["on_message", "on_close"])
    def test_a_handler_is_a_plain_function(self, world, name):
        async def later(*_):
            pass

        ws = world.connect().ws
        before = getattr(ws, name)
        with pytest.raises(TypeError, match=f"{name}=.*must be a plain function; for coroutines"):
            setattr(ws, name, later)
        with pytest.raises(TypeError, match=f"{name}=5: must be a function, or None"):
            setattr(ws, name, 5)
        assert getattr(ws, name) == before

    @pytest.mark.parametrize("wrong", [("bye",), (1000, None), (1000, b"bye"), (None,)])
    def test_close_takes_a_code_and_a_reason(self, world, wrong):
        c = world.connect()
        with pytest.raises(TypeError, match="a close takes a code and a reason, an int and a str"):
            c.ws.close(*wrong)
        for code in (2**40, -1, 999, 1005):
            with pytest.raises(ValueError, match="may not be sent"):
                c.ws.close(code)
        with pytest.raises(TypeError, match=r"ping\(\) takes bytes, not str"):
            c.ws.ping("x")
        assert not c.ws.closed

    def test_a_handler_may_close_or_abort_and_gets_no_more(self, world):
        for end in ("close", "abort"):
            c = world.connect()

            def handler(message, c=c, end=end):
                c.messages.append(message)
                getattr(c.ws, end)()

            c.ws.on_message = handler
            c.arrive(text("a"), text("b"))
            world.turn()
            assert c.messages == ["a"]

    def test_a_listener_hears_of_messages_and_of_the_end(self, world, caplog):
        c = world.connect()
        heard = []

        class Listener:
            def _on_message(self, message):
                heard.append(message)
                if message == "fail":
                    raise RuntimeError("boom")

            def _on_close(self, code, reason):
                heard.append(code)
                raise RuntimeError("boom")

        c.ws.listener = Listener()
        c.arrive(text("a"), text("fail"), frame(BINARY, b"b"))
        assert c.messages == []
        c.ws.abort()
        world.turn()
        assert heard == ["a", "fail", b"b", 1006]
        assert c.ws.listener is None
        assert c.ends == []
        assert [record.getMessage().partition(": ")[2] for record in caplog.records] == [
            "on_message failed",
            "on_close failed",
        ]

    def test_feed_is_not_for_a_websocket(self, world):
        with pytest.raises(TypeError, match="FrameParser"):
            world.connect().ws.feed(b"")

    def test_limits_reach_the_parser(self, world):
        c = world.connect(Limits(message_bytes=100, event_bytes=100))
        c.arrive(frame(BINARY, bytes(101)))
        assert c.sent[0][1][:2] == codes(1009)
        c = world.connect(Limits(fragments=2))
        c.arrive(frame(TEXT, b"", fin=False), frame(CONTINUATION, b"", fin=False), frame(CONTINUATION, b""))
        assert c.sent[0][1][:2] == codes(1008)


class TestPauseReading:
    def test_holds_the_transport_and_the_rest_of_the_read(self, world):
        c = world.connect()

        def handler(message):
            c.messages.append(message)
            c.ws.pause_reading()

        c.ws.on_message = handler
        c.arrive(text("a"), text("b"), text("c"))
        assert not c.transport.reading
        for count in (1, 2, 3):
            assert c.messages == ["a", "b", "c"][:count]
            c.ws.resume_reading()
        c.arrive(text("d"))
        assert c.messages == ["a", "b", "c", "d"]

    def test_what_was_kept_comes_before_what_arrives(self, world):
        c = world.connect()
        c.ws.pause_reading()
        c.transport.reading = True  # a read that was under way
        c.arrive(text("a"), text("b")[:4])
        assert c.messages == []
        c.ws.resume_reading()
        c.arrive(text("b")[4:])
        assert c.messages == ["a", "b"]

    def test_before_the_start_and_after_the_end(self, world):
        c = world.connection()
        c.ws.pause_reading()
        c.ws.resume_reading()
        c.ws.start(c.transport)
        c.ws.abort()
        c.ws.pause_reading()
        c.ws.resume_reading()
        world.turn()
        c.ws.pause_reading()
        c.ws.resume_reading()

    def test_before_the_start_it_holds_the_transport_from_the_start_on(self, world):
        c = world.connection()
        c.ws.pause_reading()
        c.ws.start(c.transport, tail=text("a"))
        world.turn()
        c.arrive(text("b"))
        assert not c.transport.reading
        assert c.ws.buffered == len(text("a"))
        c.ws.resume_reading()
        world.turn()
        assert c.messages == ["a", "b"]

    def test_once_it_is_closing_nothing_is_kept_and_the_answer_gets_through(self, world):
        c = world.connect()
        c.ws.close(1001)
        c.ws.pause_reading()
        c.arrive(text("not wanted"))
        assert c.ws.buffered == 0
        c.arrive(close(1001))
        world.turn()
        assert c.ends == [(1001, "")]

    def test_an_error_in_what_was_kept_is_answered(self, world):
        c = world.connect()
        c.ws.pause_reading()
        c.transport.reading = True
        c.arrive(text("a"), b"\x83\x80")
        c.ws.resume_reading()
        world.turn()
        assert c.messages == ["a"]
        assert c.sent[-1][1][:2] == codes(1002)

    def test_close_lets_the_answer_through(self, world):
        c = world.connect()
        c.ws.pause_reading()
        c.ws.close()
        world.turn()
        c.arrive(close(1000))
        world.turn()
        assert c.ends == [(1000, "")]

    def test_close_finds_an_answer_that_was_kept(self, world):
        c = world.connect()
        c.ws.pause_reading()
        c.transport.reading = True
        c.arrive(text("not wanted"), close(1001))
        c.ws.close()
        world.turn()
        assert c.messages == []
        assert len(c.ends) == 1
        assert c.transport.closing


class TestSend:
    def test_every_kind_of_message(self, core, world):
        c = world.connect()
        for message in (
            "κόσμε",
            b"bytes",
            bytearray(b"array"),
            memoryview(b"view"),
            core.Frame.text("made"),
            core.Frame.binary(b"before"),
            "",
            b"",
        ):
            assert c.ws.send(message) is True
        world.turn()
        assert c.sent == [
            (TEXT, "κόσμε".encode()),
            (BINARY, b"bytes"),
            (BINARY, b"array"),
            (BINARY, b"view"),
            (TEXT, b"made"),
            (BINARY, b"before"),
            (TEXT, b""),
            (BINARY, b""),
        ]

    def test_a_view_of_larger_items_or_more_dimensions_is_its_bytes(self, world):
        c = world.connect()
        numbers = array.array("I", range(40))
        for view in (memoryview(numbers), memoryview(numbers.tobytes()).cast("B", (8, 20)), memoryview(numbers)[10:20]):
            c.ws.send(view)
        world.turn()
        assert c.sent == [(BINARY, numbers.tobytes())] * 2 + [(BINARY, numbers[10:20].tobytes())]

    @pytest.mark.parametrize("size", [125, 126, 65_535, 65_536])
    def test_every_size_of_header(self, world, size):
        c = world.connect()
        c.ws.send("x" * size)
        c.ws.send(bytes(size))
        world.turn()
        assert c.sent == [(TEXT, b"x" * size), (BINARY, bytes(size))]

    @pytest.mark.parametrize("wrong", [5, None, ["a"], {"a": 1}, 1.5])
    def test_nothing_else(self, world, wrong):
        c = world.connect()
        with pytest.raises(TypeError, match=r"send\(\) takes"):
            c.ws.send(wrong)
        with pytest.raises(UnicodeEncodeError):
            c.ws.send("\ud800")
        with pytest.raises(TypeError):
            c.ws.send(memoryview(bytes(10))[::2])
        world.turn()
        assert c.sent == []

    def test_leaves_at_the_end_of_the_turn_in_one_write(self, world):
        c = world.connect()
        for i in range(10):
            c.ws.send(str(i))
        c.ws.ping(b"p")
        assert c.transport.writes == 0
        assert c.ws.bytes_buffered == 10 * 3 + 3
        world.turn()
        assert c.transport.writes == 1
        assert c.ws.bytes_buffered == 0
        assert [payload for _, payload in c.sent] == [b"0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"8", b"9", b"p"]

    def test_from_a_handler_leaves_when_the_read_is_handled(self, world):
        c = world.connect()
        c.ws.on_message = lambda message: c.ws.send(message.upper())
        c.arrive(text("a"), text("b"), frame(PING, b"p"), text("c"))
        assert c.transport.writes == 1  # without another turn of the loop,
        assert not world.loop.ready  # and without asking for one
        assert c.sent == [(TEXT, b"A"), (TEXT, b"B"), (PONG, b"p"), (TEXT, b"C")]

    def test_from_a_handler_to_another_connection_leaves_in_the_same_turn(self, world):
        a, b = world.connect(), world.connect()
        a.ws.on_message = b.ws.send
        a.arrive(text("1"), text("2"))
        world.turn()
        assert b.sent == [(TEXT, b"1"), (TEXT, b"2")]
        assert b.transport.writes == 1

    def test_order_holds_between_turn_and_handler(self, world):
        c = world.connect()
        c.ws.on_message = c.ws.send
        c.ws.send("first")
        c.arrive(text("second"))
        c.ws.send("third")
        world.turn()
        assert [payload for _, payload in c.sent] == [b"first", b"second", b"third"]

    def test_is_a_copy_of_what_may_change(self, world):
        c = world.connect()
        data = bytearray(b"before")
        c.ws.send(data)
        data[:] = b"after!"
        world.turn()
        assert c.sent == [(BINARY, b"before")]

    def test_says_no_once_closed(self, core, world):
        c = world.connect()
        c.ws.close()
        for message in ("a", b"a", core.Frame.text("a")):
            assert c.ws.send(message) is False
        assert c.ws.ping() is False
        world.turn()
        assert [opcode for opcode, _ in c.sent] == [CLOSE]
        c.ws.abort()
        world.turn()
        assert c.ws.send("a") is False
        assert c.ws.send(5) is False  # nothing is looked at any more

    def test_a_client_masks_every_frame_with_a_new_key(self, core, world):
        c = world.connect(client=True)
        built = core.Frame.text("built once")
        for message in ("a", b"b", built, built):
            c.ws.send(message)
        c.ws.ping(b"p")
        c.ws.close(1000, "bye")
        world.turn()
        assert c.sent == [
            (TEXT, b"a"),
            (BINARY, b"b"),
            (TEXT, b"built once"),
            (TEXT, b"built once"),
            (PING, b"p"),
            (CLOSE, codes(1000) + b"bye"),
        ]
        wire = bytes(c.transport.taken)
        first = wire.index(b"\x81\x8a")
        second = wire.index(b"\x81\x8a", first + 1)
        assert wire[first + 2 : first + 6] != wire[second + 2 : second + 6]

    def test_ping(self, world):
        c = world.connect()
        assert c.ws.ping() is True
        assert c.ws.ping(bytes(125)) is True
        with pytest.raises(ValueError, match="125"):
            c.ws.ping(bytes(126))
        world.turn()
        assert c.sent == [(PING, b""), (PING, bytes(125))]

    def test_a_transport_that_raises_is_a_lost_connection(self, world):
        c = world.connect()
        c.transport.ended = True  # write() raises AssertionError now, as uvloop's does RuntimeError
        c.ws.send("a")
        world.turn()
        assert [code for code, _ in c.ends] == [1006]


class TestPings:
    def test_are_answered_in_order_with_their_data(self, world):
        c = world.connect()
        c.arrive(frame(PING, b"1"), frame(PING), frame(PONG, b"unasked"), frame(PING, bytes(125)))
        assert c.sent == [(PONG, b"1"), (PONG, b""), (PONG, bytes(125))]

    def test_a_burst_is_fine_and_a_flood_is_not(self, world):
        c = world.connect(Limits(control_frames_burst=10, control_frames_per_second=5.0))
        c.arrive(*[frame(PING)] * 10)
        assert c.sent == [(PONG, b"")] * 10
        world.advance(1.0)
        c.arrive(*[frame(PONG)] * 5)
        assert not c.ws.closed
        c.arrive(frame(PONG))
        assert c.sent[-1][1][:2] == codes(1008)
        assert c.ws.close_code == 1008

    def test_only_the_newest_is_answered_while_the_peer_does_not_read(self, world):
        c = world.connect(SMALL)
        c.block()
        c.ws.send(bytes(1))
        for i in range(50):
            c.arrive(frame(PING, b"%d" % i))
        assert c.ws.bytes_buffered < 1_200
        c.transport.take(None)
        world.turn()
        assert c.sent[2:] == [(PONG, b"49")]


class TestBackpressure:
    def test_bytes_buffered(self, world):
        c = world.connect(SMALL)
        c.block()
        assert c.ws.bytes_buffered == 1_004
        c.ws.send(bytes(96))
        world.turn()
        assert c.ws.bytes_buffered == 1_004 + 98
        c.transport.take(500)
        assert c.ws.bytes_buffered == 504 + 98
        c.transport.take(None)
        world.turn()
        assert c.ws.bytes_buffered == 0
        assert c.sent == [(BINARY, bytes(1_000)), (BINARY, bytes(96))]

    def test_below_the_soft_mark_droppable_messages_go_out(self, world):
        c = world.connect(SMALL)
        assert c.ws.send("typing", droppable=True) is True
        world.turn()
        assert c.sent == [(TEXT, b"typing")]

    def test_above_the_soft_mark_droppable_messages_are_dropped_and_counted(self, core, world):
        c = world.connect(SMALL)
        c.block()
        assert c.ws.send("typing", droppable=True) is False
        assert core.fan_out([c.ws], core.Frame.text("typing"), droppable=True) == []
        assert world.context.stats()["messages_dropped"] == 2
        assert c.ws.send("kept") is True
        c.transport.take(None)
        world.turn()
        assert c.sent[1:] == [(TEXT, b"kept")]

    def test_a_long_turn_is_no_slow_peer(self, world):
        """What waits only for the end of the turn is tried before anything is dropped."""
        c = world.connect(SMALL)
        for _ in range(100):
            assert c.ws.send(bytes(500)) is True
            assert c.ws.send("typing", droppable=True) is True
        world.turn()
        assert len(c.sent) == 200
        assert not c.ws.closed

    def test_above_the_hard_cap_the_peer_is_evicted(self, world):
        c = world.connect(SMALL)
        c.block()
        sent = 0
        while c.ws.send(bytes(500)):
            sent += 1
        assert sent == 8  # the one that finds more than 5,000 waiting is refused
        assert c.ws.send("more") is False
        world.turn()
        assert c.ws.closed
        assert c.ws.close_code == 4008
        assert world.context.stats()["slow_consumers"] == 1
        assert c.ws.bytes_buffered < 1_200  # only what is in flight, and the close frame
        c.transport.take(None)
        world.turn()
        assert [opcode for opcode, _ in c.sent] == [BINARY, CLOSE]
        assert c.sent[1][1][:2] == codes(4008)
        world.advance(2.1)
        assert [code for code, _ in c.ends] == [4008]

    def test_one_evicted_peer_does_not_hold_up_a_broadcast(self, core, world):
        slow, good = world.connect(SMALL), world.connect(SMALL)
        slow.block()
        for i in range(20):
            core.broadcast([slow.ws, good.ws], b"%d" % i * 400)
            world.turn()
        assert slow.ws.close_code == 4008
        assert len(good.sent) == 20

    def test_without_a_byte_taken_the_peer_is_evicted(self, world):
        c = world.connect(SMALL)
        c.block()
        world.advance(9.9)
        assert not c.ws.closed
        world.advance(2.6)  # looked at every quarter of the time
        assert c.ws.close_code == 4008
        assert "10 s" in c.ws.close_reason
        world.advance(2.1)
        assert c.transport.aborted
        assert [code for code, _ in c.ends] == [4008]

    def test_a_slow_but_steady_peer_stays(self, world):
        c = world.connect(SMALL)
        c.block()
        for _ in range(20):
            world.advance(5.0)
            c.arrive(frame(PONG))
            c.transport.take(10)
        assert not c.ws.closed

    def test_drain_waits_for_the_soft_mark(self, world):
        c = world.connect(SMALL)
        drive(c.ws.drain())  # nothing waits
        c.block()
        c.ws.send(bytes(500))
        waiting = c.ws.drain().__await__()
        future = next(waiting)
        world.turn()
        assert not future.done()
        c.transport.take(None)
        assert future.done()
        future.result()

    def test_drain_raises_when_the_connection_ends(self, world):
        c = world.connect(SMALL)
        c.block()
        future = next(c.ws.drain().__await__())
        c.ws.abort()
        world.turn()
        with pytest.raises(ConnectionClosed) as caught:
            future.result()
        assert caught.value.close_code == 1006
        with pytest.raises(ConnectionClosed):
            drive(c.ws.drain())

    def test_a_cancelled_drain_is_forgotten(self, world):
        c = world.connect(SMALL)
        c.block()
        future = next(c.ws.drain().__await__())
        future.cancel()
        c.transport.take(None)
        world.turn()
        assert not c.ws.closed


class TestTotal:
    """What all slow connections together keep in memory."""

    LIMITS = Limits(outbound_total_bytes=100_000, ping_interval_s=None, write_stall_timeout_s=1_000)

    def slow(self, world, *sizes, limits=LIMITS):
        connections = []
        for size in sizes:
            c = world.connect(limits)
            c.transport.set_write_buffer_limits(high=0)
            c.transport.room = 0
            c.ws.send(b"x")
            world.turn()
            assert c.transport.writing_paused
            while size > 0:
                c.ws.send(bytes(min(size, 1_000) - 4))
                size -= 1_000
            connections.append(c)
        world.turn()
        return connections

    def test_the_largest_go_while_there_is_too_much(self, world, caplog):
        a, b, c, d = self.slow(world, 20_000, 60_000, 40_000, 10_000)
        healthy = world.connect(self.LIMITS)
        assert world.context.stats()["bytes_waiting"] == 130_012
        world.advance(0.9)
        assert not b.ws.closed
        world.advance(0.2)
        assert b.ws.close_code == 4008
        assert "too many bytes wait" in b.ws.close_reason
        world.advance(10.0)
        assert not any(each.ws.closed for each in (a, c, d, healthy))
        stats = world.context.stats()
        assert (stats["bytes_waiting"], stats["slow_consumers"], stats["outbound_evictions"]) == (70_009, 1, 1)
        assert [record.getMessage() for record in caplog.records] == [
            "1 slow connections were evicted: all together held 130012 bytes, and Limits.outbound_total_bytes is 100000"
        ]
        assert [code for code, _ in b.ends] == [4008]

    def test_as_many_as_it_takes_in_one_round(self, world):
        connections = self.slow(world, *[30_000 + 100 * i for i in range(10)])
        world.advance(1.1)
        assert [each.ws.closed for each in connections] == [False] * 3 + [True] * 7

    def test_what_many_wait_for_counts_once(self, core, world):
        connections = self.slow(world, *[0] * 50)
        for number in range(60):
            core.broadcast([each.ws for each in connections], b"%04d" % number * 250)
        world.turn()
        assert world.context.stats()["bytes_waiting"] > 3_000_000
        world.advance(2.5)
        assert not any(each.ws.closed for each in connections)
        own = bytes(300_000)
        connections[7].ws.send(own)
        world.advance(1.1)
        assert [i for i, each in enumerate(connections) if each.ws.closed] == [7]

    def test_no_rounds_while_nobody_is_slow(self, world):
        (c,) = self.slow(world, 10_000)
        world.advance(5.0)
        assert len(world.context.wheel) == 2  # the round, and the look at the peer's progress
        c.transport.take(None)
        world.turn()
        assert world.context.stats()["bytes_waiting"] == 0
        world.advance(1.1)
        assert len(world.context.wheel) == 1
        c.ws.abort()
        world.advance(1.1)
        assert len(world.context.wheel) == 0

    def test_connections_that_end_are_let_go_at_once(self, world):
        connections = self.slow(world, *[60_000] * 4)
        for each in connections[:3]:
            each.ws.abort()
        world.turn()
        assert world.context.stats()["bytes_waiting"] == 60_003
        world.advance(3.0)
        assert world.context.stats()["outbound_evictions"] == 0

    def test_what_waits_below_the_mark_of_a_transport_that_encrypts_counts(self, world):
        c = world.connect(self.LIMITS)
        c.transport.room = 0
        for _ in range(4):
            c.ws.send(bytes(10_000))
            world.turn()
        assert not c.transport.writing_paused
        assert world.context.stats()["bytes_waiting"] == 40_016

    def test_each_connection_has_the_bound_of_its_limits(self, world):
        roomy = dataclasses.replace(self.LIMITS, outbound_total_bytes=10_000_000)
        big, biggest = self.slow(world, 300_000, 400_000, limits=roomy)
        (small,) = self.slow(world, 50_000)
        world.advance(1.1)
        assert [each.ws.closed for each in (big, biggest, small)] == [False, False, True]

    def test_the_default_is_a_quarter_of_what_the_process_may_have(self, world, monkeypatch):
        monkeypatch.setattr(slow_consumers, "process_memory_limit", lambda: 400_000)
        connections = self.slow(world, 60_000, 50_000, limits=Limits(ping_interval_s=None))
        world.advance(1.1)
        assert [each.ws.closed for each in connections] == [True, False]


class TestBroadcast:
    def test_to_any_iterable_of_connections(self, core, world):
        all_of_them = [world.connect() for _ in range(5)]
        sockets = [c.ws for c in all_of_them]
        assert core.broadcast(sockets, "text") == 5
        assert core.broadcast(set(sockets), b"bytes") == 5
        assert core.broadcast(dict.fromkeys(sockets), bytearray(b"array")) == 5
        assert core.broadcast(iter(sockets), memoryview(b"view")) == 5
        assert core.broadcast((ws for ws in sockets), core.Frame.text("frame")) == 5
        assert core.broadcast([], "nobody") == 0
        world.turn()
        for c in all_of_them:
            assert [payload for _, payload in c.sent] == [b"text", b"bytes", b"array", b"view", b"frame"]

    def test_skips_one(self, core, world):
        a, b, c = (world.connect() for _ in range(3))
        assert core.broadcast([a.ws, b.ws, c.ws], "x", skip=b.ws) == 2
        world.turn()
        assert [len(x.sent) for x in (a, b, c)] == [1, 0, 1]

    def test_counts_who_took_it(self, core, world):
        a, b, c, d = (world.connect(SMALL) for _ in range(4))
        a.ws.close()
        b.ws.abort()
        c.block()
        while c.ws.send(bytes(500)):
            pass
        assert core.broadcast([a.ws, b.ws, c.ws, d.ws], "x") == 1

    def test_takes_nothing_but_connections(self, core, world):
        good = world.connect()
        with pytest.raises(TypeError, match="broadcast"):
            core.broadcast([good.ws, "no"], "x")
        world.turn()
        assert len(good.sent) == 1
        for wrong in (5, None):
            with pytest.raises(TypeError):
                core.broadcast([good.ws], wrong)

    def test_many_in_one_turn_are_one_write_each(self, core, world):
        all_of_them = [world.connect() for _ in range(300)]
        for i in range(16):
            core.broadcast([c.ws for c in all_of_them], str(i))
        world.turn()
        for c in all_of_them:
            assert c.transport.writes == 1
            assert [payload for _, payload in c.sent] == [b"%d" % i for i in range(16)]

    def test_unlike_outboxes_in_one_turn(self, core, world):
        all_of_them = [world.connect() for _ in range(20)]
        for i, c in enumerate(all_of_them):
            core.broadcast([x.ws for x in all_of_them[i:]], str(i))
            c.ws.send("own")
        world.turn()
        for i, c in enumerate(all_of_them):
            assert [payload for _, payload in c.sent] == [b"%d" % j for j in range(i + 1)] + [b"own"]

    def test_to_clients_is_masked(self, core, world):
        c = world.connect(client=True)
        core.broadcast([c.ws], "x")
        world.turn()
        assert c.sent == [(TEXT, b"x")]


class TestFanOut:
    def test_gives_back_what_is_no_websocket(self, core, world):
        c = world.connect()
        peer = object()
        assert core.fan_out({c.ws: 1, peer: 2}, core.Frame.text("x")) == [peer]
        assert core.fan_out([peer, c.ws, "sse"], core.Frame.text("y")) == [peer, "sse"]
        world.turn()
        assert c.sent == [(TEXT, b"x"), (TEXT, b"y")]

    def test_skips_one_or_a_set(self, core, world):
        a, b, c = (world.connect() for _ in range(3))
        peer = "sse"
        sinks = [a.ws, b.ws, c.ws, peer]
        built = core.Frame.text("x")
        assert core.fan_out(sinks, built, a.ws) == [peer]
        assert core.fan_out(sinks, built, peer) == []
        assert core.fan_out(sinks, built, {a.ws, peer}) == []
        assert core.fan_out(sinks, built, frozenset({b.ws})) == [peer]
        assert core.fan_out(sinks, built, None) == [peer]
        world.turn()
        assert [len(x.sent) for x in (a, b, c)] == [3, 4, 5]

    def test_takes_a_frame_only(self, core, world):
        for wrong in (None, "x", b"x"):
            with pytest.raises((TypeError, AttributeError)):
                core.fan_out([world.connect().ws], wrong)


class TestContext:
    def test_the_time_of_day(self, core):
        before = time.time_ns() // 1_000_000
        now = core.unix_time_ms()
        assert type(now) is int
        assert before <= now <= time.time_ns() // 1_000_000

    def test_a_flush_goes_in_slices_of_a_millisecond(self, core, world):
        connections = [world.connect() for _ in range(5)]

        class Slow(MemoryTransport):
            def write(self, data):
                super().write(data)
                world.clock.now += 0.000_6

        for c in connections:
            c.transport.__class__ = Slow
        core.broadcast([c.ws for c in connections], "x")
        reached = []
        while world.loop.ready:
            callback, args = world.loop.ready.popleft()
            callback(*args)
            reached.append(sum(c.transport.writes for c in connections))
        assert reached == [2, 4, 5]

    @pytest.mark.both_loops
    async def test_of_a_loop_is_one(self, core):
        loop = asyncio.get_running_loop()
        assert core.LoopContext.of() is core.LoopContext.of(loop)
        assert core.LoopContext.of().loop is loop

    def test_limits_made_for_each_connection_are_let_go(self, world):
        for number in range(200):
            world.connect(Limits(message_bytes=600_000 + number)).ws.abort()
            world.turn()
        gc.collect()
        assert sum(isinstance(each, Limits) and each.message_bytes > 600_000 for each in gc.get_objects()) <= 64

    def test_stats(self, world):
        a, b = world.connect(), world.connect()
        a.arrive(text("hello"), frame(PING))
        a.ws.send("x")
        world.turn()
        b.ws.abort()
        world.turn()
        a.arrive(b"\x83\x80")
        world.turn()
        stats = world.context.stats()
        close_frame = len(a.transport.taken) - 2 - 3
        assert stats == {
            "connections": 1,
            "connections_opened": 2,
            "messages_in": 1,
            "bytes_in": len(text("hello") + frame(PING)) + 2,
            "messages_out": 3,
            "bytes_out": 2 + 3 + close_frame,
            "bytes_waiting": 0,
            "writes": 3,
            "messages_dropped": 0,
            "slow_consumers": 0,
            "outbound_evictions": 0,
            "protocol_errors": 1,
            "slow_reads": 0,
            "loop_lag_ms": 0,
            "worst_loop_lag_ms": 0,
        }

    def test_a_handler_that_blocks_the_loop_is_named(self, world, caplog):
        c = world.connect()

        def block(message):
            world.clock.now += 0.05 if message == "short" else 2.0

        c.ws.on_message = block
        c.arrive(text("short"))
        assert world.context.stats()["slow_reads"] == 0
        c.arrive(text("long"))
        assert world.context.stats()["slow_reads"] == 1
        assert f"connection {c.ws.id}: its handlers kept the event loop from everything else for 2.00 s" in caplog.text

    def test_loop_lag_is_how_late_the_last_timer_was(self, world):
        world.context.wheel.schedule(1.0, lambda _: None)
        (timer,) = world.loop.timers
        world.loop.timers.clear()
        world.clock.now = timer.when + 0.7  # something kept the loop
        timer.callback()
        stats = world.context.stats()
        assert (stats["loop_lag_ms"], stats["worst_loop_lag_ms"]) == (700, 700)
        world.context.wheel.schedule(1.0, lambda _: None)
        world.advance(2.0)
        stats = world.context.stats()
        assert (stats["loop_lag_ms"], stats["worst_loop_lag_ms"]) == (0, 700)

    def test_a_transport_that_raises_ends_its_own_connection_only(self, core, world):
        connections = [world.connect(Limits(assembly_timeout_s=1)) for _ in range(5)]
        broken = connections[2]

        def write(data):
            raise RuntimeError("a bug of the transport")

        def can_write_eof():
            raise RuntimeError("another bug of the transport")

        broken.transport.write = write
        failing = connections[3]
        failing.transport.can_write_eof = can_write_eof
        failing.arrive(text("never finished")[:5])
        world.context.wheel.schedule(1.0, lambda _: core.broadcast([c.ws for c in connections], "hello"))
        world.advance(1.1)
        assert [c.sent[:1] for c in connections if c not in (broken, failing)] == [[(TEXT, b"hello")]] * 3
        assert [code for code, _ in broken.ends] == [1006]
        assert [code for code, _ in failing.ends] == [1008]
        (failure,) = world.loop.failures
        assert str(failure["exception"]) == "another bug of the transport"
        world.loop.failures.clear()
        core.broadcast([c.ws for c in connections], "again")
        world.turn()
        assert connections[0].sent[1] == (TEXT, b"again")

    def test_a_timer_of_the_application_shares_the_wheel(self, world):
        fired = []
        world.context.wheel.schedule(1.0, fired.append, "a")
        world.context.wheel.schedule(0.5, fired.append, "b")
        world.advance(0.9)
        assert fired == ["b"]
        world.advance(0.2)
        assert fired == ["b", "a"]
        assert world.loop.timers == []  # asleep

    def test_a_timer_that_raises_is_told_to_the_loop(self, world):
        def fail(_):
            raise ZeroDivisionError

        world.context.wheel.schedule(0.1, fail)
        world.context.wheel.schedule(0.2, fail)
        world.advance(0.5)
        assert len(world.loop.failures) == 2
        assert isinstance(world.loop.failures[0]["exception"], ZeroDivisionError)
        world.loop.failures.clear()
