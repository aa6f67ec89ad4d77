"""RFC 6455 frames in pure Python: the twin of ``_frames.pyx``, with the same names, events and errors.

Used where the extensions are not built, and as the second opinion that the tests hold the compiled parser to. It is
written to be read: every rule of sections 5 to 8 stands here once, by its section.

The parser is one state that can stop and go on at any byte. It knows no socket, loop, clock or logger; it calls its
``_deliver_*`` methods, which a subclass overrides (the connection) or which hand on to ``sink`` (tests, fuzzers).
Payload goes into one growing bytearray: what is held is proportional to what arrived, never to what was declared, and
there is no list of pieces. A peer's error is raised as ProtocolError as soon as the byte that shows it is there; the
parser then ignores everything.
"""

from __future__ import annotations

import codecs
from typing import Protocol, cast, final

from street_fast.errors import CloseCode, ProtocolError, is_sendable_close_code

__all__ = [
    "OP_BINARY",
    "OP_CLOSE",
    "OP_CONTINUATION",
    "OP_PING",
    "OP_PONG",
    "OP_TEXT",
    "Frame",
    "FrameParser",
    "apply_mask",
    "encode_close",
    "encode_frame",
    "validate_utf8",
]

OP_CONTINUATION = 0x0
OP_TEXT = 0x1
OP_BINARY = 0x2
OP_CLOSE = 0x8
OP_PING = 0x9
OP_PONG = 0xA

_FIN = 0x80
_RSV = 0x70
_RSV1 = 0x40
_MASKED = 0x80
_OPCODES = frozenset((OP_CONTINUATION, OP_TEXT, OP_BINARY, OP_CLOSE, OP_PING, OP_PONG))
_CONTROL = 0x8
_MAX_CONTROL_BYTES = 125
_EXTENDED_LENGTH = {126: 2, 127: 8}  # bytes of the length that follow the first two
_NO_MASK = bytes(4)

_CLOSE_CODES = {
    "message_too_big": CloseCode.MESSAGE_TOO_BIG,
    "too_many_fragments": CloseCode.POLICY_VIOLATION,
    "utf8": CloseCode.INVALID_PAYLOAD,
}  # everything else is a protocol error


class Sink(Protocol):
    """What a parser without a subclass calls."""

    def on_message(self, opcode: int, data: bytes, /) -> object: ...
    def on_ping(self, data: bytes, /) -> object: ...
    def on_pong(self, data: bytes, /) -> object: ...
    def on_close(self, code: int, reason: str, /) -> object: ...


class CompressedSink(Sink, Protocol):
    """The same where RSV1 is allowed."""

    def on_compressed(self, opcode: int, data: bytes, /) -> object: ...


