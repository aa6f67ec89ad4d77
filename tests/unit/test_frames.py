"""The frame codec as an object: what it holds, what it delivers when, and what it makes of wrong arguments.

One class of tests for both implementations. The rules of the RFC are in tests/conformance, the comparison of the two
implementations in tests/property.
"""

from __future__ import annotations

import array
import contextlib
import os
import tracemalloc

import pytest

from street_fast.errors import ProtocolError
from tests.frames_harness import (
    BINARY,
    CLOSE,
    CONTINUATION,
    IMPLEMENTATIONS,
    MASK,
    PING,
    PONG,
    TEXT,
    Recorder,
    close,
    frame,
    head,
    load,
    text,
    vectors,
    xor,
)


@pytest.fixture(params=IMPLEMENTATIONS)
def frames(request):
    return load(request.param)


class Reacting(Recorder):
    """Calls `react(parser)` after each event it has recorded."""

    def __init__(self, react) -> None:
        super().__init__()
        self.react = react
        self.parser = None

    def on_message(self, opcode, data):
        super().on_message(opcode, data)
        self.react(self.parser)

    def on_ping(self, data):
        super().on_ping(data)
        self.react(self.parser)

    def on_close(self, code, reason):
        super().on_close(code, reason)
        self.react(self.parser)


def reacting(frames, react):
    sink = Reacting(react)
    sink.parser = frames.FrameParser(sink)
    return sink.parser, sink


def messages(*payloads: str) -> list[tuple[str, int, bytes]]:
    return [("message", TEXT, payload.encode()) for payload in payloads]


class TestParser:
    def test_every_event_gives_the_sink_its_own_bytes(self, frames):
        sink = Recorder()
        parser = frames.FrameParser(sink)
        wire = bytearray(text("a") + frame(BINARY, b"b") + frame(PING, b"c") + frame(PONG, b"d") + close(1000, "e"))
        parser.feed(wire)
        wire[:] = bytes(len(wire))
        assert sink.events == [
            ("message", TEXT, b"a"),
            ("message", BINARY, b"b"),
            ("ping", b"c"),
            ("pong", b"d"),
            ("close", 1000, "e"),
        ]
        assert all(type(event[-1]) is bytes for event in sink.events[:4])

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda b: memoryview(bytearray(b))])
    def test_takes_any_buffer_and_leaves_read_only_ones_alone(self, frames, kind):
        sink = Recorder()
        wire = text("Hello")
        before = bytes(bytearray(wire))  # a copy that shares nothing
        frames.FrameParser(sink).feed(kind(wire))
        assert sink.events == messages("Hello")
        assert wire == before

    def test_takes_a_buffer_of_larger_items(self, frames):
        sink = Recorder()
        wire = frame(BINARY, b"0123456789")
        assert len(wire) % 4 == 0
        frames.FrameParser(sink).feed(memoryview(array.array("I", wire)))
        assert sink.events == [("message", BINARY, b"0123456789")]

    @pytest.mark.parametrize("wrong", ["text", 5, None, [1, 2]])
    def test_feed_takes_nothing_else(self, frames, wrong):
        with pytest.raises(TypeError):
            frames.FrameParser(Recorder()).feed(wrong)

    def test_feeding_nothing_does_nothing(self, frames):
        sink = Recorder()
        parser = frames.FrameParser(sink)
        parser.feed(b"")
        for octet in text("a"):
            parser.feed(bytes((octet,)))
            parser.feed(b"")
        assert sink.events == messages("a")

    def test_without_a_sink_everything_is_checked_and_dropped(self, frames):
        parser = frames.FrameParser(allow_rsv1=True)
        parser.feed(text("a") + text("b", rsv=4) + frame(PING) + frame(PONG))
        with pytest.raises(ProtocolError, match="opcode"):
            parser.feed(b"\x83\x80")
        frames.FrameParser().feed(close(1000))

    def test_an_error_carries_code_and_close_code_and_a_sentence(self, frames):
        with pytest.raises(ProtocolError) as caught:
            frames.FrameParser(Recorder(), max_message_bytes=10).feed(head(TEXT, 11))
        assert (caught.value.code, caught.value.close_code) == ("message_too_big", 1009)
        assert "11" in str(caught.value)
        assert "10" in str(caught.value)

    def test_what_came_before_an_error_is_delivered(self, frames):
        sink = Recorder()
        with pytest.raises(ProtocolError):
            frames.FrameParser(sink).feed(text("a") + frame(PING, b"p") + b"\xff\xff" + text("b"))
        assert sink.events == [*messages("a"), ("ping", b"p")]

    def test_an_exception_of_the_sink_comes_through_and_ends_the_parser(self, frames):
        def fail(parser):
            raise ZeroDivisionError

        parser, sink = reacting(frames, fail)
        with pytest.raises(ZeroDivisionError):
            parser.feed(text("a") + text("b"))
        assert parser.halted
        parser.feed(text("c"))
        assert sink.events == messages("a")

    def test_the_state_is_settled_when_the_sink_is_called(self, frames):
        seen = []
        parser, _ = reacting(frames, lambda parser: seen.append((parser.mid_message, parser.halted)))
        parser.feed(text("a") + frame(TEXT, b"b", fin=False) + frame(PING) + frame(CONTINUATION, b"c") + close(1000))
        assert seen == [(False, False), (True, False), (False, False), (False, True)]


