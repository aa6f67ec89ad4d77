"""What only another node can do is asked of it: a question and its answer, each a signal of the backplane.

The client of an event stream sends by POST, and whoever spreads requests over the processes of a machine, or over
machines, brings the POST to any of them. The id of a stream begins with the name of its node, so that each knows where
it belongs. A signal may be missed: who gets no answer in time says that it is not known, and the client tries again.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from typing import TYPE_CHECKING

from street_fast.messages import NodeAnswer, NodeCall, decode_node_call, write
from street_fast.refusals import Refused, checked_text

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["NodeCalls"]

_CALLS = 1_000
"""Questions at once that have no answer yet."""
_MOST_BYTES = 262_144
"""What goes through another node at once; a broker takes a megabyte or so."""


class NodeCalls:
    """The questions of one node, and those that others ask it.

    `signal(channel, payload)` is that of the backplane; ``do(connection, body)`` does here what another node was asked
    for, and raises Refused.
    """

    def __init__(
        self, signal: Callable[[str, bytes], None], do: Callable[[str, bytes], None], timeout_s: float
    ) -> None:
        self._signal = signal
        self._do = do
        self._timeout_s = timeout_s
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[NodeAnswer]] = {}
        self.node = secrets.token_hex(4)
        """The name of this node."""
        self.channel = _channel_of(self.node)
        """Where it is asked; no client can name it."""

    def node_of(self, connection: str) -> str | None:
        """The other node that has the stream with this id; None if it would be this one, or none."""
        node, dot, _ = connection.partition(".")
        return node if dot and node != self.node and len(node) == len(self.node) and node.isalnum() else None

    async def ask(self, node: str, connection: str, body: bytes) -> None:
        """Has another node do it. Raises Refused as that node does, and if it does not answer."""
        if len(body) > _MOST_BYTES:
            raise Refused("limit_exceeded", f"at most {_MOST_BYTES} bytes at once to another process")
        if len(self._waiting) >= _CALLS:
            raise Refused("unavailable", "too much waits for other processes", headers=[("Retry-After", "1")])
        call = NodeCall(next(self._numbers), self.node, connection, checked_text(body))
        future = self._waiting[call.number] = asyncio.get_running_loop().create_future()
        try:
            self._signal(_channel_of(node), write(call))
            answer = await asyncio.wait_for(future, self._timeout_s)
        except asyncio.TimeoutError:
            text = "the process that has this connection does not answer; perhaps it was done"
            raise Refused("unknown", text, headers=[("Retry-After", "1")]) from None
        finally:
            del self._waiting[call.number]
        if answer.error is not None:
            code, message = answer.error
            raise Refused(code, message, answer.status, answer.headers)

    def arrive(self, payload: bytes) -> None:
        """A question or an answer of another node. Raises ValueError for what is neither."""
        told = decode_node_call(payload)
        if isinstance(told, NodeAnswer):
            future = self._waiting.get(told.number)
            if future is not None and not future.done():
                future.set_result(told)
            return
        answer = NodeAnswer(told.number)
        try:
            self._do(told.connection, told.body.encode())
        except Refused as refused:
            answer = NodeAnswer(told.number, refused.status, (refused.code, refused.message), refused.headers)
        self._signal(_channel_of(told.sender), write(answer))


def _channel_of(node: str) -> str:
    return f"\nnode:{node}"
