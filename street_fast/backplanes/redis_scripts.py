"""The Lua that runs in Redis: what has to happen as one step there.

**Keys.** Every name has the partition of its channel in braces, ``street_fast:{17}:...``, so that a Cluster has all
names of a channel on one server. There are 128 partitions, whatever the number of servers. `Names` makes the names.

**A channel with history** is two keys. ``m:`` is a hash: `e` epoch, `s` offset and `t` tag of the newest message, `r`
the identity of the server that wrote it, `c` the bytes of all messages so far; `f` and `x` are `c` and `x` of the
oldest message when it was looked at last, or 0. ``h:`` is a stream whose entry ``<offset>-0`` has `r`, the ready record
(see ``backplanes.records``), `x`, when it ends by the clock of Redis in milliseconds, and `c`, the bytes of all
messages before it.

**Identity.** A server that was started anew, or promoted, may lack what was answered before; it cannot know. So what
another identity wrote gets a new epoch when it is touched, and nobody is told that nothing is missing. An empty
identity never changes: for servers that lose nothing that they have answered.

**A channel that is not known** stands at offset 0 of an epoch that all such channels of its partition share: ``e:``
lives shorter than `m:` does, so that whoever saw the beginning of a channel that was forgotten sees another epoch.

**Members** are a hash for each channel and node, ``p:``, with the version in the field that has no name, and the set of
nodes for each channel, ``n:``. Both end by themselves unless their node writes them again.

Nothing here is slower than what it returns or removes, but for the oldest entries that go.
"""

from __future__ import annotations

import hashlib
import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Final

__all__ = [
    "MEMBERS_CHANGE",
    "MEMBERS_REFRESH",
    "MEMBERS_WRITE",
    "PARTITIONS",
    "PUBLISH",
    "READ",
    "RESET",
    "ROSTER",
    "SCRIPTS",
    "TELL_ONCE",
    "Names",
    "Route",
    "Routes",
    "Script",
    "milliseconds",
    "partition_of",
]

PARTITIONS: Final = 128

_ROUTES = 10_000  # that are remembered


def partition_of(name: str) -> int:
    """The partition of a channel, or of a node."""
    return zlib.crc32(name.encode()) % PARTITIONS


def milliseconds(seconds: float) -> bytes:
    """A time as Redis takes it."""
    return b"%d" % max(1, round(seconds * 1_000))


class Names:
    """The names of one channel. `kind` is a letter, see above; ``b`` is the name on the bus."""

    __slots__ = ("_prefixes",)

    def __init__(self, prefix: str) -> None:
        self._prefixes = [f"{prefix}:{{{partition}}}:" for partition in range(PARTITIONS)]

    def of(self, kind: str, channel: str) -> bytes:
        """A name that belongs to a channel."""
        return f"{self._prefixes[partition_of(channel)]}{kind}:{channel}".encode()

    def epoch_of(self, channel: str) -> bytes:
        """The name of the epoch that the partition of a channel shares."""
        return f"{self._prefixes[partition_of(channel)]}e".encode()

    def key_of(self, channel: str, key: str) -> bytes:
        """The name of the answer to the publish with a key. No two channels and keys have the same."""
        return f"{self._prefixes[partition_of(channel)]}k:{len(channel)}:{channel}:{key}".encode()

    def members_of(self, channel: str, node: str) -> bytes:
        """The name of the members that a node has in a channel."""
        return f"{self._prefixes[partition_of(channel)]}p:{node}:{channel}".encode()

    def in_partition(self, partition: int, rest: str) -> bytes:
        """Any other name."""
        return (self._prefixes[partition] + rest).encode()


class Route:
    """What is worked out once for a channel."""

    __slots__ = ("bus", "keys", "partition", "publish")

    def __init__(self, partition: int, bus: bytes, publish: bytes, keys: tuple[bytes, bytes, bytes]) -> None:
        self.partition = partition
        self.bus = bus
        self.publish = publish
        """The command that publishes, up to the record."""
        self.keys = keys
        """Of its history: ``m:``, ``h:`` and ``e``."""


