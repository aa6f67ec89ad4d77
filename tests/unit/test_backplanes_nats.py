"""NatsBackplane against real servers that go away, stand still, come back with less, or never were there.

What every backplane promises is tested in ``tests/contract``.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import random
import shutil
import time

import pytest
import trustme

from street_fast.backplanes import History, OutcomeUnknown, Position, Publication, Published, Unavailable
from street_fast.backplanes import nats_history as histories
from street_fast.backplanes.nats import NatsBackplane
from street_fast.backplanes.nats_link import header, status
from street_fast.backplanes.reading import page_of
from street_fast.backplanes.records import kept
from street_fast.errors import ConfigurationError
from street_fast.limits import Limits
from tests.brokers import Nats, Proxy, free_port
from tests.contract.bus import Recorder, done, read_on
from tests.contract.nats import server, settle

HISTORY = History(size=100, ttl_s=100.0)
SHORT = History(size=5, ttl_s=100.0)
QUICK = Limits(
    backplane_timeout_s=1.0, backplane_probe_s=0.6, node_beat_s=0.3, node_ttl_s=1.0, position_check_s=0.5,
    presence_refresh_s=0.5,
)  # fmt: skip


class ConfiguredNats(Nats):
    """A server with a file of configuration instead of the usual options."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def command_line(self):
        path = self.folder / "nats.conf"
        path.write_text(
            f"port: {self.port}\nhost: 127.0.0.1\n{self.config.replace('STORE', str(self.folder / 'store'))}"
        )
        return [super().command_line()[0], "-c", str(path)]


@pytest.fixture
def own_server():
    """A server of this test alone, that may be killed."""
    with Nats() as nats:
        yield nats


@pytest.fixture
async def new_node():
    nodes = []

    async def new_node(url, limits=QUICK, **options):
        node, sink = NatsBackplane(url, limits=limits, **options), Recorder()
        nodes.append(node)
        await node.start(sink)
        return node, sink

    yield new_node
    await asyncio.gather(*(node.close() for node in nodes))


@pytest.fixture
def prefix():
    return f"unit_{os.urandom(4).hex()}"


async def until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not come to be"
        await asyncio.sleep(0.005)


async def back(*nodes):
    """Wait until nodes whose server has ended, which they do not know yet, are connected again."""
    was = [node.stats()["reconnects"] for node in nodes]
    await until(lambda: all(n.health().ok and n.stats()["reconnects"] > w for n, w in zip(nodes, was, strict=True)))


def after_up(node, act):
    """Call `act` once, when the node has connected and nothing of what it has to say then has left it."""
    up, times = node._link._on_up, []

    def on_up():
        up()
        if not times:
            times.append(time.monotonic())
            act()

    node._link._on_up = on_up
    return times


async def publish(node, channel, *payloads, **options):
    return [(await done(node.publish(channel, payload, **options))).position for payload in payloads]


def contiguous(positions):
    return all((b.epoch, b.offset) == (a.epoch, a.offset + 1) for a, b in itertools.pairwise(positions))


class TestUrl:
    @pytest.mark.parametrize(
        "url",
        ["", "nats", "nats://", "redis://host", "nats://host:port", "nats://host/path", "nats://a,,b", "nats://h:99999",
         5, "nats://host?x=1", "nats://a b"],
    )  # fmt: skip
    def test_what_is_no_address_is_refused(self, url):
        with pytest.raises(ConfigurationError, match="NatsBackplane"):
            NatsBackplane(url)

    def test_a_password_is_not_shown(self):
        with pytest.raises(ConfigurationError) as info:
            NatsBackplane("nats://user:secret@host/path")
        assert "secret" not in str(info.value)
        node = NatsBackplane("nats://user:secret@host,nats://token@other:5")
        assert node.shown == "host:4222,other:5"
        assert not node.health().ok

    @pytest.mark.parametrize(
        "options",
        [{"prefix": "a.b"}, {"prefix": ""}, {"prefix": None}, {"replicas": 0}, {"replicas": True}, {"limits": 1}],
    )
    def test_options_that_make_no_sense_are_refused(self, options):
        with pytest.raises(ConfigurationError):
            NatsBackplane("nats://host", **options)


class TestBytes:
    @pytest.mark.parametrize(
        "name", ["a", "room:1", "*", ">", "a.b", " ", "=", "=41", "ä", "A-_9", "\0", "%41", "x" * 255]
    )
    def test_a_token_is_safe_in_a_subject_and_tells_names_apart(self, name):
        token = histories.token(name)
        assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_=")
        assert token != "="
        assert histories.channel_of(token) == name

    def test_records_travel_together(self):
        records = [b"S1 m x -\nabc", b"", b"S1 k\n\n\r\n"]
        assert histories.unpacked(histories.packed(records)) == records
        assert histories.packed(records[:1]) == records[0]
        assert histories.unpacked(records[0]) == records[:1]
        for wrong in (b"S1 b\n", b"S1 b 3\nab", b"S1 b 1 x\na", b"S1 b -1\n", b"S1 b 99999999999\n"):
            with pytest.raises(ValueError, match="batch"):
                histories.unpacked(wrong)

    def test_headers_are_read_as_they_come(self):
        headers = b"NATS/1.0\r\nA: 1\r\nNats-Sequence: 7\r\nNats-Sequence: 8\r\n\r\n"
        assert status(headers) == 0
        assert header(headers, b"Nats-Sequence") == b"8", "the server adds its own behind"
        assert header(headers, b"B") is None
        assert status(b"NATS/1.0 503\r\n\r\n") == 503
        assert status(b"NATS/1.0 404 Message Not Found\r\n\r\n") == 404
        assert status(b"") == 0


