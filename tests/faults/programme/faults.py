"""The faults: what is done to the nodes and their broker while clients publish and listen.

Each is a coroutine function of a `Run`, named in FAULTS. Its docstring says in a line what happens; the table has it.
Where two ways to fail look alike from outside, the seed chooses.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
from typing import TYPE_CHECKING, Any

from tests.brokers import Nats, Server, Valkey, ValkeyCluster, text, wait_until
from tests.faults.programme.networks import BROKER_SIDE, HOST
from tests.faults.programme.run import LIVE, ROOMS
from tests.ports import free_port

if TYPE_CHECKING:
    import random
    from collections.abc import Awaitable, Callable

    from tests.faults.programme.run import Run
    from tests.faults.programme.servers import Node

AWAY_S = 10.0
RESUMES_S = 2.0
GHOST_S = 15.0

FAULTS: dict[str, Callable[[Run], Awaitable[None]]] = {}

ALONE = {"rolling-restart"}
"""Those that need the machine for themselves."""

ON_TWO_MACHINES = {"redis-unplugged", "nats-unplugged"}
"""Those that need a second machine; see networks.py."""


def fault(function: Any) -> Any:
    """Puts it into FAULTS."""
    FAULTS[function.__name__.replace("_", "-")] = function
    return function


# --- nodes ---


@fault
async def worker_killed(run: Run) -> None:
    """kill -9 of workers of one `serve --workers 3`, one after the other"""
    (node,) = await run.serve(None, workers=3)
    await run.drive(subscribers=14, publishers=10)
    for _ in range(1 if run.quick else 3):
        await kill_worker(run, node)
        await run.sleep(1.0, 4.0)
    await run.sleep(2.0, 4.0)
    run.measure("refused", len(run.fleet.refused), most=0)


async def kill_worker(run: Run, node: Node) -> None:
    workers = node.workers()
    victim = run.rng.choice(workers)
    run.say(f"kill -9 of the worker {victim} of {workers}")
    os.kill(victim, signal.SIGKILL)


@fault
async def worker_stopped(run: Run) -> None:
    """SIGSTOP of a worker of `serve --workers 3`, for 1 to 30 s"""
    (node,) = await run.serve(None, workers=3)
    await run.drive(subscribers=14, publishers=10)
    victim = run.rng.choice(node.workers())
    stopped_s = run.seconds(1, 30) if run.seed % 2 else run.seconds(1, 6)
    lost = sum(run.fleet.lost.values())
    run.say(f"SIGSTOP of the worker {victim} for {stopped_s:.1f} s")
    os.kill(victim, signal.SIGSTOP)
    await asyncio.sleep(stopped_s)
    os.kill(victim, signal.SIGCONT)
    await run.sleep(2.0, 4.0)
    run.say(f"{sum(run.fleet.lost.values()) - lost} connections were lost meanwhile, those that churn among them")


@fault
async def redis_node_killed(run: Run) -> None:
    """kill -9 of one of two nodes on Redis, and its restart"""
    await node_killed(run, await run.valkey())


@fault
async def nats_node_killed(run: Run) -> None:
    """kill -9 of one of two nodes on NATS, and its restart"""
    await node_killed(run, await run.nats())


async def node_killed(run: Run, broker: Any) -> None:
    nodes = await run.serve(broker.url, broker.url)
    await run.drive()
    for _ in range(1 if run.quick else 2):
        victim = run.rng.choice(nodes)
        await run.do(f"kill -9 of {victim.name}", victim.kill)
        await run.sleep(0.1, 3.0)
        await victim.start()
        await run.sleep(1.0, 4.0)


@fault
async def redis_node_stopped(run: Run) -> None:
    """SIGSTOP of one of two nodes on Redis, for 1 to 30 s"""
    await node_stopped(run, await run.valkey())


@fault
async def nats_node_stopped(run: Run) -> None:
    """SIGSTOP of one of two nodes on NATS, for 1 to 30 s"""
    await node_stopped(run, await run.nats())


async def node_stopped(run: Run, broker: Any) -> None:
    nodes = await run.serve(broker.url, broker.url)
    await run.drive()
    victim = run.rng.choice(nodes)
    stopped_s = run.seconds(2, 30) if run.seed % 2 else run.seconds(2, 8)
    run.say(f"SIGSTOP of {victim.name} for {stopped_s:.1f} s")
    victim.send(signal.SIGSTOP)
    await asyncio.sleep(stopped_s)
    victim.send(signal.SIGCONT)
    await run.sleep(2.0, 4.0)


# --- the broker dies, stands still, forgets ---


@fault
async def redis_killed(run: Run) -> None:
    """kill -9 of Valkey (append-only file, written each second), restarted with what it had written"""
    await broker_killed(run, await run.valkey())


@fault
async def nats_killed(run: Run) -> None:
    """kill -9 of NATS, restarted with what it had written"""
    await broker_killed(run, await run.nats())


async def broker_killed(run: Run, broker: Server) -> None:
    await run.serve(broker.url, broker.url)
    await run.drive()
    for _ in range(1 if run.quick else 2):
        await run.do("kill -9 of the broker", broker.kill)
        await run.sleep(0.1, 5.0)
        await run.do("the broker starts", broker.start)
        await run.sleep(1.5, 5.0)


@fault
async def own_nats_killed(run: Run) -> None:
    """kill -9 of the NATS server that `serve --workers 2` has started"""
    (node,) = await run.serve(None, workers=2)
    await run.drive(subscribers=14, publishers=10)
    for _ in range(1 if run.quick else 2):
        (victim,) = node.brokers()
        run.say(f"kill -9 of the NATS server {victim}")
        os.kill(victim, signal.SIGKILL)
        await run.sleep(3.0, 6.0)


@fault
async def redis_paused(run: Run) -> None:
    """SIGSTOP of Valkey, for 1 to 15 s"""
    await broker_paused(run, await run.valkey())


@fault
async def nats_paused(run: Run) -> None:
    """SIGSTOP of NATS, for 1 to 15 s"""
    await broker_paused(run, await run.nats())


async def broker_paused(run: Run, broker: Server) -> None:
    await run.serve(broker.url, broker.url)
    await run.drive()
    paused_s = run.seconds(1, 15)
    await run.do(f"SIGSTOP of the broker for {paused_s:.1f} s", broker.pause)
    await asyncio.sleep(paused_s)
    await run.do("SIGCONT of the broker", broker.resume)
    await run.sleep(2.0, 4.0)


@fault
async def redis_emptied(run: Run) -> None:
    """FLUSHALL under way, or Valkey killed and restarted empty"""
    broker = await run.valkey()
    await run.serve(broker.url, broker.url)
    await run.drive()
    for number in range(1 if run.quick else 2):
        if (run.seed + number) % 2:
            await run.do("FLUSHALL", broker.command, "FLUSHALL")
        else:
            await run.do("kill -9 of the broker", broker.kill)
            shutil.rmtree(broker.folder / "appendonlydir", ignore_errors=True)
            await run.sleep(0.1, 3.0)
            await run.do("the broker starts, empty", broker.start)
        await run.sleep(1.5, 5.0)


@fault
async def nats_emptied(run: Run) -> None:
    """NATS killed and restarted with an empty store, or its streams deleted under way"""
    broker = await run.nats()
    await run.serve(broker.url, broker.url)
    await run.drive()
    for number in range(1 if run.quick else 2):
        if (run.seed + number) % 2:
            await delete_streams(run, broker)
        else:
            await run.do("kill -9 of the broker", broker.kill)
            shutil.rmtree(broker.folder / "store", ignore_errors=True)
            await run.sleep(0.1, 3.0)
            await run.do("the broker starts, empty", broker.start)
        await run.sleep(1.5, 5.0)


async def delete_streams(run: Run, broker: Nats) -> None:
    import nats

    connection = await nats.connect(broker.url)
    js = connection.jetstream()
    names = [info.config.name for info in await js.streams_info()]
    run.say(f"the streams {names} are deleted")
    for name in names:
        await js.delete_stream(name)
    await connection.close()


@fault
async def redis_full(run: Run) -> None:
    """Valkey out of memory (maxmemory, noeviction), for 1 to 6 s"""
    broker = await run.valkey()
    await run.serve(broker.url, broker.url)
    await run.drive()
    await run.do("the broker has no memory left", broker.command, "CONFIG", "SET", "maxmemory", "1")
    await run.sleep(1.0, 6.0)
    await run.do("the broker has memory", broker.command, "CONFIG", "SET", "maxmemory", "0")
    await run.sleep(2.0, 4.0)


# --- another one takes over ---


@fault
async def redis_demoted(run: Run) -> None:
    """the replica is promoted and the primary made its replica; connections to it stand"""
    first, second = await run.valkey(), await run.valkey()
    await run.do("the second follows the first", second.follow, first)
    switches = [run.proxy(first), run.proxy(first)]
    await run.serve(*(f"redis://127.0.0.1:{switch.port}" for switch in switches))
    await run.drive()
    await run.do("the second is promoted", second.promote)
    for switch in switches:
        switch.aim(second.port)
    await run.sleep(0.0, 1.0)
    await run.do("the first is made a replica", first.command, "REPLICAOF", "127.0.0.1", second.port)
    await run.sleep(4.0, 8.0)


@fault
async def redis_lagging_promoted(run: Run) -> None:
    """a replica that is 0.5 to 3 s behind is promoted after a kill -9 of the primary: acknowledged writes are gone"""
    await lagging_promoted(run, None)


async def lagging_promoted(run: Run, application: str | None) -> None:
    first, second = await run.valkey(), await run.valkey()
    wire = run.proxy(first)
    second.command("REPLICAOF", "127.0.0.1", wire.port)
    await run.do(
        "the second follows the first",
        wait_until,
        lambda: second.info("replication").get("master_link_status") == "up",
    )
    switches = [run.proxy(first), run.proxy(first)]
    await run.serve(*(f"redis://127.0.0.1:{switch.port}" for switch in switches), application=application)
    await run.drive()
    await run.do("replication stands still", wire.drop, "out")
    await run.sleep(0.5, 3.0)
    await run.do("kill -9 of the first", first.kill)
    await run.do("the second is promoted", second.promote)
    for switch in switches:
        switch.aim(second.port)
    if application == "waiting":
        await run.sleep(0.5, 4.0)
        await run.do("the first starts again", first.start)
        await run.do("the first follows the second", first.follow, second)
    await run.sleep(4.0, 8.0)


@fault
async def redis_failed_over(run: Run) -> None:
    """kill -9 of the primary; a sentinel promotes its replica"""
    first, second = await run.valkey(), await run.valkey()
    await run.do("the second follows the first", second.follow, first)
    sentinel = await run.valkey(sentinel_of=("mine", first.port))
    url = f"redis+sentinel://127.0.0.1:{sentinel.port}/mine"
    await run.serve(url, url)
    await run.drive()
    await run.do("kill -9 of the primary", first.kill)
    await run.do(
        "waiting for the sentinel", wait_until, lambda: text(second.info("replication")["role"]) == "master", 60.0
    )
    run.say("the second is the primary")
    await run.sleep(3.0, 6.0)


@fault
async def redis_slots_moved(run: Run) -> None:
    """slots of a Cluster of three move to another server, under way"""
    cluster = ValkeyCluster()
    run.brokers += cluster.nodes
    await run.do("a cluster starts", cluster.start)
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes[:2])
    await run.serve(url, url)
    await run.drive()
    for _ in range(2 if run.quick else 8):
        used = [int(s) for node in cluster.nodes for s in await asyncio.to_thread(_used_slots, node)]
        slot, target = run.rng.choice(sorted(used)), run.rng.choice(cluster.nodes)
        await run.do(f"slot {slot} moves to {target.port}", cluster.move, slot, target)
        await run.sleep(0.2, 2.0)
    await run.sleep(2.0, 4.0)


def _used_slots(node: Valkey) -> set[int]:
    """The slots that a server of a cluster has keys in."""
    keys = node.command("KEYS", "*")
    return {node.command("CLUSTER", "KEYSLOT", key) for key in keys}


@fault
async def redis_cluster_node_killed(run: Run) -> None:
    """kill -9 of one of three servers of a Cluster, restarted with what it had written"""
    cluster = ValkeyCluster(appendonly="yes", cluster_require_full_coverage="no")
    run.brokers += cluster.nodes
    await run.do("a cluster starts", cluster.start)
    url = "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes)
    await run.serve(url, url)
    await run.drive()
    victim = run.rng.choice(cluster.nodes)
    await run.do("kill -9 of a server", victim.kill)
    await run.sleep(0.2, 5.0)
    await run.do("it starts", victim.start)
    await run.sleep(3.0, 6.0)


@fault
async def redis_durable_killed(run: Run) -> None:
    """kill -9 of Valkey with `appendfsync always`, and `durable=True`: nothing acknowledged is missing"""
    broker = await run.valkey(appendfsync="always")
    await run.serve(broker.url, broker.url, application="durable")
    await run.drive(short=())
    for _ in range(1 if run.quick else 2):
        await run.do("kill -9 of the broker", broker.kill)
        await run.sleep(0.1, 4.0)
        await run.do("the broker starts", broker.start)
        await run.sleep(1.5, 4.0)
    run.may_lose = False


@fault
async def redis_durable_lied(run: Run) -> None:
    """`durable=True` over a Valkey that is not: a replica that is behind is promoted. The tags have to tell"""
    run.may_fork = True  # nodes that do not know of the loss go on where the replica is, until one that does steps in
    await lagging_promoted(run, "durable")


@fault
async def redis_waiting(run: Run) -> None:
    """`replicas=1`: a publish is answered when the replica has it; then that is promoted, and gets one of its own"""
    run.may_fork = True  # subscribers have seen what was published and never acknowledged
    await lagging_promoted(run, "waiting")


@fault
async def nats_cluster_node_killed(run: Run) -> None:
    """kill -9 of one of three NATS servers that all keep the history, restarted: nothing acknowledged is missing"""
    ports = [(free_port(), free_port()) for _ in range(3)]
    routes = ",".join(f"nats://127.0.0.1:{route}" for _, route in ports)
    servers = []
    for number, (port, route) in enumerate(ports):
        arguments = ["-n", f"n{number}", "--cluster_name", "faults", "--cluster", f"nats://127.0.0.1:{route}"]
        servers.append(Nats(port, arguments=[*arguments, "--routes", routes]))
    run.brokers += servers
    for server in servers:
        await run.do("a server starts", server.start)
    await run.sleep(3.0)  # they choose a leader
    url = "nats://" + ",".join(f"127.0.0.1:{port}" for port, _ in ports)
    await run.serve(url, url, application="replicated")
    await run.drive(short=())
    for _ in range(1 if run.quick else 2):
        victim = run.rng.choice(servers)
        await run.do(f"kill -9 of the server at {victim.port}", victim.kill)
        await run.sleep(0.2, 6.0)
        await run.do("it starts", victim.start)
        await run.sleep(3.0, 6.0)
    run.may_lose = False


# --- connections ---


@fault
async def redis_subscribers_killed(run: Run) -> None:
    """CLIENT KILL TYPE pubsub, three times"""
    broker = await run.valkey()
    await run.serve(broker.url, broker.url)
    await run.drive()
    for _ in range(1 if run.quick else 3):
        await run.do("CLIENT KILL TYPE pubsub", broker.command, "CLIENT", "KILL", "TYPE", "pubsub")
        await run.sleep(0.05, 3.0)
    await run.sleep(2.0, 4.0)


@fault
async def redis_clients_killed(run: Run) -> None:
    """CLIENT KILL TYPE normal and pubsub, five times: commands are under way"""
    broker = await run.valkey()
    await run.serve(broker.url, broker.url)
    await run.drive()
    for _ in range(1 if run.quick else 5):
        for kind in run.rng.sample(["normal", "pubsub"], run.rng.choice([1, 2])):
            await run.do(f"CLIENT KILL TYPE {kind}", broker.command, "CLIENT", "KILL", "TYPE", kind)
        await run.sleep(0.05, 2.0)
    await run.sleep(2.0, 4.0)


@fault
async def redis_output_buffer(run: Run) -> None:
    """a node stands still for 2 to 5 s in a flood, with 1 MB of output buffer: Valkey cuts its subscriber"""
    broker = await run.valkey(client_output_buffer_limit="pubsub 1mb 0 0")
    nodes = await run.serve(broker.url, broker.url)
    big = [f"big:{number}" for number in range(4)]
    victim = run.rng.choice(nodes)
    other = 1 - nodes.index(victim)
    flooders = [run.fleet.add([], other) for _ in range(40)]
    for home in (0, 1):
        for name in big:
            run.fleet.add([name], home)
    await run.drive(subscribers=3, publishers=3)
    run.fleet.publishers(flooders, big, 4)
    await run.sleep(0.5)
    run.say(f"SIGSTOP of {victim.name}")
    victim.send(signal.SIGSTOP)
    await run.sleep(3.0, 5.0)
    victim.send(signal.SIGCONT)
    await run.sleep(3.0, 5.0)
    cut = broker.log.count("for overcoming of output buffer limits")
    run.measure("cut_by_the_broker", cut)


@fault
async def redis_one_way(run: Run) -> None:
    """one direction between a node and Valkey is dead for 3 to 15 s, and nobody closes anything"""
    await one_way(run, await run.valkey())


@fault
async def nats_one_way(run: Run) -> None:
    """one direction between a node and NATS is dead for 3 to 15 s, and nobody closes anything"""
    await one_way(run, await run.nats())


async def one_way(run: Run, broker: Any) -> None:
    switch = run.proxy(broker)
    url = broker.url.replace(str(broker.port), str(switch.port))
    await run.serve(broker.url, url)
    await run.drive()
    direction = ("out", "in")[run.seed % 2]
    dead_s = run.seconds(3, 15)
    # TCP delivers in the end what it could not deliver meanwhile, or the connection is reset.
    if run.seed % 3:
        await run.do(f"{direction} waits for {dead_s:.1f} s", switch.pause, direction)
        await asyncio.sleep(dead_s)
    else:
        await run.do(f"{direction} is lost for {dead_s:.1f} s, then all is reset", switch.drop, direction)
        await asyncio.sleep(dead_s)
        await run.do("reset", switch.cut)
    await run.do("both ways are open", switch.resume)
    await run.sleep(3.0, 6.0)


@fault
async def redis_answers_lost(run: Run) -> None:
    """what nodes publish reaches Valkey, and the answers get lost; then the connections are reset. Four times"""
    await answers_lost(run, await run.valkey())


@fault
async def nats_answers_lost(run: Run) -> None:
    """what nodes publish reaches NATS, and the answers get lost; then the connections are reset. Four times"""
    await answers_lost(run, await run.nats())


async def answers_lost(run: Run, broker: Any) -> None:
    switches = [run.proxy(broker), run.proxy(broker)]
    await run.serve(*(broker.url.replace(str(broker.port), str(switch.port)) for switch in switches))
    await run.drive()
    for _ in range(1 if run.quick else 4):
        victims = run.rng.sample(switches, run.rng.choice([1, 2]))
        for switch in victims:
            await run.do(f"answers to node{switches.index(switch)} get lost", switch.drop, "out")
        await run.sleep(0.2, 1.5)
        for switch in victims:
            await run.do("reset", switch.cut)
            switch.resume()
        await run.sleep(0.5, 2.0)
    await run.sleep(1.0, 2.0)


@fault
async def redis_unplugged(run: Run) -> None:
    """a machine (a network namespace) loses its cable to Valkey for 3 to 20 s"""
    await unplugged(run, await run.valkey(bind=f"127.0.0.1 {BROKER_SIDE}", protected_mode="no"))


@fault
async def nats_unplugged(run: Run) -> None:
    """a machine (a network namespace) loses its cable to NATS for 3 to 20 s"""
    await unplugged(run, await run.nats("-a", "0.0.0.0"))


async def unplugged(run: Run, broker: Any) -> None:
    machine = run.machine
    assert machine is not None
    await run.serve(broker.url)
    await run.serve(broker.url.replace("127.0.0.1", BROKER_SIDE), within=machine.inside, host=HOST)
    await run.drive()
    out_s = run.seconds(3, 20)
    far_end = run.rng.random() < 0.5
    await run.do(f"the cable is out for {out_s:.1f} s, at {'the' if far_end else 'this'} end", machine.unplug, far_end)
    await asyncio.sleep(out_s)
    await run.do("the cable is in", machine.plug, far_end)
    await run.sleep(4.0, 8.0)


@fault
async def redis_away(run: Run) -> None:
    """Valkey is away for 10 s; messages go from node to node again within 2 s of its return"""
    await away(run, await run.valkey())


@fault
async def nats_away(run: Run) -> None:
    """NATS is away for 10 s; messages go from node to node again within 2 s of its return"""
    await away(run, await run.nats())


async def away(run: Run, broker: Any) -> None:
    switches = [run.proxy(broker), run.proxy(broker)]
    await run.serve(*(broker.url.replace(str(broker.port), str(switch.port)) for switch in switches))
    await run.drive(churn_s=None, publishers=6)
    how = ("killed", "refused", "paused", "silent")[run.seed % 4]
    # A switch resets what came while its server was down; so nodes go on trying.
    begin: dict[str, list[Callable[[], object]]] = {
        "killed": [broker.kill],
        "refused": [switch.cut for switch in switches],
        "paused": [broker.pause],
        "silent": [switch.pause for switch in switches],
    }
    end: dict[str, list[Callable[[], object]]] = {
        "killed": [broker.start],
        "refused": [switch.resume for switch in switches],
        "paused": [broker.resume],
        "silent": [switch.resume for switch in switches],
    }
    for work in begin[how]:
        await run.do(f"the broker is away: {how}", work)
    await asyncio.sleep(3.0 if run.quick else AWAY_S)
    for work in end[how]:
        await run.do("the broker is back", work)
    back = run.fleet.now()
    for kind, channels in (("history", ROOMS), ("live", LIVE[:2])):
        crossed = await run.crossed(back, 8.0, channels)
        run.measure(f"resumed_{kind}_s", 99.0 if crossed is None else crossed - back, most=RESUMES_S)
    await run.sleep(1.0, 3.0)


@fault
async def redis_poisoned(run: Run) -> None:
    """garbage, other versions and huge messages on the bus itself"""
    broker = await run.valkey()
    await run.serve(broker.url, broker.url)
    await run.drive()
    for _ in range(3 if run.quick else 10):
        names = broker.command("PUBSUB", "CHANNELS", "*") + broker.command("PUBSUB", "SHARDCHANNELS", "*")
        for name in run.rng.sample(names, min(len(names), 12)):
            with contextlib.suppress(Exception):
                await asyncio.to_thread(broker.command, "PUBLISH", name, poison(run.rng))
        await run.sleep(0.2)
    await run.sleep(1.0, 2.0)
    run.failures += [f"{node.name} has ended" for node in run.nodes if not node.running]


@fault
async def nats_poisoned(run: Run) -> None:
    """garbage, other versions and huge messages on the bus itself"""
    import nats

    broker = await run.nats()
    await run.serve(broker.url, broker.url)
    await run.drive()
    connection = await nats.connect(broker.url)
    subjects: set[str] = set()

    async def note(message: Any) -> None:
        if not message.subject.startswith(("$", "_")):
            subjects.add(message.subject)

    await connection.subscribe(">", cb=note)
    await run.sleep(1.0)
    kept = {subject for subject in subjects if ".h." in subject}  # what is stored there is history
    for _ in range(3 if run.quick else 10):
        for subject in run.rng.sample(sorted(subjects - kept), min(len(subjects - kept), 12)):
            await connection.publish(subject, poison(run.rng, 900_000))
        await run.sleep(0.2)
    await connection.close()
    await run.sleep(1.0, 2.0)
    run.failures += [f"{node.name} has ended" for node in run.nodes if not node.running]


def poison(rng: random.Random, most: int = 3_000_000) -> bytes:
    """What nobody in his right mind publishes; none of it is a record of this version."""
    return rng.choice(
        [
            lambda: b"",
            lambda: rng.randbytes(rng.randrange(1, 300)),
            lambda: b"S1 z node\n" + rng.randbytes(9),
            lambda: b"S2 m node -\n{}",
            lambda: b"S1 k node epoch -5 tag -\n{}",
            lambda: b"S1 k node epoch 99999999999999999999 tag -\n{}",
            lambda: b'S1 p node 1\n{"joined":[1],',
            lambda: b"S1 " + b"m" * 5_000,
            lambda: b"\x80\x04\x95" + rng.randbytes(40),
            lambda: rng.randbytes(8) * (most // 8),
        ]
    )()


# --- presence ---


@fault
async def redis_ghosts(run: Run) -> None:
    """kill -9 of a node on Redis: its members leave everywhere within 15 s, exactly once"""
    await ghosts(run, await run.valkey())


@fault
async def nats_ghosts(run: Run) -> None:
    """kill -9 of a node on NATS: its members leave everywhere within 15 s, exactly once"""
    await ghosts(run, await run.nats())


async def ghosts(run: Run, broker: Any) -> None:
    nodes = await run.serve(broker.url, broker.url, broker.url)
    fleet, rng = run.fleet, run.rng
    channels = ["room:0", "live:0"]
    watchers = [fleet.add(channels, home) for home in (1, 2) for _ in range(3)]
    for watcher in watchers:
        watcher.keeps_presence = True
    await run.drive(subscribers=1, publishers=1, churn_s=None)
    doomed = [fleet.add([rng.choice(channels)], 0) for _ in range(20)]
    for client in doomed:
        client.returns = False
    await fleet.connect()
    await run.sleep(1.5, 6.0)
    gone = {client.member: client.channels[0] for client in doomed}
    _check_presence(run, watchers, "joined", gone, 0.0, None)
    killed = fleet.now()
    await run.do("kill -9 of node0", nodes[0].kill)
    await asyncio.sleep(0.5 if run.quick else run.seconds(0.1, 10))
    returns = run.seed % 2 == 0
    if returns:
        run.say("node0 starts again")
        await nodes[0].start()
    await _until_left(run, watchers, gone, killed)
    await run.sleep(3.0)  # for those that leave a second time
    _check_presence(run, watchers, "left", gone, killed, GHOST_S)
    if not returns:
        await nodes[0].start()


@fault
async def worker_ghosts(run: Run) -> None:
    """kill -9 of a worker of `serve --workers 3`: its members leave everywhere within 15 s, exactly once"""
    (node,) = await run.serve(None, workers=3)
    fleet = run.fleet
    channels = ["room:0", "live:0"]
    clients = [fleet.add(channels, 0) for _ in range(30)]
    for client in clients:
        client.returns = False
        client.keeps_presence = True
    await run.drive(subscribers=1, publishers=3, churn_s=None)
    await run.sleep(1.5, 4.0)
    killed = fleet.now()
    await kill_worker(run, node)
    await asyncio.sleep(1.0)
    watchers = [client for client in clients if client.connection is not None]
    doomed = [client for client in clients if client.connection is None]
    run.say(f"{len(doomed)} clients are gone, {len(watchers)} watch")
    for channel in channels:
        gone = {client.member: channel for client in doomed}
        await _until_left(run, watchers, gone, killed)
    await run.sleep(3.0)
    for channel in channels:
        _check_presence(run, watchers, "left", {client.member: channel for client in doomed}, killed, GHOST_S)


def _told(client: Any, kind: str, channel: str, since: float) -> list[tuple[float, str]]:
    """(time, member id) of all that a client was told about who joined, or left."""
    return [
        (time, entry["memberId"])
        for time, name, data in client.presence
        if name == channel and time >= since
        for entry in data.get(kind, ())
    ]


async def _until_left(run: Run, watchers: list[Any], gone: dict[str, str], since: float) -> None:
    for _ in range(round((GHOST_S + 1.0) / 0.2)):
        if _all_left(watchers, gone, since):
            return
        await asyncio.sleep(0.2)


def _all_left(watchers: list[Any], gone: dict[str, str], since: float) -> bool:
    for watcher in watchers:
        for channel in set(gone.values()):
            left = {member for _, member in _told(watcher, "left", channel, since)}
            if not {member for member, its in gone.items() if its == channel} <= left:
                return False
    return True


def _check_presence(
    run: Run, watchers: list[Any], kind: str, members: dict[str, str], since: float, most_s: float | None
) -> None:
    latest = 0.0
    wrong = 0
    for watcher in watchers:
        for channel in set(members.values()):
            told = _told(watcher, kind, channel, since)
            for member, its in members.items():
                if its != channel:
                    continue
                times = [time for time, who in told if who == member]
                if len(times) != 1:
                    wrong += 1
                    run.say(f"{watcher.name} was told {len(times)} times that {member} {kind} {channel}: {times}")
                latest = max([latest, *(time - since for time in times)])
    if wrong:
        run.fail(f"{wrong} of {len(watchers) * len(members)} times a member {kind} not exactly once; see run.log")
    if most_s is not None:
        run.measure(f"{kind}_s", latest, most=most_s)


# --- restarts ---


@fault
async def rolling_restart(run: Run) -> None:
    """SIGHUP of `serve --workers 4` with 4,000 clients that publish, all on two cores"""
    await roll(run, None, 400 if run.quick else 4_000)


@fault
async def redis_rolling_restart(run: Run) -> None:
    """the same with 400 clients, over Valkey"""
    await roll(run, (await run.valkey()).url, 400)


async def roll(run: Run, backplane: str | None, count: int) -> None:
    (node,) = await run.serve(backplane, workers=4)
    fleet = run.fleet
    rooms = [f"room:r{number}" for number in range(count // 2)]
    for number in range(count):
        fleet.add([rooms[number % len(rooms)]], 0)
    await fleet.connect(200)
    run.say(f"{count} clients are connected")
    fleet.spawn(fleet.watch())
    for client in fleet.clients:
        fleet.publishers([client], client.channels, 0.8)
    await run.sleep(2.0, 4.0)
    began, acknowledged = fleet.now(), _acknowledged(run)
    await asyncio.sleep(3.0)
    run.measure("acknowledged_per_s_before", (_acknowledged(run) - acknowledged) / (fleet.now() - began))
    before = set(node.workers())
    began, acknowledged = fleet.now(), _acknowledged(run)
    run.say("SIGHUP")
    node.send(signal.SIGHUP)
    deadline = began + 120
    while fleet.now() < deadline:
        await asyncio.sleep(0.25)
        now = set(node.workers())
        if len(now) == 4 and not now & before and all(client.opened.is_set() for client in fleet.clients):
            break
    else:
        run.fail(f"after 120 s the workers are {sorted(node.workers())}, and were {sorted(before)}")
    took = fleet.now() - began
    run.measure("restart_s", took)
    run.measure("acknowledged_per_s", (_acknowledged(run) - acknowledged) / took)
    run.measure("refused", len(fleet.refused), most=0)
    run.measure("broken_handshakes", len(fleet.broken), most=0)
    await asyncio.sleep(1.0)


def _acknowledged(run: Run) -> int:
    return sum(entry.kind == "ack" for entry in run.published.entries)


@fault
async def stop_and_start(run: Run) -> None:
    """SIGTERM of one of two nodes on Redis, and its start, twice"""
    broker = await run.valkey()
    nodes = await run.serve(broker.url, broker.url)
    await run.drive()
    for node in nodes:
        run.say(f"SIGTERM of {node.name}")
        await node.end()
        await run.sleep(0.1, 1.0)
        await node.start()
        await run.sleep(1.0, 2.0)
    run.failures += [f"{node.name} has ended" for node in run.nodes if not node.running]
