"""The command ``street-fast``: what can be tried without writing a line.

    street-fast demo --host 127.0.0.1 --port 3000

Exit status: 0 after Ctrl-C or SIGTERM, 1 if the address cannot be listened on, 2 for wrong arguments.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import street_fast

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["main"]


def _port(text: str) -> int:
    port = int(text)
    if not 0 <= port <= 65_535:
        raise ValueError
    return port


_port.__name__ = "port"  # for argparse's "invalid port value"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="street-fast", description="Real-time server library: try it.")
    parser.add_argument("--version", action="version", version=f"street_fast {street_fast.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    demo = commands.add_parser("demo", help="a chat with rooms, presence and typing, in the browser")
    demo.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    demo.add_argument(
        "--port", default=3000, type=_port, help="port to listen on (default %(default)s; 0: any free one)"
    )
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; `arguments` default to those of the process."""
    options = _parser().parse_args(arguments)
    from street_fast import demo

    demo.run(options.host, options.port)
