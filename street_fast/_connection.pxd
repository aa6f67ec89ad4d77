"""The C contract of the connection layer: what one event loop shares, and one WebSocket."""

from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint8_t, uint64_t

from street_fast._frames cimport Frame, FrameParser, flag
from street_fast._wheel cimport Timer, TimerWheel


cdef enum State:
    CONNECTING   # start() has not been called; what is sent waits
    OPEN
    CLOSING      # our close frame is queued or sent; the peer's is awaited (RFC 6455 section 7.1.3)
    FAILING      # the peer broke a rule: a close frame is queued, its bytes are ignored (section 7.1.7)
    DONE         # both close frames are there; the transport closes once the outbox is empty
    LOST         # connection_lost() was called


cdef class Settings:
    """The numbers of a Limits object that the hot path reads, as C values; shared by all who use that object."""
    cdef object limits
    cdef Py_ssize_t message_bytes
    cdef Py_ssize_t write_soft_bytes
    cdef Py_ssize_t write_hard_bytes
    cdef int fragments
    cdef double ping_interval_s      # 0: no heartbeat
    cdef double pong_timeout_s
    cdef double close_timeout_s
    cdef double abort_timeout_s
    cdef double write_stall_timeout_s
    cdef double assembly_timeout_s
    cdef double control_frames_per_second
    cdef double control_frames_burst


cdef class LoopContext:
    cdef readonly object loop
    cdef readonly TimerWheel wheel
    cdef readonly object slow        # SlowConsumers: those whose bytes a transport holds, and slow event streams
    cdef object _clock
    cdef object _read_buffer         # memoryview, shared by all connections of the loop
    cdef uint8_t* _read_start
    cdef bint _private_buffers       # a proactor loop reads in the background: no sharing
    cdef object _wake_handle
    cdef double _wake_time
    cdef object _settings            # id(limits) -> Settings
    cdef bytes _id_prefix
    cdef uint64_t _last_id
    # The connections with something to send, in the order in which they got it.
    cdef PyObject** _dirty
    cdef Py_ssize_t _dirty_head, _dirty_end, _dirty_size
    cdef bint _flush_scheduled
    cdef object _flush_callback
    cdef PyObject* _reading          # the connection whose bytes are being handled: it flushes itself afterwards
    cdef list _condemned
    # The joined outbox that the next connection most likely needs too.
    cdef char* _arena
    cdef Py_ssize_t _arena_used
    cdef char* _joined
    cdef Py_ssize_t _joined_size, _joined_count
    cdef PyObject** _joined_frames
    # Counters.
    cdef uint64_t connections_opened, connections_closed
    cdef uint64_t messages_in, bytes_in, messages_out, bytes_out
    cdef uint64_t messages_dropped, slow_consumers, protocol_errors, writes, slow_reads
    cdef double _loop_lag, _worst_loop_lag

    cpdef double time(self) noexcept
    cdef double now(self) noexcept
    cdef double exact_now(self) noexcept
    cdef Settings settings_of(self, object limits)
    cdef int add_dirty(self, WebSocketBase ws) except -1
    cdef int schedule_flush(self) except -1
    cdef int condemn(self, WebSocketBase ws) except -1
    cdef int flush_slice(self) except -1
    cdef int write_failed(self, WebSocketBase ws, error) except -1
    cdef const char* join(self, WebSocketBase ws) noexcept
    cdef void forget_joined(self) noexcept


cdef class WebSocketBase(FrameParser):
    cdef readonly LoopContext context
    cdef readonly object transport
    cdef Settings _settings
    cdef Timer _timer
    cdef object _on_message
    cdef object _on_close
    # Its `_on_message` and `_on_close` are called in place of the two above: one reference for two bound methods.
    cdef public object listener
    cdef readonly object subprotocol
    cdef object _close_reason
    cdef object _waiters             # list of futures of drain() and wait_closed(), None while nobody waits
    cdef bytes _in_flight            # the frame whose rest the transport holds while it is blocked, else None
    cdef bytes _pong                 # the newest pong that waits for a slow peer, else None
    cdef object _own_buffer
    # Sent every ping_interval_s in place of the ping after a silence, for a peer that cannot see pings; else None.
    cdef public Frame heartbeat
    cdef object __weakref__
    # Frames not yet given to the kernel. One pointer is in the object itself; more need an array.
    cdef PyObject** _outbox
    cdef PyObject* _outbox_one
    cdef int _outbox_count, _outbox_size
    cdef Py_ssize_t _outbox_bytes
    cdef Py_ssize_t _handed_over     # bytes given to the transport since it was last empty
    cdef uint64_t _id
    cdef double _last_received
    cdef double _ping_sent           # 0: no pong is awaited
    cdef double _next_heartbeat      # when `heartbeat` is due, if there is one
    cdef double _message_began       # 0: no message is unfinished
    cdef double _deadline            # of closing; 0: none
    cdef double _progress_time       # when the peer last took a byte, while blocked
    cdef double _control_level, _control_time
    cdef int _fd                     # -1 unless we may write to it
    cdef int _close_code
    cdef uint8_t _state
    cdef flag _is_dirty
    cdef flag _blocked               # the transport has a backlog; the outbox waits for resume_writing()
    cdef flag _condemned
    cdef flag _ended                 # the transport was told that nothing more comes
    # Text arrives as (valid UTF-8) bytes, for who decodes JSON; binary then as bytearray, to tell them apart.
    cdef public flag text_as_bytes

    cdef int push(self, object wire, bint droppable) except -1
    cdef int push_frame(self, Frame frame, bint droppable) except -1
    cdef int append(self, object wire) except -1
    cdef bytes control_frame(self, int opcode, bytes payload)
    cdef Py_ssize_t pending(self) noexcept
    cdef int flush(self) except -1
    cdef int flush_through_transport(self) except -1
    cdef int took(self, int64_t taken) except -1
    cdef void release(self, int count) noexcept
    cdef int hand_over(self, Py_ssize_t offset) except -1
    cdef int emptied(self) except -1
    cdef int receive(self, uint8_t* data, Py_ssize_t size) except -1
    cdef int fail(self, object error) except -1
    cdef int begin_close(self, int code, str reason, State state, double timeout) except -1
    cdef int drop_transport(self, int code, str reason) except -1
    cdef int wake_waiters(self) except -1
    cdef int look_again_in(self, double delay) except -1
    cdef int on_timer(self) except -1
