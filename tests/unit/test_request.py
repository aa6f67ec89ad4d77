"""Request, Headers, Query and Response: values, and what cannot be written."""

from __future__ import annotations

import gc
import sys

import h11
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from street_fast.auth import Member
from street_fast.request import Headers, Query, Request, Response

RAW = b"\r\nHost: h:80\r\nACCEPT: a\r\nX-Empty:\r\naccept:  \t b \t\r\nX: \xe9:\x80\r\n"


# --- headers ---


def test_a_header_is_found_in_any_case_without_the_white_space_around_its_value():
    headers = Headers(RAW)
    assert headers["host"] == headers["HOST"] == headers["hOsT"] == "h:80"
    assert headers["Accept"] == "a"
    assert headers["x-empty"] == ""
    assert headers["x"] == "\xe9:\x80"


def test_all_values_come_in_order():
    assert Headers(RAW).get_all("accept") == ["a", "b"]
    assert Headers(RAW).get_all("cookie") == []


@pytest.mark.parametrize("name", ["hos", "ost", "host:", "", "h", "cookie", "höst", "x-empty:\r\naccept"])
def test_a_part_of_a_name_or_of_the_block_is_no_name(name):
    headers = Headers(RAW)
    assert name not in headers
    assert headers.get(name) is None
    assert headers.get_all(name) == []
    with pytest.raises(KeyError):
        headers[name]


def test_headers_are_a_mapping_of_lower_case_names():
    headers = Headers(RAW)
    assert list(headers) == ["host", "accept", "x-empty", "x"]
    assert len(headers) == 4
    assert dict(headers) == {"host": "h:80", "accept": "a", "x-empty": "", "x": "\xe9:\x80"}
    assert 5 not in headers
    assert headers.pairs()[1] == ("ACCEPT", "a")
    assert len(headers.pairs()) == 5


@pytest.mark.parametrize(
    ("values", "tokens"),
    [
        (["close"], ["close"]),
        (["Close"], ["close"]),
        (["a,\tCLOSE ,b"], ["a", "close", "b"]),
        (["a", "close, c"], ["a", "close", "c"]),
        (["not-close"], ["not-close"]),
        (["close b"], ["close b"]),
        ([""], [""]),
        ([], []),
    ],
)
def test_tokens_of_a_list(values, tokens):
    request = Request.from_pairs("GET", "/", [(b"Connection", value.encode()) for value in values])
    assert request.headers.tokens("connection") == tokens


def test_no_headers_at_all():
    headers = Headers(b"\r\n")
    assert list(headers) == []
    assert len(headers) == 0
    assert headers.pairs() == []
    assert "host" not in headers


def test_a_value_that_looks_like_a_header_is_none():
    headers = Headers(b"\r\nA: host: evil\r\nB: x\r\n")
    assert "host" not in headers


def test_the_repr_tells_names_and_no_values():
    assert repr(Headers(b"\r\nCookie: secret\r\n")) == "Headers(['cookie'])"


TOKENS = st.text("abcXYZ-_0", min_size=1, max_size=8)
VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"), max_size=20)


@given(st.lists(st.tuples(TOKENS, VALUES.map(lambda value: value.strip(" \t")))))
def test_headers_agree_with_a_list_of_pairs(pairs):
    request = Request.from_pairs("GET", "/", [(n.encode(), v.encode("latin-1")) for n, v in pairs])
    assert request.headers.pairs() == pairs
    for name, _ in pairs:
        expected = [value for other, value in pairs if other.lower() == name.lower()]
        assert request.headers.get_all(name.swapcase()) == expected
        assert request.headers[name] == expected[0]


@pytest.mark.parametrize("bad", [(b"A", b"x\r\nHost: evil"), (b"A", b"\n"), (b"A\r\nB", b""), (b"A", b"\0")])
def test_headers_of_another_server_with_a_line_end_are_refused(bad):
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        Request.from_pairs("GET", "/", [(b"Host", b"h"), bad])


# --- the request target ---


@pytest.mark.parametrize(
    ("target", "path", "query", "host"),
    [
        ("/", "/", {}, "h"),
        ("/a/b", "/a/b", {}, "h"),
        ("/a?x=1&y=2&x=3", "/a", {"x": "1", "y": "2"}, "h"),
        ("/a?", "/a", {}, "h"),
        ("/a?x", "/a", {"x": ""}, "h"),
        ("/a?x=b?c/d", "/a", {"x": "b?c/d"}, "h"),
        ("/%C3%A9%2F%20+", "/é/ +", {}, "h"),
        ("/%FF", "/�", {}, "h"),
        ("/?n=%C3%A9+b%26", "/", {"n": "é b&"}, "h"),
        ("//evil/x", "//evil/x", {}, "h"),
        ("/a://b", "/a://b", {}, "h"),
        ("http://other:81/a?x=1", "/a", {"x": "1"}, "other:81"),
        ("http://other", "/", {}, "other"),
        ("https://other?x=/1", "/", {"x": "/1"}, "other"),
        ("*", "*", {}, "h"),
    ],
)
def test_target(target, path, query, host):
    request = Request("GET", target, b"\r\nHost: h\r\n")
    assert request.path == path
    assert dict(request.query) == query
    assert request.host == host


def test_a_query_keeps_every_value():
    query = Query("x=1&y=2&x=3")
    assert query["x"] == "1"
    assert query.get_all("x") == ["1", "3"]
    assert query.get_all("z") == []
    assert list(query) == ["x", "y"]
    assert len(query) == 2
    with pytest.raises(KeyError):
        query["z"]
    assert "1" not in repr(query)


def test_no_host():
    assert Request("GET", "/").host == ""


