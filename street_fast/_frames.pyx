"""RFC 6455 frames: a push parser, masking, UTF-8 validation and frame building. Sans-IO.

The parser is one state that can stop and go on at any byte. It knows no socket, loop, clock or logger; it calls
the ``deliver_*`` methods, which a subclass overrides (the connection) or which hand on to ``sink`` (tests,
fuzzers). Whole unfragmented messages are unmasked in place and delivered as a view of the caller's buffer;
only what is unfinished at the end of a read is copied, into one growing block that is freed when it is empty.
What is held is proportional to what arrived, never to what was declared.

A peer's error is raised as ProtocolError as soon as the byte that shows it is there; the parser then ignores
everything. ``street_fast/_frames_py.py`` is the same in Python, and the tests hold the two together.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.string cimport memcpy

import os

from street_fast.errors import CloseCode, ProtocolError, is_sendable_close_code

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL

cdef extern from "_kernels.h" nogil:
    uint64_t sf_key(const uint8_t* mask, size_t phase)
    int sf_mask(uint8_t* data, size_t size, uint64_t key)
    int sf_not_ascii(const uint8_t* data, size_t size)
    int sf_utf8_feed(sf_utf8* state, const uint8_t* data, size_t size)
    void sf_kernels_init()

sf_kernels_init()

OP_CONTINUATION = CONTINUATION
OP_TEXT = TEXT
OP_BINARY = BINARY
OP_CLOSE = CLOSE
OP_PING = PING
OP_PONG = PONG

cdef Py_ssize_t SMALLEST_STORE = 128  # holds any control payload and most tails without a second allocation


cdef class FrameParser:
    """Parses the frames of one peer and delivers whole messages (RFC 6455 sections 5 and 6.2).

    `sink` gets ``on_message(opcode, data)``, ``on_compressed(opcode, data)``, ``on_ping(data)``,
    ``on_pong(data)`` and ``on_close(code, reason)``. A text message is valid UTF-8 by then. With `client` the
    frames must be unmasked (section 5.1). `allow_rsv1` is the seam for permessage-deflate (RFC 7692): a
    message with RSV1 set arrives, unchecked, at ``on_compressed``.
    """

    def __init__(
        self,
        sink=None,
        *,
        bint client=False,
        Py_ssize_t max_message_bytes=524_288,
        int max_fragments=1_024,
        bint allow_rsv1=False,
    ):
        self.sink = sink
        self.client = client
        self._max_message_bytes = max_message_bytes
        self._max_fragments = max_fragments
        self._allow_rsv1 = allow_rsv1

    def __dealloc__(self):
        PyMem_Free(self._store)

    def feed(self, data):
        """Parses on with `data` (any buffer; a writable one is unmasked in place).

        Raises ProtocolError for what the peer did wrong, and lets through what the sink raises. Either ends
        the parser: later bytes are ignored.
        """
        cdef Py_buffer view
        if isinstance(data, bytes):  # nobody else's bytes may change
            data = bytearray(data)
        try:
            PyObject_GetBuffer(data, &view, PyBUF_WRITABLE)
        except BufferError:
            data = bytearray(data)
            PyObject_GetBuffer(data, &view, PyBUF_WRITABLE)
        try:
            self.parse(<uint8_t*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def halt(self):
        """Ignores everything from now on, also what is left of the current feed()."""
        self.stop()

    def pause(self):
        """Delivers nothing more until resume(); what is fed meanwhile is kept."""
        self.paused = True

    def resume(self):
        """Goes on after pause(), first with what was kept."""
        self.unpause()

    @property
    def buffered(self):
        """Bytes held of what is unfinished, and of what came while paused."""
        return self._head_have + self._stored + (0 if self._unparsed is None else len(self._unparsed))

    @property
    def mid_message(self):
        """Whether a message or frame has begun and not ended."""
        return self._head_have > 0 or self._in_payload or self._message_opcode != 0

    cdef void stop(self) noexcept:
        self.halted = True
        self._unparsed = None
        if not self._parsing:  # else parse() does it when it leaves: a callee may still look at the store
            self._free()

    cdef void _free(self) noexcept:
        PyMem_Free(self._store)
        self._store = NULL
        self._stored = self._store_size = self._frame_start = 0
        self._head_have = self._message_opcode = 0
        self._in_payload = False

    cdef int unpause(self) except -1:
        cdef Py_buffer view
        self.paused = False
        if self._unparsed is None or self.halted:
            return 0
        kept = self._unparsed
        self._unparsed = None
        PyObject_GetBuffer(kept, &view, PyBUF_WRITABLE)
        try:
            self.parse(<uint8_t*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        return 0

    cdef int _set_aside(self, const uint8_t* data, Py_ssize_t size) except -1:
        if self._unparsed is None:
            self._unparsed = bytearray()
        self._unparsed += data[:size]
        return 0

    cdef int parse(self, uint8_t* data, Py_ssize_t size) except -1:
        if self.halted:
            return 0
        self._parsing = True
        try:
            self._parse(data, size)
        except BaseException:
            self.halted = True
            raise
        finally:
            self._parsing = False
            if self.halted:
                self.stop()
        return 0

    cdef int _parse(self, uint8_t* data, Py_ssize_t size) except -1:
        cdef uint8_t* p = data
        cdef uint8_t* end = data + size
        cdef uint8_t* payload
        cdef Py_ssize_t n, head_size
        while True:
            if self.halted:
                return 0
            if self.paused:
                return self._set_aside(p, end - p) if p < end else 0
            if not self._in_payload:
                if p == end:
                    return 0
                if self._head_have == 0 and end - p >= 2 and end - p >= header_size(p[1]):
                    head_size = header_size(p[1])
                    self._check_first_two(p[0], p[1])
                    self._check_length(p)
                    self._begin_frame(p, head_size)
                    p += head_size
                else:
                    p += self._take_header(p, end - p)
                    if not self._in_payload:
                        return 0
            payload = p
            n = end - p
            if <uint64_t>n > self._left:
                n = <Py_ssize_t>self._left
            p += n
            if <uint64_t>n == self._left and self._stored == self._frame_start and (
                self._first & 0x08 or (self._first & FIN and self._fragments == 1)
            ):  # all of it is in the caller's buffer: nothing is copied
                self._in_payload = False
                self._left = 0
                if self._first & 0x08:
                    if self._masked:
                        sf_mask(payload, n, sf_key(self._mask, 0))
                    self._finish_control(payload, n)
                else:
                    if self._masked:
                        self._not_ascii = sf_mask(payload, n, sf_key(self._mask, 0))
                    elif self._message_opcode == TEXT:
                        self._not_ascii = sf_not_ascii(payload, n)
                    if self._not_ascii:
                        self._check_text(payload, n)
                    self._finish_message(payload, n)
                continue
            self._keep(payload, n)
            self._left -= n
            if self._left:
                if self._first & 0x0F == CLOSE:
                    self._check_close(self._store + self._frame_start, self._stored - self._frame_start, False)
                return 0
            self._in_payload = False
            if self._first & 0x08:
                self._finish_control(self._store + self._frame_start, self._stored - self._frame_start)
                self._stored = self._frame_start
                if self._stored == 0:
                    PyMem_Free(self._store)
                    self._store = NULL
                    self._store_size = 0
            elif self._first & FIN:
                self._finish_stored_message()

    cdef Py_ssize_t _take_header(self, const uint8_t* p, Py_ssize_t size) except -1:
        # The rare header that is cut by the end of a read. Each part is checked as soon as it is complete.
        cdef Py_ssize_t taken = 0, extended = 2
        while taken < size and self._head_have < (2 if self._head_have < 2 else header_size(self._head[1])):
            self._head[self._head_have] = p[taken]
            self._head_have += 1
            taken += 1
            if self._head_have == 2:
                self._check_first_two(self._head[0], self._head[1])
            if self._head_have >= 2:
                extended = header_size(self._head[1] & 0x7F)
                if self._head_have == extended:
                    self._check_length(self._head)
        if self._head_have >= 2 and self._head_have == header_size(self._head[1]):
            self._begin_frame(self._head, self._head_have)
            self._head_have = 0
        return taken

    cdef int _check_first_two(self, uint8_t first, uint8_t second) except -1:
        cdef uint8_t opcode = first & 0x0F, rsv = first & 0x70
        if rsv and not (rsv == RSV1 and self._allow_rsv1 and (opcode == TEXT or opcode == BINARY)):
            raise ProtocolError(
                CloseCode.PROTOCOL_ERROR, "rsv", f"a frame has reserved bits set (first byte {first:#04x})"
            )
        if opcode > PONG or BINARY < opcode < CLOSE:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "opcode", f"a frame has the reserved opcode {opcode:#x}")
        if opcode & 0x08:
            if not first & FIN:
                raise ProtocolError(CloseCode.PROTOCOL_ERROR, "control_fragmented", "a control frame is fragmented")
            if second & 0x7F > 125:
                raise ProtocolError(
                    CloseCode.PROTOCOL_ERROR, "control_length", "a control frame is longer than 125 bytes"
                )
        if not self.client and not second & 0x80:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "mask_required", "a client's frame is not masked")
        if self.client and second & 0x80:
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "mask_forbidden", "a server's frame is masked")
        if opcode == CONTINUATION:
            if not self._message_opcode:
                raise ProtocolError(
                    CloseCode.PROTOCOL_ERROR, "continuation_unexpected", "a continuation frame has nothing to continue"
                )
            if self._fragments >= self._max_fragments:
                raise ProtocolError(
                    CloseCode.POLICY_VIOLATION,
                    "too_many_fragments",
                    f"a message has more than {self._max_fragments} frames",
                )
        elif not opcode & 0x08 and self._message_opcode:
            raise ProtocolError(
                CloseCode.PROTOCOL_ERROR, "continuation_expected", "a new message begins inside a fragmented one"
            )
        return 0

    cdef int _check_length(self, const uint8_t* head) except -1:
        # Section 5.2: the shortest encoding, and 63 bits. The limit holds for the sum over the fragments.
        cdef uint64_t length = payload_length(head)
        cdef uint8_t short_length = head[1] & 0x7F
        if (short_length == 126 and length < 126) or (short_length == 127 and (length < 65_536 or length >> 63)):
            raise ProtocolError(
                CloseCode.PROTOCOL_ERROR, "length_encoding", f"the frame length {length} is not encoded as it must be"
            )
        if not head[0] & 0x08 and length > <uint64_t>(self._max_message_bytes - self._stored):
            raise ProtocolError(
                CloseCode.MESSAGE_TOO_BIG,
                "message_too_big",
                f"a message of {self._stored + length} bytes is above the limit of {self._max_message_bytes}",
            )
        return 0

    cdef void _begin_frame(self, const uint8_t* head, Py_ssize_t size) noexcept:
        cdef uint8_t opcode = head[0] & 0x0F
        self._first = head[0]
        self._left = payload_length(head)
        self._masked = head[1] & 0x80
        if self._masked:
            memcpy(self._mask, head + size - 4, 4)
        self._frame_start = self._stored
        self._in_payload = True
        if opcode == CONTINUATION:
            self._fragments += 1
        elif not opcode & 0x08:
            self._message_opcode = opcode
            self._message_compressed = head[0] & RSV1 != 0
            self._fragments = 1
            self._not_ascii = False
            self._utf8.need = 0

    cdef int _keep(self, const uint8_t* data, Py_ssize_t size) except -1:
        # Appends payload bytes to the store. It at most doubles, so what is held follows what arrived.
        cdef Py_ssize_t needed = self._stored + size, capacity
        cdef uint8_t* block
        cdef uint8_t* fresh
        cdef int not_ascii
        if size == 0:
            return 0
        if needed > self._store_size:
            capacity = max(needed, SMALLEST_STORE, min(2 * self._store_size, self._max_message_bytes))
            block = <uint8_t*>PyMem_Realloc(self._store, capacity)
            if block == NULL:
                raise MemoryError
            self._store = block
            self._store_size = capacity
        fresh = self._store + self._stored
        memcpy(fresh, data, size)
        if self._masked:
            not_ascii = sf_mask(fresh, size, sf_key(self._mask, self._stored - self._frame_start))
        else:
            not_ascii = sf_not_ascii(fresh, size)
        self._stored = needed
        if not self._first & 0x08:
            self._not_ascii |= not_ascii
            if not_ascii or self._utf8.need:
                self._check_text(fresh, size)
        return 0

    cdef int _check_text(self, const uint8_t* data, Py_ssize_t size) except -1:
        if self._message_opcode == TEXT and not self._message_compressed:
            if not sf_utf8_feed(&self._utf8, data, size):
                raise ProtocolError(CloseCode.INVALID_PAYLOAD, "utf8", "a text message is not UTF-8")
        return 0

    cdef int _finish_control(self, const uint8_t* data, Py_ssize_t size) except -1:
        cdef int opcode = self._first & 0x0F
        if opcode != CLOSE:
            return self.deliver_control(opcode, data, size)
        self._check_close(data, size, True)
        self.halted = True
        if size == 0:
            return self.deliver_close(CloseCode.NO_STATUS, "")
        reason = PyUnicode_DecodeUTF8(<const char*>data + 2, size - 2, NULL)
        return self.deliver_close((<int>data[0] << 8) | data[1], reason)

    cdef int _check_close(self, const uint8_t* data, Py_ssize_t size, bint whole) except -1:
        # Sections 5.5.1 and 7.4; `data` may be the first part of the payload.
        cdef sf_utf8 state
        cdef int code
        if size < 2:
            if size and whole:
                raise ProtocolError(CloseCode.PROTOCOL_ERROR, "close_length", "a close frame has one byte of payload")
            return 0
        code = (<int>data[0] << 8) | data[1]
        if not is_sendable_close_code(code):
            raise ProtocolError(CloseCode.PROTOCOL_ERROR, "close_code", f"a close frame has the invalid code {code}")
        state.need = state.low = state.high = 0
        if not sf_utf8_feed(&state, data + 2, size - 2) or (whole and state.need):
            raise ProtocolError(CloseCode.INVALID_PAYLOAD, "utf8", "a close reason is not UTF-8")
        return 0

    cdef int _finish_message(self, const uint8_t* data, Py_ssize_t size) except -1:
        cdef int opcode = self._message_opcode
        self._message_opcode = 0
        if self._message_compressed:
            return self.deliver_compressed(opcode, data, size)
        if self._utf8.need:
            raise ProtocolError(CloseCode.INVALID_PAYLOAD, "utf8", "a text message ends inside a character")
        return self.deliver_message(opcode, data, size, not self._not_ascii)

    cdef int _finish_stored_message(self) except -1:
        # The store is let go first: the callee may do anything to this object.
        cdef uint8_t* block = self._store
        cdef Py_ssize_t size = self._stored
        self._store = NULL
        self._stored = self._store_size = self._frame_start = 0
        try:
            return self._finish_message(block, size)
        finally:
            PyMem_Free(block)

    cdef int deliver_message(self, int opcode, const uint8_t* data, Py_ssize_t size, bint ascii) except -1:
        if self.sink is not None:
            self.sink.on_message(opcode, data[:size])
        return 0

    cdef int deliver_compressed(self, int opcode, const uint8_t* data, Py_ssize_t size) except -1:
        if self.sink is not None:
            self.sink.on_compressed(opcode, data[:size])
        return 0

    cdef int deliver_control(self, int opcode, const uint8_t* data, Py_ssize_t size) except -1:
        if self.sink is None:
            return 0
        if opcode == PING:
            self.sink.on_ping(data[:size])
        else:
            self.sink.on_pong(data[:size])
        return 0

    cdef int deliver_close(self, int code, str reason) except -1:
        if self.sink is not None:
            self.sink.on_close(code, reason)
        return 0


cdef inline Py_ssize_t header_size(uint8_t second) noexcept:
    cdef uint8_t length = second & 0x7F
    return 2 + (0 if length < 126 else 2 if length == 126 else 8) + (4 if second & 0x80 else 0)


cdef inline uint64_t payload_length(const uint8_t* head) noexcept:
    cdef uint64_t length = head[1] & 0x7F
    cdef int i
    if length == 126:
        return (<uint64_t>head[2] << 8) | head[3]
    if length == 127:
        length = 0
        for i in range(2, 10):
            length = (length << 8) | head[i]
    return length


@cython.final
@cython.freelist(64)
cdef class Frame:
    """One whole message as one immutable unmasked frame, built once to be sent often.

    Build it with ``Frame.text`` or ``Frame.binary``. A WebSocket in the client role masks it anew for every
    send, as section 5.3 demands.
    """

    def __cinit__(self):
        self.opcode = TEXT
        self.wire = b"\x81\x00"  # so that Frame.__new__(Frame) is an empty text, not a crash

    def __init__(self):
        raise TypeError("build a frame with Frame.text(data) or Frame.binary(data)")

    @staticmethod
    def text(data):
        """A text frame of a str, or of bytes that are UTF-8 already (not checked)."""
        cdef Frame frame = Frame.__new__(Frame)
        frame.opcode = TEXT
        frame.wire = text_frame(data) if isinstance(data, str) else encode_frame(TEXT, data)
        return frame

    @staticmethod
    def binary(data):
        """A binary frame of a bytes-like object."""
        cdef Frame frame = Frame.__new__(Frame)
        frame.opcode = BINARY
        frame.wire = encode_frame(BINARY, data)
        return frame

    @property
    def payload(self):
        """The message itself, as bytes."""
        cdef Py_ssize_t size
        cdef const uint8_t* data = payload_of(self.wire, &size)
        return data[:size]

    def __len__(self):
        return PyBytes_GET_SIZE(self.wire)

    def __repr__(self):
        return f"<Frame {'text' if self.opcode == TEXT else 'binary'}, {len(self)} bytes>"


cdef inline Py_ssize_t write_header(uint8_t* out, uint8_t first, Py_ssize_t size, uint8_t mask_bit) noexcept:
    cdef int i
    out[0] = first
    if size < 126:
        out[1] = <uint8_t>size | mask_bit
        return 2
    if size < 65_536:
        out[1] = 126 | mask_bit
        out[2] = <uint8_t>(size >> 8)
        out[3] = <uint8_t>(size & 0xFF)
        return 4
    out[1] = 127 | mask_bit
    for i in range(8):
        out[2 + i] = <uint8_t>((<uint64_t>size >> (56 - 8 * i)) & 0xFF)
    return 10


cdef bytes build_frame(uint8_t first, const uint8_t* payload, Py_ssize_t size):
    cdef Py_ssize_t head = 2 if size < 126 else 4 if size < 65_536 else 10
    cdef bytes wire = PyBytes_FromStringAndSize(NULL, head + size)
    cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(wire)
    write_header(out, first, size, 0)
    if size:
        memcpy(out + head, payload, size)
    return wire


cdef bytes masked_frame(uint8_t first, const uint8_t* payload, Py_ssize_t size, const uint8_t* mask):
    cdef Py_ssize_t head = 6 if size < 126 else 8 if size < 65_536 else 14
    cdef bytes wire = PyBytes_FromStringAndSize(NULL, head + size)
    cdef uint8_t* out = <uint8_t*>PyBytes_AS_STRING(wire)
    write_header(out, first, size, 0x80)
    memcpy(out + head - 4, mask, 4)
    if size:
        memcpy(out + head, payload, size)
        sf_mask(out + head, size, sf_key(mask, 0))
    return wire


cdef bytes random_keys = b""  # section 10.3: keys come from a strong source; drawn in blocks, used once
cdef Py_ssize_t next_key = 0


cdef bytes build_masked_frame(uint8_t first, const uint8_t* payload, Py_ssize_t size):
    global random_keys, next_key
    if next_key == PyBytes_GET_SIZE(random_keys):
        random_keys = os.urandom(4_096)
        next_key = 0
    next_key += 4
    return masked_frame(first, payload, size, <const uint8_t*>PyBytes_AS_STRING(random_keys) + next_key - 4)


cdef bytes text_frame(str text):
    cdef Py_ssize_t size
    cdef const char* data = PyUnicode_AsUTF8AndSize(text, &size)
    return build_frame(FIN | TEXT, <const uint8_t*>data, size)


cdef const uint8_t* payload_of(bytes wire, Py_ssize_t* size) noexcept:
    cdef const uint8_t* head = <const uint8_t*>PyBytes_AS_STRING(wire)
    cdef Py_ssize_t skip = header_size(head[1])
    size[0] = PyBytes_GET_SIZE(wire) - skip
    return head + skip


cdef int get_bytes(object data, Py_buffer* view) except -1:
    try:
        PyObject_GetBuffer(data, view, PyBUF_SIMPLE)
    except BufferError:
        raise TypeError("a memoryview with gaps is not bytes-like enough; pass bytes(view)") from None
    return 0


def encode_frame(int opcode, payload, *, bint fin=True, bint rsv1=False, bytes mask=None):
    """One frame as bytes (section 5.2). `mask` is the client's key of four bytes; without it the frame is unmasked."""
    cdef Py_buffer view
    cdef uint8_t first = (FIN if fin else 0) | (RSV1 if rsv1 else 0) | opcode
    if mask is not None and len(mask) != 4:
        raise ValueError(f"mask={mask!r}: must be 4 bytes")
    get_bytes(payload, &view)
    try:
        if mask is None:
            return build_frame(first, <const uint8_t*>view.buf, view.len)
        return masked_frame(first, <const uint8_t*>view.buf, view.len, <const uint8_t*>PyBytes_AS_STRING(mask))
    finally:
        PyBuffer_Release(&view)