@pytest.mark.broker
class TestServerThatGoesAway:
    async def test_killed_and_started_again_it_has_lost_nothing(self, own_server, new_node):
        (a, sink_a), (b, sink_b) = [await new_node(own_server.url) for _ in range(2)]
        for node in (a, b):
            await done(node.subscribe("c", HISTORY))
        before = await publish(a, "c", b"1", b"2", history=HISTORY)
        await publish(b, "c", b"keyed", history=HISTORY, key="k")
        own_server.kill()
        await until(lambda: not a.health().ok and not b.health().ok)
        assert f"127.0.0.1:{own_server.port}" in a.health().detail
        own_server.start()
        began = time.monotonic()
        await until(lambda: a.health().ok and b.health().ok)
        print(f"back after {time.monotonic() - began:.2f} s")
        assert (await done(a.publish("c", b"again", history=HISTORY, key="k"))).duplicate
        after = await publish(a, "c", b"3", history=HISTORY)
        await settle(a, b)
        assert sink_a.payloads("c") == sink_b.payloads("c") == [b"1", b"2", b"keyed", b"3"]
        assert after[0].offset == 4
        assert sink_a.losses == sink_b.losses == []
        page = await read_on(b, "c", HISTORY, Position.start_of(before[0].epoch), 10)
        assert contiguous([publication.position for publication in page.publications])
        assert len(page.publications) == 4

    async def test_started_again_empty_it_is_told(self, own_server, new_node):
        (a, _), (b, sink_b) = [await new_node(own_server.url) for _ in range(2)]
        await done(b.subscribe("c", HISTORY))
        old = await publish(a, "c", b"1", b"2", history=HISTORY)
        start = (await done(a.read("unused", HISTORY, since=None, limit=0))).top
        await settle(a, b)
        own_server.kill()
        shutil.rmtree(own_server.folder / "store")
        own_server.start()
        await back(a, b)
        await settle(a, b)
        assert sink_b.losses == ["c"]
        new = await publish(a, "c", b"3", history=HISTORY)
        await settle(a, b)
        assert sink_b.payloads("c") == [b"1", b"2", b"3"]
        assert new[0].offset == 1
        assert new[0].epoch != old[0].epoch
        for channel, since in (("c", old[0]), ("c", old[1]), ("unused", start)):
            assert not (await done(a.read(channel, HISTORY, since=since, limit=9))).recovered

    async def test_back_with_less_than_it_had_nobody_is_told_that_all_is_there(self, own_server, new_node):
        a, _ = await new_node(own_server.url)
        b, sink = await new_node(own_server.url)
        await done(b.subscribe("c", HISTORY))
        old = await publish(a, "c", b"1", b"2", history=HISTORY)
        await settle(a, b)
        own_server.stop()
        shutil.copytree(own_server.folder / "store", own_server.folder / "older")
        own_server.start()
        await back(a, b)
        old += await publish(a, "c", b"3", b"4", history=HISTORY)
        await settle(a, b)
        own_server.kill()
        shutil.rmtree(own_server.folder / "store")
        (own_server.folder / "older").rename(own_server.folder / "store")
        own_server.start()
        await back(a, b)
        await settle(a, b)
        assert sink.losses == ["c"]
        new = await publish(a, "c", b"5", b"6", b"7", history=HISTORY)
        await settle(a, b)
        assert sink.payloads("c") == [b"1", b"2", b"3", b"4", b"5", b"6", b"7"]
        assert contiguous(new)
        for since in old:
            assert not (await done(a.read("c", HISTORY, since=since, limit=9))).recovered, since

    async def test_while_it_stands_still_a_node_serves_itself(self, own_server, new_node):
        a, sink_a = await new_node(own_server.url)
        b, sink_b = await new_node(own_server.url)
        for node in (a, b):
            await done(node.subscribe("live"))
            await done(node.subscribe("c", HISTORY))
        await publish(a, "c", b"1", history=HISTORY)
        await settle(a, b)
        own_server.pause()
        await asyncio.sleep(0.05)  # it takes a moment
        try:
            with pytest.raises((OutcomeUnknown, Unavailable)):
                await done(a.publish("c", b"2", history=HISTORY, key="k"))
            await done(a.publish("live", b"here"))
            assert sink_a.payloads("live") == [b"here"]
            await until(lambda: not a.health().ok)
            with pytest.raises(Unavailable):
                await done(a.publish("c", b"x", history=HISTORY))
        finally:
            own_server.resume()
        await until(lambda: a.health().ok and b.health().ok)
        result = await done(a.publish("c", b"2", history=HISTORY, key="k"))
        await settle(a, b)
        assert result.position.offset == 2
        assert sink_a.payloads("c") == sink_b.payloads("c") == [b"1", b"2"]
        # It may have read "here" before it stood still or after that.
        assert sink_b.payloads("live") == [b"here"] or "live" in sink_b.losses

    async def test_absent_at_the_start_it_is_tried_for_ever(self, new_node):
        nats = Nats()
        try:
            node, sink = await new_node(nats.url)
            assert not node.health().ok
            with pytest.raises(Unavailable):
                await done(node.subscribe("c", HISTORY))
            with pytest.raises(Unavailable):
                await done(node.publish("c", b"x", history=HISTORY))
            nats.start()
            await until(lambda: node.health().ok)
            await settle(node)
            assert sink.losses == ["c"]
            await publish(node, "c", b"1", history=HISTORY)
            await settle(node)
            assert sink.payloads("c") == [b"1"]
        finally:
            nats.close()

    async def test_close_does_not_wait_for_it(self, own_server, new_node):
        node, _ = await new_node(own_server.url)
        await done(node.subscribe("c", HISTORY))
        own_server.pause()
        result = node.publish("c", b"x" * 1_000_000, history=HISTORY)
        await asyncio.wait_for(node.close(), 5.0)
        with pytest.raises((OutcomeUnknown, Unavailable)):
            await result
        own_server.resume()

    @pytest.mark.both_loops
    async def test_a_node_may_be_closed_at_any_moment(self, own_server):
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        dice = random.Random(seed)
        before = asyncio.all_tasks()
        for number in range(60):
            node = NatsBackplane(own_server.url, limits=QUICK)
            start = asyncio.ensure_future(node.start(Recorder()))
            await asyncio.sleep(dice.random() * 0.004)
            for _ in range(2):
                if number % 2 and node._link._transport is not None:
                    node._link._transport.abort()
                for _ in range(dice.randrange(12)):
                    await asyncio.sleep(0)
            await asyncio.wait_for(node.close(), 5.0)
            await start
        await asyncio.sleep(0.01)
        assert asyncio.all_tasks() == before