class TestHolding:
    """`buffered` and `mid_message`, and that memory follows what arrived."""

    def test_nothing_is_held_between_messages(self, frames):
        parser = frames.FrameParser(Recorder())
        assert (parser.buffered, parser.mid_message) == (0, False)
        parser.feed(text("a") + frame(PING))
        assert (parser.buffered, parser.mid_message) == (0, False)

    def test_header_bytes_count(self, frames):
        parser = frames.FrameParser(Recorder())
        for held, octet in enumerate(head(TEXT, 300)[:-1], 1):
            parser.feed(bytes((octet,)))
            assert (parser.buffered, parser.mid_message) == (held, True)

    def test_payload_bytes_count(self, frames):
        parser = frames.FrameParser(Recorder())
        wire = text("Hello")
        parser.feed(wire[:6])
        assert (parser.buffered, parser.mid_message) == (0, True)
        for held in range(1, 5):
            parser.feed(wire[5 + held : 6 + held])
            assert (parser.buffered, parser.mid_message) == (held, True)
        parser.feed(wire[10:])
        assert (parser.buffered, parser.mid_message) == (0, False)

    def test_fragments_count_and_control_frames_come_and_go(self, frames):
        parser = frames.FrameParser(Recorder())
        parser.feed(frame(TEXT, b"abc", fin=False))
        assert (parser.buffered, parser.mid_message) == (3, True)
        ping = frame(PING, b"0123456789")
        parser.feed(ping[:10])
        assert (parser.buffered, parser.mid_message) == (3 + 4, True)
        parser.feed(ping[10:])
        assert (parser.buffered, parser.mid_message) == (3, True)
        parser.feed(frame(CONTINUATION, b"d"))
        assert (parser.buffered, parser.mid_message) == (0, False)

    def test_an_unfinished_ping_is_mid_message(self, frames):
        parser = frames.FrameParser(Recorder())
        parser.feed(frame(PING, b"0123456789")[:10])
        assert (parser.buffered, parser.mid_message) == (4, True)

    def test_nothing_is_held_after_the_end(self, frames):
        for ending in (b"\xff\xff", close(1000)):
            parser = frames.FrameParser(Recorder())
            parser.feed(frame(TEXT, b"abc", fin=False))
            with contextlib.suppress(ProtocolError):
                parser.feed(ending)
            parser.feed(text("late")[:7])
            assert (parser.halted, parser.buffered, parser.mid_message) == (True, 0, False)

    def test_nothing_is_held_after_an_error_inside_of_a_frame(self, frames):
        parser = frames.FrameParser(Recorder())
        with pytest.raises(ProtocolError):
            parser.feed(text(b"abc\xffdefg")[:-2])
        assert (parser.buffered, parser.mid_message) == (0, False)

    def test_a_declared_length_allocates_nothing(self, frames):
        parser = frames.FrameParser(Recorder())
        wire = head(BINARY, 524_288) + b"*"
        tracemalloc.start()
        try:
            parser.feed(wire)
            assert tracemalloc.get_traced_memory()[1] < 4_096
        finally:
            tracemalloc.stop()

    @pytest.mark.parametrize("size", [0, 1])
    def test_tiny_fragments_in_tiny_reads_hold_no_more_than_they_are(self, frames, size):
        parser = frames.FrameParser(Recorder(), max_fragments=1_024)
        pieces = [frame(BINARY, b"a" * size, fin=False)] + [frame(CONTINUATION, b"a" * size, fin=False)] * 1_023
        octets = [piece[i : i + 1] for piece in pieces for i in range(len(piece))]
        tracemalloc.start()
        try:
            for octet in octets:
                parser.feed(octet)
            held = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert parser.buffered == 1_024 * size
        assert held <= 2 * len(octets)

    def test_a_dribbled_message_holds_no_more_than_it_is(self, frames):
        parser = frames.FrameParser(Recorder())
        octets = [b"*"] * 50_000
        parser.feed(head(BINARY, 60_000, mask=bytes(4)))
        tracemalloc.start()
        try:
            for octet in octets:
                parser.feed(octet)
            held = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
        assert parser.buffered == 50_000
        assert held <= 2 * 50_000 + 4_096

    def test_the_memory_of_a_message_is_given_back(self, frames):
        parser = frames.FrameParser()
        wire = frame(BINARY, bytes(300_000))
        first, last = wire[:200_000], wire[200_000:]
        tracemalloc.start()
        try:
            parser.feed(first)
            parser.feed(last)
            assert tracemalloc.get_traced_memory()[0] < 4_096
        finally:
            tracemalloc.stop()