class Routes:
    """The routes of channels, made when they are wanted. `publish_word` is PUBLISH or, in a Cluster, SPUBLISH."""

    def __init__(self, names: Names, bus_names: Names, publish_word: bytes) -> None:
        self._names = names
        self._bus_names = bus_names
        self._publish_word = publish_word
        self.known: dict[str, Route] = {}
        """Those that are made. Not to be written to."""

    def of(self, channel: str) -> Route:
        """The route of a channel."""
        return self.known.get(channel) or self._new(channel)

    def publish(self, channel: str, record: bytes) -> bytes:
        """The command that publishes a record to a channel."""
        return b"%b$%d\r\n%b\r\n" % (self.of(channel).publish, len(record), record)

    def _new(self, channel: str) -> Route:
        if len(self.known) >= _ROUTES:
            self.known.clear()
        word, bus = self._publish_word, self._bus_names.of("b", channel)
        publish = b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(word), word, len(bus), bus)
        keys = (self._names.of("m", channel), self._names.of("h", channel), self._names.epoch_of(channel))
        route = self.known[channel] = Route(partition_of(channel), bus, publish, keys)
        return route


class Script:
    """A script, and the name by which Redis knows it."""

    def __init__(self, source: str) -> None:
        self.source = source.strip().encode()
        self.sha = hashlib.sha1(self.source, usedforsecurity=False).hexdigest().encode()

    def call(self, keys: Sequence[bytes], words: Iterable[bytes]) -> bytes:
        """The command that runs it, as it goes over the wire."""
        parts = [b"EVALSHA", self.sha, b"%d" % len(keys), *keys, *words]
        return b"*%d\r\n" % len(parts) + b"".join([b"$%d\r\n%b\r\n" % (len(part), part) for part in parts])


_TOP = """
-- The position of the newest message, of this identity: epoch, offset, tag, bytes so far, whether it is written; and
-- of the oldest message the bytes before it, and when it ends.
local function top(meta, stream, shared, identity, random, shared_ms)
    local m = redis.call('HMGET', meta, 'e', 's', 't', 'c', 'r', 'f', 'x')
    if m[1] then
        if m[5] == identity then
            return m[1], tonumber(m[2]), m[3], tonumber(m[4]), true, tonumber(m[6] or 0), tonumber(m[7] or 0)
        end
        if identity ~= '' then -- who asks may not know yet that this server is another one by now
            local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
            local replication = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
            if identity ~= run .. '-' .. replication then
                return nil
            end
        end
        redis.call('HSET', meta, 'e', random, 's', 0, 't', '0', 'c', 0, 'r', identity, 'f', 0, 'x', 0)
        redis.call('DEL', stream)
        return random, 0, '0', 0, true, 0, 0
    end
    local seed = redis.call('GET', shared)
    if not seed then
        seed = random
        redis.call('SET', shared, seed, 'PX', shared_ms)
    end
    return string.sub(redis.sha1hex(seed .. ':' .. identity), 1, 16), 0, '0', 0, false, 0, 0
end

local function now_ms()
    local t = redis.call('TIME')
    return t[1] * 1000 + math.floor(t[2] / 1000)
end
"""