@pytest.mark.broker
class TestServerThatStandsStill:
    async def test_what_waits_for_it_is_bounded(self, own_server, new_node, prefix):
        limits = dataclasses.replace(QUICK, backplane_pending_bytes=100_000, backplane_timeout_s=1.0)
        a, _ = await new_node(own_server.url, limits=limits, prefix=prefix)
        await publish(a, "c", b"1", history=HISTORY)
        own_server.pause()
        taken, refused = [], 0
        for number in range(1_000):
            try:
                taken.append(a.publish(f"c{number % 50}" if number % 2 else "c", bytes(1_000), history=HISTORY))
            except Unavailable:
                refused += 1
        assert 50 < len(taken) < 150
        assert refused == 1_000 - len(taken)
        assert a.stats()["pending_out_bytes"] >= 100_000
        results = await asyncio.gather(*taken, return_exceptions=True)
        assert {type(result) for result in results} <= {OutcomeUnknown, Unavailable}
        own_server.resume()
        await until(lambda: a.health().ok)
        await publish(a, "c", b"2", history=HISTORY)
        await until(lambda: a.stats()["pending_out_bytes"] == 0)


class TestServerThatRefuses:
    async def test_over_tls_who_is_not_trusted_is_left(self, new_node, tmp_path, monkeypatch):
        authority = trustme.CA()
        authority.cert_pem.write_to_path(tmp_path / "ca.pem")
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
        certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
        tls = f"tls {{ cert_file: {tmp_path}/cert.pem, key_file: {tmp_path}/key.pem }}"
        with ConfiguredNats(
            f"{tls}\njetstream {{ store_dir: STORE }}\nauthorization {{ user: u, password: p }}"
        ) as nats:
            url = f"tls://u:p@127.0.0.1:{nats.port}"
            stranger, _ = await new_node(url)
            assert "certificate" in stranger.health().detail.lower()
            monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
            node, _ = await new_node(url)
            assert node.health().ok
            assert (await publish(node, "c", b"1", history=HISTORY))[0].offset == 1

    async def test_wrong_credentials_are_told_and_not_shown(self, new_node, caplog):
        with ConfiguredNats("authorization { token: right }\njetstream { store_dir: STORE }") as nats:
            with caplog.at_level(logging.INFO, "street_fast"):
                wrong, _ = await new_node(f"nats://guessed@127.0.0.1:{nats.port}")
                await asyncio.sleep(0.3)
            assert "credentials" in wrong.health().detail
            assert "guessed" not in wrong.health().detail + caplog.text
            assert caplog.text.count("credentials") == 1, "once, and not with each try"
            right, _ = await new_node(f"nats://right@127.0.0.1:{nats.port}")
            assert right.health().ok
            await publish(right, "c", b"1", history=HISTORY)

    async def test_without_jetstream_what_is_live_goes_on(self, new_node):
        with ConfiguredNats("") as nats:
            (a, sink_a), (b, sink_b) = [await new_node(nats.url) for _ in range(2)]
            for node in (a, b):
                await done(node.subscribe("live"))
                with pytest.raises(Unavailable, match="JetStream"):
                    await done(node.subscribe("c", HISTORY))
            for call in (
                lambda: a.publish("c", b"x", history=HISTORY),
                lambda: a.publish("c", b"x", key="k"),
                lambda: a.read("c", HISTORY, since=None, limit=1),
            ):
                with pytest.raises(Unavailable, match="JetStream"):
                    await done(call())
            assert not a.health().ok
            assert "JetStream" in a.health().detail
            a.join("live", "ann", None)
            await publish(a, "live", b"1")
            await until(lambda: sink_b.payloads("live") == [b"1"])
            assert sink_b.members["live"] == {"ann": None}
            # When there is one it is used, without anybody doing anything here.
            nats.stop()
            nats.config = "jetstream { store_dir: STORE }"
            nats.start()
            await until(lambda: a.health().ok and b.health().ok)
            await settle(a, b)
            assert "c" in sink_b.losses
            await publish(a, "c", b"2", history=HISTORY)
            await settle(a, b)
            assert sink_a.payloads("c") == sink_b.payloads("c") == [b"2"]

    async def test_a_full_disk_is_told(self, new_node):
        with ConfiguredNats("jetstream { store_dir: STORE, max_file_store: 1MB }") as nats:
            (a, _), (b, sink_b) = [await new_node(nats.url) for _ in range(2)]
            for node in (a, b):
                await done(node.subscribe("c", HISTORY))
                await done(node.subscribe("live"))
            positions = []

            async def fill():
                while len(positions) < 100:
                    positions.extend(await publish(a, "c", b"x" * 50_000, history=HISTORY))

            with pytest.raises(Unavailable, match="JetStream: insufficient"):
                await fill()
            assert len(positions) > 10
            assert not a.health().ok
            await publish(a, "live", b"1")
            await settle(a, b)
            assert sink_b.payloads("live") == [b"1"]
            assert [publication.position for publication in sink_b.publications("c")] == positions
            page = await done(b.read("c", HISTORY, since=positions[-2], limit=9))
            assert [publication.position for publication in page.publications] == positions[-1:]
            await b._link.request(b"$JS.API.STREAM.PURGE.street_fast_h_100_100000", b'{"keep": 1}')
            positions += await publish(a, "c", b"x" * 50_000, history=HISTORY)
            assert contiguous(positions)
            assert a.health().ok

    async def test_what_is_too_large_is_refused(self, new_node, prefix):
        node, sink = await new_node(server().url, prefix=prefix)
        await done(node.subscribe("c"))
        for options in ({}, {"key": "k"}, {"history": HISTORY}):
            with pytest.raises(Unavailable, match="max_payload"):
                await done(node.publish("c", b"x" * 2_000_000, **options))
        assert node.health().ok
        assert sink.log == []

    async def test_the_stream_that_somebody_deletes_is_made_again(self, new_node, prefix):
        node, sink = await new_node(server().url, prefix=prefix)
        await done(node.subscribe("c", HISTORY))
        old = await publish(node, "c", b"1", history=HISTORY)
        await node._link.request(f"$JS.API.STREAM.DELETE.{prefix}_h_100_100000".encode(), b"")
        new = await publish(node, "c", b"2", history=HISTORY)
        await settle(node)
        assert new[0].epoch != old[0].epoch
        assert sink.losses == ["c"] or sink.payloads("c") == [b"1", b"2"]
        assert not (await done(node.read("c", HISTORY, since=old[0], limit=9))).recovered


