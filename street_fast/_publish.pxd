# The C types of _publish_py.py.

cimport cython

cdef int _MEASURED_EACH, _RATES_KEPT
cdef double _ROUNDING_S


cdef class Outlet:
    cdef readonly dict _full_at
    cdef object _history_of
    cdef bint _is_alone
    cdef Py_ssize_t _prune_at
    cdef double _rate_cost_s, _rate_span_s
    cdef dict _sinks
    cdef public object backplane
    cdef public object clock_ms
    cdef public long long delivered
    cdef readonly object fan_out_s
    cdef readonly object hub
    cdef public object monotonic
    cdef readonly long long rate_limited

    @cython.locals(cost_s=double, now=double, full_at=double)
    cpdef bint take_from_rate(self, str channel) except -1
    @cython.locals(begun=double, others=list)
    cpdef object publish(self, str channel, bytes json, str key)
    @cython.locals(begun=double)
    cpdef object send(self, str channel, message, skip)


cdef class Publisher:
    cdef readonly Outlet _outlet
    cdef readonly object _realtime
    cdef public object member
    cdef readonly object peer

    @cython.locals(channel=str)
    cpdef object handle(self, envelope)
    @cython.locals(outlet=Outlet, key=str)
    cpdef object _publish(self, envelope, str channel)
