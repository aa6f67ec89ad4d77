# The C types of _intake_py.py.

cimport cython

from street_fast cimport _connection
from street_fast._frames cimport flag

cdef bint _COMPILED
cdef double _NEVER, _ROUNDING_S, _TELL_AGAIN_S
cdef int _TAKEN, _TELL, _DROPPED, _ABUSIVE
cdef tuple _VERDICTS


@cython.final
cdef class Rates:
    cdef double _bytes_cost_s, _bytes_span_s, _message_cost_s, _message_span_s, _grace_s
    cdef readonly int _opening_messages


@cython.final
cdef class Rate:
    cdef double _abused_since, _bytes_full_at, _messages_full_at, _told_at
    cdef int _opening_messages

    @cython.locals(messages_full_at=double, bytes_full_at=double)
    cdef int _take(self, Rates rates, double now, Py_ssize_t size) except -1
    cdef int _refuse(self, Rates rates, double now) except -1


cdef class IntakeContext:
    cdef object _decode_envelope
    cdef Py_ssize_t _json_depth
    cdef readonly object counters
    cdef readonly object limits
    cdef readonly _connection.LoopContext loop_context
    cdef readonly Rates rates


cdef class Intake:
    cdef readonly IntakeContext _context
    cdef readonly object _ws
    cdef public object protocol
    cdef public object _inbox, _main, _worker
    cdef public Rate _rate
    cdef public int _malformed_in_a_row
    cdef public flag _full

    @cython.locals(context=IntakeContext, rate=Rate, verdict=int)
    cpdef object _on_message(self, data)
    @cython.locals(context=IntakeContext)
    cpdef object _handle(self, bytes text)


@cython.locals(found=int, octet=cython.uchar)
cdef Py_ssize_t _brackets(bytes text)