@pytest.mark.broker
class TestBus:
    async def test_what_is_not_ours_is_counted_and_skipped(self, new_node, prefix, caplog):
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        dice = random.Random(seed)
        (a, sink), (b, _) = [await new_node(server().url, prefix=prefix) for _ in range(2)]
        await done(a.subscribe("c", HISTORY))
        await publish(b, "c", b"1", history=HISTORY)
        a.join("c", "ann", None)
        await settle(a, b)
        link = b._link
        node = b"0123456789abcdef"
        wrong = [
            b"",
            b"\x80\x04K\x01.",
            b"S2 m x -\n",
            b"S1 m\n",
            b"S1 p " + node + b" 0 1\n{",
            b"S1 p " + node + b' 0 1\n{"other":' + b"[" * 100_000,
            b"S1 q x 1\n",
            b"S1 b 5\nabc",
        ]
        wrong += [dice.randbytes(dice.randrange(200)) for _ in range(100)]
        wrong += [kept(node.decode(), Publication(b"forged", Position("e", 1, "t"), None))]
        for data in wrong:
            for subject in ("c.c", "b", f"n.{a._node}.c", f"n.{a._node}.=", "w.c"):
                link.publish(f"{prefix}.{subject}".encode(), data)
        for data in wrong[:50]:
            if data:
                link.publish(f"{prefix}.h.100-100000.c".encode(), data)
        await settle(a, b)
        assert a.stats()["poisoned"] > 100
        assert 1 <= len(caplog.records) <= 4  # one of each node in ten seconds
        assert not [record for record in caplog.records if record.exc_info]
        assert a.health().ok
        last = await publish(b, "c", b"2", history=HISTORY)
        await publish(a, "c", b"3", history=HISTORY)
        await settle(a, b)
        assert sink.payloads("c") == [b"1", b"2", b"3"]
        assert last[0].offset == 2
        page = await done(a.read("c", HISTORY, since=None, limit=9))
        assert [publication.payload for publication in page.publications] == [b"1", b"2", b"3"]

    async def test_a_node_that_answers_nonsense_is_one_that_does_not_answer(self, new_node, prefix, caplog):
        limits = Limits(backplane_timeout_s=0.5)
        (a, _), (b, _) = [await new_node(server().url, prefix=prefix, limits=limits) for _ in range(2)]
        await settle(a, b)
        b._nodes.take_own = lambda last, reply, record: b._link.publish(reply, b"nonsense") if reply else None
        with pytest.raises(Unavailable, match="do not say who is"):
            await done(a.members("c"))
        assert not [record for record in caplog.records if record.exc_info]

    async def test_if_nothing_in_a_history_is_ours_it_begins_anew(self, new_node, prefix):
        (a, sink), (b, _) = [await new_node(server().url, prefix=prefix) for _ in range(2)]
        await done(a.subscribe("c", SHORT))
        (old,) = await publish(b, "c", b"1", history=SHORT)
        await settle(a, b)
        for _ in range(9):
            b._link.publish(f"{prefix}.h.5-100000.c".encode(), b"rubbish")
        (new,) = await publish(b, "c", b"2", history=SHORT)
        assert new.epoch != old.epoch
        await until(lambda: sink.losses == ["c"])
        await publish(b, "c", b"3", history=SHORT)
        await until(lambda: sink.payloads("c")[-1] == b"3")

    async def test_a_loss_is_told_when_the_bus_carries_the_channel_again(self, new_node, prefix):
        with Proxy(server().port) as proxy:
            a, sink = await new_node(f"nats://127.0.0.1:{proxy.port}", prefix=prefix)
            b, _ = await new_node(server().url, prefix=prefix)
            await done(a.subscribe("live"))
            after_up(a, lambda: proxy.pause("in"))  # what it subscribes to has not arrived yet
            proxy.cut()
            await until(lambda: not a.health().ok)
            proxy.resume()
            await until(lambda: a.health().ok)
            again = asyncio.ensure_future(done(a.subscribe("live")))
            b.publish("live", b"too soon")
            await settle(b)
            assert sink.losses == []
            assert not again.done()
            proxy.resume()
            await again
            assert sink.losses == ["live"]
            b.publish("live", b"in time")
            await settle(a, b)
            assert sink.payloads("live") == [b"in time"]
            assert sink.losses == ["live"]

    @pytest.mark.parametrize("most", [10_000, 0])
    async def test_that_a_loss_was_told_may_get_lost_too(self, new_node, prefix, monkeypatch, most):
        monkeypatch.setattr("street_fast.backplanes.nats._REMEMBERED", most)  # above it, all channels are told
        with Proxy(server().port) as proxy:
            a, _ = await new_node(f"nats://127.0.0.1:{proxy.port}", prefix=prefix)
            b, sink = await new_node(server().url, prefix=prefix)
            await done(b.subscribe("live"))
            proxy.cut()
            await until(lambda: not a.health().ok)
            a.publish("live", b"lost")
            ups = after_up(a, lambda: proxy.drop("in"))
            proxy.resume()
            await until(lambda: ups and not a.health().ok)  # it was told, and nothing came back
            await settle(b)
            assert sink.losses == []
            proxy.resume()
            await until(lambda: sink.losses == ["live"])
            await settle(a, b)
            await until(lambda: not a._sent_before and not a._unsent_all)

    async def test_a_signal_comes_behind_what_was_published_before(self, new_node, prefix):
        (a, _), (b, sink) = [await new_node(server().url, prefix=prefix) for _ in range(2)]
        await done(b.subscribe("c"))
        a.publish("c", b"1", key="k")
        a.publish("c", b"2")
        a.signal("c", b"3")
        await settle(a, b)
        assert [entry[0] for entry in sink.log] == ["message", "message", "signal"]

    async def test_doubles_and_disorder_make_no_difference(self, new_node, prefix):
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        dice = random.Random(seed)
        (a, sink), (b, _) = [await new_node(server().url, prefix=prefix) for _ in range(2)]
        await done(a.subscribe("c", HISTORY))
        seen = []
        take = a._take_channel

        def disorder(channel, data, headers):
            seen.append((channel, data, headers))
            for _ in range(dice.randrange(3)):
                take(*dice.choice(seen))
            if dice.random() < 0.7:  # and some get lost
                take(channel, data, headers)

        a._take_channel = disorder
        for number in range(60):
            await publish(b, "c", b"%d" % number, history=HISTORY)
        a._take_channel = take
        await publish(b, "c", b"60", history=HISTORY)
        await settle(a, b)
        assert sink.payloads("c") == [b"%d" % number for number in range(61)]
        assert sink.losses == []
        assert a.stats()["doubles"] > 0
        assert a.stats()["gaps"] > 0

    async def test_a_lost_end_is_found_by_comparing_positions(self, new_node, prefix):
        (a, sink), (b, _) = [await new_node(server().url, prefix=prefix) for _ in range(2)]
        await done(a.subscribe("c", HISTORY))
        await publish(b, "c", b"1", history=HISTORY)
        await settle(a, b)
        a._take_channel = lambda *_: None
        await publish(b, "c", b"2", history=HISTORY)
        await until(lambda: sink.payloads("c") == [b"1", b"2"])

    async def test_the_others_are_told_of_what_they_missed(self, new_node, prefix):
        with Proxy(server().port) as proxy:
            a, sink_a = await new_node(f"nats://127.0.0.1:{proxy.port}", prefix=prefix)
            b, sink_b = await new_node(server().url, prefix=prefix)
            for node in (a, b):
                for channel in ("c", "d", "e"):
                    await done(node.subscribe(channel))
            await settle(a, b)
            proxy.cut()
            await until(lambda: not a.health().ok)
            await publish(a, "c", b"1")
            assert sink_a.payloads("c") == [b"1"]
            proxy.resume()
            await until(lambda: a.health().ok)
            await settle(a, b)
            assert sink_b.losses == ["c"]
            # What was sent just before the end may not have arrived either.
            proxy.drop("in")
            await publish(a, "d", b"2")
            await asyncio.sleep(0.05)
            proxy.cut()
            await until(lambda: not a.health().ok)
            proxy.resume()
            await until(lambda: a.health().ok)
            await settle(a, b)
            assert sink_b.losses == ["c", "d"]
            assert sink_b.payloads("d") == []

    @pytest.mark.parametrize("direction", ["in", "out"])
    async def test_a_bus_that_carries_one_way_only_is_left(self, new_node, prefix, direction):
        with Proxy(server().port) as proxy:
            a, sink = await new_node(f"nats://127.0.0.1:{proxy.port}", prefix=prefix)
            b, _ = await new_node(server().url, prefix=prefix)
            await done(a.subscribe("c", HISTORY))
            await settle(a, b)
            proxy.drop(direction)
            await publish(b, "c", b"1", history=HISTORY)
            await until(lambda: not a.health().ok)
            proxy.resume()
            await until(lambda: sink.payloads("c") == [b"1"])

    async def test_who_reads_too_slowly_is_cut_off_and_catches_up(self, new_node):
        with ConfiguredNats("jetstream { store_dir: STORE }\nmax_pending: 4194304\nwrite_deadline: 1s") as nats:
            a, sink = await new_node(nats.url, dataclasses.replace(QUICK, history_bytes=100_000_000))
            b, _ = await new_node(nats.url)
            history = History(size=1_000, ttl_s=100)
            await done(a.subscribe("c", history))
            await done(a.subscribe("live"))
            await settle(a, b)

            # The node stands still while far more is published than the server and the sockets hold.
            transport = a._link._transport
            transport.pause_reading()
            for number in range(400):
                await publish(b, "c", b"%06d" % number + b"x" * 60_000, history=history)
                await publish(b, "live", b"x" * 60_000)
            if not transport.is_closing():
                transport.resume_reading()
            await until(lambda: len(sink.publications("c")) == 400)
            assert contiguous([publication.position for publication in sink.publications("c")])
            await until(lambda: "live" in sink.losses)
            assert a.stats()["reconnects"] >= 1


