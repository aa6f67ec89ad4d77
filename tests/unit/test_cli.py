"""The command street-fast, mostly with a stand-in for the demo."""

from __future__ import annotations

import socket
import subprocess
import sys
import types
from typing import Any

import pytest

import street_fast
from street_fast.cli import main


@pytest.fixture
def demo(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What street_fast.demo.run was called with."""
    calls: list[tuple[str, int]] = []
    module = types.ModuleType("street_fast.demo")
    module.run = lambda host, port: calls.append((host, port))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "street_fast.demo", module)
    monkeypatch.setattr(street_fast, "demo", module, raising=False)
    return calls


def test_demo(demo: list[tuple[str, int]]) -> None:
    main(["demo"])
    main(["demo", "--host", "::1", "--port", "0"])
    assert demo == [("127.0.0.1", 3000), ("::1", 0)]


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["demo", "--port", "x"], ["demo", "--port", "65536"]])
def test_wrong_arguments(arguments: list[str], demo: list[Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: street-fast" in capsys.readouterr().err
    assert demo == []


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"street_fast {street_fast.__version__}\n"


def test_an_address_that_cannot_be_had_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ran = subprocess.run(
            [sys.executable, "-m", "street_fast", "demo", "--port", str(port)],
            capture_output=True,
            text=True,
            timeout=20,
            check=False,
        )
    assert (ran.returncode, ran.stdout) == (1, "")
    line = f"street_fast: 127.0.0.1:{port} is already in use; stop what listens there, or choose another port\n"
    assert ran.stderr == line


def test_python_m_street_fast() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "street_fast", "--version"], capture_output=True, text=True, timeout=20, check=True
    )
    assert ran.stdout == f"street_fast {street_fast.__version__}\n"
