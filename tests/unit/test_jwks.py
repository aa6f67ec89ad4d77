"""Key sets in a file and at a URL: who may make us fetch, how often, and what holds while there is nothing new."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import ssl
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import pytest
import trustme

from street_fast import jwks
from street_fast.auth import JwtAuth, Member, TokenRefused
from street_fast.errors import ConfigurationError
from street_fast.jwks import KeyFile, KeyUrl, check_url, fetch
from tests.tokens import NOW, claims, jwk, key_set, private_key, token

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

OK = b"HTTP/1.1 200 OK\r\n"


def letters(document: bytes) -> list[str]:
    """A `parse` for which every letter is a key."""
    if not document.isalpha():
        raise ValueError("it is no word")
    return list(document.decode())


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- a file ---


@pytest.fixture
def word(tmp_path):
    path = tmp_path / "word"
    path.write_text("ab")
    return path


def key_file(path) -> tuple[KeyFile[str], Clock]:
    source, clock = KeyFile(str(path), letters), Clock()
    source.clock = clock
    source._looked_at = source._good_at = clock.now
    return source, clock


def test_a_file_is_read_again_when_it_has_changed(word):
    source, clock = key_file(word)
    assert source.keys() == ["a", "b"]
    word.write_text("abc")
    clock.now += 29.9
    assert source.keys() == ["a", "b"]
    clock.now += 0.1
    assert source.keys() == ["a", "b", "c"]
    assert source.newer() is None


def test_a_file_that_has_not_changed_is_not_read(word, monkeypatch):
    source, clock = key_file(word)
    monkeypatch.setattr(source, "_parse", lambda _: pytest.fail("read again"))
    clock.now += 31
    assert source.keys() == ["a", "b"]
    assert source.known_since(clock.now)
    assert not source.known_since(clock.now + 1)


@pytest.mark.parametrize("spoil", ["no word", "", "x" * 262_145, None])
def test_the_keys_of_a_file_stay_while_it_is_broken(word, caplog, spoil):
    source, clock = key_file(word)
    if spoil is None:
        word.unlink()
    else:
        word.write_text(spoil)
    clock.now += 31
    assert source.keys() == ["a", "b"]
    assert "the former stay in use" in caplog.text
    assert not source.known_since(clock.now)
    word.write_text("c")
    clock.now += 31
    assert source.keys() == ["c"]


def test_a_file_that_is_half_written_is_read_again_though_its_time_is_the_same(word):
    source, clock = key_file(word)
    word.write_text("c 1")
    os.utime(word, ns=(10**18, 10**18))
    clock.now += 31
    assert source.keys() == ["a", "b"]
    word.write_text("cde")
    os.utime(word, ns=(10**18, 10**18))
    clock.now += 31
    assert source.keys() == ["c", "d", "e"]


def test_a_file_must_be_there_at_first(tmp_path, word):
    with pytest.raises(OSError, match="No such file"):
        KeyFile(str(tmp_path / "none"), letters)
    word.write_text("1")
    with pytest.raises(ValueError, match="no word"):
        KeyFile(str(word), letters)


# --- which URLs ---


@pytest.mark.parametrize(
    "url",
    [
        "https://login.example.com/.well-known/jwks.json",
        "https://login.example.com:8443/keys?v=2",
        "https://10.0.0.5/keys",
        "http://localhost/keys",
        "http://LOCALHOST:8080/keys",
        "http://127.0.0.1:8080/keys",
        "http://127.9.9.9/keys",
        "http://[::1]:8080/keys",
    ],
)
def test_a_url_that_is_to_be_trusted(url):
    assert check_url(url) == urlsplit(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://login.example.com/keys",
        "http://10.0.0.5/keys",
        "http://0.0.0.0/keys",
        "http://localhost.example.com/keys",
        "http://127.0.0.1.example.com/keys",
        "http://127.0.0.1@example.com/keys",
        "http://[::ffff:10.0.0.5]/keys",
        "https://user:password@login.example.com/keys",
        "https:///keys",
        "https://:443/keys",
        "https://login.example.com:port/keys",
        "https://login.example.com:0/keys",
        "https://login.example.com:99999/keys",
        "https://[::1/keys",
        "https://login.example.com/keys#1",
        "https://login.example.com/a b",
        "https://login.example.com/\r\nX: y",
        "https://login.example.com/\0",
        "https://bücher.example/keys",
        "file:///etc/passwd",
        "ftp://login.example.com/keys",
        "gopher://localhost/keys",
    ],
)
def test_a_url_that_is_not(url):
    with pytest.raises(ConfigurationError, match="jwks") as caught:
        KeyUrl(url, letters)
    assert "password" not in str(caught.value).replace("a password", "")


# --- pace: with a fetch that is counted ---


class Counted:
    """A `fetch` that waits until it is told to answer."""

    def __init__(self) -> None:
        self.begun = 0
        self.document: bytes | Exception = b"ab"
        self.open = asyncio.Event()
        self.open.set()

    async def __call__(self) -> bytes:
        self.begun += 1
        await self.open.wait()
        if isinstance(self.document, Exception):
            raise self.document
        return self.document


def key_url() -> tuple[KeyUrl[str], Clock, Counted]:
    source, clock, counted = KeyUrl("http://localhost/keys", letters), Clock(), Counted()
    source.clock, source.fetch = clock, counted
    return source, clock, counted


async def all_of(source: KeyUrl[str]) -> None:
    newer = source.newer()
    if newer is not None:
        await newer


async def test_nothing_is_fetched_before_somebody_asks():
    source, clock, counted = key_url()
    assert source.keys() == ()
    await asyncio.sleep(0)
    assert counted.begun == 0
    assert not source.known_since(clock.now)
    await all_of(source)
    assert source.keys() == ["a", "b"]
    assert source.known_since(clock.now)
    assert counted.begun == 1


async def test_all_wait_for_one_fetch():
    source, clock, counted = key_url()
    counted.open.clear()
    waiting = [asyncio.ensure_future(all_of(source)) for _ in range(100)]
    await settled()
    assert counted.begun == 1
    clock.now += 60
    waiting.append(asyncio.ensure_future(all_of(source)))
    for one in waiting[:50]:  # these go away, and take nothing with them
        one.cancel()
    await settled()
    counted.open.set()
    await asyncio.gather(*waiting[50:])
    assert source.keys() == ["a", "b"]
    assert counted.begun == 1
    assert all(one.cancelled() for one in waiting[:50])


@pytest.mark.parametrize("document", [b"ab", b"no word", OSError("down"), RuntimeError("odd"), ssl.SSLError("bad")])
async def test_from_one_fetch_to_the_next_there_is_a_pause_however_it_ended(document, caplog):
    source, clock, counted = key_url()
    counted.document = document
    await all_of(source)
    for _ in range(100):
        clock.now += 0.299
        assert source.newer() is None
    assert counted.begun == 1
    clock.now += 0.2
    await all_of(source)
    assert counted.begun == 2
    assert ("keys are not to be had from http://localhost/keys" in caplog.text) == (document != b"ab")


async def test_a_fetch_that_never_ends_is_given_up(monkeypatch, caplog):
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 0.01)
    source, _, counted = key_url()
    counted.open.clear()
    await all_of(source)
    assert source.keys() == ()
    assert source.newer() is None
    assert "no token can be checked: TimeoutError" in caplog.text


async def test_old_keys_stay_while_the_url_is_down_and_go_when_there_are_new_ones(caplog):
    source, clock, counted = key_url()
    await all_of(source)
    counted.document = OSError("down")
    for _ in range(20):
        clock.now += 30
        await all_of(source)
        assert source.keys() == ["a", "b"]
    assert counted.begun == 21
    assert not source.known_since(clock.now)
    assert "the former stay in use: down" in caplog.text
    counted.document = b"c"
    clock.now += 30
    await all_of(source)
    assert source.keys() == ["c"]


async def test_keys_that_are_old_are_looked_at_again_while_they_are_used():
    source, clock, counted = key_url()
    await all_of(source)
    counted.document = b"c"
    clock.now += 299
    source.keys()
    await settled()
    assert counted.begun == 1
    clock.now += 1
    assert source.keys() == ["a", "b"]
    assert source.keys() == ["a", "b"]
    await settled()
    assert counted.begun == 2
    assert source.keys() == ["c"]
    clock.now += 299
    source.keys()
    await settled()
    assert counted.begun == 2


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_it_may_be_used_in_one_loop_after_another():
    source, clock, counted = key_url()

    async def cut_off() -> None:
        counted.open = asyncio.Event()
        waiting = asyncio.ensure_future(all_of(source))
        await settled()
        waiting.cancel()

    await asyncio.to_thread(asyncio.run, cut_off())
    clock.now += 30
    counted.open.set()
    await all_of(source)
    assert source.keys() == ["a", "b"]


# --- the fetch, from a real server ---


class Server:
    """Answers each request with `answer`, and keeps the requests."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []
        self.answer: bytes | Callable[[asyncio.StreamWriter], object] = OK + b"\r\nab"
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            self.requests.append(await reader.readuntil(b"\r\n\r\n"))
            if callable(self.answer):
                self.answer(writer)
                await reader.read()
            else:
                writer.write(self.answer)
                await writer.drain()
        writer.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/keys"

    def holds(self, document: bytes) -> None:
        self.answer = OK + b"Content-Length: %d\r\n\r\n" % len(document) + document