@pytest.mark.broker
class TestNodes:
    async def test_the_members_of_a_node_that_crashed_leave_once(self, new_node, prefix):
        with Proxy(server().port) as proxy:
            a, sink_a = await new_node(f"nats://127.0.0.1:{proxy.port}", prefix=prefix)
            b, sink_b = await new_node(server().url, prefix=prefix)
            c, sink_c = await new_node(server().url, prefix=prefix)
            a.join("c", "ann", b'"A"')
            b.join("c", "bob", None)
            for node in (a, b, c):
                await done(node.subscribe("c"))
            await settle(a, b, c)
            assert sink_c.members["c"] == {"ann": b'"A"', "bob": None}
            proxy.drop()
            await until(lambda: sink_c.members["c"] == {"bob": None})
            await until(lambda: sink_b.members["c"] == {})
            assert await done(c.members("c")) == {"bob": None}
            assert sink_a.members["c"] == {"bob": None}, "who is cut off knows nothing of the others"
            # It was only cut off: it comes back.
            proxy.cut()
            proxy.resume()
            await until(lambda: sink_c.members["c"] == {"ann": b'"A"', "bob": None})
            assert sink_a.members["c"] == {"bob": None}

    async def test_as_long_as_it_may_live_nobody_claims_to_know_all(self, new_node, prefix):
        with Proxy(server().port) as proxy:
            a, _ = await new_node(f"nats://127.0.0.1:{proxy.port}", Limits(), prefix=prefix)
            b, _ = await new_node(server().url, prefix=prefix)
            a.join("c", "ann", None)
            await settle(a, b)
            proxy.drop()
            b._limits = b._nodes._limits = Limits(backplane_timeout_s=0.2)
            with pytest.raises(Unavailable, match="1 nodes"):
                await done(b.members("c"))

    async def test_what_changed_while_a_node_was_cut_off_is_known_afterwards(self, new_node, prefix):
        with Proxy(server().port) as proxy:
            a, sink_a = await new_node(f"nats://127.0.0.1:{proxy.port}", Limits(), prefix=prefix)
            b, sink_b = await new_node(server().url, Limits(), prefix=prefix)
            for node in (a, b):
                for channel in ("c", "d"):
                    await done(node.subscribe(channel))
                    node.join(channel, f"m{node is a}", None)
            await settle(a, b)
            proxy.cut()
            await until(lambda: not a.health().ok)
            for node in (a, b):
                node.leave("c", f"m{node is a}")
                node.leave("d", f"m{node is a}")
                node.join("d", f"n{node is a}", b"1")
            proxy.resume()
            await until(lambda: a.health().ok)
            await settle(a, b)
            assert sink_a.members == {"c": {}, "d": {"nFalse": b"1"}}
            assert sink_b.members == {"c": {}, "d": {"nTrue": b"1"}}

    async def test_a_change_that_was_lost_is_found_sooner_or_later(self, new_node, prefix):
        (a, _), (b, sink) = [await new_node(server().url, prefix=prefix) for _ in range(2)]
        await done(b.subscribe("c"))
        a.join("c", "ann", None)
        await settle(a, b)
        take, b._nodes.take_channel = b._nodes.take_channel, lambda *_: None
        a.leave("c", "ann")
        await settle(a, b)
        b._nodes.take_channel = take
        assert sink.members["c"] == {"ann": None}
        await until(lambda: sink.members["c"] == {})

    async def test_questions_that_overlap_make_nobody_flicker(self, new_node, prefix):
        (a, _), (b, sink) = [await new_node(server().url, prefix=prefix) for _ in range(2)]
        for number in range(50):
            a.join(f"c{number}", "ann", None)
            await done(b.subscribe(f"c{number}"))
        await settle(a, b)
        changes = []
        sink.members_changed = lambda *change: changes.append(change)
        for _ in range(20):
            b._nodes._ask_all(a._node)
            await asyncio.sleep(0.0002)
        await settle(a, b)
        assert changes == []

    async def test_who_comes_while_a_node_tells_of_all_its_channels_does_not_leave_again(self, new_node, prefix):
        (a, _), (b, sink) = [await new_node(server().url, prefix=prefix) for _ in range(2)]
        a.join("c", "ann", None)
        for channel in ("c", "d"):
            await done(b.subscribe(channel))
        await settle(a, b)
        changes = []
        sink.members_changed = lambda *change: changes.append(change)
        b._nodes._ask_all(a._node)
        a.join("d", "ann", None)
        assert a._nodes.telling
        a._nodes._answer_all(b._node)
        await settle(a, b)
        assert changes == [("d", [("ann", None)], [])]

    async def test_many_members_come_in_parts(self, new_node, prefix):
        (a, _), (b, sink), (c, sink_c) = [await new_node(server().url, prefix=prefix) for _ in range(3)]
        await done(c.subscribe("c"))
        everybody = {f"member-{number}": b'"%d"' % number + b"x" * 900 for number in range(1_500)}
        for member, info in everybody.items():
            a.join("c", member, info)
        await done(b.subscribe("c"))
        await settle(a, b, c)
        assert sink.members["c"] == everybody
        assert sink_c.members["c"] == everybody
        assert await done(b.members("c")) == everybody


