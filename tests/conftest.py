"""Every coroutine test runs on uvloop, as servers do; one that is marked ``both_loops`` runs on asyncio's loop too."""

from __future__ import annotations

import asyncio
import resource
from typing import TYPE_CHECKING

import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both_loops: runs on uvloop and on asyncio's own loop")
    # Some tests hold thousands of sockets, both ends in one process.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16_384)), hard))


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    both = item.get_closest_marker("both_loops") is not None
    return LOOPS if both else {"uvloop": LOOPS["uvloop"]}