class FrameParser:
    """Parses the frames of one peer and delivers whole messages (RFC 6455 sections 5 and 6.2).

    `sink` gets ``on_message(opcode, data)``, ``on_compressed(opcode, data)``, ``on_ping(data)``, ``on_pong(data)`` and
    ``on_close(code, reason)``. A text message is valid UTF-8 by then. With `client` the frames must be unmasked
    (section 5.1). `allow_rsv1` is the seam for permessage-deflate (RFC 7692): a message with RSV1 set arrives,
    unchecked, at ``on_compressed``.
    """

    def __init__(
        self,
        sink: Sink | None = None,
        *,
        client: bool = False,
        max_message_bytes: int = 524_288,
        max_fragments: int = 1_024,
        allow_rsv1: bool = False,
    ) -> None:
        self.sink = sink
        self.client = client
        self.halted = False
        self.paused = False
        self._max_message_bytes = max_message_bytes
        self._max_fragments = max_fragments
        self._allow_rsv1 = allow_rsv1
        self._unparsed = bytearray()  # what came while paused
        self._header = bytearray()  # of an unfinished frame header
        self._header_need = 2  # bytes of the header after which more is known: 2, then 4 or 10, then with the mask
        self._store = bytearray()  # the message so far, and behind it the payload of an unfinished control frame
        # The current frame:
        self._in_payload = False
        self._frame_start = 0  # where its payload begins in _store
        self._left = 0  # payload bytes still to come
        self._fin = False
        self._opcode = 0
        self._mask = _NO_MASK
        # The current message:
        self._message_opcode = 0  # 0 between messages
        self._compressed = False
        self._fragments = 0
        self._checked = 0  # bytes of it known to be whole characters

    def feed(self, data: bytes | bytearray | memoryview) -> None:
        """Parses on with `data`.

        Raises ProtocolError for what the peer did wrong, and lets through what the sink raises. Either ends the parser:
        later bytes are ignored.
        """
        with _octets(data) as octets:
            self._parse(octets)

    def halt(self) -> None:
        """Ignores everything from now on, also what is left of the current feed()."""
        self.halted = True
        self._unparsed = bytearray()
        self._header = bytearray()
        self._store = bytearray()
        self._in_payload = False
        self._message_opcode = 0

    def pause(self) -> None:
        """Delivers nothing more until resume(); what is fed meanwhile is kept."""
        self.paused = True

    def resume(self) -> None:
        """Goes on after pause(), first with what was kept. Raises what feed() raises."""
        self.paused = False
        unparsed, self._unparsed = self._unparsed, bytearray()
        self._parse(memoryview(unparsed))

    @property
    def buffered(self) -> int:
        """Bytes held of what is unfinished, and of what came while paused."""
        return len(self._header) + len(self._store) + len(self._unparsed)

    @property
    def mid_message(self) -> bool:
        """Whether a message or frame has begun and not ended."""
        return bool(self._header) or self._in_payload or self._message_opcode != 0

    # --- what a subclass overrides ---

    def _deliver_message(self, opcode: int, data: bytes) -> None:
        if self.sink is not None:
            self.sink.on_message(opcode, data)

    def _deliver_compressed(self, opcode: int, data: bytes) -> None:
        if self.sink is not None:
            cast("CompressedSink", self.sink).on_compressed(opcode, data)

    def _deliver_control(self, opcode: int, data: bytes) -> None:
        if self.sink is not None:
            (self.sink.on_ping if opcode == OP_PING else self.sink.on_pong)(data)

    def _deliver_close(self, code: int, reason: str) -> None:
        if self.sink is not None:
            self.sink.on_close(code, reason)

    # --- the machine ---

    def _parse(self, data: memoryview) -> None:
        position = 0
        try:
            while position < len(data) and not self.halted:
                if self.paused:
                    self._unparsed += data[position:]
                    return
                step = self._take_payload if self._in_payload else self._take_header
                position += step(data[position:])
        except BaseException:
            self.halt()
            raise

    def _take_header(self, data: memoryview) -> int:
        """Takes the next part of a header that is there: the first two bytes, the extended length, the mask."""
        header = self._header
        taken = min(self._header_need - len(header), len(data))
        header += data[:taken]
        if len(header) < self._header_need:
            return taken
        if len(header) == 2:
            self._check_first_two(header[0], header[1])
        length = header[1] & 0x7F
        length_end = 2 + _EXTENDED_LENGTH.get(length, 0)
        mask_end = length_end + (0 if self.client else 4)
        if len(header) < length_end:
            self._header_need = length_end
            return taken
        if len(header) == length_end:
            self._left = self._check_length(int.from_bytes(header[2:], "big") if length_end > 2 else length, length_end)
        if len(header) < mask_end:
            self._header_need = mask_end
            return taken
        self._begin_frame(header[0], bytes(header[length_end:]))
        return taken

    def _check_first_two(self, first: int, second: int) -> None:
        """Every rule that the first two bytes of a frame can break (sections 5.1, 5.2, 5.4 and 5.5)."""
        opcode = first & 0x0F
        # RSV bits mean something only if an extension says so (section 5.2). Permessage-deflate takes RSV1 of the first
        # frame of a message (RFC 7692 section 6).
        allowed = _RSV1 if self._allow_rsv1 and opcode in (OP_TEXT, OP_BINARY) else 0
        if first & _RSV & ~allowed:
            raise _violation("rsv", f"a frame has reserved bits set (first byte {first:#04x})")
        if opcode not in _OPCODES:
            raise _violation("opcode", f"a frame has the reserved opcode {opcode:#x}")
        if opcode & _CONTROL:
            if not first & _FIN:
                raise _violation("control_fragmented", "a control frame is fragmented")
            if second & 0x7F > _MAX_CONTROL_BYTES:
                raise _violation("control_length", "a control frame is longer than 125 bytes")
        if self.client and second & _MASKED:
            raise _violation("mask_forbidden", "a server's frame is masked")
        if not self.client and not second & _MASKED:
            raise _violation("mask_required", "a client's frame is not masked")
        if opcode & _CONTROL:
            return
        if opcode == OP_CONTINUATION:
            if not self._message_opcode:
                raise _violation("continuation_unexpected", "a continuation frame has nothing to continue")
            if self._fragments >= self._max_fragments:
                raise _violation("too_many_fragments", f"a message has more than {self._max_fragments} frames")
        elif self._message_opcode:
            raise _violation("continuation_expected", "a new message begins inside a fragmented one")

    def _check_length(self, length: int, length_end: int) -> int:
        """The declared length, if its encoding is minimal and of 63 bits (section 5.2) and the limit allows it."""
        if (length_end == 4 and length < 126) or (length_end == 10 and not 1 << 16 <= length < 1 << 63):
            raise _violation("length_encoding", f"the frame length {length} is not encoded as it must be")
        size = len(self._store) + length  # over all fragments so far
        limit = self._max_message_bytes
        if size > limit and not self._header[0] & _CONTROL:
            raise _violation("message_too_big", f"a message of {size} bytes is above the limit of {limit}")
        return length

    def _begin_frame(self, first: int, mask: bytes) -> None:
        self._header.clear()
        self._header_need = 2
        self._in_payload = True
        self._frame_start = len(self._store)
        self._fin = bool(first & _FIN)
        self._opcode = first & 0x0F
        self._mask = mask
        if self._opcode in (OP_TEXT, OP_BINARY):
            self._message_opcode = self._opcode
            self._compressed = bool(first & _RSV1)
            self._fragments = 0
            self._checked = 0
        if not self._opcode & _CONTROL:
            self._fragments += 1
        if not self._left:
            self._end_frame()

    def _take_payload(self, data: memoryview) -> int:
        piece = data[: self._left]
        if self.client:
            self._store += piece
        else:
            self._store += _masked(piece, self._mask, len(self._store) - self._frame_start)
        self._left -= len(piece)
        if not self._left:
            self._end_frame()
        elif self._opcode == OP_CLOSE:
            self._check_close(ended=False)
        elif not self._opcode & _CONTROL:
            self._check_text(ended=False)
        return len(piece)

    def _end_frame(self) -> None:
        self._in_payload = False
        if self._opcode & _CONTROL:
            self._end_control()
            return
        self._check_text(ended=self._fin)
        if self._fin:
            self._end_message()

    def _end_message(self) -> None:
        opcode, self._message_opcode = self._message_opcode, 0
        data, self._store = bytes(self._store), bytearray()
        if self._compressed:
            self._deliver_compressed(opcode, data)
        else:
            self._deliver_message(opcode, data)

    def _end_control(self) -> None:
        if self._opcode == OP_CLOSE:
            code, reason = self._check_close(ended=True)
            self.halt()  # nothing that follows a close frame counts (section 5.5.1)
            self._deliver_close(code, reason)
        else:
            data = bytes(self._store[self._frame_start :])
            del self._store[self._frame_start :]
            self._deliver_control(self._opcode, data)

    def _check_text(self, *, ended: bool) -> None:
        """Fails at the first byte of a text message that cannot belong to UTF-8 (section 8.1)."""
        if self._message_opcode == OP_TEXT and not self._compressed:
            with memoryview(self._store) as store, store[self._checked :] as text:
                self._checked += _whole_characters(text, "a text message")
            if ended and self._checked < len(self._store):
                raise _violation("utf8", "a text message ends inside a character")

    def _check_close(self, *, ended: bool) -> tuple[int, str]:
        """The code and reason so far of the close frame that is being received (sections 5.5.1 and 7.4)."""
        payload = bytes(self._store[self._frame_start :])
        if len(payload) < 2:
            if ended and payload:
                raise _violation("close_length", "a close frame has one byte of payload")
            return CloseCode.NO_STATUS.value, ""
        code = int.from_bytes(payload[:2], "big")
        if not is_sendable_close_code(code):
            raise _violation("close_code", f"a close frame has the invalid code {code}")
        whole = 2 + _whole_characters(payload[2:], "a close reason")
        if ended and whole < len(payload):
            raise _violation("utf8", "a close reason is not UTF-8")
        return code, payload[2:whole].decode()


