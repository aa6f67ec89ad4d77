# The C types of _wheel_py.py, and what other extensions cimport: TimerWheel.schedule, .cancel and .reschedule are plain
# C calls. Timer has no C methods on purpose (see there). A wheel belongs to one thread, as its loop does.

cimport cython
from libc.stdint cimport int64_t

cdef double _LONGEST_DELAY_S
cdef int64_t _NEVER


@cython.final
cdef class Timer:
    cdef TimerWheel _wheel
    cdef Timer _prev
    cdef Timer _next
    cdef int64_t _tick
    cdef object _callback
    cdef object _arg


@cython.final
cdef class TimerWheel:
    cdef object _clock
    cdef object _wake
    cdef object _on_error
    cdef double _resolution
    cdef list _slots
    cdef Timer _due
    cdef Py_ssize_t _mask
    cdef int64_t _tick
    cdef int64_t _announced
    cdef Py_ssize_t _count
    cdef bint _advancing

    @cython.locals(now=double, tick=int64_t, timer=Timer)
    cpdef Timer schedule(self, double delay_s, object callback, object arg=*)
    cpdef object cancel(self, Timer timer)
    @cython.locals(tick=int64_t)
    cpdef object reschedule(self, Timer timer, double delay_s)
    @cython.locals(now=int64_t)
    cpdef Py_ssize_t advance(self) except -1
    @cython.locals(tick=int64_t, ring=Timer)
    cpdef object next_wakeup(self)

    cdef object _check(self, Timer timer)
    @cython.locals(position=double, tick=int64_t)
    cdef int64_t _tick_after(self, double now, double delay_s) except? -1
    @cython.locals(position=double, tick=int64_t)
    cdef int64_t _tick_before(self, double now) except? -1
    cdef double _time_of(self, int64_t tick) except? -1
    cdef object _hang(self, Timer timer, int64_t tick)
    @cython.locals(due=Timer, ring=Timer, timer=Timer, following=Timer, home=Timer, in_order=bint, last=int64_t,
                   tick=int64_t)
    cdef object _collect(self, int64_t now)
    @cython.locals(due=Timer, timer=Timer, fired=Py_ssize_t)
    cdef Py_ssize_t _fire(self, int64_t now) except -1
    cdef object _handle(self, raised, earlier)


@cython.locals(head=Timer)
cdef Timer _ring()
@cython.locals(last=Timer)
cdef object _link(Timer ring, Timer timer)
@cython.locals(before=Timer, after=Timer)
cdef object _unlink(Timer timer)
@cython.locals(timer=Timer)
cdef object _sort(Timer ring)
cpdef int64_t _tick_of(Timer timer)
