"""Listening sockets, and what goes wrong with them in one clear sentence.

A Unix socket leaves its file behind when a process dies. `bind_unix` replaces such a file, but only if it is a socket
and nobody answers on it; `remove_unix` takes away the file that `bind_unix` made, and no other.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat

from street_fast.errors import ListenError

__all__ = ["bind_tcp", "bind_unix", "host_and_port", "listen_error", "remove_unix"]


def bind_tcp(host: str | None, port: int, *, reuse_port: bool = False) -> list[socket.socket]:
    """A socket for each address of `host` (None: all of the machine), bound to `port`, not listening yet.

    Port 0 takes a free one, the same for all. With `reuse_port` other sockets that have it too, those of other programs
    among them, may be bound to the same address. Raises OSError.
    """
    found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    bound: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                sock = socket.socket(family, kind, protocol)
            except OSError:
                continue  # an address of a family that this machine does not speak
            bound.append(sock)
            sock.setblocking(False)
            if os.name == "posix":  # elsewhere it means another thing
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if reuse_port:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            if port == 0 and len(bound) > 1:
                address = (address[0], bound[0].getsockname()[1], *address[2:])
            try:
                sock.bind(address)
            except OSError as error:
                if error.errno != errno.EADDRNOTAVAIL or len(found) == 1:
                    raise
                bound.pop().close()
        if not bound:
            raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    except BaseException:
        for sock in bound:
            sock.close()
        raise
    return bound


def bind_unix(path: str) -> socket.socket:
    """A Unix socket bound to `path` (with a leading NUL: in the abstract namespace of Linux), not listening yet.

    Raises OSError; EADDRINUSE if somebody listens there, or something that is no socket has that name.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        if not path.startswith("\0"):
            _remove_stale(path)
        sock.bind(path)
    except BaseException:
        sock.close()
        raise
    return sock


def remove_unix(path: str, made: os.stat_result) -> None:
    """Remove the file of a Unix socket if it is still the one that was `made`, and not a successor's."""
    with contextlib.suppress(OSError):
        if os.path.samestat(os.stat(path), made):
            os.unlink(path)


def _remove_stale(path: str) -> None:
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        return  # bind() says that the name is taken
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        if probe.connect_ex(path) == errno.ECONNREFUSED:
            remove_unix(path, found)


def listen_error(error: Exception, host: str | None, port: int, path: str | None) -> ListenError:
    """What to tell the user about an `error` of bind or listen."""
    address = path.replace("\0", "@") if path is not None else host_and_port(host, port)
    number = error.errno if isinstance(error, OSError) else None
    if isinstance(error, socket.gaierror):
        return ListenError(f"{address}: the host name {host!r} is not known")
    if number == errno.EADDRINUSE:
        if path is not None:
            return ListenError(f"{address} is already in use, or is a file that is no socket; choose another path")
        return ListenError(f"{address} is already in use; stop what listens there, or choose another port")
    if number in (errno.EACCES, errno.EPERM):
        hint = "; ports below 1024 need a privilege" if path is None and 0 < port < 1024 else ""
        return ListenError(f"{address}: no permission to listen there{hint}")
    if number == errno.EADDRNOTAVAIL or (number is None and "could not bind on any address" in str(error)):  # asyncio
        return ListenError(f"{address}: this machine has no such address")
    if number == errno.ENOENT:
        return ListenError(f"{address}: there is no such directory")
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return ListenError(f"cannot listen on {address}: {reason}")


def host_and_port(host: str | None, port: int) -> str:
    """As in a URL, with the brackets of IPv6; for no host, ``port 3000``."""
    if host is None:
        return f"port {port}"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
