"""The opening handshake as a function: origins, subprotocols, header lists. RFC 6455 section 4 itself, through a
server and at every segmentation, is in tests/conformance/test_rfc6455_handshake.py."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from street_fast.errors import ConfigurationError, HandshakeRefused
from street_fast.handshake import (
    accept,
    accept_key,
    check_allowed_origins,
    check_origin,
    is_websocket_request,
    parse_extensions,
    parse_tokens,
    refusal,
)
from street_fast.request import Request
from tests.http_harness import ACCEPT, HANDSHAKE, KEY


def request(*extra: tuple[str, str], method: str = "GET", target: str = "/", **changes: str | None) -> Request:
    fields: dict[str, str | None] = {**HANDSHAKE, **{name.replace("_", "-"): value for name, value in changes.items()}}
    merged: dict[str, tuple[str, str]] = {}
    for name, value in fields.items():
        merged.pop(name.lower(), None)
        if value is not None:
            merged[name.lower()] = (name, value)
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in [*merged.values(), *extra]]
    return Request.from_pairs(method, target, pairs)


def refused(request: Request, **options) -> HandshakeRefused:
    with pytest.raises(HandshakeRefused) as caught:
        accept(request, **options)
    return caught.value


# --- the answer ---


def test_the_example_of_the_rfc():
    acceptance = accept(request())
    assert acceptance.head == (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n"
    )
    assert acceptance.subprotocol is None


@given(st.binary(min_size=16, max_size=16))
def test_accept_key(nonce):
    key = base64.b64encode(nonce).decode()
    expected = base64.b64encode(hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    assert accept_key(key) == expected
    assert b"\r\nSec-WebSocket-Accept: " + expected + b"\r\n" in accept(request(Sec_WebSocket_Key=key)).head


def test_a_refusal_is_a_response():
    response = refusal(refused(request(Sec_WebSocket_Version="8")))
    assert response.status == 426
    assert ("Sec-WebSocket-Version", "13") in response.headers
    assert b"version 13" in response.body


@pytest.mark.parametrize(
    ("changes", "status", "code"),
    [
        ({"Origin": "https://evil.example", "Sec_WebSocket_Key": "bad"}, 403, "origin"),
        ({"Upgrade": None}, 426, "not_websocket"),
        ({"Upgrade": "notwebsocket"}, 426, "not_websocket"),
        ({"Connection": "keep-alive"}, 400, "connection"),
        ({"Host": None}, 400, "host"),
        ({"Sec_WebSocket_Key": None}, 400, "key"),
        ({"Sec_WebSocket_Key": KEY[:-1]}, 400, "key"),
        ({"Sec_WebSocket_Key": "é" + KEY[1:]}, 400, "key"),
        ({"Sec_WebSocket_Version": None}, 400, "version"),
        ({"Sec_WebSocket_Version": "8"}, 426, "version"),
        ({"Sec_WebSocket_Version": "13, 8"}, 426, "version"),
        ({"Sec_WebSocket_Protocol": "a b"}, 400, "subprotocol"),
        ({"Sec_WebSocket_Extensions": "a;"}, 400, "extensions"),
        ({"Content_Length": "3"}, 400, "body"),
        ({"Transfer_Encoding": "chunked"}, 400, "body"),
    ],
)
def test_what_is_wrong_has_a_code(changes, status, code):
    error = refused(request(**changes))
    assert (error.status, error.code) == (status, code)


def test_the_request_of_another_server_is_looked_at_as_hard():
    assert refused(request(("Host", "other"))).code == "host"
    assert refused(request(("Sec-WebSocket-Key", KEY))).code == "key"
    assert refused(request(("Sec-WebSocket-Version", "13"))).code == "version"
    old = request()
    old.http_version = "1.0"
    assert refused(old).code == "http_version"
    with_body = request()
    with_body.body = b"x"
    assert refused(with_body).code == "body"
    post = refused(request(method="POST"))
    assert (post.status, post.headers) == (405, (("Allow", "GET"),))


def test_an_empty_body_is_none():
    assert ACCEPT.encode() in accept(request(Content_Length="0")).head


@pytest.mark.parametrize(
    ("upgrade", "connection", "expected"),
    [
        ("websocket", "Upgrade", True),
        ("WebSocket", "keep-alive, UPGRADE", True),
        ("h2c, websocket", "Upgrade", True),
        ("notwebsocket", "Upgrade", False),
        ("websocket2", "Upgrade", False),
        ("websocket/13", "Upgrade", False),
        ("websocket", "upgraded", False),
        ("websocket", "keep-alive", False),
        (None, "Upgrade", False),
        ("websocket", None, False),
    ],
)
def test_is_websocket_request(upgrade, connection, expected):
    assert is_websocket_request(request(Upgrade=upgrade, Connection=connection)) is expected


# --- subprotocols ---


@pytest.mark.parametrize(
    ("ours", "theirs", "chosen"),
    [
        ([], ["chat"], None),
        (["chat"], [], None),
        (["chat"], ["chat"], "chat"),
        (["v2", "v1"], ["v1, v2"], "v2"),
        (["v2", "v1"], ["v1", "v3,v2"], "v2"),
        (["v1"], ["v2,,  ,v1 "], "v1"),
        (["chat"], ["Chat"], None),
        (["chat"], ["chatty, cha"], None),
        (["__proto__"], ["constructor"], None),
    ],
)
def test_the_server_prefers_among_what_the_client_offers(ours, theirs, chosen):
    acceptance = accept(request(*(("Sec-WebSocket-Protocol", offer) for offer in theirs)), subprotocols=ours)
    assert acceptance.subprotocol == chosen
    line = f"\r\nSec-WebSocket-Protocol: {chosen}\r\n".encode()
    assert (line in acceptance.head) is (chosen is not None)
    assert acceptance.head.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("offer", ["", ",", "a b", "a;b", '"a"', "a,b\xe9", "a,(b)", "a/b", "a=b"])
def test_a_malformed_offer_is_refused(offer):
    assert refused(request(Sec_WebSocket_Protocol=offer)).status == 400


def test_parse_tokens():
    assert parse_tokens(["a, ,b\t,", "c"]) == ["a", "b", "c"]


# --- extensions (section 9.1) ---


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", [("a", [])]),
        ("a, b", [("a", []), ("b", [])]),
        (" ,, a ,,b, ", [("a", []), ("b", [])]),
        (
            "permessage-deflate; client_max_window_bits; server_max_window_bits=10",
            [("permessage-deflate", [("client_max_window_bits", None), ("server_max_window_bits", "10")])],
        ),
        ("a;b=1;b=2,a;c", [("a", [("b", "1"), ("b", "2")]), ("a", [("c", None)])]),
        ('a;b="10"', [("a", [("b", "10")])]),
        ('a ; b = "1\\0" , c', [("a", [("b", "10")]), ("c", [])]),
        ("__proto__;constructor=x", [("__proto__", [("constructor", "x")])]),
    ],
)
def test_parse_extensions(value, expected):
    assert parse_extensions([value]) == expected


@pytest.mark.parametrize(
    "value",
    ["", ",", "a;", "a;;b", "a;=1", "a;b=", "a b", "a=b", ";a", "a;b=1 2", 'a;b="', 'a;b="1', 'a;b=""', 'a;b="1 2"',
     'a;b="1\\', 'a;b="1"2', "a;b=é", "é", "a;b=(", '"a"', "a;b==1", "a\0"],
)  # fmt: skip
def test_malformed_extensions(value):
    with pytest.raises(ValueError, match=r"missing|out of place|not a token|not closed|empty"):
        parse_extensions([value])


@given(st.text('ab,;="\\ \t1é', max_size=40))
def test_extensions_are_parsed_or_refused(value):
    try:
        offers = parse_extensions([value])
    except ValueError:
        return
    again = ",".join(
        ";".join([name, *(parameter if text is None else f'{parameter}="{text}"' for parameter, text in parameters)])
        for name, parameters in offers
    )
    assert parse_extensions([again]) == offers


# --- Origin ---

HOST = "app.example.com"
MALFORMED = [
    "", " ", "null", "NULL", "null, https://app.example.com", "https://", "https:app.example.com", "app.example.com",
    "//app.example.com", "https://app.example.com/", "https://app.example.com/path", "https://app.example.com?",
    "https://app.example.com#", "https://user@app.example.com", "https://app.example.com@evil.example",
    "https://app.example.com:443:443", "https://app.example.com:", "https://app.example.com:x",
    "https://app.example.com:-1", "https://app.example.com:99999", "https://app.example.com:\u00b2",
    "https://app.example.com https://app.example.com", "https://app.example.com,https://app.example.com",
    "https://app.example.com\\@evil.example", "https://\xe4pp.example.com", "https://app%2eexample.com",
    "1https://app.example.com", "\xe9://app.example.com", "https://[::1", "https://[::1]x", "https://[]",
    "https://[app.example.com]", "https://app.example.com\t.evil.example",
]  # fmt: skip
FOREIGN = [
    "https://evil.example", "https://evilapp.example.com", "https://app.example.com.evil.example",
    "https://evil.example.app.example.com", "https://example.com", "https://app.example.co", "https://pp.example.com",
    "https://app.example.com.", "https://app.example.com:8443", "https://app.example.com:80",
    "http://app.example.com:443", "https://xn--pp-via.example.com", "https://127.0.0.1", "https://[::1]",
    "file://app.example.com:1", "https://app-example.com", "https://app_example.com", "https://*.example.com",
    "https://*", "capacitor://app.example.com", "ws://app.example.com", "wss://app.example.com:443",
]  # fmt: skip


@pytest.mark.parametrize("origin", [*MALFORMED, *FOREIGN])
@pytest.mark.parametrize("allowed", [None, [], ["https://app.example.com"]], ids=["same", "nobody", "list"])
def test_a_foreign_page_is_refused(origin, allowed):
    error = refused(request(Host=HOST, Origin=origin), allowed_origins=allowed)
    assert (error.status, error.code) == (403, "origin")


def test_two_origins_are_refused_always():
    twice = request(("Origin", f"https://{HOST}"), ("Origin", f"https://{HOST}"), Host=HOST)
    for allowed in (None, ["*"], [f"https://{HOST}"]):
        assert refused(twice, allowed_origins=allowed).status == 403


@pytest.mark.parametrize(
    ("host", "origin"),
    [
        ("app.example.com", "https://app.example.com"),
        ("app.example.com", "http://app.example.com"),
        ("APP.example.com", "https://app.EXAMPLE.com"),
        ("app.example.com", "HTTPS://APP.EXAMPLE.COM"),
        ("app.example.com:443", "https://app.example.com"),
        ("app.example.com", "https://app.example.com:443"),
        ("app.example.com:80", "http://app.example.com"),
        ("app.example.com:8080", "http://app.example.com:8080"),
        ("app.example.com.", "https://app.example.com."),
        ("localhost:3000", "http://localhost:3000"),
        ("127.0.0.1:3000", "http://127.0.0.1:3000"),
        ("[::1]:3000", "http://[::1]:3000"),
        ("[2001:DB8::1]", "https://[2001:db8::1]"),
        ("xn--pp-via.example.com", "https://xn--pp-via.example.com"),
    ],
)
def test_a_page_of_the_same_origin_passes(host, origin):
    check_origin(request(Host=host, Origin=origin))


@pytest.mark.parametrize("name", ["X-Forwarded-Host", "Forwarded", "X-Original-Host", "X-Host", "Referer"])
def test_headers_that_anyone_can_send_name_no_host(name):
    value = "host=evil.example" if name == "Forwarded" else "evil.example"
    assert refused(request((name, value), Host=HOST, Origin="https://evil.example")).status == 403


def test_the_host_of_an_absolute_target_counts():
    check_origin(request(target="http://other.example/ws", Origin="http://other.example"))
    assert refused(request(target="http://other.example/ws", Origin=f"http://{HANDSHAKE['Host']}")).status == 403


@pytest.mark.parametrize("host", ["", "a b", "user@h", "h:x", "h:"])
def test_a_host_that_is_none_is_nobody_s_origin(host):
    for origin in ("https://", "https://h", f"https://{host}"):
        assert refused(request(Host=host, Origin=origin)).status == 403


@pytest.mark.parametrize("allowed", [None, [], ["https://app.example.com"], ["*"]])
def test_who_is_no_browser_sends_no_origin(allowed):
    check_origin(request(), allowed)


@pytest.mark.parametrize(
    ("allowed", "good", "bad"),
    [
        (["https://app.example.com"], ["https://app.example.com", "https://APP.example.com:443"],
         ["http://app.example.com", "https://a.app.example.com", "https://server.example.com"]),
        (["HTTPS://App.Example.Com:443"], ["https://app.example.com"], ["https://app.example.com:444"]),
        (["http://localhost:5173"], ["http://localhost:5173"], ["http://localhost", "https://localhost:5173"]),
        (["https://*.example.com"], ["https://a.example.com", "https://a.b.example.com:443"],
         ["https://example.com", "https://.example.com.evil", "https://evilexample.com", "http://a.example.com",
          "https://a.example.com:444", "https://a.example.com.", "https://example.com.evil.example", "null"]),
        (["https://*.example.com:8443"], ["https://a.example.com:8443"], ["https://a.example.com"]),
        (["capacitor://localhost"], ["capacitor://localhost"], ["capacitor://localhost:1", "http://localhost"]),
        (["chrome-extension://abcdef"], ["chrome-extension://abcdef"], ["chrome-extension://abcdeg"]),
        (["https://a", "https://b"], ["https://a", "https://b"], ["https://c"]),
        (["*"], ["https://evil.example", "null", "file://", "anything"], []),
        (["https://a", "*"], ["https://evil.example"], []),
        (["http://[::1]:80"], ["http://[::1]"], ["http://[::2]"]),
    ],
)  # fmt: skip
def test_allowed_origins(allowed, good, bad):
    for origin in good:
        check_origin(request(Origin=origin), allowed)
    for origin in bad:
        assert refused(request(Origin=origin), allowed_origins=allowed).status == 403


@pytest.mark.parametrize(
    "entry",
    ["", "null", "example.com", "https://", "https://example.com/", "https://example.com/path", "https://*",
     "https://*example.com", "https://a.*.com", "https://*.*.com", "https://*.", "*.example.com", "https://u@example.com",
     "https://bücher.example", "https://example.com:port", "https://example.com:65536", "https:// example.com", 5,
     None],
)  # fmt: skip
def test_an_entry_that_is_no_origin_is_told_at_once(entry):
    with pytest.raises(ConfigurationError, match="allowed_origins"):
        check_allowed_origins(["https://good.example", entry])


def test_one_string_is_no_list():
    with pytest.raises(ConfigurationError, match=r"must be a list of origins, such as \['https://a'\]"):
        check_allowed_origins("https://a")


@pytest.mark.parametrize("entries", [5, [["a"]], [{"a": 1}], iter(["https://a"])])
def test_allowed_origins_that_are_no_list_of_strings(entries):
    with pytest.raises(ConfigurationError, match=r"allowed_origins=.*: must be a list of origins"):
        check_allowed_origins(entries)