PUBLISH = Script(
    _TOP
    + """
-- KEYS meta, stream, shared, bus[, key]
-- ARGV identity, random, shared_ms, tag, size, ttl_ms, most_bytes, meta_ms, key_ms, command, head, skip, payload
-- Returns {epoch, offset, tag, 1 if the key was known}
if KEYS[5] then
    local known = redis.call('GET', KEYS[5])
    if known then
        local e, s, t = string.match(known, '^(%S+) (%S+) (%S+)$')
        return {e, s, t, 1}
    end
end
local meta, stream = KEYS[1], KEYS[2]
local tag, ttl_ms, most = ARGV[4], tonumber(ARGV[6]), tonumber(ARGV[7])
local epoch, offset, _, bytes, known, first_bytes, first_ends = top(meta, stream, KEYS[3], ARGV[1], ARGV[2], ARGV[3])
if not epoch then return redis.error_reply('STALE identity') end
local now = now_ms()
if not known then
    redis.call('DEL', stream) -- whose place was forgotten
end
offset = offset + 1
local number = string.format('%.0f', offset)
local position = epoch .. ' ' .. number .. ' ' .. tag
local record = ARGV[11] .. position .. ' ' .. ARGV[12] .. '\\n' .. ARGV[13]
redis.call('XADD', stream, 'MAXLEN', ARGV[5], number .. '-0', 'r', record, 'x', string.format('%.0f', now + ttl_ms),
    'c', string.format('%.0f', bytes))
bytes = bytes + #record
redis.call('HSET', meta, 'e', epoch, 's', number, 't', tag, 'c', string.format('%.0f', bytes), 'r', ARGV[1])
redis.call('PEXPIRE', meta, ARGV[8])
-- What has ended goes, a few at a time; what is too much goes at once. The oldest that was looked at may be gone by
-- now, so this comes rather too early.
if bytes - first_bytes > most or first_ends <= now then
    local removed = 0
    while true do
        local first = redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
        if not first then break end
        first_bytes, first_ends = tonumber(first[2][6]), tonumber(first[2][4])
        if bytes - first_bytes <= most and (removed >= 4 or first_ends > now) then break end
        redis.call('XDEL', stream, first[1])
        removed = removed + 1
    end
    redis.call('HSET', meta, 'f', string.format('%.0f', first_bytes), 'x', string.format('%.0f', first_ends))
end
redis.call('PEXPIRE', stream, ttl_ms)
if KEYS[5] then
    redis.call('SET', KEYS[5], position, 'PX', ARGV[9])
end
redis.call(ARGV[10], KEYS[4], record)
return {epoch, offset, tag, 0}
"""
)

TELL_ONCE = Script(
    """
-- A message that is not kept, with a key. KEYS key, bus  ARGV key_ms, command, record
-- Returns 1 if the key was known
if not redis.call('SET', KEYS[1], '1', 'PX', ARGV[1], 'NX') then
    return 1
end
redis.call(ARGV[2], KEYS[2], ARGV[3])
return 0
"""
)

READ = Script(
    _TOP
    + """
-- KEYS meta, stream, shared  ARGV identity, random, shared_ms, limit[, since epoch, since offset]
-- Returns {epoch, offset, tag, number kept, record...}; the records begin with that at `since`, if it is kept
local epoch, offset, tag, _, known = top(KEYS[1], KEYS[2], KEYS[3], ARGV[1], ARGV[2], ARGV[3])
if not epoch then return redis.error_reply('STALE identity') end
local reply = {epoch, offset, tag, 0}
if not known or offset == 0 then return reply end
local stream, limit, now = KEYS[2], tonumber(ARGV[4]), now_ms()
while true do
    local oldest = redis.call('XRANGE', stream, '-', '+', 'COUNT', 16)
    local ended
    for _, entry in ipairs(oldest) do
        if tonumber(entry[2][4]) > now then break end
        ended = entry[1]
    end
    if not ended then break end
    local keep = string.format('%.0f', tonumber(string.match(ended, '^%d+')) + 1)
    redis.call('XTRIM', stream, 'MINID', keep)
    if #oldest < 16 then break end
end
local kept = redis.call('XLEN', stream)
reply[4] = kept
if ARGV[5] then
    local since = tonumber(ARGV[6])
    if ARGV[5] == epoch and since >= offset - kept and since <= offset then
        for _, entry in ipairs(redis.call('XRANGE', stream, string.format('%.0f', since), '+', 'COUNT', limit + 1)) do
            reply[#reply + 1] = entry[2][2]
        end
    end
elseif limit > 0 then
    local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', limit)
    for at = #newest, 1, -1 do
        reply[#reply + 1] = newest[at][2][2]
    end
end
return reply
"""
)