@contextlib.asynccontextmanager
async def serving(context: ssl.SSLContext | None = None) -> AsyncIterator[Server]:
    server = Server()
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (OK + b"\r\nab", b"ab"),
        (OK + b"Content-Length: 2\r\n\r\nab", b"ab"),
        (OK + b"Content-Length: 2\r\n\r\nabcd", b"ab"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n1;x=y\r\nb\r\n0\r\n\r\n", b"ab"),
        (b"HTTP/1.0 200 OK\r\n\r\nab", b"ab"),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK + b"\r\nab", b"ab"),
        (OK + b"\r\n" + b"a" * 262_144, b"a" * 262_144),
    ],
)
async def test_a_fetch(answer, body):
    async with serving() as server:
        server.answer = answer
        assert await fetch(urlsplit(server.url + "?v=1"), None) == body
    (request,) = server.requests
    assert request.startswith(b"GET /keys?v=1 HTTP/1.1\r\nHost: 127.0.0.1:%d\r\n" % server.port)
    assert b"\r\nConnection: close\r\n" in request


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"", "the answer is broken"),
        (b"hello\r\n\r\n", "the answer is broken"),
        (b"HTTP/1.1 200 OK", "the answer is broken|the answer has|it is no word"),
        (OK + b"Content-Length: 3\r\n\r\nab", "the answer is broken: IncompleteRead"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nab", "the answer is broken: IncompleteRead"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nab\r\n", "the answer is broken|invalid literal"),
        (b"HTTP/1.1 404 Not Found\r\n\r\nab", "the status 404"),
        (b"HTTP/1.1 500 Internal Server Error\r\n\r\nab", "the status 500"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", "the status 204"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", "the status 302; a redirect is not followed"),
        (OK + b"\r\n" + b"a" * 262_145, "more than 262144 bytes"),
        (OK + b"X: " + b"a" * 400_000, "more than 262144 bytes"),
        (OK + b"X: y\r\n" * 200 + b"\r\n", "the answer is broken"),
    ],
)
async def test_an_answer_that_is_none(answer, why, caplog):
    async with serving() as server:
        server.answer = answer
        source = KeyUrl(server.url, letters)
        await all_of(source)
    assert source.keys() == ()
    assert len(server.requests) == 1
    (record,) = caplog.records
    assert re.search(why, record.getMessage()), record.getMessage()


