"""What is measured: the loads, which servers take part in each, and the goals that the results are held against."""

from __future__ import annotations

from dataclasses import dataclass, field

from servers import MESSAGE_BYTES, REALTIME

FULL = ("floor", "street_fast", "hub", "socket", "picows", "aiohttp", "websockets", "pure")
NO_HUB = tuple(name for name in FULL if name != "hub")
SOCKETIO = ("socketio", "socketio_node")
NODES = ("nodes_redis", "nodes_nats", "nodes_redis_history", "nodes_nats_history")
BARE = ("floor", "street_fast", "picows", "aiohttp", "websockets", "pure")


@dataclass(frozen=True)
class Load:
    """One call of loadgen, or of another program with that mode, per server and round."""

    name: str
    title: str
    mode: str
    servers: tuple[str, ...]
    options: dict[str, int] = field(default_factory=dict)
    quick: dict[str, int] = field(default_factory=dict)  # what a quick run does instead
    timed: bool = True  # takes --seconds
    fresh: bool = False  # wants a server that has served nobody yet
    size: int = MESSAGE_BYTES  # of a message, for servers without one of their own
    request: bool = False  # clients send what is answered, see Dialect
    metric: str = "server_us"
    unit: str = "µs"
    section: str = "servers"  # of the tables
    bases: tuple[str, ...] = ("floor", "picows")  # servers that the tables compare with


LOADS = (
    Load("broadcast", "Broadcast to 1,000, one message at a time", "fanout", FULL, {"connections": 1_000}),
    Load("burst", "Broadcast to 1,000, bursts of 16", "fanout", FULL, {"connections": 1_000, "burst": 16}),
    Load("echo", "Echo, 200 connections, 1 in flight", "echo", NO_HUB, {"connections": 200}),
    Load("pipelined", "Echo, 200 connections, 16 in flight", "echo", NO_HUB, {"connections": 200, "pipeline": 16}),
    Load("connect", "Opening 2,000 connections", "connect", NO_HUB, {"connections": 2_000}, timed=False),
    Load(
        "fairness",
        "One broadcast to 10,000 while 10 others echo",
        "fairness",
        ("floor", "street_fast", "hub", "picows", "aiohttp", "websockets"),
        {"connections": 10_000, "echo-clients": 10, "rounds": 10},
        {"connections": 2_000, "rounds": 3},
        timed=False,
        metric="ratio",
        unit="",
    ),
    Load(
        "idle",
        "10,000 idle connections",
        "idle",
        NO_HUB,
        {"connections": 10_000},
        {"connections": 2_000},
        timed=False,
        fresh=True,
        metric="bytes_per_connection",
        unit="B",
    ),
    Load(
        "publish",
        "One publish to 1,000 subscribers",
        "fanout",
        ("floor", "realtime", "history", *SOCKETIO),
        {"connections": 1_000},
        section="realtime",
        bases=("floor", *SOCKETIO),
    ),
    Load(
        "rooms",
        "Publishes to random ones of 1,000 rooms of 10",
        "rooms",
        ("realtime", "history", *SOCKETIO),
        {"connections": 10_000, "rooms": 1_000, "pipeline": 64},
        {"connections": 2_000, "rooms": 200},
        section="realtime",
        bases=SOCKETIO,
    ),
    Load(
        "receive",
        "A publish that only its sender gets",
        "echo",
        ("street_fast", "realtime", "history", *SOCKETIO),
        {"connections": 200, "rooms": 200, "spin": 1},
        size=len(REALTIME.message),
        section="realtime",
        bases=("street_fast",),
    ),
    Load(
        "request",
        "A publish that nobody gets, and its reply",
        "echo",
        ("street_fast", "realtime", "history", *SOCKETIO),
        {"connections": 200, "rooms": 200, "spin": 1},
        size=len(REALTIME.request),
        request=True,
        section="realtime",
        bases=("street_fast",),
    ),
    Load(
        "recover",
        "10,000 clients come back and recover 20 messages each",
        "recover",
        ("history",),
        {"connections": 10_000},
        {"connections": 2_000},
        timed=False,
        section="realtime",
    ),
    Load(
        "realtime_idle",
        "10,000 idle subscribers of one channel",
        "idle",
        ("realtime", *SOCKETIO),
        {"connections": 10_000},
        {"connections": 2_000},
        timed=False,
        fresh=True,
        metric="bytes_per_connection",
        unit="B",
        section="realtime",
    ),
    Load(
        "nodes_publish",
        "One publish to 1,000 subscribers on each of two nodes",
        "fanout",
        ("realtime", "apart", *NODES),
        {"connections": 1_000},  # of each node
        section="nodes",
        bases=("apart", "realtime"),
    ),
    Load(
        "latency",
        "From node to node, 1,000 messages of 300 bytes per second",
        "paced",
        ("bare_redis", "redis", "redis_history", "redis_clients", "bare_nats", "nats", "nats_history", "nats_clients"),
        {"rate": 1_000},
        metric="p50_us",
        section="nodes",
    ),
    Load(
        "throughput",
        "From node to node, as many messages of 300 bytes as go through",
        "flood",
        ("redis_benchmark", "redis", "redis_history", "nats", "nats_history"),
        metric="per_second",
        unit="messages/s",
        section="nodes",
        bases=("redis_benchmark",),
    ),
    Load(
        "keyed",
        "Publishes with a key by four nodes, each of which hears them all",
        "keyed",
        ("redis", "redis_history", "nats", "nats_history"),
        {"workers": 4, "in-flight": 16},
        metric="per_second",
        unit="messages/s",
        section="nodes",
    ),
)


