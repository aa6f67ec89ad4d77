"""The servers of Redis that a node uses: one, the primary that the Sentinels name, or all primaries of a Cluster.

For each there is a link for commands and one for the bus. Each is made anew whenever it ends, for ever, by a task of
its own; where the server is is looked up each time. `Servers` decides which server has which partition, and whether a
server still is what it was; what follows from that is for who is told by `Hooks`.

**Fit** is a server that says that it is the primary. It is asked at every connection, and with every probe.

**Identity** is what the server says about itself: it is another one when it was started anew, or promoted. See
``redis_scripts``.

**A probe** goes out as a command and has to come back over the bus. TCP, and the answers to commands, say nothing of
the bus.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import logging
import os
import random
from typing import TYPE_CHECKING, Any, NamedTuple

from street_fast.backplanes import Unavailable, records
from street_fast.backplanes.reasons import reason_of
from street_fast.backplanes.redis_links import (
    Address,
    BusLink,
    BusThread,
    CommandLink,
    NoAnswer,
    Place,
    Refused,
    WrongCredentials,
    ask,
    pack,
    parse_info,
)
from street_fast.backplanes.redis_scripts import PARTITIONS, SCRIPTS, Names, milliseconds, partition_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from street_fast.limits import Limits

__all__ = ["Hooks", "Server", "Servers", "kind_of"]

logger = logging.getLogger("street_fast")

_BACKOFF_S = (0.05, 1.0)
"""Between two tries to connect: the least, and the most, of which a random part is taken."""
_TOPOLOGY_S = 30.0
"""A Cluster is asked who has what, if nothing shows that it has changed."""
_TOPOLOGY_SOON_S = 1.0
"""The same, if something does, and nobody says so yet."""
_VAIN = 20
"""How often it is asked like that."""
_OVERDUE_S = 10.0
"""A probe that is out for so long is a matter of health. Before that the bus is made anew."""
_WAIT_PART = 0.6
"""What replicas get of the time that an answer has."""
_NOTHING_DONE = ("READONLY", "OOM", "NOSCRIPT", "MASTERDOWN", "MISCONF", "NOREPLICAS", "CLUSTERDOWN", "MOVED", "ASK",
                 "TRYAGAIN", "BUSY", "NOPERM", "CROSSSLOT", "NOAUTH", "STALE", "WRONGTYPE")  # fmt: skip
"""Errors of Redis, and one of our scripts, after which nothing was done."""
_OF_CLASS = {
    "ReadOnlyError": "READONLY",
    "OutOfMemoryError": "OOM",
    "NoScriptError": "NOSCRIPT",
    "MovedError": "MOVED",
    "AskError": "ASK",
    "TryAgainError": "TRYAGAIN",
    "ClusterDownError": "CLUSTERDOWN",
    "MasterDownError": "MASTERDOWN",
    "NoPermissionError": "NOPERM",
    "ClusterCrossSlotError": "CROSSSLOT",
}
"""redis-py takes the word off the errors that it has a class for."""


def kind_of(error: BaseException) -> str | None:
    """The word for an error after which Redis has done nothing; None for another error."""
    known = _OF_CLASS.get(type(error).__name__)
    if known is not None:
        return known
    text = str(error)
    return next((kind for kind in _NOTHING_DONE if text.startswith(kind) or f"-{kind} " in text), None)


class Hooks(NamedTuple):
    """Who is told, in the event loop."""

    arrived: Callable[[BusLink, Any], None]
    """Of everything that the bus brings, see `BusThread`."""
    not_told: Callable[[str, Exception], None]
    """Of what could not be told, see `CommandLink`."""
    commands_up: Callable[[Server, bool, bool], None]
    """There is a link for commands; whether it is not the first one, and whether the identity is another one."""
    bus_up: Callable[[Server], None]
    """There is a link for the bus, which carries nothing yet."""
    bus_lost: Callable[[Server], None]
    """It is there no more."""
    moved: Callable[[list[Server | None], set[int]], None]
    """A Cluster has said who has what: which server each partition had before, and which ones have another now."""
    doubt: Callable[[], None]
    """A server was no primary any more: nobody knows who has heard what was told lately."""


class Server:
    """One server. Only `Servers` writes to it, but for `sent`, `unconfirmed`, `leaving`, `kept` and `unwaited`."""

    def __init__(self, fixed: Address | None) -> None:
        self.fixed = fixed  # None: it has to be found
        self.address: Address | None = None
        self.command: CommandLink | None = None
        self.bus: BusLink | None = None
        self.identity = b""
        self.run_id = ""
        self.partitions: list[int] = []
        self.sent: set[str] = set()  # channels for which SUBSCRIBE was sent
        self.unconfirmed: dict[bytes, int] = {}  # names, and how many answers to SUBSCRIBE are still to come
        self.leaving: dict[bytes, int] = {}  # the same for UNSUBSCRIBE
        self.kept = 0  # publishes for which WAIT was not sent
        self.unwaited: list[Callable[[Any], None]] = []  # who hears its answer
        self.error = "not connected yet"
        self.tried: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.probe_name = b""
        self.probe_number = 0
        self.probe_back = 0
        self.probe_sent_at = 0.0
        self.probe_late = False
        self.bus_run_id = ""
        self.command_ended = asyncio.Event()
        self.bus_ended = asyncio.Event()
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def is_up(self) -> bool:
        """Whether there are both links."""
        return self.command is not None and self.bus is not None

    def _was_tried(self) -> None:
        if not self.tried.done():
            self.tried.set_result(None)


class Servers:
    """All of them, from its making until `close`."""

    def __init__(
        self,
        place: Place,
        limits: Limits,
        clock: Callable[[], float],
        bus_names: Names,
        node: str,
        echo: bytes,
        durable: bool,
        replicas: int,
        hooks: Hooks,
    ) -> None:
        self._place = place
        self._limits = limits
        self._time = clock
        self._bus_names = bus_names
        self._node = node
        self._durable = durable
        self._replicas = replicas
        self._hooks = hooks
        self.clustered = place.kind == "cluster"
        self.publish_word = b"SPUBLISH" if self.clustered else b"PUBLISH"
        self._subscribe_word = b"SSUBSCRIBE" if self.clustered else b"SUBSCRIBE"
        self.global_name = bus_names.in_partition(0, "g")
        """What concerns all channels is told there."""
        self.thread = BusThread(hooks.arrived, limits.backplane_pending_bytes, echo)
        self.all: list[Server] = []
        self.by_partition: list[Server | None] = [None] * PARTITIONS
        self.reconnects = self.timeouts = self.wrong_role = 0
        self._dice = random.Random(os.urandom(16))  # noqa: S311 - spreads the tries to connect
        self._said = ""
        self._error = "not connected yet"
        self._topology_changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        if self.clustered:
            self._tried: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._spawn(self._keep_topology())
        else:
            server = self._new_server(None)
            server.partitions = [*range(PARTITIONS)]
            self.by_partition = [server] * PARTITIONS
            self._tried = server.tried

    async def tried(self) -> None:
        """Return when connecting was tried once, or takes too long."""
        await asyncio.wait([self._tried], timeout=self._limits.backplane_timeout_s)

    async def close(self) -> None:
        """End all links, and everything that runs here."""
        self._closed = True
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        links = [server.command for server in self.all if server.command is not None]
        for server in self.all:
            if server.bus is not None:
                server.bus.close()
        for link in links:
            link.close()
        await asyncio.gather(*tasks, *(link.closed() for link in links), return_exceptions=True)
        await self.thread.stop()
        self.all.clear()

    # --- who has what ---

    def of(self, channel: str) -> Server | None:
        """The server of a channel, or of another name that has a partition; None as long as it is not known."""
        return self.by_partition[partition_of(channel)]

    def command_of(self, channel: str) -> CommandLink | None:
        """The link to it, if there is one."""
        server = self.by_partition[partition_of(channel)]
        return None if server is None else server.command

    def reach(self, channel: str) -> tuple[Server, CommandLink]:
        """The server of a channel, and the link to it. Raises Unavailable, which says why not."""
        server = self.by_partition[partition_of(channel)]
        if server is None or server.command is None:
            raise self.unavailable(server)
        return server, server.command

    def unavailable(self, server: Server | None) -> Unavailable:
        """Why a server cannot be reached."""
        return Unavailable(f"Redis is not there: {self._error if server is None else server.error}")

    def with_bus(self, link: BusLink) -> Server | None:
        """The server that a link for the bus leads to; None if it does not any more."""
        return next((server for server in self.all if server.bus is link), None)

    def trouble(self) -> str:
        """What is wrong, for people; empty if nothing is."""
        now = self._time()
        for server in self.all:
            if not server.is_up:
                return f"not connected to Redis: {server.error}"
            if server.probe_back < server.probe_number and now - server.probe_sent_at > _OVERDUE_S:
                return "what is sent through the bus of Redis does not come back"
        return f"not connected to Redis: {self._error}" if None in self.by_partition else ""

    # --- what is noticed ---

    def refused(self, server: Server, error: Exception) -> str | None:
        """Do what an error of Redis calls for. The word for it if nothing was done, else None."""
        kind = kind_of(error)
        if kind in ("READONLY", "MASTERDOWN", "STALE") and server.command is not None:
            self.wrong_role += 1
            self._hooks.doubt()
            server.command.fail(Unavailable(f"{server.address} is not what it was: {error}"))
        elif kind == "NOSCRIPT" and server.command is not None:
            for script in SCRIPTS:
                ask(server.command, pack((b"SCRIPT", b"LOAD", script.source)), lambda _: None)
        elif kind in ("MOVED", "ASK", "CLUSTERDOWN"):
            self.look_up()
        return kind

    def look_up(self) -> None:
        """Something shows that the servers of the Cluster have changed."""
        self._topology_changed.set()

    def bus_said(self, link: BusLink, error: Exception) -> None:
        """A link for the bus has ended, or was refused something."""
        server = self.with_bus(link)
        if server is not None:
            if kind_of(error) in ("MOVED", "ASK", "CLUSTERDOWN", "TRYAGAIN"):
                self.look_up()
            self._lose_bus(server, f"the bus has ended: {reason_of(error)}")

    def probe_came(self, link: BusLink, name: bytes, number: int) -> None:
        """A probe of this node has come over the bus."""
        server = self.with_bus(link)
        if server is not None and server.probe_name == name:
            server.probe_back = max(server.probe_back, min(number, server.probe_number))
            server.probe_late = False

    def look(self) -> None:
        """To be called now and then: what is late?"""
        now, limits = self._time(), self._limits
        for server in [*self.all]:
            if server.command is not None and server.command.is_late(now):
                self.timeouts += 1
                server.command.fail(NoAnswer(f"no answer within {limits.backplane_timeout_s} s"))
            if server.command is None or server.bus is None:
                continue
            if server.probe_back < server.probe_number and now - server.probe_sent_at > limits.backplane_probe_s:
                if server.probe_late:  # at the second look: what had come already was taken in between
                    self._lose_bus(server, f"a probe did not come back within {limits.backplane_probe_s} s")
                server.probe_late = True
            elif now - server.probe_sent_at >= limits.backplane_probe_s:
                self.probe(server)

    def probe(self, server: Server) -> None:
        """Send something through the bus, and ask the server whether it still is what it was."""
        if server.command is None:
            return
        link = server.command
        server.probe_number += 1
        server.probe_sent_at = self._time()
        link.tell("", pack((self.publish_word, server.probe_name, records.probe(self._node, server.probe_number))))

        def answered(reply: Any) -> None:
            if isinstance(reply, Exception) or server.command is not link:
                return
            info = parse_info(reply)
            why = _unfit(info)
            if not why and self._identity_of(info | {"run_id": server.run_id}) != server.identity:
                why = "was promoted"
            if why:
                self.wrong_role += 1
                self._hooks.doubt()
                link.fail(Unavailable(f"{server.address} {why}"))
                self._lose_bus(server, "the primary may be another one")

        ask(link, pack((b"INFO", b"replication")), answered)

    def _identity_of(self, info: dict[str, str]) -> bytes:
        return b"" if self._durable else f"{info.get('run_id', '')}-{info.get('master_replid', '')}".encode()

    def _report(self, server: Server, error: Exception) -> None:
        """Each reason once, until it changes."""
        server.error = str(error)
        said = f"{type(error).__name__} {error}"
        if said != self._said:
            self._said = said
            level = logging.ERROR if isinstance(error, WrongCredentials) else logging.WARNING
            logger.log(level, "no connection to Redis (%s): %s; trying again", self._place, reason_of(error))

    # --- links for commands ---

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task of RedisBackplane failed", exc_info=task.exception())

    def _new_server(self, address: Address | None) -> Server:
        server = Server(address)
        self.all.append(server)
        server.tasks = [self._spawn(self._keep_commands(server)), self._spawn(self._keep_bus(server))]
        return server

    async def _pause(self, tries: int) -> None:
        least, most = _BACKOFF_S
        await asyncio.sleep(min(most, least * 2 ** min(tries - 1, 10)) * self._dice.uniform(0.5, 1.0))

    async def _keep_commands(self, server: Server) -> None:
        tries = 0
        while self._is_kept(server):
            server.command_ended.clear()
            try:
                address = server.fixed or await self._find()
                link, info = await self._connect(server, address)
            except Unavailable as error:
                if not self._is_kept(server):
                    return
                self._report(server, error)
                server._was_tried()
                if self.clustered:
                    self.look_up()
                tries += 1
                await self._pause(tries)
                continue
            tries = 0
            self._commands_up(server, address, link, info)
            await server.command_ended.wait()
            await self._pause(1)

    async def _find(self) -> Address:
        """Where the primary is."""
        if self._place.kind == "single":
            return self._place.seeds[0]
        errors = []
        for seed in self._place.seeds:
            try:
                found = await self._ask_once(
                    seed, b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", self._place.service.encode()
                )
                if found is not None:
                    return Address(found[0].decode(), int(found[1]))
                errors.append(f"{seed} knows no service {self._place.service!r}")
            except Unavailable as error:
                errors.append(str(error))
        raise Unavailable("no sentinel knows the primary: " + "; ".join(errors))

    async def _ask_once(self, address: Address, *words: bytes) -> Any:
        """The answer to one command, over a connection of its own. Raises Unavailable."""
        timeout_s = self._limits.backplane_timeout_s
        connection = await self._place.connect(address, timeout_s, sentinel=self._place.kind == "sentinel")
        link = self._link(connection, lambda *_: None)
        try:
            return await asyncio.wait_for(link.call(*words), timeout_s)
        except (Refused, asyncio.TimeoutError) as error:
            raise Unavailable(f"{address} does not answer as it should: {reason_of(error)}") from None
        finally:
            link.close()
            await link.closed()

    def _link(self, connection: Any, ended: Callable[[CommandLink, Exception], None]) -> CommandLink:
        timeout_s, most_bytes = self._limits.backplane_timeout_s, self._limits.backplane_pending_bytes
        return CommandLink(connection, timeout_s, most_bytes, self._time, self._hooks.not_told, ended)

    async def _connect(self, server: Server, address: Address) -> tuple[CommandLink, dict[str, str]]:
        timeout_s = self._limits.backplane_timeout_s
        connection = await self._place.connect(address, timeout_s)
        link = self._link(connection, lambda link, error: self._commands_ended(server, link, error))
        try:
            asked = [link.call(b"INFO", section) for section in (b"server", b"replication", b"memory", b"persistence")]
            loaded = [link.call(b"SCRIPT", b"LOAD", script.source) for script in SCRIPTS]
            info: dict[str, str] = {}
            for part in await asyncio.wait_for(asyncio.gather(*asked), timeout_s):
                info |= parse_info(part)
            why = _unfit(info)
            if why:
                raise Unavailable(f"{address} {why}")
            await asyncio.wait_for(asyncio.gather(*loaded), timeout_s)
            if not link.up or not self._is_kept(server):  # it has ended, and `ended` found it in nobody's hands
                raise Unavailable(f"{address}: the connection has ended")
        except BaseException as error:
            link.close()
            await link.closed()
            if isinstance(error, (Refused, asyncio.TimeoutError)):
                raise Unavailable(f"{address} does not answer as it should: {reason_of(error)}") from None
            raise
        return link, info

    def _commands_up(self, server: Server, address: Address, link: CommandLink, info: dict[str, str]) -> None:
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and info.get("maxmemory", "0") != "0":
            logger.warning(
                "Redis %s forgets keys when its memory is full (maxmemory-policy %s): history may be lost without "
                "anybody being told; set it to noeviction",
                address,
                policy,
            )
        again = bool(server.run_id)
        identity = self._identity_of(info)
        is_other = again and identity != server.identity
        server.identity, server.run_id = identity, info.get("run_id", "")
        server.command, server.address = link, address
        if self._replicas:
            link.before_write = lambda: self._wait_for_replicas(server, link)
        if self._said or again:
            logger.info("connected to Redis at %s%s", address, " again" if again else "")
        self._said = ""
        self.reconnects += again
        self._hooks.commands_up(server, again, is_other)
        if server.bus is not None and (server.bus_run_id != server.run_id or server.bus.address != address):
            self._lose_bus(server, "the primary is another one")
        server.bus_ended.set()  # it may be tried at once

    def _commands_ended(self, server: Server, link: CommandLink, error: Exception) -> None:
        if server.command is link and not self._closed:
            server.command = None
            self._report(server, error)
            server.command_ended.set()

    def _wait_for_replicas(self, server: Server, link: CommandLink) -> None:
        """Before what has gathered is written: WAIT, once for all that is kept in it."""
        if not server.kept:
            return

        def answered(reply: Any) -> None:
            unwaited, server.unwaited = server.unwaited, []
            for hear in unwaited:
                hear(reply)

        timeout_ms = milliseconds(self._limits.backplane_timeout_s * _WAIT_PART)
        if ask(link, pack((b"WAIT", b"%d" % self._replicas, timeout_ms)), answered):
            server.kept = 0

    # --- links for the bus ---

    async def _keep_bus(self, server: Server) -> None:
        tries = 0
        while True:
            server.bus_ended.clear()
            if server.command is None or server.address is None:
                await server.bus_ended.wait()
                continue
            link = BusLink(self.thread, self._place, server.address, self._limits.backplane_timeout_s)
            try:
                info = await link.open()
                if info.get("run_id", "") != server.run_id:
                    raise Unavailable(f"{link.address} is another server than a moment ago")
            except Unavailable as error:
                link.close()
                self._report(server, error)
                server._was_tried()
                tries += 1
                await self._pause(tries)
                continue
            except BaseException:
                link.close()
                raise
            tries = 0
            self._bus_up(server, link)
            while server.bus is link:
                await server.bus_ended.wait()
                server.bus_ended.clear()
            await self._pause(1)

    def _bus_up(self, server: Server, link: BusLink) -> None:
        self.reconnects += server.probe_number > 0
        server.bus, server.bus_run_id = link, server.run_id
        partition = server.partitions[0] if server.partitions else 0
        server.probe_name = self._bus_names.in_partition(partition, f"q:{self._node}")
        server.probe_back = server.probe_number
        server.probe_number += 1  # the first one has to come back; it is sent when the bus is known to carry it
        server.probe_sent_at = self._time()
        server.probe_late = False
        link.send(pack((self._subscribe_word, server.probe_name)))
        if self.by_partition[0] is server:
            link.send(pack((self._subscribe_word, self.global_name)))
        self._hooks.bus_up(server)
        server.error = ""
        server._was_tried()

    def _lose_bus(self, server: Server, why: str) -> None:
        if server.bus is None:
            return
        logger.warning("Redis %s: %s", server.bus.address, why)
        server.error = why
        self._end_bus(server)
        self._hooks.bus_lost(server)

    def _end_bus(self, server: Server) -> None:
        if server.bus is not None:
            server.bus.close()
            server.bus = None
        server.sent.clear()
        server.unconfirmed.clear()
        server.leaving.clear()
        server.bus_ended.set()

    # --- a Cluster ---

    async def _keep_topology(self) -> None:
        tries = vain = 0
        while not self._closed:
            claimed = self._topology_changed.is_set()
            self._topology_changed.clear()
            try:
                addresses = await self._ask_topology()
                if self._closed:
                    return
                changed = self._use_topology(addresses)
                # Who was asked may be the last one to hear of it.
                vain = vain + 1 if claimed and not changed else 0
                tries = 0
            except Unavailable as error:
                self._error = str(error)
                tries += 1
            if not self._tried.done():
                first = [server.tried for server in self.all]
                if first:
                    await asyncio.wait(first, timeout=self._limits.backplane_timeout_s)
                self._tried.set_result(None)
            await self._pause(tries + 2)
            with contextlib.suppress(asyncio.TimeoutError):
                soon = tries > 0 or 0 < vain < _VAIN
                await asyncio.wait_for(self._topology_changed.wait(), _TOPOLOGY_SOON_S if soon else _TOPOLOGY_S)
            if 0 < vain < _VAIN:
                self.look_up()

    async def _ask_topology(self) -> list[Address]:
        """The primary of each partition."""
        known = [server.fixed for server in self.all if server.command is not None and server.fixed is not None]
        errors = []
        for address in dict.fromkeys([*known, *self._place.seeds]):
            try:
                return _partition_addresses(await self._ask_once(address, b"CLUSTER", b"SLOTS"), address)
            except (Unavailable, LookupError) as error:
                errors.append(f"{address}: {reason_of(error)}")
        raise Unavailable("no server of the Cluster says who has what: " + "; ".join(errors))

    def _use_topology(self, addresses: list[Address]) -> bool:
        """Returns whether anything has changed."""
        known = {server.fixed: server for server in self.all}
        before = [*self.by_partition]
        for partition, address in enumerate(addresses):
            server = known.get(address)
            if server is None:
                server = known[address] = self._new_server(address)
            self.by_partition[partition] = server
        moved = {number for number in range(PARTITIONS) if before[number] is not self.by_partition[number]}
        for server in [*self.all]:
            server.partitions = [number for number, owner in enumerate(self.by_partition) if owner is server]
            if not server.partitions:
                self._drop(server)
            elif server.bus is not None and server.probe_name not in (
                self._bus_names.in_partition(number, f"q:{self._node}") for number in server.partitions
            ):
                self._lose_bus(server, "its slots have moved")
        first = self.by_partition[0]
        if 0 in moved and first is not None and first.bus is not None:
            first.bus.send(pack((self._subscribe_word, self.global_name)))
        self._hooks.moved(before, moved)
        return bool(moved)

    def _is_kept(self, server: Server) -> bool:
        """Whether it still is one of ours. That its tasks are cancelled may be lost: wait_for of Python 3.11 and older
        swallows it if what it waits for is done in that moment.
        """
        return not self._closed and server in self.all

    def _drop(self, server: Server) -> None:
        self.all.remove(server)
        for task in server.tasks:
            task.cancel()
        self._end_bus(server)
        if server.command is not None:
            link, server.command = server.command, None
            link.close()


def _unfit(info: dict[str, str]) -> str:
    """Why a server cannot be used; empty if it can."""
    if info.get("role", "master") != "master":
        return "is a replica, and not the primary"
    if info.get("loading", "0") != "0":
        return "is loading its data"
    return ""


def _partition_addresses(slots: list[Any], asked: Address) -> list[Address]:
    """Who has each partition, from CLUSTER SLOTS. Raises LookupError if nobody has one."""
    addresses = []
    for partition in range(PARTITIONS):
        slot = binascii.crc_hqx(b"%d" % partition, 0) % 16_384
        for first, last, primary, *_ in slots:
            if first <= slot <= last:
                host = primary[0].decode() if primary[0] else ""
                addresses.append(Address(asked.host if host in ("", "?") else host, int(primary[1])))
                break
        else:
            raise LookupError(f"nobody has the slot {slot}")
    return addresses