@pytest.mark.parametrize("drip", [b"", b"H", OK + b"X: y", OK + b"\r\na"])
async def test_a_server_that_does_not_finish_is_left(drip, monkeypatch):
    monkeypatch.setattr(jwks, "FETCH_TIMEOUT_S", 0.05)
    async with serving() as server:
        server.answer = lambda writer: writer.write(drip)
        source = KeyUrl(server.url, letters)
        await all_of(source)
    assert source.keys() == ()


async def test_a_server_that_never_stops_is_left():
    async with serving() as server:
        server.answer = lambda writer: writer.write(OK + b"\r\n" + b"a" * 10_000_000)
        with pytest.raises(ValueError, match="more than 262144 bytes"):
            await fetch(urlsplit(server.url), None)


async def test_a_server_that_is_not_there():
    async with serving() as server:
        pass
    with pytest.raises(OSError, match=r".") as caught:
        await fetch(urlsplit(server.url), None)
    assert not isinstance(caught.value, TimeoutError)


async def test_https_needs_a_certificate_that_is_trusted(tmp_path, monkeypatch, caplog):
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    trusted = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(trusted)
    async with serving(context) as server:
        url = f"https://localhost:{server.port}/keys"
        stranger = KeyUrl(url, letters)
        await all_of(stranger)
        assert stranger.keys() == ()
        assert "CERTIFICATE_VERIFY_FAILED" in caplog.text
        monkeypatch.setenv("SSL_CERT_FILE", str(trusted))
        friend = KeyUrl(url, letters)
        await all_of(friend)
        assert friend.keys() == ["a", "b"]
        other_name = KeyUrl(f"https://127.0.0.1:{server.port}/keys", letters)
        await all_of(other_name)
        assert other_name.keys() == ()
    assert len(server.requests) == 1