@final
class Frame:
    """One whole message as one immutable unmasked frame, built once to be sent often.

    Build it with ``Frame.text`` or ``Frame.binary``. ``len()`` is the size on the wire.
    """

    __slots__ = ("_opcode", "_wire")

    _opcode: int
    _wire: bytes

    def __init__(self) -> None:
        raise TypeError("build a frame with Frame.text(data) or Frame.binary(data)")

    @staticmethod
    def text(data: str | bytes | bytearray | memoryview) -> Frame:
        """A text frame of a str, or of bytes that are UTF-8 already (not checked)."""
        return _frame(OP_TEXT, data.encode() if isinstance(data, str) else data)

    @staticmethod
    def binary(data: bytes | bytearray | memoryview) -> Frame:
        """A binary frame of a bytes-like object."""
        return _frame(OP_BINARY, data)

    @property
    def opcode(self) -> int:
        return self._opcode

    @property
    def wire(self) -> bytes:
        return self._wire

    @property
    def payload(self) -> bytes:
        """The message itself, as bytes."""
        return self._wire[2 + _EXTENDED_LENGTH.get(self._wire[1], 0) :]

    def __len__(self) -> int:
        return len(self._wire)

    def __repr__(self) -> str:
        return f"<Frame {'text' if self._opcode == OP_TEXT else 'binary'}, {len(self)} bytes>"