# --- cookies ---


@pytest.mark.parametrize(
    ("lines", "cookies"),
    [
        (["a=1"], {"a": "1"}),
        (["a=1; b=2;c=3"], {"a": "1", "b": "2", "c": "3"}),
        (["a=1; a=2"], {"a": "1"}),
        (["a=1", "b=2"], {"a": "1", "b": "2"}),
        (['a="x y"; b="'], {"a": "x y", "b": '"'}),
        (["a=b=c=="], {"a": "b=c=="}),
        (["nonsense; ; =; a=1"], {"": "", "a": "1"}),
        ([], {}),
    ],
)
def test_cookies(lines, cookies):
    request = Request.from_pairs("GET", "/", [(b"Cookie", line.encode()) for line in lines])
    assert request.cookies == cookies


# --- a request that is kept ---


def test_a_kept_request_costs_its_bytes_and_little_more():
    request = Request("GET", "/chat?user=ada", b"\r\nHost: h\r\n", client=("192.0.2.1", 4711))
    for _ in range(2):  # looking at it leaves nothing behind
        assert request.headers["host"] == "h"
        assert request.query["user"] == "ada"
        assert request.cookies == {}
    parts = [request, *(getattr(request, name) for name in Request.__slots__)]
    size = sum(sys.getsizeof(part) for part in parts if part is not None and part != "GET" and part != "1.1")
    assert size < 500
    gc.collect()
    assert len(gc.get_referents(request)) <= len(Request.__slots__) + 1
    assert not hasattr(request, "__dict__")


def test_what_requests_have_in_common_they_share():
    one, other = (Request("".join(("G", "ET")), "".join(("/", "chat")), http_version="1." + str(1)) for _ in range(2))
    assert one.method is other.method
    assert one.target is other.target
    assert one.http_version is other.http_version


@pytest.mark.parametrize("target", ["/chat?token=secret", "http://host/chat?token=secret"])
def test_a_stripped_request_says_who_asked_for_what(target):
    request = Request("GET", target, b"\r\nCookie: secret\r\n", http_version="1.0", client=("::1", 5), body=b"secret")
    request.member = Member("ada")
    stripped = request.stripped()
    assert (stripped.method, stripped.path, stripped.http_version, stripped.client) == (
        "GET",
        "/chat",
        "1.0",
        ("::1", 5),
    )
    assert stripped.member is request.member
    assert (dict(stripped.headers), dict(stripped.query), stripped.body) == ({}, {}, b"")


def test_a_request_tells_no_secrets_in_its_repr():
    assert repr(Request("GET", "/a%0Ab?token=secret", b"\r\nCookie: secret\r\n")) == "<Request GET '/a\\nb'>"


# --- responses ---


def parsed(data: bytes, method: str = "GET") -> tuple[h11.Response, bytes, h11.Connection]:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("Host", "h")]))
    client.send(h11.EndOfMessage())
    client.receive_data(data)
    response = client.next_event()
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    return response, body, client


def test_a_response_is_what_a_client_reads():
    response, body, client = parsed(Response.text("hé", 201, [("X-A", "b")]).encode(keep_alive=True))
    assert response.status_code == 201
    assert dict(response.headers) == {
        b"content-type": b"text/plain; charset=utf-8",
        b"content-length": b"3",
        b"x-a": b"b",
    }
    assert body == "hé".encode()
    assert client.their_state is h11.DONE


def test_a_last_response_says_so():
    response, _, client = parsed(Response.html("<p>").encode(keep_alive=False))
    assert dict(response.headers)[b"connection"] == b"close"
    assert client.their_state is h11.MUST_CLOSE


def test_json():
    response = Response.json({"a": [1]})
    assert orjson.loads(response.body) == {"a": [1]}
    assert ("Content-Type", "application/json") in response.headers
    with pytest.raises(TypeError):
        Response.json({"a": object()})


def test_the_answer_to_head_has_the_length_and_no_body():
    response, body, _ = parsed(Response.text("hello").encode(keep_alive=True, head_only=True), "HEAD")
    assert dict(response.headers)[b"content-length"] == b"5"
    assert body == b""


@pytest.mark.parametrize("status", [204, 304])
def test_a_response_without_content_has_no_length(status):
    data = Response(status, b"ignored").encode(keep_alive=True)
    assert b"Content-Length" not in data
    assert data.endswith(b"\r\n\r\n")


def test_upgrade_is_an_option_of_the_connection():
    data = Response.text("", 426, [("Upgrade", "websocket")]).encode(keep_alive=False)
    assert b"\r\nConnection: Upgrade, close\r\n" in data


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("X", "a\r\nSet-Cookie: b"),
        ("X", "a\nb"),
        ("X", "a\rb"),
        ("X", "a\0"),
        ("X\r\nY", "a"),
        ("X Y", "a"),
        ("X:", "a"),
        ("", "a"),
        ("é", "a"),
        ("X", "€"),
        ("Content-Length", "3"),
        ("content-length", "3"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "keep-alive"),
        ("Keep-Alive", "5"),
    ],
)
def test_a_header_that_would_break_the_message_cannot_be_written(name, value):
    with pytest.raises(ValueError, match=r"header|latin-1"):
        Response(200, b"", [(name, value)]).encode(keep_alive=True)


@pytest.mark.parametrize("status", [100, 101, 199, 600, 0, -1])
def test_a_status_that_is_no_final_one_cannot_be_written(status):
    with pytest.raises(ValueError, match="200 to 599"):
        Response(status).encode(keep_alive=True)


def test_a_status_without_a_name_can_be_written():
    assert Response(299).encode(keep_alive=True).startswith(b"HTTP/1.1 299 \r\n")
