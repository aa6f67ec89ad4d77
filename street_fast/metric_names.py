"""What the numbers of a server are called where they are watched, and what they mean.

`METRICS` says which number of a snapshot (`Operations.snapshot`) is told under which name. Units are seconds and bytes.
No label has more values than are written here, or than there are close codes and generations of the garbage collector;
a channel, a member or an address is never one. The table in docs/operations.md is written from this one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["METRICS", "Metric"]


class Metric(NamedTuple):
    """One name, and where in a snapshot its numbers are."""

    name: str
    kind: str
    """counter (then the name ends in ``_total``), gauge or histogram."""
    help: str
    sources: Mapping[str, str]
    """The path in the snapshot, ``group.name`` (or ``group`` for a dict with its own values), by the value of `label`;
    by "" if there is no label. A path in ``_ms`` is told in seconds."""
    label: str = ""


def _one(name: str, kind: str, path: str, help: str) -> Metric:  # noqa: A002
    return Metric(name, kind, help, {"": path})


METRICS: tuple[Metric, ...] = (
    Metric(
        "street_fast_info", "gauge", "1, with the versions, and what the backplane is, in the labels.", {"": "about"}
    ),
    _one("street_fast_ready", "gauge", "ready", "1 while new clients may come here, as /readyz says it."),
    # --- clients ---
    Metric(
        "street_fast_connections",
        "gauge",
        "Open connections of clients.",
        {"websocket": "server.connections", "sse": "sse.streams"},
        "transport",
    ),
    _one(
        "street_fast_connections_max",
        "gauge",
        "server.max_connections",
        "Connections above which clients are turned away.",
    ),
    Metric(
        "street_fast_connections_opened_total",
        "counter",
        "Connections of clients that were let in.",
        {"websocket": "server.connections_opened", "sse": "sse.streams_opened"},
        "transport",
    ),
    Metric(
        "street_fast_connections_closed_total",
        "counter",
        "WebSocket connections that have ended, by close code; other: codes that are not the server's own.",
        {"": "closed"},
        "code",
    ),
    _one(
        "street_fast_handshakes_refused_total",
        "counter",
        "server.handshakes_refused",
        "WebSocket handshakes refused for what they were: origin, form, authentication (400, 401, 403, 405, 426).",
    ),
    _one(
        "street_fast_handshakes_turned_away_total",
        "counter",
        "server.handshakes_turned_away",
        "WebSocket handshakes turned away for now: over capacity, or about to end (503, 1012, 1013).",
    ),
    _one("street_fast_sessions", "gauge", "realtime.sessions", "Clients that are connected, logged in or not."),
    _one("street_fast_members", "gauge", "realtime.members", "Different members with a connection here."),
    _one("street_fast_channels", "gauge", "realtime.channels", "Channels with a connection here."),
    _one("street_fast_subscriptions", "gauge", "realtime.subscriptions", "Connections in channels, over all channels."),
    _one(
        "street_fast_subscriptions_catching_up",
        "gauge",
        "realtime.catching_up",
        "Subscriptions that still read what they missed.",
    ),
    # --- messages ---
    _one(
        "street_fast_publications_total",
        "counter",
        "realtime.published",
        "Publications that came to the connections here, whoever published them; each counts once.",
    ),
    Metric(
        "street_fast_messages_received_total",
        "counter",
        "Messages from clients, over all WebSockets of the process.",
        {"websocket": "loop.messages_in"},
        "transport",
    ),
    Metric(
        "street_fast_received_bytes_total",
        "counter",
        "Bytes from clients, with the framing.",
        {"websocket": "loop.bytes_in"},
        "transport",
    ),
    Metric(
        "street_fast_messages_sent_total",
        "counter",
        "Messages to clients: a publication counts for each connection that it goes to, so this is the deliveries, "
        "and replies and presence too.",
        {"websocket": "loop.messages_out", "sse": "sse.events_out"},
        "transport",
    ),
    Metric(
        "street_fast_sent_bytes_total",
        "counter",
        "Bytes to clients, with the framing, without TLS.",
        {"websocket": "loop.bytes_out", "sse": "sse.bytes_out"},
        "transport",
    ),
    _one("street_fast_writes_total", "counter", "loop.writes", "Writes to WebSockets; each may have many messages."),
    _one(
        "street_fast_fan_out_seconds",
        "histogram",
        "fan_out",
        "Time to hand one publication to the connections here, before the bytes go out; one in 17 is measured.",
    ),
    # --- what does not go well ---
    Metric(
        "street_fast_messages_dropped_total",
        "counter",
        "Messages that were dropped. slow_websocket, slow_sse: presence and typing for a client with too much waiting. "
        "client_rate, channel_rate: from clients, above the rate of the client or of the channel. "
        "malformed: from clients, not to be read.",
        {
            "slow_websocket": "loop.messages_dropped",
            "slow_sse": "sse.events_dropped",
            "client_rate": "server.events_rate_limited",
            "channel_rate": "realtime.rate_limited",
            "malformed": "server.events_malformed",
        },
        "cause",
    ),
    Metric(
        "street_fast_slow_consumers_total",
        "counter",
        "Connections closed with 4008 because their client did not read fast enough.",
        {"websocket": "loop.slow_consumers", "sse": "sse.slow_consumers"},
        "transport",
    ),
    _one(
        "street_fast_memory_evictions_total",
        "counter",
        "loop.outbound_evictions",
        "Slow WebSockets among these that were closed because all of them held more than outbound_total_bytes.",
    ),
    Metric(
        "street_fast_waiting_bytes",
        "gauge",
        "Bytes that slow clients have not taken.",
        {"websocket": "loop.bytes_waiting", "sse": "sse.bytes_waiting"},
        "transport",
    ),
    _one(
        "street_fast_protocol_errors_total",
        "counter",
        "loop.protocol_errors",
        "WebSockets that were closed because their peer broke the protocol.",
    ),
    _one(
        "street_fast_handler_errors_total",
        "counter",
        "server.handler_errors",
        "Handlers of the application that raised.",
    ),
    _one(
        "street_fast_forbidden_total", "counter", "realtime.forbidden", "What clients asked for and were not allowed."
    ),
    Metric(
        "street_fast_publishes_failed_total",
        "counter",
        "Publishes that the backplane refused (unavailable), or of which nobody knows what became of them (unknown).",
        {"unavailable": "realtime.unavailable", "unknown": "realtime.unknown"},
        "result",
    ),
    Metric(
        "street_fast_recoveries_total",
        "counter",
        "Subscriptions that asked for what they had missed: all of it was there (recovered), or not (lost: the client "
        "was told).",
        {"recovered": "realtime.recovered", "lost": "realtime.not_recovered"},
        "result",
    ),
    _one(
        "street_fast_loop_lag_seconds",
        "gauge",
        "loop.loop_lag_ms",
        "How late the last timer of the event loop was.",
    ),
    _one(
        "street_fast_loop_lag_worst_seconds",
        "gauge",
        "loop.worst_loop_lag_ms",
        "How late a timer of the event loop was at most, since the start.",
    ),
    _one(
        "street_fast_slow_reads_total",
        "counter",
        "loop.slow_reads",
        "How often the handlers of what one client had sent kept the event loop for more than 100 ms.",
    ),
    # --- history and backplane ---
    _one("street_fast_history_channels", "gauge", "backplane.history_channels", "Channels known to the history here."),
    _one("street_fast_history_messages", "gauge", "backplane.history_messages", "Messages kept in this process."),
    _one("street_fast_history_bytes", "gauge", "backplane.history_bytes", "What they take in memory."),
    _one(
        "street_fast_publish_keys",
        "gauge",
        "backplane.publish_keys",
        "Keys of publishes that are known in this process.",
    ),
    _one("street_fast_backplane_up", "gauge", "backplane.up", "1 while messages go through the backplane."),
    _one(
        "street_fast_backplane_channels_subscribed",
        "gauge",
        "backplane.channels_subscribed",
        "Channels that this node hears from the backplane.",
    ),
    _one("street_fast_backplane_nodes", "gauge", "backplane.nodes", "Other nodes that this one knows of."),
    _one(
        "street_fast_backplane_lag_seconds",
        "gauge",
        "backplane.bus_lag_ms",
        "How long what came from the broker last had waited for the event loop.",
    ),
    _one(
        "street_fast_backplane_lag_worst_seconds",
        "gauge",
        "backplane.worst_bus_lag_ms",
        "The same at its worst, since the start.",
    ),
    Metric(
        "street_fast_backplane_pending_bytes",
        "gauge",
        "Bytes that wait in this process: to go to the broker (out), to be taken in from it (in).",
        {"out": "backplane.pending_out_bytes", "in": "backplane.pending_in_bytes"},
        "direction",
    ),
    _one(
        "street_fast_backplane_unsaid_channels",
        "gauge",
        "backplane.unsaid_channels",
        "Channels of which the other nodes have missed something, and are told when the broker is back.",
    ),
    _one(
        "street_fast_backplane_pending_publishes",
        "gauge",
        "backplane.pending_publishes",
        "Publishes that wait for the one before them on their channel.",
    ),
    Metric(
        "street_fast_backplane_published_total",
        "counter",
        "Publishes that this node gave to the broker: without history (passed), with it (kept).",
        {"passed": "backplane.published", "kept": "backplane.published_kept"},
        "kind",
    ),
    _one(
        "street_fast_backplane_received_total",
        "counter",
        "backplane.received",
        "Messages that the bus brought, own ones too.",
    ),
    _one(
        "street_fast_backplane_delivered_total",
        "counter",
        "backplane.delivered",
        "Messages from the bus or the history that were delivered here.",
    ),
    _one(
        "street_fast_backplane_reconnects_total",
        "counter",
        "backplane.reconnects",
        "Connections to the broker made anew.",
    ),
    _one(
        "street_fast_backplane_timeouts_total",
        "counter",
        "backplane.timeouts",
        "Answers of the broker that did not come in time; the outcome of those publishes is unknown.",
    ),
    _one(
        "street_fast_backplane_wrong_role_total",
        "counter",
        "backplane.wrong_role",
        "Times that the broker was found to be no primary, or not the one that it was.",
    ),
    _one(
        "street_fast_backplane_conflicts_total",
        "counter",
        "backplane.conflicts",
        "Publishes that another node was quicker than, and that were sent again with the next offset.",
    ),
    _one(
        "street_fast_backplane_poisoned_total",
        "counter",
        "backplane.poisoned",
        "Messages from the broker that no node of ours can have sent, and that were skipped.",
    ),
    _one(
        "street_fast_backplane_foreign_total",
        "counter",
        "realtime.foreign",
        "Messages from other nodes that are not what a Realtime sends, and that were skipped.",
    ),
    _one(
        "street_fast_backplane_doubles_total",
        "counter",
        "backplane.doubles",
        "Messages that the bus brought again, and that were not delivered again.",
    ),
    _one(
        "street_fast_backplane_gaps_total",
        "counter",
        "backplane.gaps",
        "Times that the bus was found to have missed something of a channel, whose history was read then.",
    ),
    _one(
        "street_fast_backplane_catch_ups_total",
        "counter",
        "backplane.catch_ups",
        "Reads of the history of channels for which the bus may have lost something.",
    ),
    _one(
        "street_fast_backplane_dropped_total",
        "counter",
        "backplane.dropped",
        "Times that messages from the broker were dropped because too much waited; then channels with history are "
        "read, and the clients of others are told.",
    ),
    _one(
        "street_fast_backplane_losses_total",
        "counter",
        "backplane.losses",
        "Times that the clients of a channel were told that something may be missing for good.",
    ),
    _one(
        "street_fast_backplane_resets_total",
        "counter",
        "backplane.resets",
        "Channels whose history was begun anew, because the broker had less of it than this node had delivered.",
    ),
    # --- a supervisor and its workers ---
    _one("street_fast_workers", "gauge", "supervisor.workers", "Workers that should run."),
    _one("street_fast_workers_ready", "gauge", "supervisor.workers_ready", "Workers that take clients."),
    _one(
        "street_fast_worker_restarts_total",
        "counter",
        "supervisor.restarts",
        "Workers that were started again because one had died or did not answer.",
    ),
    # --- the process ---
    _one("process_cpu_seconds_total", "counter", "process.cpu_seconds", "User and system CPU time."),
    _one("process_resident_memory_bytes", "gauge", "process.resident_memory_bytes", "Resident memory."),
    _one("process_virtual_memory_bytes", "gauge", "process.virtual_memory_bytes", "Virtual memory."),
    _one("process_start_time_seconds", "gauge", "process.start_time_seconds", "When it began, in Unix time."),
    _one("process_open_fds", "gauge", "process.open_fds", "Open file descriptors."),
    _one("process_max_fds", "gauge", "process.max_fds", "File descriptors that it may have."),
    Metric(
        "python_gc_collections_total",
        "counter",
        "Runs of the garbage collector.",
        {"": "gc.collections"},
        "generation",
    ),
    Metric(
        "python_gc_objects_collected_total",
        "counter",
        "Objects that the garbage collector has freed.",
        {"": "gc.collected"},
        "generation",
    ),
    Metric(
        "python_gc_objects_uncollectable_total",
        "counter",
        "Objects that the garbage collector could not free.",
        {"": "gc.uncollectable"},
        "generation",
    ),
)