@pytest.mark.broker
class TestHistories:
    async def test_publishes_at_once_share_a_message_and_keep_their_order(self, new_node, prefix):
        node, sink = await new_node(server().url, prefix=prefix)
        await done(node.subscribe("c", SHORT))
        results = [node.publish("c", b"%d" % number, history=SHORT) for number in range(200)]
        positions = [(await result).position for result in results]
        await settle(node)
        assert contiguous(positions)
        assert sink.payloads("c") == [b"%d" % number for number in range(200)]
        page = await done(node.read("c", SHORT, since=None, limit=100))
        assert [publication.position for publication in page.publications] == positions[-5:]

    async def test_the_bytes_of_a_channel_are_bounded(self, new_node, prefix):
        node, _ = await new_node(server().url, Limits(history_bytes=1_000), prefix=prefix)
        positions = await publish(node, "c", *[b"x" * 300] * 5, history=HISTORY)
        page = await done(node.read("c", HISTORY, since=positions[1], limit=100))
        assert [publication.position for publication in page.publications] == positions[2:]
        assert not (await done(node.read("c", HISTORY, since=positions[0], limit=100))).recovered

    async def test_the_answer_of_a_key_outlives_its_message_on_all_nodes(self, new_node, prefix):
        (a, _), (b, _) = [await new_node(server().url, prefix=prefix) for _ in range(2)]
        (first,) = await publish(a, "c", b"1", history=SHORT, key="k")
        await publish(a, "c", *[b"x"] * 20, history=SHORT)
        assert await done(b.publish("c", b"1", history=SHORT, key="k")) == Published(first, True)

    async def test_two_publishers_take_turns(self, new_node, prefix):
        (a, sink), (b, _) = [await new_node(server().url, prefix=prefix) for _ in range(2)]
        await done(a.subscribe("c", HISTORY))

        async def all_of(node, name):
            for number in range(40):
                await publish(node, "c", b"%s%d" % (name, number), history=HISTORY, key=f"{name}{number}")

        await asyncio.gather(all_of(a, b"a"), all_of(b, b"b"))
        await settle(a, b)
        assert a.stats()["conflicts"] + b.stats()["conflicts"] > 0
        assert contiguous([publication.position for publication in sink.publications("c")])
        for name in (b"a", b"b"):
            assert [p for p in sink.payloads("c") if p.startswith(name)] == [b"%s%d" % (name, n) for n in range(40)]

    @pytest.mark.parametrize("size", [100, 7])
    async def test_a_way_back_through_the_newest_messages_leads_to_the_page_of_the_whole_history(
        self, new_node, prefix, size
    ):
        node, _ = await new_node(server().url, prefix=prefix)
        histories, history = node._histories, History(size=size, ttl_s=100.0)
        places = [(await done(node.read("c", history, since=None, limit=0))).top]
        for number in (1, 3, 1, 4, 1, 1, 2):  # so many at once, which is one message
            results = [node.publish("c", b"%d" % n, history=history) for n in range(number)]
            places += [(await result).position for result in results]
            await publish(node, "d", b"x", history=history)
            if len(places) > 5 and places[0].offset == 0 and size == 100:
                await histories.reset("c", history, places[-1]._replace(offset=places[-1].offset + 1))
                places = [(await done(node.read("c", history, since=None, limit=0))).top]
        found = 0
        for since in [*places, *(place._replace(tag="0" * 16) for place in places), Position("other", 5, "5")]:
            back = await histories._read_back("c", history, since, 3)
            whole = page_of(*await histories._fetch_all(("c", history)), since, 3)
            assert back is None or back == whole, since
            found += back is not None
        assert found >= min(size, len(places)) - 1

    async def test_other_settings_are_taken_over(self, new_node, prefix):
        a, _ = await new_node(server().url, prefix=prefix)
        before = await publish(a, "c", b"1", history=HISTORY)
        b, _ = await new_node(server().url, Limits(publish_key_ttl_s=60.0), prefix=prefix)
        after = await publish(b, "c", b"2", history=HISTORY)
        assert contiguous([*before, *after])


