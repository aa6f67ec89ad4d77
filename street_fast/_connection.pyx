"""One WebSocket connection on an asyncio transport, and what all connections of a loop share. The hot path.

Reading. All connections of a loop read into one buffer, and frames are parsed in place (``_frames``). What a
handler sends to the connection whose bytes are being handled leaves when they all are handled.

Writing. A frame is an immutable bytes object. Sending appends a reference to the outbox of the connection and
marks it dirty; the dirty ones are flushed once per turn of the loop, each with one ``send()`` on the descriptor,
in slices of a millisecond. Connections whose outboxes hold the very same frames share one joined buffer. The
system calls run over a plain C job list, without the GIL. If the kernel takes no more, the rest of the frame in
flight goes to ``transport.write()``, the others stay in the outbox, as references, until ``resume_writing()``.
TLS, and anything whose descriptor is not ours to write to, goes through the transport.

A descriptor is forgotten before the transport closes, so that its number is never used for someone else.
No user code runs while an outbox is looked at: handlers run in ``receive()`` and ``connection_lost()`` only.

``street_fast/_connection_py.py`` is the same in Python, and the tests hold the two together.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from cpython.buffer cimport PyBuffer_Release
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_FromStringAndSize
from cpython.dict cimport PyDict_Next
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_TYPE, PyTypeObject
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.string cimport memcmp, memcpy, memmove

from street_fast._frames cimport (
    BINARY,
    CLOSE,
    FIN,
    PING,
    PONG,
    TEXT,
    build_frame,
    build_masked_frame,
    get_bytes,
    payload_of,
)

import asyncio
import inspect
import logging
import os
import sys

from street_fast._frames import encode_close
from street_fast.errors import CloseCode, ConnectionClosed, ProtocolError
from street_fast.limits import DEFAULT_LIMITS
from street_fast.slow_consumers import CONNECTIONS, SlowConsumers

cdef extern from "Python.h":
    str PyUnicode_New(Py_ssize_t size, Py_UCS4 maxchar)
    void* PyUnicode_DATA(object text)
    Py_ssize_t Py_REFCNT(PyObject* any) noexcept  # with a pointer: an object would be counted while it is passed
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* size) except NULL

cdef extern from "_net.h" nogil:
    const bint SF_DIRECT
    const int SF_IOV_MAX
    ctypedef struct sf_job:
        const char* data
        size_t size
        int64_t taken
        int fd
    ctypedef struct sf_iovec:
        void* iov_base
        size_t iov_len
    int64_t sf_send(int fd, const void* data, size_t size)
    int64_t sf_writev(int fd, sf_iovec* parts, int count)
    int sf_run(sf_job* jobs, int count, double deadline)
    bint sf_would_block(int64_t taken)
    void sf_user_timeout(int fd, unsigned int milliseconds)
    double sf_now()
    double sf_now_coarse()
    int64_t sf_unix_ms()

logger = logging.getLogger("street_fast")

class _Nobody(asyncio.Protocol):
    """Takes the place of the protocol before: uvloop keeps its `data_received` when a BufferedProtocol follows."""

    @staticmethod
    def data_received(data):
        pass


_NOBODY = _Nobody()

cdef enum:
    READ_BUFFER_BYTES = 262_144
    ARENA_BYTES = 131_072    # joined outboxes of one batch
    JOIN_BYTES = 65_536      # a longer outbox is written with its own vector
    JOIN_FRAMES = 64
    BATCH = 256              # connections per job list
    SMALL_BATCH = 16         # up to here, letting the GIL go costs more than it gives

cdef double SLICE_S = 0.001          # of a flush, before the loop gets its turn
cdef double LATE_S = 1.0             # a timer this late means that the process was stopped
cdef double BLOCKING_S = 0.1         # handlers that keep the loop this long are named in the log
cdef double NEVER = 1e18


@cython.final
cdef class Settings:
    def __init__(self, limits):
        self.limits = limits
        self.message_bytes = limits.message_bytes
        self.fragments = limits.fragments
        self.write_soft_bytes = limits.write_soft_bytes
        self.write_hard_bytes = limits.write_hard_bytes
        self.ping_interval_s = limits.ping_interval_s or 0.0
        self.pong_timeout_s = limits.pong_timeout_s
        self.close_timeout_s = limits.close_timeout_s
        self.abort_timeout_s = limits.abort_timeout_s
        self.write_stall_timeout_s = limits.write_stall_timeout_s
        self.assembly_timeout_s = limits.assembly_timeout_s
        self.control_frames_per_second = limits.control_frames_per_second
        self.control_frames_burst = limits.control_frames_burst


@cython.final
cdef class LoopContext:
    """What the connections of one event loop share: read buffer, flush, timer wheel, counters.

    `LoopContext.of(loop)` is the one of a loop; a test may make its own with a manual `clock`.
    """

    def __cinit__(self, *args, **kwargs):
        self._arena = <char*>PyMem_Malloc(ARENA_BYTES + JOIN_BYTES)  # behind the arena: scratch of a single flush
        self._joined_frames = <PyObject**>PyMem_Malloc(JOIN_FRAMES * sizeof(PyObject*))
        if self._arena == NULL or self._joined_frames == NULL:
            raise MemoryError

    def __init__(self, loop, clock=None):
        self.loop = loop
        self._clock = clock
        buffer = bytearray(READ_BUFFER_BYTES)
        self._read_buffer = memoryview(buffer)  # asyncio's TLS slices it, and a slice of a bytearray is a copy
        self._read_start = <uint8_t*>PyByteArray_AS_STRING(buffer)
        self._private_buffers = sys.platform == "win32" and isinstance(loop, asyncio.ProactorEventLoop)
        self._settings = {}
        self._id_prefix = os.urandom(6).hex().encode()
        self._flush_callback = self._flush
        self._condemned = []
        self.wheel = TimerWheel(self.time, wake=self._wake, on_error=self._timer_failed)
        self.slow = SlowConsumers(self.wheel)

    def __dealloc__(self):
        cdef Py_ssize_t i
        if self._joined_frames != NULL:
            self.forget_joined()
        for i in range(self._dirty_head, self._dirty_end):
            if self._dirty[i] != NULL:
                Py_DECREF(<object>self._dirty[i])
        PyMem_Free(self._dirty)
        PyMem_Free(self._joined_frames)
        PyMem_Free(self._arena)

    @staticmethod
    def of(loop=None):
        """The context of `loop` (default: the running one), made at first use."""
        if loop is None:
            loop = asyncio.get_running_loop()
        context = getattr(loop, "_street_fast_context", None)
        if context is None:
            context = loop._street_fast_context = LoopContext(loop)
        return context

    cpdef double time(self) noexcept:
        """Seconds on a monotonic clock, a few milliseconds coarse."""
        return self.now()

    def stats(self):
        """Counters since the start, the open connections and what they have not taken, and how late the loop is.

        ``bytes_waiting`` is what was sent to slow connections and not taken; ``slow_consumers`` were evicted,
        ``outbound_evictions`` of them because all together held more than ``Limits.outbound_total_bytes``.

        ``loop_lag_ms`` is by how much the last timer was late, ``worst_loop_lag_ms`` the most since the start, and
        ``slow_reads`` how often the handlers of one read kept the loop for longer than 100 ms, which is logged.
        """
        return {
            "connections": self.connections_opened - self.connections_closed,
            "connections_opened": self.connections_opened,
            "messages_in": self.messages_in,
            "bytes_in": self.bytes_in,
            "messages_out": self.messages_out,
            "bytes_out": self.bytes_out,
            "bytes_waiting": self.slow.bytes_waiting(CONNECTIONS),
            "writes": self.writes,
            "messages_dropped": self.messages_dropped,
            "slow_consumers": self.slow_consumers,
            "outbound_evictions": self.slow.evicted[CONNECTIONS],
            "protocol_errors": self.protocol_errors,
            "slow_reads": self.slow_reads,
            "loop_lag_ms": round(1_000 * self._loop_lag),
            "worst_loop_lag_ms": round(1_000 * self._worst_loop_lag),
        }

    cdef double now(self) noexcept:
        if self._clock is None:
            return sf_now_coarse()
        return self._clock()

    cdef double exact_now(self) noexcept:
        if self._clock is None:
            return sf_now()
        return self._clock()

    cdef Settings settings_of(self, object limits):
        found = self._settings.get(id(limits))
        if found is None:
            if len(self._settings) == 64:  # somebody makes a Limits object per connection
                self._settings.clear()
            found = self._settings[id(limits)] = Settings(limits)
        return found

    # --- timers ---

    def _wake(self, double when):
        if self._wake_handle is not None:
            self._wake_handle.cancel()
        self._wake_time = when
        self._wake_handle = self.loop.call_later(max(0.0, when - self.now()), self._on_wake)

    def _on_wake(self):
        self._wake_handle = None
        self._loop_lag = max(0.0, self.now() - self._wake_time)
        self._worst_loop_lag = max(self._worst_loop_lag, self._loop_lag)
        if self._loop_lag > LATE_S:
            # The process was stopped, or the loop blocked. Bytes that are waiting in the kernel are read before
            # anyone is found silent: the loop polls once before this comes round.
            self._wake_time = NEVER
            self._wake_handle = self.loop.call_later(0.02, self._on_wake)
            return
        try:
            self.wheel.advance()
        finally:
            when = self.wheel.next_wakeup()
            if when is not None:
                self._wake(when)

    def _timer_failed(self, error):
        self.loop.call_exception_handler({"message": "a street_fast timer failed", "exception": error})

    # --- flushing ---

    cdef int add_dirty(self, WebSocketBase ws) except -1:
        cdef PyObject** grown
        if self._dirty_end == self._dirty_size:
            grown = <PyObject**>PyMem_Realloc(self._dirty, (2 * self._dirty_size + 64) * sizeof(PyObject*))
            if grown == NULL:
                raise MemoryError
            self._dirty = grown
            self._dirty_size = 2 * self._dirty_size + 64
        Py_INCREF(ws)
        self._dirty[self._dirty_end] = <PyObject*>ws
        self._dirty_end += 1
        ws._is_dirty = True
        return self.schedule_flush()

    cdef int schedule_flush(self) except -1:
        if not self._flush_scheduled:
            self.loop.call_soon(self._flush_callback)
            self._flush_scheduled = True
        return 0

    cdef int condemn(self, WebSocketBase ws) except -1:
        # Over its hard limit. Closing may run code of a transport, so it waits until no outbox is looked at.
        if not ws._condemned:
            ws._condemned = True
            self._condemned.append(ws)
            self.schedule_flush()
        return 0

    def _flush(self):
        cdef WebSocketBase ws
        self._flush_scheduled = False
        if self._condemned:
            condemned = self._condemned
            self._condemned = []
            for ws in condemned:
                ws._condemned = False
                ws._evict(f"more than {ws._settings.write_hard_bytes} bytes wait for you")
        self.flush_slice()

    cdef int flush_slice(self) except -1:
        cdef sf_job[BATCH] jobs
        cdef Py_ssize_t[BATCH] places
        cdef Py_ssize_t at
        cdef int count, done, i
        cdef const char* data
        cdef WebSocketBase ws
        cdef double deadline = self.exact_now() + SLICE_S
        cdef double deadline_of_run = deadline if self._clock is None else NEVER  # a clock of a test stands still there
        while self._dirty_head < self._dirty_end:
            if self._joined != NULL:  # the last joined buffer stays good for the next batch
                memmove(self._arena, self._joined, self._joined_size)
                self._joined = self._arena
                self._arena_used = self._joined_size
            else:
                self._arena_used = 0
            count = 0
            at = self._dirty_head
            while at < self._dirty_end and count < BATCH:
                if self._dirty[at] == NULL:
                    at += 1
                    continue
                ws = <WebSocketBase>self._dirty[at]
                if ws._outbox_count == 0 or ws._blocked or ws._fd < 0 or (
                    ws._outbox_count > 1
                    and (ws._outbox_count > JOIN_FRAMES or ws._outbox_bytes > JOIN_BYTES)
                ):
                    self._dirty[at] = NULL
                    at += 1
                    ws._is_dirty = False
                    Py_DECREF(ws)
                    try:
                        ws.flush()
                    except Exception as error:
                        self.write_failed(ws, error)
                    if self.exact_now() >= deadline:  # a transport's write() costs much more than a job: TLS
                        break
                    continue
                if ws._outbox_count == 1:
                    jobs[count].data = PyBytes_AS_STRING(<object>ws._outbox[0])
                else:
                    data = self.join(ws)
                    if data == NULL:
                        break
                    jobs[count].data = data
                jobs[count].size = ws._outbox_bytes
                jobs[count].fd = ws._fd
                places[count] = at
                count += 1
                at += 1
            if count > SMALL_BATCH:
                with nogil:
                    done = sf_run(jobs, count, deadline_of_run)
            else:
                done = sf_run(jobs, count, deadline_of_run)
            self._dirty_head = at if done == count else places[done]
            i = 0
            while i < done:
                try:  # one for the batch: entering it for each connection would cost as much as the rest
                    while i < done:
                        ws = <WebSocketBase>self._dirty[places[i]]
                        self._dirty[places[i]] = NULL
                        ws._is_dirty = False
                        Py_DECREF(ws)
                        i += 1
                        ws.took(jobs[i - 1].taken)
                except Exception as error:
                    self.write_failed(ws, error)
            if self.exact_now() >= deadline:
                break
        if self._dirty_head < self._dirty_end:
            # Here and not in add_dirty(): a finalizer may send while a batch is at work, and the batch has places.
            memmove(self._dirty, self._dirty + self._dirty_head,
                    (self._dirty_end - self._dirty_head) * sizeof(PyObject*))
            self._dirty_end -= self._dirty_head
            self._dirty_head = 0
            return self.schedule_flush()
        self._dirty_head = self._dirty_end = 0
        self.forget_joined()
        return 0

    cdef int write_failed(self, WebSocketBase ws, error) except -1:
        # A transport raised. That ends its connection, and is nothing to the others.
        self.loop.call_exception_handler(
            {"message": f"writing to connection {ws.id} failed", "exception": error, "transport": ws.transport}
        )
        return ws.drop_transport(CloseCode.ABNORMAL, f"connection lost: {error}")

    cdef const char* join(self, WebSocketBase ws) noexcept:
        # The outbox as one buffer; NULL if the arena is full. Subscribers of one channel mostly hold the very same
        # frames, so the last one joined is likely the next one needed: then nothing is copied.
        cdef int i
        cdef char* out
        if ws._outbox_count == self._joined_count and ws._outbox_bytes == self._joined_size and (
            memcmp(ws._outbox, self._joined_frames, self._joined_count * sizeof(PyObject*)) == 0
        ):
            return self._joined
        if self._arena_used + ws._outbox_bytes > ARENA_BYTES:
            return NULL
        self.forget_joined()
        out = self._arena + self._arena_used
        self._joined = out
        self._joined_size = ws._outbox_bytes
        self._joined_count = ws._outbox_count
        self._arena_used += ws._outbox_bytes
        for i in range(ws._outbox_count):
            self._joined_frames[i] = ws._outbox[i]
            Py_INCREF(<object>ws._outbox[i])  # so that the address cannot become another frame's
            out = copy_frame(out, ws._outbox[i])
        return self._joined

    cdef void forget_joined(self) noexcept:
        cdef Py_ssize_t i
        for i in range(self._joined_count):
            Py_DECREF(<object>self._joined_frames[i])
        self._joined_count = self._joined_size = 0
        self._joined = NULL


cdef inline char* copy_frame(char* out, PyObject* wire) noexcept:
    cdef Py_ssize_t size = PyBytes_GET_SIZE(<object>wire)
    memcpy(out, PyBytes_AS_STRING(<object>wire), size)
    return out + size


cdef class WebSocketBase(FrameParser):
    # Everything of WebSocket; see there. Only the base class asyncio.BufferedProtocol is missing: selector loops
    # ask for it with isinstance(), and a C class cannot have a Python class as its base.

    def __cinit__(self, *args, **kwargs):
        self._fd = -1
        self._state = LOST  # nothing is done without __init__(), which a subclass may forget to call

    def __init__(self, LoopContext context not None, limits=None, *, bint client=False, subprotocol=None):
        self._state = CONNECTING
        self.context = context
        self._settings = context.settings_of(DEFAULT_LIMITS if limits is None else limits)
        self.client = client
        self.subprotocol = subprotocol
        self._max_message_bytes = self._settings.message_bytes
        self._max_fragments = self._settings.fragments
        context._last_id += 1
        self._id = context._last_id

    def __dealloc__(self):
        self.release(self._outbox_count)

    # --- the life of the connection ---

    def start(self, transport, bytes head=b"", bytes tail=b""):
        """Becomes the protocol of `transport`. `head` goes out before anything else (the 101 response); `tail` is
        what was read behind the request, and is parsed in the next turn of the loop."""
        cdef LoopContext context = self.context
        if self.transport is not None or self._state == LOST:
            raise RuntimeError("this WebSocket has been started already")
        self.transport = transport
        transport.set_protocol(_NOBODY)
        transport.set_protocol(self)
        context.connections_opened += 1
        if transport.is_closing():  # the peer left while it was being let in
            context.loop.call_soon(self.connection_lost, None)
            return
        if context._private_buffers:
            self._own_buffer = bytearray(65_536)
        self._fd = self._find_descriptor(transport)
        transport.set_write_buffer_limits(high=0 if self._fd >= 0 else self._settings.write_soft_bytes)
        self._last_received = context.now()
        self._next_heartbeat = self._last_received + self._settings.ping_interval_s
        if self.paused:
            transport.pause_reading()
        if head:
            self.append(head)
            if self._outbox_count > 1:  # sent before the start, so behind the head
                memmove(self._outbox + 1, self._outbox, (self._outbox_count - 1) * sizeof(PyObject*))
                self._outbox[0] = <PyObject*>head
        if self._state == CONNECTING:
            self._state = OPEN
            if self._settings.ping_interval_s:
                self.look_again_in(self._settings.ping_interval_s)
        if self._fd >= 0 and transport.get_write_buffer_size():
            # The transport has a backlog that direct writes would overtake. Above its limit, which is 0 now, it
            # calls resume_writing() in the end.
            self._blocked = True
            self._progress_time = context.now()
            context.slow.note(self, CONNECTIONS)
            if self._outbox_count:
                self.hand_over(0)
        if self._outbox_count and not self._is_dirty:
            context.add_dirty(self)
        if tail:
            self._set_aside(<const uint8_t*>PyBytes_AS_STRING(tail), PyBytes_GET_SIZE(tail))
            context.loop.call_soon(self._parse_tail)

    def _parse_tail(self):
        if self._state != LOST and self._unparsed is not None and not self.paused:
            self.receive(NULL, 0)

    def _find_descriptor(self, transport):
        # Only transports whose inner life is known: another one may well encrypt what it is given.
        if not SF_DIRECT or self.context._private_buffers:
            return -1
        if type(transport).__module__ not in ("uvloop.loop", "asyncio.selector_events"):
            return -1
        if transport.get_extra_info("sslcontext") is not None:
            return -1
        sock = transport.get_extra_info("socket")
        if sock is None:
            return -1
        descriptor = sock.fileno()
        patience_s = (self._settings.ping_interval_s or 25.0) + self._settings.pong_timeout_s
        sf_user_timeout(descriptor, <unsigned int>min(1_000 * patience_s, 2**31 - 1))
        return descriptor

    def connection_made(self, transport):
        if self.transport is None:
            self.start(transport)

    def get_buffer(self, Py_ssize_t sizehint):
        return self.context._read_buffer if self._own_buffer is None else memoryview(self._own_buffer)

    def buffer_updated(self, Py_ssize_t nbytes):
        if self._own_buffer is not None:
            self.receive(<uint8_t*>PyByteArray_AS_STRING(self._own_buffer), nbytes)
        else:
            self.receive(self.context._read_start, nbytes)

    def eof_received(self):
        self.flush()  # it may be reading still
        self._fd = -1  # the transport closes now
        if self._state == OPEN:
            self._close_code = CloseCode.ABNORMAL
            self._close_reason = "the peer hung up without a close frame"
        if self._state < DONE:
            self._state = DONE
        self.stop()
        self._deadline = self.context.now() + self._settings.abort_timeout_s  # it may have a backlog to write
        self.look_again_in(self._settings.abort_timeout_s)
        return False

    def connection_lost(self, error):
        cdef object on_close = self._on_close, listener = self.listener
        if self._state == LOST:
            return
        self._state = LOST
        self._fd = -1
        self.stop()
        self.release(self._outbox_count)
        self._pong = self._in_flight = None
        self.context.slow.forget(self)
        if self._timer is not None:
            self.context.wheel.cancel(self._timer)
            self._timer = None
        if not self._close_code:
            self._close_code = CloseCode.ABNORMAL
            self._close_reason = "connection lost" if error is None else f"connection lost: {error}"
        self.context.connections_closed += 1
        self.transport = None
        self._own_buffer = None
        self._on_message = self._on_close = self.listener = None
        self.wake_waiters()
        if on_close is not None or listener is not None:
            try:
                if listener is not None:
                    listener._on_close(self._close_code, self._close_reason or "")
                else:
                    on_close(self._close_code, self._close_reason or "")
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:
                logger.exception("connection %s: on_close failed", self.id)

    # --- what the application sees ---

    @property
    def id(self):
        """A name that no other connection has, also not on other machines."""
        if self.context is None:
            raise RuntimeError(f"WebSocket.__init__() was not called by {type(self).__name__}")
        return f"{self.context._id_prefix.decode()}{self._id:x}"

    @property
    def limits(self):
        """The bounds that it has."""
        return None if self._settings is None else self._settings.limits

    @property
    def closed(self):
        """True as soon as nothing more can be sent."""
        return self._state > OPEN

    @property
    def close_code(self):
        """How it ended or is ending: the code of whoever closed first, 1006 if nobody did; None while open."""
        return self._close_code or None

    @property
    def close_reason(self):
        """What was said with the close code; empty if nothing."""
        return self._close_reason or ""

    @property
    def bytes_buffered(self):
        """Bytes that were sent here and that the kernel has not taken."""
        if self._handed_over and self.transport is not None:
            return self._outbox_bytes + self.transport.get_write_buffer_size()
        return self._outbox_bytes

    @property
    def on_message(self):
        """Called with each message: str for text, bytes for binary. A plain function; it must not block."""
        return self._on_message

    @on_message.setter
    def on_message(self, handler):
        self._on_message = check_handler("on_message", handler)

    @property
    def on_close(self):
        """Called with code and reason, exactly once, when the connection is gone. A plain function."""
        return self._on_close

    @on_close.setter
    def on_close(self, handler):
        self._on_close = check_handler("on_close", handler)

    def get_extra_info(self, name, default=None):
        """What the transport knows: 'peername', 'sockname', 'ssl_object' and so on."""
        return default if self.transport is None else self.transport.get_extra_info(name, default)

    def send(self, data, *, bint droppable=False):
        """Queues a message: str as text, bytes-like as binary, a Frame as it is. Never blocks.

        False if the connection is closing, if it was evicted as too slow, or if `droppable` and more than
        `Limits.write_soft_bytes` wait already. Raises TypeError for anything else, and UnicodeEncodeError for a
        str with lone surrogates.
        """
        cdef Py_ssize_t size
        cdef const char* text
        cdef Py_buffer view
        if self._state > OPEN:
            return False
        if isinstance(data, str):
            text = PyUnicode_AsUTF8AndSize(data, &size)
            if self.client:
                return self.push(build_masked_frame(FIN | TEXT, <const uint8_t*>text, size), droppable) == 1
            return self.push(build_frame(FIN | TEXT, <const uint8_t*>text, size), droppable) == 1
        if isinstance(data, Frame):
            return self.push_frame(<Frame>data, droppable) == 1
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"send() takes str, bytes, bytearray, memoryview or Frame, not {type(data).__name__}")
        get_bytes(data, &view)
        try:
            if self.client:
                wire = build_masked_frame(FIN | BINARY, <const uint8_t*>view.buf, view.len)
            else:
                wire = build_frame(FIN | BINARY, <const uint8_t*>view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        return self.push(wire, droppable) == 1

    def ping(self, data=b""):
        """Sends a ping (section 5.5.2) of at most 125 bytes. The heartbeat does so by itself."""
        if not isinstance(data, bytes):
            raise TypeError(f"ping() takes bytes, not {type(data).__name__}")
        if len(data) > 125:
            raise ValueError(f"a ping of {len(data)} bytes: at most 125 are allowed (RFC 6455 section 5.5)")
        return self.push(self.control_frame(PING, data), False) == 1

    def close(self, code=1000, reason=""):
        """Sends a close frame behind what is queued and waits for the peer's, at most `Limits.close_timeout_s`.

        Does nothing if the connection is closing already. Raises ValueError for a code that may not be sent.
        """
        encode_close(code, reason)
        if self._state <= OPEN:
            self.begin_close(code, reason, CLOSING, self._settings.close_timeout_s)

    def abort(self):
        """Ends the connection at once; what is queued is lost."""
        if self._state != LOST:
            self.drop_transport(CloseCode.ABNORMAL, "aborted")

    async def drain(self):
        """Waits until at most `Limits.write_soft_bytes` are queued. Raises ConnectionClosed if it ends before."""
        if self._state == LOST:
            raise ConnectionClosed(self._close_code, self._close_reason or "")
        if self.pending() > self._settings.write_soft_bytes:
            await self._wait(True)

    async def wait_closed(self):
        """Waits until the connection is gone and `on_close` has been called."""
        if self._state != LOST:
            await self._wait(False)

    def _wait(self, bint for_drain):
        future = self.context.loop.create_future()
        if self._waiters is None:
            self._waiters = []
        self._waiters.append((for_drain, future))
        return future

    def pause_reading(self):
        """Delivers no more messages until resume_reading(); the peer is slowed down by TCP.

        Does nothing once the connection is closing: no message is delivered then, and the peer's answer must be seen.
        """
        if self._state > OPEN:
            return
        self.paused = True
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_reading(self):
        """Goes on after pause_reading(), first with what had been read already."""
        if self._state == LOST:
            return
        self._last_received = self.context.now()  # silence that we asked for says nothing about the peer
        if self.transport is not None:
            self.transport.resume_reading()
        self.paused = False
        if self._unparsed is not None and self.transport is not None:
            self.receive(NULL, 0)

    def feed(self, data):
        raise TypeError("a WebSocket reads from its transport; to parse bytes, use FrameParser")

    def __repr__(self):
        state = ("connecting", "open", "closing", "failing", "done", "closed")[self._state]
        return f"<WebSocket {self.id} {state}>"

    # --- reading ---

    cdef int receive(self, uint8_t* data, Py_ssize_t size) except -1:
        cdef LoopContext context = self.context
        cdef PyObject* outer = context._reading
        cdef double spent
        context._reading = <PyObject*>self
        context.bytes_in += size
        self._last_received = context.now()
        try:
            if self._unparsed is not None and not self.paused:
                self.unpause()
            if size:
                self.parse(data, size)
        except ProtocolError as error:
            self.fail(error)
        finally:
            context._reading = outer
        spent = context.now() - self._last_received
        if spent >= BLOCKING_S:
            context.slow_reads += 1
            logger.warning("connection %s: its handlers kept the event loop from everything else for %.2f s",
                           self.id, spent)
        if self._head_have or self._in_payload or self._message_opcode:
            if self._message_began == 0 and self._state == OPEN:
                self._message_began = self._last_received
                self.look_again_in(self._settings.assembly_timeout_s)
        else:
            self._message_began = 0
        if not self._blocked:
            if self._outbox_count:
                self.flush()
            elif self._state == DONE:
                self.emptied()
        return 0

    cdef int deliver_message(self, int opcode, const uint8_t* data, Py_ssize_t size, bint ascii) except -1:
        cdef object handler = self._on_message, listener = self.listener
        self._message_began = 0
        if (handler is None and listener is None) or self._state != OPEN:
            return 0
        self.context.messages_in += 1
        if opcode != TEXT:
            message = PyByteArray_FromStringAndSize(<const char*>data, size) if self.text_as_bytes else data[:size]
        elif self.text_as_bytes:
            message = data[:size]
        elif ascii:
            message = PyUnicode_New(size, 127)
            memcpy(PyUnicode_DATA(message), data, size)
        else:
            message = PyUnicode_DecodeUTF8(<const char*>data, size, NULL)
        try:
            if listener is not None:
                listener._on_message(message)
            else:
                handler(message)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            logger.exception("connection %s: on_message failed", self.id)
        return 0

    cdef int deliver_control(self, int opcode, const uint8_t* data, Py_ssize_t size) except -1:
        cdef double now = self.context.now()
        cdef Settings settings = self._settings
        self._control_level = max(
            0.0, self._control_level - (now - self._control_time) * settings.control_frames_per_second
        ) + 1.0
        self._control_time = now
        if self._control_level > settings.control_frames_burst:
            raise ProtocolError(
                CloseCode.POLICY_VIOLATION,
                "control_flood",
                f"more than {settings.control_frames_burst:.0f} control frames at once, "
                f"or {settings.control_frames_per_second:.0f} a second",
            )
        if opcode != PING or self._state != OPEN:
            return 0
        if self.pending() > settings.write_soft_bytes:
            self._pong = data[:size]  # section 5.5.3: only the newest ping needs an answer
        else:
            self.push(self.control_frame(PONG, data[:size]), False)
        return 0

    cdef int deliver_close(self, int code, str reason) except -1:
        if self._state == OPEN:
            # Section 5.5.1: the answer carries the status that came.
            self._close_code = code
            self._close_reason = reason
            self.append(self.control_frame(CLOSE, b"" if code == CloseCode.NO_STATUS else encode_close(code)))
        elif self._state != CLOSING:
            return 0
        self._state = DONE
        self._deadline = self.context.now() + self._settings.abort_timeout_s
        return self.look_again_in(self._settings.abort_timeout_s)

    # --- closing ---

    cdef int begin_close(self, int code, str reason, State state, double timeout) except -1:
        self.append(self.control_frame(CLOSE, encode_close(code, reason)))
        self._close_code = code
        self._close_reason = reason
        self._state = state
        self._deadline = self.context.now() + timeout
        self.look_again_in(timeout)
        if self.transport is not None and not self._is_dirty and self.context._reading != <PyObject*>self:
            self.context.add_dirty(self)
        if self.paused:  # its close frame must get through, and may have been read already
            self.paused = False
            if self.transport is not None:
                self.transport.resume_reading()
                if self._unparsed is not None:
                    self.context.loop.call_soon(self._parse_tail)
        return 0

    cdef int fail(self, object error) except -1:
        # The one place where a peer's error becomes a close frame (section 7.1.7).
        self.context.protocol_errors += 1
        self.stop()
        logger.debug("connection %s: %s (%s)", self.id, error, error.code)
        if self._state == OPEN:
            return self.begin_close(error.close_code, str(error), FAILING, self._settings.abort_timeout_s)
        if self._state == CLOSING:
            self._state = DONE
        return 0

    cdef int drop_transport(self, int code, str reason) except -1:
        self._fd = -1
        self.stop()
        self.release(self._outbox_count)
        if not self._close_code:
            self._close_code = code
            self._close_reason = reason
        self._state = DONE
        if self.transport is not None:
            self.transport.abort()
        return 0

    # --- writing ---

    cdef int push_frame(self, Frame frame, bint droppable) except -1:
        cdef const uint8_t* data
        cdef Py_ssize_t size
        if not self.client:
            return self.push(frame.wire, droppable)
        data = payload_of(frame.wire, &size)
        return self.push(build_masked_frame(FIN | frame.opcode, data, size), droppable)

    cdef int push(self, object wire, bint droppable) except -1:
        # 1 if queued.
        cdef Settings settings = self._settings
        if self._state > OPEN:
            return 0
        if self._outbox_bytes + self._handed_over > settings.write_soft_bytes:
            self.flush()
            if self.pending() > settings.write_soft_bytes:
                if droppable:
                    self.context.messages_dropped += 1
                    return 0
                if self.pending() > settings.write_hard_bytes:
                    self.context.condemn(self)
                    return 0
            if self._state > OPEN:
                return 0
        self.append(wire)
        if not self._is_dirty and self.context._reading != <PyObject*>self:
            self.context.add_dirty(self)
        return 1

    cdef int append(self, object wire) except -1:
        cdef PyObject** grown
        cdef int size
        if self._outbox_count == self._outbox_size:
            if self._outbox_size == 0:
                self._outbox = &self._outbox_one
                self._outbox_size = 1
            else:
                size = max(8, 2 * self._outbox_size)
                grown = <PyObject**>PyMem_Realloc(
                    NULL if self._outbox_size == 1 else self._outbox, size * sizeof(PyObject*)
                )
                if grown == NULL:
                    raise MemoryError
                if self._outbox_size == 1:
                    grown[0] = self._outbox_one
                self._outbox = grown
                self._outbox_size = size
        Py_INCREF(wire)
        self._outbox[self._outbox_count] = <PyObject*>wire
        self._outbox_count += 1
        self._outbox_bytes += PyBytes_GET_SIZE(wire)
        return 0

    cdef void release(self, int count) noexcept:
        # Lets go of the first frames of the outbox.
        cdef int i
        for i in range(count):
            self._outbox_bytes -= PyBytes_GET_SIZE(<object>self._outbox[i])
            Py_DECREF(<object>self._outbox[i])
        self._outbox_count -= count
        if self._outbox_count:
            memmove(self._outbox, self._outbox + count, self._outbox_count * sizeof(PyObject*))
        elif self._outbox_size:
            if self._outbox_size > 1:
                PyMem_Free(self._outbox)
            self._outbox = NULL
            self._outbox_size = 0

    cdef bytes control_frame(self, int opcode, bytes payload):
        cdef const uint8_t* data = <const uint8_t*>PyBytes_AS_STRING(payload)
        if self.client:
            return build_masked_frame(FIN | opcode, data, PyBytes_GET_SIZE(payload))
        return build_frame(FIN | opcode, data, PyBytes_GET_SIZE(payload))

    cdef Py_ssize_t pending(self) noexcept:
        return self._outbox_bytes + self._handed_over

    cdef int flush(self) except -1:
        cdef sf_iovec[64] parts
        cdef char* out
        cdef int i, count
        cdef Py_ssize_t size
        cdef int64_t taken
        while self._outbox_count and not self._blocked and self.transport is not None:
            if self._fd < 0:
                return self.flush_through_transport()
            if self._outbox_count == 1:
                taken = sf_send(self._fd, PyBytes_AS_STRING(<object>self._outbox[0]), self._outbox_bytes)
                size = self._outbox_bytes
                count = 1
            elif self._outbox_bytes <= JOIN_BYTES and self._outbox_count <= JOIN_FRAMES:
                out = self.context._arena + ARENA_BYTES
                for i in range(self._outbox_count):
                    out = copy_frame(out, self._outbox[i])
                taken = sf_send(self._fd, self.context._arena + ARENA_BYTES, self._outbox_bytes)
                size = self._outbox_bytes
                count = self._outbox_count
            else:
                count = min(self._outbox_count, SF_IOV_MAX)
                size = 0
                for i in range(count):
                    parts[i].iov_base = PyBytes_AS_STRING(<object>self._outbox[i])
                    parts[i].iov_len = PyBytes_GET_SIZE(<object>self._outbox[i])
                    size += parts[i].iov_len
                taken = sf_writev(self._fd, parts, count)
            if taken == size and count < self._outbox_count:
                self.context.writes += 1
                self.context.messages_out += count
                self.context.bytes_out += taken
                self.release(count)
            else:
                return self.took(taken)
        return 0

    cdef int took(self, int64_t taken) except -1:
        # What the kernel took of the outbox, or -errno.
        cdef LoopContext context = self.context
        cdef int whole = 0
        if taken == self._outbox_bytes:
            context.writes += 1
            context.messages_out += self._outbox_count
            context.bytes_out += taken
            self.release(self._outbox_count)
            return self.emptied()
        if taken > self._outbox_bytes:
            return 0  # a finalizer has aborted it since
        if taken < 0:
            if not sf_would_block(taken):
                return self.drop_transport(CloseCode.ABNORMAL, f"connection lost: {os.strerror(-taken)}")
            taken = 0
        context.writes += 1
        context.bytes_out += taken
        while taken >= PyBytes_GET_SIZE(<object>self._outbox[whole]):
            taken -= PyBytes_GET_SIZE(<object>self._outbox[whole])
            whole += 1
        context.messages_out += whole
        self.release(whole)
        self._progress_time = context.now()
        self.hand_over(taken)
        return self.flush()

    cdef int hand_over(self, Py_ssize_t offset) except -1:
        # The first frame, from `offset` on, becomes the transport's: it knows how to wait for the socket.
        cdef bytes wire = <bytes>self._outbox[0]
        self.release(1)
        self._handed_over += PyBytes_GET_SIZE(wire) - offset
        self.context.messages_out += 1
        self.context.bytes_out += PyBytes_GET_SIZE(wire) - offset
        try:
            self.transport.write(memoryview(wire)[offset:] if offset else wire)
        except Exception as error:
            return self.drop_transport(CloseCode.ABNORMAL, f"connection lost: {error}")
        if self._blocked:
            self._in_flight = wire
        else:
            self._handed_over = 0
        return 0

    cdef int flush_through_transport(self) except -1:
        cdef int i
        cdef Py_ssize_t size = self._outbox_bytes
        if self._outbox_count == 1:
            data = <object>self._outbox[0]
        else:
            data = b"".join([<object>self._outbox[i] for i in range(self._outbox_count)])
        self.context.writes += 1
        self.context.messages_out += self._outbox_count
        self.context.bytes_out += size
        self.release(self._outbox_count)
        self._handed_over += size
        try:
            self.transport.write(data)
        except Exception as error:
            return self.drop_transport(CloseCode.ABNORMAL, f"connection lost: {error}")
        if self._blocked:
            return 0
        if self.transport is not None and self.transport.get_write_buffer_size():  # not yet above its mark
            self.context.slow.note(self, CONNECTIONS)
        self._handed_over = 0
        return self.emptied()

    cdef int emptied(self) except -1:
        # Nothing waits any more: what was to come after that.
        if self._waiters is not None:
            self.wake_waiters()
        if self._pong is not None and self._state == OPEN:
            pong = self.control_frame(PONG, self._pong)
            self._pong = None
            self.push(pong, False)
        elif self._state == DONE and not self.client and self.transport is not None:
            self._fd = -1
            self.transport.close()
        elif self._state == FAILING and not self._ended and self.transport is not None:
            # Half-closed, the peer reads our close frame and hangs up. Closing at once would make the kernel throw
            # both away if there is anything unread.
            self._ended = True
            if self.transport.can_write_eof():
                self._fd = -1
                try:
                    self.transport.write_eof()
                except OSError as error:  # asyncio: the peer has reset the connection, and the loop has not seen it yet
                    return self.drop_transport(CloseCode.ABNORMAL, f"connection lost: {error}")
            else:
                self.transport.close()
        return 0

    def pause_writing(self):
        self._blocked = True
        self._progress_time = self.context.now()
        self.context.slow.note(self, CONNECTIONS)
        self.look_again_in(self._settings.write_stall_timeout_s / 4)

    def resume_writing(self):
        self._blocked = False
        self._handed_over = 0
        self._in_flight = None
        if self._state == OPEN:
            self._resume()
        else:
            # It may close the transport now, and within this call asyncio would lose the connection twice.
            self.context.loop.call_soon(self._resume)

    def _resume(self):
        if self._state == LOST or self._blocked:
            return
        if self._outbox_count:
            self.flush()
        else:
            self.emptied()
        if self._waiters is not None:
            self.wake_waiters()

    cdef int wake_waiters(self) except -1:
        cdef bint lost = self._state == LOST, drained = self.pending() <= self._settings.write_soft_bytes
        waiting = []
        if self._waiters is None:
            return 0
        for for_drain, future in self._waiters:
            if future.done():
                continue
            if lost and for_drain:
                future.set_exception(ConnectionClosed(self._close_code, self._close_reason or ""))
            elif lost or (for_drain and drained):
                future.set_result(None)
            else:
                waiting.append((for_drain, future))
        self._waiters = waiting or None
        return 0

    # --- for SlowConsumers ---

    def _bytes_waiting(self):
        # 0 for one that is not slow any more.
        cdef Py_ssize_t left
        if self.transport is None or (self._fd >= 0 and not self._blocked):
            return 0
        left = self.transport.get_write_buffer_size()
        return left + self._outbox_bytes if left or self._blocked else 0

    def _bytes_held(self):
        # What would be freed without this connection: of a frame that others hold too, its part.
        cdef int i
        cdef double size
        if self.transport is None:
            return 0.0
        size = self.transport.get_write_buffer_size()
        if self._in_flight is not None:
            size /= max(1, Py_REFCNT(<PyObject*>self._in_flight) // 2)  # the transport has a reference too
        for i in range(self._outbox_count):
            size += <double>PyBytes_GET_SIZE(<object>self._outbox[i]) / Py_REFCNT(self._outbox[i])
        return size

    def _evict(self, str why):
        # References to what it will not get are let go at once; a frame in flight is the transport's already.
        if self._state != OPEN:
            return
        self.context.slow_consumers += 1
        self.release(self._outbox_count)
        self._pong = None
        self.begin_close(CloseCode.SLOW_CONSUMER, why, CLOSING, self._settings.abort_timeout_s)

    # --- deadlines ---

    cdef int look_again_in(self, double delay) except -1:
        # One timer serves every deadline of the connection: it is set to the nearest, and on_timer() looks at all.
        cdef TimerWheel wheel = self.context.wheel
        if self._timer is None:
            self._timer = wheel.schedule(delay, timer_fired, self)
        elif wheel._time_of(self._timer._tick) > self.context.now() + delay:
            wheel.reschedule(self._timer, delay)
        return 0

    cdef int on_timer(self) except -1:
        cdef Settings settings = self._settings
        cdef double now = self.context.now(), wait = NEVER
        cdef Py_ssize_t left
        if self._state == LOST:
            return 0
        if self._deadline and now >= self._deadline:
            self._timer = None
            return self.drop_transport(CloseCode.ABNORMAL, "the closing handshake took too long")
        if self._blocked and self._state == OPEN:
            left = self.transport.get_write_buffer_size()
            if left < self._handed_over:
                self._handed_over = left
                self._progress_time = now
            elif now - self._progress_time >= settings.write_stall_timeout_s:
                self._evict(f"nothing was read for {settings.write_stall_timeout_s:g} s")
            wait = settings.write_stall_timeout_s / 4
        if self._message_began and self._state == OPEN and not self.paused:
            if now - self._message_began >= settings.assembly_timeout_s:
                self.fail(ProtocolError(
                    CloseCode.POLICY_VIOLATION,
                    "assembly_timeout",
                    f"a message was not complete after {settings.assembly_timeout_s:g} s",
                ))
            else:
                wait = min(wait, self._message_began + settings.assembly_timeout_s - now)
        if settings.ping_interval_s and self._state == OPEN:
            if self._ping_sent and (self.paused or self._last_received >= self._ping_sent):
                self._ping_sent = 0
            if self._ping_sent:
                if now - self._ping_sent >= settings.pong_timeout_s:
                    self._timer = None
                    return self.drop_transport(
                        CloseCode.ABNORMAL, f"no answer to a ping within {settings.pong_timeout_s:g} s"
                    )
                wait = min(wait, self._ping_sent + settings.pong_timeout_s - now)
            if self.heartbeat is not None:
                if now >= self._next_heartbeat:
                    self._next_heartbeat = now + settings.ping_interval_s
                    # A slow peer does not get even more to read. It is judged by what it takes.
                    if self.push_frame(self.heartbeat, True) and not self._ping_sent and not self.paused:
                        self._ping_sent = now
                        wait = min(wait, settings.pong_timeout_s)
                wait = min(wait, self._next_heartbeat - now)
            elif self._ping_sent:
                pass
            elif now - self._last_received >= settings.ping_interval_s:
                if self.paused:  # no answer can be seen, but if the peer is gone, the write fails
                    self._last_received = now
                    wait = min(wait, settings.ping_interval_s)
                else:
                    self._ping_sent = now
                    wait = min(wait, settings.pong_timeout_s)
                self.push(self.control_frame(PING, b""), False)
            else:
                wait = min(wait, self._last_received + settings.ping_interval_s - now)
        if self._deadline:
            wait = min(wait, self._deadline - now)
        if wait == NEVER:
            self._timer = None
        else:
            self.context.wheel.reschedule(self._timer, wait)
        return 0


def timer_fired(WebSocketBase ws):
    ws.on_timer()


def unix_time_ms():
    """Milliseconds since 1970, as an int."""
    return sf_unix_ms()


cdef object check_handler(str name, handler):
    if handler is not None and not callable(handler):
        raise TypeError(f"{name}={handler!r}: must be a function, or None")
    if inspect.iscoroutinefunction(handler):
        raise TypeError(
            f"{name}={handler!r}: must be a plain function; for coroutines use StreetSocket.on(), or start a task "
            f"(and call pause_reading() while it runs)"
        )
    return handler


class WebSocket(WebSocketBase, asyncio.BufferedProtocol):
    """One WebSocket connection, without an opinion on what its messages mean.

    `WebSocket(context, limits, *, client=False, subprotocol=None)`, then `start(transport)`. Set `on_message(data)`
    and `on_close(code, reason)`; the latter is called exactly once, when the connection is gone. Not thread-safe:
    it belongs to its loop.
    """

    __slots__ = ()


cdef PyTypeObject* websocket_type = <PyTypeObject*>WebSocket


def fan_out(sinks, Frame frame not None, skip=None, bint droppable=False):
    """Queues `frame` on every WebSocket among `sinks` (the keys of a dict, or any iterable).

    Returns the sinks that are no WebSocket, for the caller to serve. `skip` is one sink, or a set of them.
    """
    cdef list others = []
    push_to_all(sinks, frame, skip, droppable, others)
    return others


def broadcast(connections, data, *, skip=None):
    """Sends one message to many connections: framed once, the same bytes for all. Returns how many took it.

    `data` is a str, bytes-like or a Frame. Slow connections do not slow down the others; those that exceed
    `Limits.write_hard_bytes` are closed with 4008. Raises TypeError for anything but a WebSocket.
    """
    cdef list others = []
    cdef Frame frame
    cdef Py_ssize_t queued
    if isinstance(data, Frame):
        frame = data
    elif isinstance(data, str):
        frame = Frame.text(data)
    else:
        frame = Frame.binary(data)
    queued = push_to_all(connections, frame, skip, False, others)
    if others:
        raise TypeError(f"broadcast() sends to WebSocket connections, not to {others[0]!r}")
    return queued


cdef Py_ssize_t push_to_all(object sinks, Frame frame, object skip, bint droppable, list others) except -1:
    cdef PyObject* key
    cdef Py_ssize_t position = 0, queued = 0
    cdef bint many = isinstance(skip, (set, frozenset))
    if type(sinks) is dict:
        while PyDict_Next(sinks, &position, &key, NULL):
            queued += push_to_one(<object>key, frame, skip, many, droppable, others)
    else:
        for sink in sinks:
            queued += push_to_one(sink, frame, skip, many, droppable, others)
    return queued


cdef inline int push_to_one(
    object sink, Frame frame, object skip, bint many, bint droppable, list others
) except -1:
    if sink is skip or (many and sink in skip):
        return 0
    if Py_TYPE(sink) != websocket_type and not isinstance(sink, WebSocketBase):
        others.append(sink)
        return 0
    return (<WebSocketBase>sink).push_frame(frame, droppable)