class TestHalt:
    def test_ignores_what_is_left_of_the_feed_and_all_later_ones(self, frames):
        parser, sink = reacting(frames, lambda parser: parser.halt())
        parser.feed(text("a") + text("b") + b"\xff\xff")
        parser.feed(text("c"))
        assert sink.events == messages("a")
        assert (parser.halted, parser.buffered, parser.mid_message) == (True, 0, False)

    def test_from_a_ping_inside_of_a_message(self, frames):
        parser, sink = reacting(frames, lambda parser: parser.halt())
        for octet in frame(TEXT, b"abc", fin=False) + frame(PING, b"p") + frame(CONTINUATION, b"d"):
            parser.feed(bytes((octet,)))
        assert sink.events == [("ping", b"p")]
        assert (parser.buffered, parser.mid_message) == (0, False)

    def test_between_feeds_drops_what_is_held(self, frames):
        sink = Recorder()
        parser = frames.FrameParser(sink)
        parser.feed(text("abc")[:8])
        parser.halt()
        parser.halt()
        assert (parser.halted, parser.buffered, parser.mid_message) == (True, 0, False)
        parser.feed(text("abc")[8:] + b"\xff\xff")
        assert sink.events == []

    def test_while_paused_drops_what_was_kept(self, frames):
        sink = Recorder()
        parser = frames.FrameParser(sink)
        parser.pause()
        parser.feed(text("a"))
        parser.halt()
        assert parser.buffered == 0
        parser.resume()
        assert sink.events == []


class TestPause:
    def test_keeps_what_is_fed_and_resume_delivers_it(self, frames):
        sink = Recorder()
        parser = frames.FrameParser(sink)
        parser.pause()
        assert parser.paused
        parser.feed(text("a"))
        parser.feed(text("b")[:3])
        assert sink.events == []
        assert parser.buffered == len(text("a")) + 3
        parser.resume()
        assert not parser.paused
        assert sink.events == messages("a")
        parser.feed(text("b")[3:])
        assert sink.events == messages("a", "b")
        assert parser.buffered == 0

    def test_from_the_sink_stops_after_that_message(self, frames):
        parser, sink = reacting(frames, lambda parser: parser.pause())
        parser.feed(text("a") + text("b") + text("c")[:3])
        parser.feed(text("c")[3:])
        for count in (1, 2, 3):
            assert sink.events == messages("a", "b", "c")[:count]
            parser.resume()
        assert parser.buffered == 0

    def test_in_the_middle_of_a_frame(self, frames):
        sink = Recorder()
        parser = frames.FrameParser(sink)
        parser.feed(text("abc")[:8])
        parser.pause()
        parser.feed(text("abc")[8:] + text("d"))
        parser.resume()
        assert sink.events == messages("abc", "d")

    def test_and_resume_in_one_callback_is_nothing(self, frames):
        def blink(parser):
            parser.pause()
            parser.resume()

        parser, sink = reacting(frames, blink)
        parser.feed(text("a") + text("b"))
        parser.pause()
        parser.feed(text("c") + text("d"))
        parser.resume()
        assert sink.events == messages("a", "b", "c", "d")

    def test_an_error_that_was_kept_comes_out_of_resume(self, frames):
        sink = Recorder()
        parser = frames.FrameParser(sink)
        parser.pause()
        parser.feed(text("a") + b"\x83\x80" + text("b"))
        with pytest.raises(ProtocolError, match="opcode"):
            parser.resume()
        parser.resume()
        assert sink.events == messages("a")

    def test_does_not_touch_the_callers_buffer_later(self, frames):
        sink = Recorder()
        parser = frames.FrameParser(sink)
        parser.pause()
        wire = bytearray(text("a"))
        parser.feed(wire)
        wire[:] = b"\xff" * len(wire)
        parser.resume()
        assert sink.events == messages("a")

    def test_resume_without_pause_is_nothing(self, frames):
        parser = frames.FrameParser(Recorder())
        parser.resume()
        assert not parser.paused