def encode_close(code, reason=""):
    """The payload of a close frame (section 5.5.1); `reason` is cut at a character to fit 123 bytes.

    Raises ValueError for a code that may not travel (1005, 1006, 1015, anything unassigned), TypeError for a code
    that is no int or a reason that is no str.
    """
    if not isinstance(code, int) or not isinstance(reason, str):
        raise TypeError(f"a close takes a code and a reason, an int and a str, not {code!r} and {reason!r}")
    if not is_sendable_close_code(code):
        raise ValueError(f"code={code}: may not be sent; use 1000-1003, 1007-1014 or 3000-4999")
    text = reason.encode()
    if len(text) > 123:
        text = text[:123].decode(errors="ignore").encode()
    return code.to_bytes(2, "big") + text


def apply_mask(data, bytes mask, size_t phase=0):
    """Masks or unmasks a writable buffer in place (section 5.3); `phase` is the offset of its first byte."""
    cdef Py_buffer view
    if len(mask) != 4:
        raise ValueError(f"mask={mask!r}: must be 4 bytes")
    PyObject_GetBuffer(data, &view, PyBUF_WRITABLE)
    try:
        sf_mask(<uint8_t*>view.buf, view.len, sf_key(<const uint8_t*>PyBytes_AS_STRING(mask), phase))
    finally:
        PyBuffer_Release(&view)


def validate_utf8(data):
    """Whether a bytes-like object is whole, valid UTF-8 (RFC 3629)."""
    cdef Py_buffer view
    cdef sf_utf8 state
    state.need = state.low = state.high = 0
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        return bool(sf_utf8_feed(&state, <const uint8_t*>view.buf, view.len)) and state.need == 0
    finally:
        PyBuffer_Release(&view)