# --- all of it: tokens, their keys, and how often a real server is asked ---


def login(name: str, key_id: str | None = None) -> str:
    header = {"kid": key_id} if key_id else None
    return token(claims(), key=private_key(name), algorithm="RS256" if "rsa" in name else "ES256", header=header)


def jwt_auth(url: str) -> tuple[JwtAuth, Clock]:
    auth, clock = JwtAuth(jwks=url), Clock()
    auth.clock = lambda: NOW
    auth._source.clock = clock
    return auth, clock


async def refused(auth: JwtAuth, text: str) -> TokenRefused:
    with pytest.raises(TokenRefused) as caught:
        await auth.verify(text)
    return caught.value


async def test_keys_change_and_old_ones_go():
    async with serving() as server:
        server.holds(key_set(jwk("P-256", kid="1")))
        auth, clock = jwt_auth(server.url)
        first = auth.verify(login("P-256", "1"))
        assert not isinstance(first, Member)
        assert await first == Member("ada")
        assert auth.verify(login("P-256", "1")) == Member("ada")  # at once from now on
        server.holds(key_set(jwk("P-256", kid="1"), jwk("rsa", kid="2")))
        clock.now += 1
        with pytest.raises(TokenRefused, match="not known at the moment") as caught:
            auth.verify(login("rsa", "2"))
        assert caught.value.temporary
        clock.now += 30
        assert await auth.verify(login("rsa", "2")) == Member("ada")
        assert auth.verify(login("P-256", "1")) == Member("ada")
        server.holds(key_set(jwk("rsa", kid="2")))
        clock.now += 300
        assert auth.verify(login("P-256", "1")) == Member("ada")  # for the last time: the new set is on its way
        await auth._source.newer()
        clock.now += 1
        with pytest.raises(TokenRefused, match="not known at the moment"):
            auth.verify(login("P-256", "1"))
        clock.now += 30
        with pytest.raises(TokenRefused, match=r"a key that is not known$") as caught:
            await auth.verify(login("P-256", "1"))
        assert not caught.value.temporary
        assert len(server.requests) == 4


async def test_a_hundred_tokens_wait_for_one_answer():
    async with serving() as server:
        server.holds(key_set(jwk("P-256", kid="1"), jwk("P-256 2", kid="2")))
        auth, _ = jwt_auth(server.url)
        texts = [login("P-256", "1"), login("P-256 2", "2"), login("P-256", "2"), login("P-256", "3")] * 25
        answers = await asyncio.gather(*(auth.verify(text) for text in texts), return_exceptions=True)
        assert len(server.requests) == 1
    assert [isinstance(answer, Member) for answer in answers] == [True, True, False, False] * 25
    assert {str(answer) for answer in answers[2::4]} == {"the token's signature is not good"}
    assert {str(answer) for answer in answers[3::4]} == {"the token is signed with a key that is not known"}


