"""docs/protocol.md is the wire: its tables are those of the code, and its examples are messages of it."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import NamedTuple, get_args

import pytest

from street_fast import CloseCode, Limits
from street_fast.messages import ErrorCode, decode

TEXT = (Path(__file__).resolve().parents[2] / "docs/protocol.md").read_text(encoding="utf-8")


class Line(NamedTuple):
    """One line of a conversation: who, ">" (sends) or "<" (receives), what; or a stage direction."""

    number: int
    who: str
    direction: str
    text: str


def blocks() -> list[tuple[int, str, str]]:
    """(number of the first line, language, text) of each fenced block."""
    return [
        (TEXT.count("\n", 0, block.start(2)) + 1, block[1], block[2])
        for block in re.finditer(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    ]


def conversations() -> list[list[Line]]:
    """The blocks with lines such as ``ada > {...}``."""
    found = []
    for first, language, text in blocks():
        if language or text.startswith("HTTP/"):
            continue
        lines = []
        for number, line in enumerate(text.splitlines(), first):
            match = re.fullmatch(r"(\w+) ([<>]) (\{.*\})", line)
            if match:
                lines.append(Line(number, *match.groups()))
            else:
                direction = re.fullmatch(r"\((.*)\)", line)
                assert direction, f"line {number}: neither a message nor a stage direction"
                lines.append(Line(number, "", "", direction[1]))
        found.append(lines)
    return found


def messages() -> list[Line]:
    """Every JSON text in the document; ">" for what a client sends."""
    found = [line for conversation in conversations() for line in conversation if line.who]
    for first, language, text in blocks():
        if language == "json":
            found += [Line(number, "server", "<", line) for number, line in enumerate(text.splitlines(), first)]
        elif language == "http":
            head, _, body = text.partition("\n\n")
            if body.strip():
                direction = ">" if "/send?" in head else ""  # the others are no envelopes
                found.append(Line(first + head.count("\n") + 2, "client", direction, body.strip()))
        elif not language and text.startswith("HTTP/"):
            for number, line in enumerate(text.splitlines(), first):
                if line.startswith("data: "):
                    found.append(Line(number, "server", "<", line[6:]))
    return found


@pytest.mark.parametrize("line", messages(), ids=lambda line: f"line {line.number}")
def test_the_examples_are_json(line):
    assert isinstance(json.loads(line.text), dict)
    if line.direction == ">":
        decode(line.text.encode())


def test_there_is_an_example_of_all_that_a_client_sends():
    sent = {json.loads(line.text)["type"] for line in messages() if line.direction == ">"}
    assert set(first_column("What a client sends")) - sent == {"pong"}


def test_there_is_an_example_of_all_that_the_server_sends():
    sent = {json.loads(line.text).get("type") for line in messages() if line.direction == "<"}
    assert set(first_column("What the server sends")) - sent == {"close"}


def section(heading: str) -> str:
    match = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL)
    assert match, heading
    return match[1]


def first_column(heading: str) -> list[str]:
    return re.findall(r"^\| `(\w+)` \|", section(heading), re.MULTILINE)


def test_every_close_code_is_there():
    rows = re.findall(r"^\| (\d{4}) \| (.*?) \| (yes|no) \|$", TEXT, re.MULTILINE)
    assert rows == [
        (str(int(code)), code.explanation, "yes" if code.may_reconnect else "no") for code in sorted(CloseCode)
    ]


def test_every_error_code_is_there():
    assert first_column("Errors") == list(get_args(ErrorCode))


def test_the_limits_are_fields_with_these_values():
    fields = {field.name: field.default for field in dataclasses.fields(Limits)}
    for name in re.findall(r"^\| `\w+` \| `(\w+)` \|", section("Limits"), re.MULTILINE):
        assert name in fields
    values = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", section("Limits"), re.MULTILINE)
    assert len(values) > 10
    for name, value in values:
        assert fields[name] == float(value), name


def test_what_welcome_tells_of_the_limits_is_in_the_table():
    told = re.findall(r"^\| `(\w+)` \| `\w+` \|", section("Limits"), re.MULTILINE)
    welcomes = [json.loads(line.text) for line in messages() if '"welcome"' in line.text]
    assert welcomes
    for welcome in welcomes:
        assert list(welcome["data"]["limits"]) == told