RESET = Script(
    """
-- A node knows of messages that the history does not have: another epoch, unless there is one already.
-- KEYS meta, stream  ARGV identity, random, meta_ms, epoch, offset, tag
local m = redis.call('HMGET', KEYS[1], 'e', 's', 't')
if m[1] and (m[1] ~= ARGV[4] or m[2] ~= ARGV[5] or m[3] ~= ARGV[6]) then return 0 end
redis.call('HSET', KEYS[1], 'e', ARGV[2], 's', 0, 't', '0', 'c', 0, 'r', ARGV[1], 'f', 0, 'x', 0)
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('DEL', KEYS[2])
return 1
"""
)

MEMBERS_CHANGE = Script(
    """
-- KEYS members, nodes, bus
-- ARGV node, previous, version, ttl_ms, command, record, number left, left..., joined, info...
-- Returns 0, and does nothing, if `previous` is not what is here: then all have to be written.
local was = redis.call('HGET', KEYS[1], '') or '0'
if was ~= ARGV[2] then return 0 end
local at = 8
for _ = 1, tonumber(ARGV[7]) do
    redis.call('HDEL', KEYS[1], ARGV[at])
    at = at + 1
end
while at < #ARGV do
    redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
    at = at + 2
end
redis.call('HSET', KEYS[1], '', ARGV[3])
if redis.call('HLEN', KEYS[1]) == 1 then
    redis.call('DEL', KEYS[1])
    redis.call('SREM', KEYS[2], ARGV[1])
else
    redis.call('PEXPIRE', KEYS[1], ARGV[4])
    redis.call('SADD', KEYS[2], ARGV[1])
    redis.call('PEXPIRE', KEYS[2], ARGV[4])
end
redis.call(ARGV[5], KEYS[3], ARGV[6])
return 1
"""
)

MEMBERS_WRITE = Script(
    """
-- KEYS members, nodes, bus  ARGV node, version, ttl_ms, command, record, member, info...
redis.call('DEL', KEYS[1])
if #ARGV > 5 then
    redis.call('HSET', KEYS[1], '', ARGV[2])
    for at = 6, #ARGV, 2 do
        redis.call('HSET', KEYS[1], ARGV[at], ARGV[at + 1])
    end
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
    redis.call('SADD', KEYS[2], ARGV[1])
    redis.call('PEXPIRE', KEYS[2], ARGV[3])
else
    redis.call('SREM', KEYS[2], ARGV[1])
end
redis.call(ARGV[4], KEYS[3], ARGV[5])
return 1
"""
)

MEMBERS_REFRESH = Script(
    """
-- KEYS members, nodes  ARGV node, version, ttl_ms
-- Returns 0 if all have to be written
if redis.call('HGET', KEYS[1], '') ~= ARGV[2] or redis.call('SISMEMBER', KEYS[2], ARGV[1]) == 0 then return 0 end
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PEXPIRE', KEYS[2], ARGV[3])
return 1
"""
)

ROSTER = Script(
    """
-- KEYS nodes  ARGV what stands before and behind a node in the name of its members, own node
-- Returns {node, {field, value...}, ...} of the others
local reply = {}
for _, node in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    if node ~= ARGV[3] then
        local members = redis.call('HGETALL', ARGV[1] .. node .. ARGV[2])
        if #members > 0 then
            reply[#reply + 1] = node
            reply[#reply + 1] = members
        else
            redis.call('SREM', KEYS[1], node)
        end
    end
end
return reply
"""
)

SCRIPTS = (PUBLISH, TELL_ONCE, READ, RESET, MEMBERS_CHANGE, MEMBERS_WRITE, MEMBERS_REFRESH, ROSTER)