def _frame(opcode: int, payload: bytes | bytearray | memoryview) -> Frame:
    frame = Frame.__new__(Frame)
    frame._opcode = opcode
    frame._wire = encode_frame(opcode, payload)
    return frame


def encode_frame(
    opcode: int,
    payload: bytes | bytearray | memoryview,
    *,
    fin: bool = True,
    rsv1: bool = False,
    mask: bytes | None = None,
) -> bytes:
    """One frame as bytes (section 5.2). `mask` is the client's key of four bytes; without it the frame is unmasked."""
    with _octets(payload) as octets:
        payload = bytes(octets)
    masked = 0 if mask is None else _MASKED
    first = opcode | (_FIN if fin else 0) | (_RSV1 if rsv1 else 0)
    size = len(payload)
    if size < 126:
        head = bytes((first, masked | size))
    elif size < 1 << 16:
        head = bytes((first, masked | 126)) + size.to_bytes(2, "big")
    else:
        head = bytes((first, masked | 127)) + size.to_bytes(8, "big")
    if mask is None:
        return head + payload
    return head + mask + _masked(payload, mask, 0)


def encode_close(code: int, reason: str = "") -> bytes:
    """The payload of a close frame (section 5.5.1); a long reason is cut between two characters.

    Raises ValueError for a code that may not travel (1005, 1006, 1015, anything unassigned), TypeError for a code
    that is no int or a reason that is no str.
    """
    if not isinstance(code, int) or not isinstance(reason, str):
        raise TypeError(f"a close takes a code and a reason, an int and a str, not {code!r} and {reason!r}")
    if not is_sendable_close_code(code):
        raise ValueError(f"code={code}: may not be sent; use 1000-1003, 1007-1014 or 3000-4999")
    text = reason.encode()[: _MAX_CONTROL_BYTES - 2]
    return code.to_bytes(2, "big") + text[: _whole_characters(text, "a close reason")]


def apply_mask(data: bytearray | memoryview, mask: bytes, phase: int = 0) -> None:
    """Masks or unmasks a writable buffer in place (section 5.3); `phase` is the offset of its first byte."""
    with _octets(data) as octets:
        octets[:] = _masked(octets, mask, phase)


def validate_utf8(data: bytes | bytearray | memoryview) -> bool:
    """Whether a bytes-like object is whole, valid UTF-8 (RFC 3629)."""
    try:
        codecs.utf_8_decode(data, "strict", True)
    except UnicodeDecodeError:
        return False
    return True


def _octets(data: bytes | bytearray | memoryview) -> memoryview:
    # A view of the bytes, whatever the items are. memoryview() takes no int, str or list, as bytes() does.
    with memoryview(data) as view:
        return view.cast("B")


def _masked(data: bytes | memoryview, mask: bytes, phase: int) -> bytes:
    # One XOR of two long integers: the fastest that Python has.
    if len(mask) != 4:
        raise ValueError(f"mask={mask!r}: must be 4 bytes")
    size = len(data)
    turned = mask[phase & 3 :] + mask[: phase & 3]
    key = (turned * (size // 4 + 1))[:size]
    return (int.from_bytes(data, "little") ^ int.from_bytes(key, "little")).to_bytes(size, "little")


def _whole_characters(data: bytes | memoryview, what: str) -> int:
    """How many bytes of `data` make up whole characters; the rest, up to 3 bytes, may still become one.

    Raises ProtocolError as soon as a byte is there that UTF-8 cannot have at its place.
    """
    try:
        whole = codecs.utf_8_decode(data, "strict", False)[1]
    except UnicodeDecodeError:
        raise _violation("utf8", f"{what} is not UTF-8") from None
    # CPython waits for the third byte of a surrogate, although only 80 to 9F can follow ED.
    rest = bytes(data[whole:])
    if rest[:1] == b"\xed" and rest[1:] >= b"\xa0":
        raise _violation("utf8", f"{what} is not UTF-8")
    return whole


def _violation(code: str, message: str) -> ProtocolError:
    return ProtocolError(_CLOSE_CODES.get(code, CloseCode.PROTOCOL_ERROR), code, message)
