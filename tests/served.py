"""What the tests of serving share: applications that are written for a test, and a question to a server."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from street_fast.options import Options

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from street_fast.serving import Serving

__all__ = ["ask", "port_of", "written"]


@pytest.fixture
def written(tmp_path: Path) -> Iterator[Callable[..., Options]]:
    """`written(source, "made")`: options whose application is that attribute of a module with this source."""
    path, modules = sys.path[:], set(sys.modules)
    names = iter(f"application_{number}" for number in range(100))

    def write(source: str, attribute: str = "realtime", **options: Any) -> Options:
        name = next(names)
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        return Options(application=f"{name}:{attribute}", app_dir=str(tmp_path), port=0, **options)

    yield write
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if name.startswith("application_"):
            del sys.modules[name]


async def ask(port: int, path: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


def port_of(serving: Serving) -> int:
    facts = dict(serving.facts)
    return int((facts.get("WebSocket") or facts["HTTP"]).split(":")[2].split("/")[0])