@pytest.mark.broker
async def test_a_history_on_three_servers(new_node):
    """Whoever is asked answers with what all agree on."""
    with contextlib.ExitStack() as stack:
        routes = [free_port() for _ in range(3)]
        urls = ", ".join(f"nats://127.0.0.1:{port}" for port in routes)
        servers = []
        for number, port in enumerate(routes):
            nats = ConfiguredNats(
                f"server_name: n{number}\njetstream {{ store_dir: STORE }}\n"
                f"cluster {{ name: c, listen: 127.0.0.1:{port}, routes: [{urls}] }}"
            )
            stack.callback(nats.close)
            nats.start()
            servers.append(nats)
        first, _ = await new_node(
            "nats://" + ",".join(nats.url.removeprefix("nats://") for nats in servers), replicas=3
        )
        for _ in range(200):  # until the servers have found each other
            with contextlib.suppress(Unavailable, OutcomeUnknown):
                await done(first.publish("c", b"0", history=HISTORY, key="0"))
                break
            await asyncio.sleep(0.1)
        nodes = [await new_node(nats.url, Limits(), replicas=3) for nats in servers]
        for node, _ in nodes:
            await done(node.subscribe("c", HISTORY))
        for number in range(1, 31):
            (node, _), (other, _) = random.sample(nodes, 2)
            (position,) = await publish(node, "c", b"%d" % number, history=HISTORY)
            page = await done(other.read("c", HISTORY, since=None, limit=1))
            assert page.top == position
            assert page.publications[0].payload == b"%d" % number
        for _, sink in nodes:
            await until(lambda sink=sink: sink.payloads("c") == [b"%d" % number for number in range(1, 31)])
