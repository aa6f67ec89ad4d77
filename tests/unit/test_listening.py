"""Where a server listens: the file of a Unix socket, and the sentence that says why it cannot."""

from __future__ import annotations

import errno
import os
import socket

import pytest

from street_fast.errors import ListenError
from street_fast.listening import bind_tcp, bind_unix, listen_error, remove_unix

pytestmark = pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "s")


def test_bind_and_remove(path):
    with bind_unix(path) as sock:
        assert sock.getsockname() == path
        remove_unix(path, os.stat(path))
        assert not os.path.exists(path)
        remove_unix(path, os.stat(os.path.dirname(path)))  # it is gone already: no matter


def test_the_socket_of_a_dead_process_is_replaced(path):
    bind_unix(path).close()
    assert os.path.exists(path)
    with bind_unix(path) as sock:
        assert sock.getsockname() == path


def test_the_socket_of_a_live_process_is_not(path):
    with bind_unix(path) as first:
        first.listen(1)
        before = os.stat(path)
        with pytest.raises(OSError, match="in use") as caught:
            bind_unix(path)
        assert caught.value.errno == errno.EADDRINUSE
        assert os.path.samestat(os.stat(path), before)


@pytest.mark.parametrize("backlog", [0])
def test_nor_that_of_a_process_too_busy_to_accept(path, backlog):
    with bind_unix(path) as first:
        first.listen(backlog)
        waiting = [socket.socket(socket.AF_UNIX) for _ in range(4)]
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(path)
        with pytest.raises(OSError, match="in use"):
            bind_unix(path)
        for client in waiting:
            client.close()


@pytest.mark.parametrize("kind", ["file", "directory", "link to a file"])
def test_what_is_no_socket_stays(path, kind):
    if kind == "directory":
        os.mkdir(path)
    else:
        with open(path if kind == "file" else path + "x", "w") as file:
            file.write("precious")
    if kind == "link to a file":
        os.symlink(path + "x", path)
    with pytest.raises(OSError, match="in use") as caught:
        bind_unix(path)
    assert os.path.exists(path)
    assert "no socket" in str(listen_error(caught.value, None, 0, path))


def test_the_socket_of_a_successor_is_not_removed(path):
    with bind_unix(path):
        made = os.stat(path)
    os.rename(path, path + ".old")  # keeps the inode from being used again
    with bind_unix(path):
        remove_unix(path, made)
        assert os.path.exists(path)


@pytest.mark.skipif(os.uname().sysname != "Linux" if hasattr(os, "uname") else True, reason="Linux only")
def test_the_abstract_namespace_has_no_files():
    name = f"\0street_fast-test-{os.getpid()}"
    with bind_unix(name) as sock:
        assert sock.getsockname() == name.encode()
        with pytest.raises(OSError, match="in use") as caught:
            bind_unix(name)
        assert str(listen_error(caught.value, None, 0, name)).startswith("@street_fast-test")


@pytest.mark.parametrize(
    ("error", "host", "port", "path", "sentence"),
    [
        (OSError(errno.EADDRINUSE, "x"), "127.0.0.1", 3000, None,
         "127.0.0.1:3000 is already in use; stop what listens there, or choose another port"),
        (OSError(errno.EADDRINUSE, "x"), "::1", 3000, None, "[::1]:3000 is already in use"),
        (OSError(errno.EADDRINUSE, "x"), None, 3000, None, "port 3000 is already in use"),
        (OSError(errno.EADDRINUSE, "x"), None, 0, "/run/s", "/run/s is already in use"),
        (PermissionError(errno.EACCES, "x"), "0.0.0.0", 80, None,
         "0.0.0.0:80: no permission to listen there; ports below 1024 need a privilege"),
        (PermissionError(errno.EACCES, "x"), None, 0, "/run/s", "/run/s: no permission to listen there"),
        (OSError(errno.EADDRNOTAVAIL, "x"), "192.0.2.1", 3000, None,
         "192.0.2.1:3000: this machine has no such address"),
        (OSError("could not bind on any address out of [('192.0.2.1', 3000)]"), "192.0.2.1", 3000, None,
         "192.0.2.1:3000: this machine has no such address"),
        (FileNotFoundError(errno.ENOENT, "x"), None, 0, "/no/s", "/no/s: there is no such directory"),
        (socket.gaierror(-2, "x"), "nowhere.invalid", 3000, None,
         "nowhere.invalid:3000: the host name 'nowhere.invalid' is not known"),
        (OSError("AF_UNIX path too long"), None, 0, "/s", "cannot listen on /s: AF_UNIX path too long"),
        (OSError(errno.EMFILE, "Too many open files"), "h", 1, None, "cannot listen on h:1: Too many open files"),
    ],
)  # fmt: skip
def test_one_clear_sentence(error, host, port, path, sentence):
    told = listen_error(error, host, port, path)
    assert isinstance(told, ListenError)
    assert isinstance(told, OSError)
    assert str(told).startswith(sentence)
    assert "\n" not in str(told)
    assert "Errno" not in str(told)


def test_sockets_for_all_addresses_of_a_name(monkeypatch):
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.2", 0)),
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 0)),  # not ours
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    sockets = bind_tcp("many", 0)
    names = [sock.getsockname() for sock in sockets]
    for sock in sockets:
        assert not sock.getblocking()
        assert not sock.get_inheritable()
        sock.close()
    assert [host for host, _ in names] == ["127.0.0.1", "127.0.0.2"]
    assert names[0][1] == names[1][1] != 0


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="not on this system")
def test_several_sockets_for_one_port():
    (first,) = bind_tcp("127.0.0.1", 0, reuse_port=True)
    port = first.getsockname()[1]
    (second,) = bind_tcp("127.0.0.1", port, reuse_port=True)
    first.listen()
    with pytest.raises(OSError, match="in use"):
        bind_tcp("127.0.0.1", port)  # which does not share it
    first.close()
    second.close()


def test_sockets_for_nothing():
    with pytest.raises(socket.gaierror):
        bind_tcp("nowhere.invalid", 0)
    with pytest.raises(OSError, match=os.strerror(errno.EADDRNOTAVAIL)):
        bind_tcp("192.0.2.1", 0)


def test_sockets_for_every_interface():
    sockets = bind_tcp(None, 0)
    assert {sock.getsockname()[0] for sock in sockets} <= {"0.0.0.0", "::"}
    assert sockets
    for sock in sockets:
        sock.close()