class TestEncodeFrame:
    # Headers and masks byte for byte: tests/vectors/frames.json, read by tests/conformance.

    def test_fin_and_rsv1(self, frames):
        assert frames.encode_frame(TEXT, b"a", fin=False, rsv1=True) == b"\x41\x01a"
        assert frames.encode_frame(CONTINUATION, b"") == b"\x80\x00"

    def test_a_server_frame_is_not_masked(self, frames):
        """Section 5.1: a server MUST NOT mask."""
        assert frames.encode_frame(TEXT, b"Hello")[1] & 0x80 == 0

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda b: memoryview(array.array("I", b))])
    @pytest.mark.parametrize("mask", [None, MASK])
    def test_takes_any_buffer_by_its_bytes(self, frames, kind, mask):
        payload = bytes(range(200))
        assert frames.encode_frame(BINARY, kind(payload), mask=mask) == frame(BINARY, payload, mask=mask)

    @pytest.mark.parametrize("empty", [b"", bytearray(), memoryview(b"")])
    def test_an_empty_payload(self, frames, empty):
        assert frames.encode_frame(BINARY, empty) == b"\x82\x00"
        assert frames.encode_frame(BINARY, empty, mask=MASK) == b"\x82\x80" + MASK

    @pytest.mark.parametrize("wrong", ["text", 5, None, [1, 2], 1.5])
    def test_takes_nothing_else(self, frames, wrong):
        with pytest.raises(TypeError):
            frames.encode_frame(BINARY, wrong)

    def test_a_strided_buffer_is_refused(self, frames):
        with pytest.raises(TypeError):
            frames.encode_frame(BINARY, memoryview(bytes(10))[::2])

    def test_is_a_copy(self, frames):
        payload = bytearray(b"before")
        wire = frames.encode_frame(BINARY, payload)
        payload[:] = b"after!"
        assert wire == b"\x82\x06before"

    @pytest.mark.parametrize("mask", [b"", b"abc", b"abcde"])
    def test_a_mask_has_four_bytes(self, frames, mask):
        with pytest.raises(ValueError, match="4 bytes"):
            frames.encode_frame(TEXT, b"abc", mask=mask)


class TestEncodeClose:
    def test_code_and_reason(self, frames):
        assert frames.encode_close(1000) == b"\x03\xe8"
        assert frames.encode_close(4001, "à bientôt") == b"\x0f\xa1" + "à bientôt".encode()

    @pytest.mark.parametrize("code", [-1, 0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_536])
    def test_a_code_that_may_not_be_sent(self, frames, code):
        with pytest.raises(ValueError, match=str(code)):
            frames.encode_close(code)

    @pytest.mark.parametrize("character", ["a", "é", "€", "𝄞"])
    def test_a_long_reason_is_cut_between_characters(self, frames, character):
        for lead in range(4):
            reason = "a" * lead + character * 200
            payload = frames.encode_close(1000, reason)
            width = len(character.encode())
            assert 125 - width < len(payload) <= 125
            assert reason.startswith(payload[2:].decode())

    def test_what_it_builds_the_parser_takes(self, frames):
        sink = Recorder()
        frames.FrameParser(sink).feed(frame(CLOSE, frames.encode_close(1000, "€" * 100)))
        assert sink.events == [("close", 1000, "€" * 41)]