@dataclass(frozen=True)
class Goal:
    """One row of the table of goals: a figure of the load bench that must not be above a limit; or, `at_least`, below.

    ``relative_to`` names the server whose figure of the same round divides ours; None: the figure itself. ``figure``
    is the load's metric, if nothing else is said.
    """

    text: str
    load: str
    server: str
    limit: float
    relative_to: str | None = None
    figure: str | None = None
    at_least: bool = False


GOALS = (
    Goal("broadcast of 128 B to 1,000, one at a time, against bare C", "broadcast", "street_fast", 1.08, "floor"),
    Goal("the same against picows", "broadcast", "street_fast", 0.92, "picows"),
    Goal("the same through `ChannelHub.publish`, against bare C", "broadcast", "hub", 1.12, "floor"),
    Goal("16 messages in one burst to 1,000, against picows", "burst", "street_fast", 0.08, "picows"),
    Goal("echo, 200 connections, 1 in flight, against picows", "echo", "street_fast", 0.90, "picows"),
    Goal("echo, 16 in flight, against picows", "pipelined", "street_fast", 0.80, "picows"),
    Goal("bytes of process memory per idle WebSocket, 10,000 open", "idle", "street_fast", 2_048),
    Goal("the same with a StreetSocket and two handlers each", "idle", "socket", 3_584),
    Goal("worst echo during a broadcast to 10,000, as a part of its duration", "fairness", "street_fast", 0.2),
    Goal("publish of 128 B to 1,000 subscribers, against bare C", "publish", "realtime", 1.15, "floor"),
    Goal("the same with history, against without", "publish", "history", 1.03, "realtime"),
    Goal("messages to 1,000 rooms of 10, against python-socketio", "rooms", "realtime", 0.5, "socketio"),
    Goal("the same against Socket.IO on Node.js", "rooms", "realtime", 0.8, "socketio_node"),
    Goal(
        "publish that only its sender gets, against a bare echo of its size", "receive", "realtime", 1.6, "street_fast"
    ),
    Goal(
        "messages lost, doubled or unordered, clients unrecovered, of 10,000 × 25",
        "recover",
        "history",
        0,
        None,
        "wrong",
    ),
    Goal("bytes of process memory per idle subscriber, 10,000 in one channel", "realtime_idle", "realtime", 4_096),
    Goal(
        "two nodes on Redis, 1,000 subscribers each: CPU per delivery, against no backplane",
        "nodes_publish",
        "nodes_redis",
        1.10,
        "apart",
    ),
    Goal("the same on NATS", "nodes_publish", "nodes_nats", 1.10, "apart"),
    Goal(
        "node to node through Redis, median, against bare redis-py through the same broker",
        "latency",
        "redis",
        2,
        "bare_redis",
    ),
    Goal("the same through NATS, against bare nats-py", "latency", "nats", 2, "bare_nats"),
    Goal(
        "publishes per second that reach another node through one Redis, of what redis-benchmark does",
        "throughput",
        "redis",
        0.4,
        "redis_benchmark",
        at_least=True,
    ),
)


@dataclass(frozen=True)
class MicroGoal:
    """The same for bench/micro: the median of one benchmark divided by that of another."""

    text: str
    numerator: str
    denominator: str
    at_most: float | None = None
    at_least: float | None = None


MICRO_GOALS = (
    MicroGoal(
        "masking 16 KiB in cache, speed as a part of memcpy's",
        "bench_memcpy[16384]",
        "bench_mask[compiled-16384]",
        at_least=0.5,
    ),
    MicroGoal(
        "hub join and leave, channel of 10,000 against one of 10",
        "bench_join_leave[10000-compiled]",
        "bench_join_leave[10-compiled]",
        at_most=1.3,
    ),
    MicroGoal(
        "100,000 typing refreshes, speed against `loop.call_later` with cancel",
        "bench_refresh_call_later[uvloop]",
        "bench_refresh_wheel[compiled]",
        at_least=5,
    ),
)
