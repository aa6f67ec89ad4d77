"""What a server says of itself."""

from __future__ import annotations

import importlib.util

import pytest

from street_fast.auth import ACTIONS
from street_fast.banner import facts, tell
from street_fast.options import Allowed, Kept, Options
from street_fast.realtime import Realtime
from street_fast.serving import serve

KEY = "a key of other programs"


@pytest.mark.parametrize(
    ("options", "word", "text"),
    [
        (Options(host="0.0.0.0", port=0), "WebSocket", "ws://localhost:"),
        (Options(port=0, path="/"), "SSE", "/sse?channel=..."),
        (Options(port=0), "Publish", "over HTTP: nobody; --api-key lets other programs do it"),
        (Options(port=0, api_key=[KEY]), "Publish", "/realtime/publish, with the API key"),
        (Options(port=0), "Clients", "anybody may subscribe and publish in every channel but user:..."),
        (
            Options(port=0, jwt_key=["0123456789abcdef0123456789abcdef"]),
            "Clients",
            "; a token says who somebody is",
        ),
        (
            Options(port=0, jwt_key=["0123456789abcdef0123456789abcdef"], guests=False),
            "Clients",
            "who has a token may subscribe and publish",
        ),
        (
            Options(
                port=0, allow=[Allowed("news:*", ["subscribe", "history"]), Allowed("x", []), Allowed("*", [*ACTIONS])]
            ),
            "Clients",
            "anybody; news:*: subscribe, history; x: nothing; *: everything",
        ),
        (Options(port=0), "History", "every channel: 100 messages, 300 s"),
        (
            Options(port=0, history=[Kept("a", 0, 0.0), Kept("b", 5, 0.5)]),
            "History",
            "a: none; b: 5 messages, 0.5 s",
        ),
        (Options(port=0), "Backplane", "none: messages and history stay in this process"),
        (Options(port=0), "Health", "/healthz and /readyz"),
    ],
)
async def test_what_is_told(options: Options, word: str, text: str) -> None:
    serving = await serve(options, None)
    assert text in dict(serving.facts)[word]
    assert KEY not in str(serving.facts)
    await serving.close()


def test_a_banner(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    facts = [("WebSocket", "ws://x/"), ("SSE", "http://x/")]
    tell(Options(), facts)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.endswith(" is ready (Ctrl-C stops)")
    assert lines == ["  WebSocket  ws://x/", "  SSE        http://x/"]
    tell(Options(log_format="json"), facts)
    assert capsys.readouterr().out == ""
    assert caplog.records[-1].fields == {"facts": dict(facts)}  # type: ignore[attr-defined]


def test_a_password_is_not_told() -> None:
    told = facts(Options(backplane="redis://ada:secret@host:1/0"), [Realtime()], 1, 1)
    assert ("Backplane", "redis://host:1/0") in told


async def test_metrics_that_cannot_be_had_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    serving = await serve(Options(port=0), None)
    assert dict(serving.facts)["Metrics"].endswith("; they need pip install 'street_fast[metrics]'")
    await serving.close()