class TestFrame:
    def test_text(self, frames):
        for data in ("é", "é".encode(), bytearray("é".encode()), memoryview("é".encode())):
            built = frames.Frame.text(data)
            assert (built.opcode, built.wire, built.payload, len(built)) == (TEXT, b"\x81\x02\xc3\xa9", b"\xc3\xa9", 4)

    @pytest.mark.parametrize("size", [0, 125, 126, 65_535, 65_536])
    def test_binary(self, frames, size):
        data = os.urandom(size)
        built = frames.Frame.binary(data)
        assert built.opcode == BINARY
        assert built.wire == frame(BINARY, data, mask=None)
        assert built.payload == data
        assert len(built) == len(built.wire)

    def test_is_immutable_and_built_by_its_two_makers_only(self, frames):
        built = frames.Frame.binary(bytearray(b"abc"))
        for name in ("wire", "opcode", "payload", "anything"):
            with pytest.raises(AttributeError):
                setattr(built, name, 1)
        with pytest.raises(TypeError, match=r"Frame\.text"):
            frames.Frame()
        assert repr(built) == "<Frame binary, 5 bytes>"
        assert repr(frames.Frame.text("")) == "<Frame text, 2 bytes>"

    def test_text_that_is_no_text(self, frames):
        with pytest.raises(UnicodeEncodeError):
            frames.Frame.text("\ud800")
        for wrong in (5, None, ["a"]):
            with pytest.raises(TypeError):
                frames.Frame.text(wrong)
            with pytest.raises(TypeError):
                frames.Frame.binary(wrong)


class TestApplyMask:
    def test_every_length_phase_and_alignment(self, frames):
        """Past 32, 64 and 128 bytes there are other loops; before and behind, nothing may change."""
        block = bytes(range(256)) * 2
        expected = [xor(block, MASK[phase:] + MASK[:phase]) for phase in range(4)]
        for alignment in range(9):
            for length in [*range(70), *range(120, 140), *range(250, 300)]:
                for phase in range(4):
                    data = bytearray(b"\xaa" * alignment + block[:length] + b"\xbb" * 40)
                    frames.apply_mask(memoryview(data)[alignment : alignment + length], MASK, phase)
                    assert data == b"\xaa" * alignment + expected[phase][:length] + b"\xbb" * 40

    def test_phase_wraps_and_twice_is_nothing(self, frames):
        data = bytearray(b"Hello, world!")
        frames.apply_mask(data, MASK, 7)
        assert data == xor(b"Hello, world!", MASK[3:] + MASK[:3])
        frames.apply_mask(data, MASK, 3)
        assert data == b"Hello, world!"

    def test_in_pieces(self, frames):
        data = bytearray(os.urandom(1_000))
        whole = xor(data, MASK)
        position = 0
        for size in (1, 2, 3, 61, 130, 257, 546):
            frames.apply_mask(memoryview(data)[position : position + size], MASK, position)
            position += size
        assert data == whole

    @pytest.mark.parametrize("wrong", [b"read-only", "text", 5, None, memoryview(bytearray(10))[::2]])
    def test_wants_a_writable_contiguous_buffer(self, frames, wrong):
        with pytest.raises((TypeError, BufferError)):
            frames.apply_mask(wrong, MASK)

    @pytest.mark.parametrize("mask", [b"", b"abc", b"abcde"])
    def test_a_mask_has_four_bytes(self, frames, mask):
        with pytest.raises(ValueError, match="4 bytes"):
            frames.apply_mask(bytearray(10), mask)


class TestValidateUtf8:
    @pytest.mark.parametrize("vector", [pytest.param(v, id=v["id"].replace(" ", "_")) for v in vectors("utf8")])
    def test_vectors(self, frames, vector):
        data = bytes.fromhex(vector["hex"])
        assert frames.validate_utf8(data) is (vector["bad_at"] is None)
        for padding in (b"a" * 7, b"a" * 100, "€".encode() * 50):
            assert frames.validate_utf8(padding + data + padding) is (vector["bad_at"] is None)

    def test_takes_any_buffer(self, frames):
        for kind in (bytes, bytearray, memoryview):
            assert frames.validate_utf8(kind("é".encode())) is True
            assert frames.validate_utf8(kind(b"\xff")) is False
        with pytest.raises(TypeError):
            frames.validate_utf8("text")


def test_opcodes(frames):
    names = ("OP_CONTINUATION", "OP_TEXT", "OP_BINARY", "OP_CLOSE", "OP_PING", "OP_PONG")
    assert [getattr(frames, name) for name in names] == [0x0, 0x1, 0x2, 0x8, 0x9, 0xA]
