"""The C contract of the frame codec, for _connection.pyx: a parser to inherit from, and frame builders."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef extern from "_kernels.h" nogil:
    ctypedef struct sf_utf8:
        uint8_t need
        uint8_t low
        uint8_t high

cdef extern from "<stdbool.h>" nogil:
    ctypedef bint flag "bool"        # of one byte, where every connection has it

cdef enum:  # RFC 6455 section 5.2
    CONTINUATION = 0x0
    TEXT = 0x1
    BINARY = 0x2
    CLOSE = 0x8
    PING = 0x9
    PONG = 0xA
    FIN = 0x80
    RSV1 = 0x40


cdef class FrameParser:
    cdef readonly object sink
    # The parts of the unfinished frame and message.
    cdef uint8_t* _store             # payload bytes that wait for more; NULL while there are none
    cdef Py_ssize_t _stored          # bytes in _store
    cdef Py_ssize_t _store_size      # bytes allocated
    cdef Py_ssize_t _frame_start     # where the payload of the current frame begins in _store
    cdef uint64_t _left              # payload bytes of the current frame still to come
    cdef object _unparsed            # bytearray: what was read while paused, else None
    #: Limits, and the role: a server wants masked frames, a client unmasked ones.
    cdef Py_ssize_t _max_message_bytes
    cdef uint32_t _max_fragments
    cdef uint32_t _fragments         # frames of the current message so far
    cdef uint8_t[4] _mask
    cdef uint8_t[14] _head           # an unfinished frame header
    cdef uint8_t _head_have
    cdef uint8_t _first              # FIN, RSV and opcode of the current frame
    cdef uint8_t _message_opcode     # of the message that is being received, 0 between messages
    cdef uint8_t _masked
    cdef sf_utf8 _utf8
    cdef flag _in_payload
    cdef flag _parsing
    cdef flag _message_compressed
    cdef flag _not_ascii
    cdef flag _allow_rsv1
    cdef readonly flag client
    cdef readonly flag halted
    cdef readonly flag paused

    cdef void stop(self) noexcept
    cdef int parse(self, uint8_t* data, Py_ssize_t size) except -1
    cdef int unpause(self) except -1
    # What the parser calls. `data` is borrowed: valid until the call returns.
    cdef int deliver_message(self, int opcode, const uint8_t* data, Py_ssize_t size, bint ascii) except -1
    cdef int deliver_compressed(self, int opcode, const uint8_t* data, Py_ssize_t size) except -1
    cdef int deliver_control(self, int opcode, const uint8_t* data, Py_ssize_t size) except -1
    cdef int deliver_close(self, int code, str reason) except -1

    cdef int _parse(self, uint8_t* data, Py_ssize_t size) except -1
    cdef void _free(self) noexcept
    cdef int _check_close(self, const uint8_t* data, Py_ssize_t size, bint whole) except -1
    cdef Py_ssize_t _take_header(self, const uint8_t* p, Py_ssize_t size) except -1
    cdef int _check_first_two(self, uint8_t first, uint8_t second) except -1
    cdef int _check_length(self, const uint8_t* head) except -1
    cdef void _begin_frame(self, const uint8_t* head, Py_ssize_t size) noexcept
    cdef int _keep(self, const uint8_t* data, Py_ssize_t size) except -1
    cdef int _check_text(self, const uint8_t* data, Py_ssize_t size) except -1
    cdef int _finish_control(self, const uint8_t* data, Py_ssize_t size) except -1
    cdef int _finish_message(self, const uint8_t* data, Py_ssize_t size) except -1
    cdef int _finish_stored_message(self) except -1
    cdef int _set_aside(self, const uint8_t* data, Py_ssize_t size) except -1


cdef class Frame:
    cdef readonly bytes wire
    cdef readonly int opcode


# A whole unmasked frame in one bytes object; `first` is FIN | RSV | opcode.
cdef bytes build_frame(uint8_t first, const uint8_t* payload, Py_ssize_t size)
# The same masked with a fresh random key, as a client must send it.
cdef bytes build_masked_frame(uint8_t first, const uint8_t* payload, Py_ssize_t size)
# PyObject_GetBuffer of contiguous bytes; TypeError for anything else.
cdef int get_bytes(object data, Py_buffer* view) except -1
cdef bytes text_frame(str text)
cdef const uint8_t* payload_of(bytes wire, Py_ssize_t* size) noexcept
