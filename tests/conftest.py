"""Every coroutine test runs on uvloop, as servers do; one that is marked ``both_loops`` runs on asyncio's loop too, one
that is marked ``plain_loop`` on that alone.
A certificate for the tests of TLS is made once."""

from __future__ import annotations

import asyncio
import resource
import ssl
import sys
from typing import TYPE_CHECKING, NamedTuple

import pytest
import trustme
import uvloop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "both_loops: runs on uvloop and on asyncio's own loop")
    config.addinivalue_line("markers", "plain_loop: runs on asyncio's own loop")
    if sys.version_info < (3, 11):  # its asyncio lets go of a TLS transport that the peer closed as if nobody had
        config.addinivalue_line("filterwarnings", "ignore:unclosed transport <asyncio.sslproto:ResourceWarning")
    # Some tests hold thousands of sockets, both ends in one process.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 16_384)), hard))


def pytest_asyncio_loop_factories(item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    if item.get_closest_marker("plain_loop") is not None:
        return {"asyncio": LOOPS["asyncio"]}
    both = item.get_closest_marker("both_loops") is not None
    return LOOPS if both else {"uvloop": LOOPS["uvloop"]}


class Certificate(NamedTuple):
    """A certificate for localhost and 127.0.0.1: its files, and the contexts of both sides."""

    chain: Path
    key: Path
    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    folder = tmp_path_factory.mktemp("certificate")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    chain, key = folder / "chain.pem", folder / "key.pem"
    key.write_bytes(issued.private_key_pem.bytes())
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(chain, key)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return Certificate(chain, key, server, client)