async def test_a_flood_of_unknown_keys_is_one_fetch_in_thirty_seconds():
    async with serving() as server:
        server.holds(key_set(jwk("P-256", kid="1")))
        auth, clock = jwt_auth(server.url)
        for second in range(91):
            for number in range(10):
                await refused(auth, login("P-256 2", f"{second}:{number}"))
            clock.now += 1
        assert len(server.requests) == 4


async def test_ten_minutes_without_the_issuer(caplog):
    async with serving() as server:
        server.holds(key_set(jwk("P-256", kid="1")))
        auth, clock = jwt_auth(server.url)
        assert await auth.verify(login("P-256", "1")) == Member("ada")
        server.answer = b"HTTP/1.1 503 Service Unavailable\r\n\r\n"
        for _ in range(60):
            clock.now += 10
            assert auth.verify(login("P-256", "1")) == Member("ada")
            with pytest.raises(TokenRefused, match="not known at the moment") as caught:
                await auth.verify(login("rsa", "2"))
            assert caught.value.temporary
        assert len(server.requests) == 21
        server.holds(key_set(jwk("rsa", kid="2")))
        clock.now += 30
        assert await auth.verify(login("rsa", "2")) == Member("ada")
    assert "the former stay in use: the answer has the status 503" in caplog.text


async def test_an_issuer_that_is_not_there_from_the_beginning(caplog):
    async with serving() as server:
        pass
    auth, clock = jwt_auth(server.url)
    with pytest.raises(TokenRefused, match="not known at the moment") as caught:
        await auth.verify(login("P-256", "1"))
    assert caught.value.temporary
    with pytest.raises(TokenRefused, match="not known at the moment"):
        auth.verify(login("P-256"))
    assert caplog.text.count("no token can be checked") == 1
    clock.now += 30
    with pytest.raises(TokenRefused):
        await auth.verify(login("P-256"))
    assert caplog.text.count("no token can be checked") == 2


async def test_what_is_refused_without_a_key_fetches_none():
    async with serving() as server:
        auth, _ = jwt_auth(server.url)
        for text in ("", "a.b.c", token(), token(header={"alg": "none"}), "x" * 9000, login("rsa", "1") + "="):
            with pytest.raises(TokenRefused):
                auth.verify(text)
        assert server.requests == []


async def test_a_token_names_no_address():
    async with serving() as server, serving() as evil:
        server.holds(key_set(jwk("P-256", kid="1")))
        evil.holds(key_set(jwk("P-256 2", kid="1")))
        auth, _ = jwt_auth(server.url)
        header = {"kid": "1", "jku": evil.url, "x5u": evil.url, "jwk": jwk("P-256 2"), "iss": evil.url}
        text = token(claims(iss=evil.url), key=private_key("P-256 2"), algorithm="ES256", header=header)
        with pytest.raises(TokenRefused, match="signature is not good"):
            await auth.verify(text)
        assert (len(server.requests), len(evil.requests)) == (1, 0)


async def test_tokens_for_channels_wait_for_the_keys_too():
    async with serving() as server:
        server.holds(key_set(jwk("P-256")))
        auth, _ = jwt_auth(server.url)
        text = token(claims(channel="room"), key=private_key("P-256"), algorithm="ES256")
        assert (await auth.grant(text, Member("ada"), "room")).actions == {"subscribe"}
        assert auth.grant(text, Member("ada"), "room").actions == {"subscribe"}
        with pytest.raises(TokenRefused, match="another channel"):
            auth.grant(text, Member("ada"), "lobby")


def test_a_file_of_keys_that_changes(tmp_path):
    path = tmp_path / "keys.json"
    path.write_bytes(key_set(jwk("P-256", kid="1")))
    auth, clock = jwt_auth(str(path))
    clock.now = auth._source._looked_at
    assert auth.verify(login("P-256", "1")) == Member("ada")
    path.write_bytes(key_set(jwk("rsa", kid="2")))
    clock.now += 1
    with pytest.raises(TokenRefused, match="not known at the moment") as caught:
        auth.verify(login("rsa", "2"))
    assert caught.value.temporary
    clock.now += 30
    assert auth.verify(login("rsa", "2")) == Member("ada")
    clock.now += 30
    with pytest.raises(TokenRefused, match=r"a key that is not known$") as caught:
        auth.verify(login("P-256", "1"))
    assert not caught.value.temporary
