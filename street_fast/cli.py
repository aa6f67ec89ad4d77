"""The command ``street-fast``: what can be started without writing a line.

    street-fast serve                                a server that is ready to use
    street-fast serve app:realtime --workers 4       an application, on four cores
    street-fast demo                                 a chat in the browser

Every option of `serve` can come from the environment too: ``--log-format`` is ``STREET_FAST_LOG_FORMAT``; of an option
that may be given several times, the values stand between spaces. What is on the command line counts more.

Exit status: 0 after Ctrl-C or SIGTERM, 1 if it cannot start, 2 for a wrong option; both with one sentence on stderr.
"""

from __future__ import annotations

import argparse
import difflib
import logging
import os
import re
import sys
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, TypeVar

import street_fast
from street_fast import logs
from street_fast.application import import_application
from street_fast.auth import ACTIONS
from street_fast.backplanes import History
from street_fast.backplanes.urls import without_password
from street_fast.banner import tell
from street_fast.errors import ConfigurationError, ListenError, StreetError
from street_fast.handshake import check_allowed_origins
from street_fast.http_server import check_path
from street_fast.limits import MOST_SECONDS
from street_fast.logs import LEVELS
from street_fast.options import Allowed, CannotServe, Kept, Options
from street_fast.runner import run
from street_fast.serving import serve

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from street_fast.serving import Serving

__all__ = ["main", "options_of"]

logger = logging.getLogger("street_fast")

T = TypeVar("T")

_MOST_WORKERS = 512


class _Wrong(Exception):
    """An option is wrong: the sentence, without the option."""


class _Parser(argparse.ArgumentParser):
    """One sentence and a hint, not the whole usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message.removeprefix('argument ')} (see {self.prog} --help)\n")


def _reads(read: Callable[[str], T]) -> Callable[[str], T]:
    """For argparse: `read` says by `_Wrong` or ConfigurationError what is wrong."""

    def checked(text: str) -> T:
        try:
            return read(text)
        except (_Wrong, ConfigurationError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return checked


# --- what the options are ---


def _number(text: str, least: int, most: int, what: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or not least <= int(text) <= most:
        raise _Wrong(f"{text!r} must be {what} from {least} to {most}")
    return int(text)


def _port(text: str) -> int:
    return _number(text, 0, 65_535, "a port, a whole number")


def _workers(text: str) -> int:
    return _number(text, 1, _MOST_WORKERS, "a whole number")


def _connections(text: str) -> int:
    return _number(text, 1, 10_000_000, "a whole number")


_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,6})?)([smhd]?)", text)
    seconds = float(match[1]) * _SECONDS[match[2]] if match else 0.0
    if not 0 < seconds <= MOST_SECONDS:
        raise _Wrong(f"{text!r} must be a time above 0, such as 30, 90s, 5m, 2h or 7d, and at most {MOST_SECONDS} s")
    return seconds


def _history(text: str) -> Kept:
    pattern, equals, kept = text.rpartition("=")
    size, slash, ttl = kept.partition("/")
    if equals and pattern and kept == "none":
        return Kept(pattern, 0, 0.0)
    if not (equals and pattern and slash and re.fullmatch(r"[0-9]{1,9}", size)):
        raise _Wrong(f"{text!r} must be PATTERN=SIZE/TTL, such as 'room:*=100/5m', or PATTERN=none")
    history = History(int(size), _seconds(ttl))
    return Kept(pattern, history.size, history.ttl_s)


def _allow(text: str) -> Allowed:
    pattern, equals, words = text.rpartition("=")
    actions = sorted(ACTIONS) if words == "all" else [] if words == "none" else words.split(",")
    unknown = [action for action in actions if action not in ACTIONS]
    if not (equals and pattern) or unknown:
        known = ", ".join(sorted(ACTIONS))
        raise _Wrong(
            f"{text!r} must be PATTERN=ACTIONS, such as 'news:*=subscribe,history'; the actions are {known}, or all, "
            f"or none"
        )
    return Allowed(pattern, actions)


def _application(text: str) -> str:
    name, _, attribute = text.partition(":")
    if name.endswith(".py"):
        module = name[:-3].replace("/", ".").strip(".")
        raise _Wrong(f"{text!r} must be MODULE:ATTRIBUTE, not a file: {module}:{attribute or 'realtime'}")
    if not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*", text):
        raise _Wrong(f"{text!r} must be MODULE:ATTRIBUTE, such as app:realtime")
    return text


def _path(text: str) -> str:
    check_path(text)
    return text


def _origin(text: str) -> str:
    check_allowed_origins([text])
    return text


def _secret(text: str) -> str:
    """The text itself, or what the file behind an @ has in it."""
    if not text.startswith("@"):
        return text
    try:
        with open(text[1:], encoding="utf-8") as file:
            secret = file.read().strip()
    except (OSError, ValueError) as error:
        raise _Wrong(f"{text[1:]} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if not secret:
        raise _Wrong(f"{text[1:]} is empty")
    return secret


def _folder(text: str) -> str:
    if not os.path.isdir(text):
        raise _Wrong(f"there is no folder {text!r}")
    return os.path.abspath(text)


def _backplane(text: str) -> str:
    if "://" not in text:
        raise _Wrong(f"{without_password(text)!r} must be an address, such as redis://host:6379/0 or nats://host:4222")
    return text


def _one_of(*words: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in words:
            raise _Wrong(f"{text!r} must be one of {', '.join(words)}")
        return text

    return read


def _yes(text: str) -> bool:
    if text not in ("0", "1"):
        raise _Wrong(f"{text!r} must be 0 or 1")
    return text == "1"


def _text(text: str) -> str:
    if not text:
        raise _Wrong("it must not be empty")
    return text


# --- the settings of `serve` ---


class _Setting(NamedTuple):
    """An option and its variable in the environment; `name` is a field of Options."""

    name: str
    metavar: str
    help: str
    read: Callable[[str], Any]
    several: bool = False
    switch: bool = False
    """An option without a value; the variable is 0 or 1."""

    @property
    def option(self) -> str:
        return f"--{self.name.replace('_', '-')}"

    @property
    def variable(self) -> str:
        return f"STREET_FAST_{self.name.upper()}"


_APPLICATION = _Setting(
    "application",
    "MODULE:ATTRIBUTE",
    "a Realtime, an HttpServer, or a function that returns one (default: a server that is ready to use)",
    _application,
)
_WHERE = (
    _Setting("host", "HOST", "address to listen on; 0.0.0.0 or :: for every one", _text),
    _Setting("port", "PORT", "port to listen on; 0: any free one", _port),
    _Setting("uds", "PATH", "a Unix socket to listen on instead", _text),
    _Setting("tls_cert", "FILE", "certificate chain in PEM; then it is https:// and wss://", _text),
    _Setting("tls_key", "FILE", "its key in PEM, if that is in another file", _text),
)
_READY = (
    _Setting("path", "PATH", "of the WebSocket; the other paths are below it", _path),
    _Setting(
        "history",
        "PATTERN=SIZE/TTL",
        "what channels keep, such as 'room:*=100/5m'; PATTERN=none: nothing; the first that matches counts; may be "
        "given several times (default *=100/300)",
        _history,
        several=True,
    ),
    _Setting(
        "allow",
        "PATTERN=ACTIONS",
        "what clients may do in which channels, such as 'news:*=subscribe,history'; the first that matches counts, and "
        "what none matches takes a channel token; may be given several times (default *=all)",
        _allow,
        several=True,
    ),
    _Setting(
        "api_key",
        "KEY",
        "what other programs publish with, over HTTP; two to change it (default: they cannot)",
        _secret,
        several=True,
    ),
    _Setting(
        "jwt_key",
        "KEY",
        "clients log in with tokens (JWT) that this secret has signed, or this public key: @FILE, in PEM",
        _secret,
        several=True,
    ),
    _Setting("jwks", "URL", "the same with the keys of an issuer: the URL or the file of its key set", _text),
    _Setting("jwt_issuer", "NAME", "the issuer that a token must name", _text, several=True),
    _Setting("jwt_audience", "NAME", "the audience that a token must name", _text, several=True),
    _Setting("no_guests", "", "clients without a token are not let in", _yes, switch=True),
    _Setting(
        "allowed_origin",
        "ORIGIN",
        "pages that may connect, such as https://app.example.com; * for all (default: those of the same host)",
        _origin,
        several=True,
    ),
    _Setting("max_connections", "N", "clients at once, in each worker", _connections),
)
_PROCESSES = (
    _Setting("workers", "N", "processes that serve; several need street_fast[workers] or --backplane", _workers),
    _Setting(
        "backplane",
        "URL",
        "what connects processes and machines: redis://, nats:// and others (default: for several workers a NATS "
        "server of their own, otherwise none)",
        _backplane,
    ),
    _Setting("drain_timeout", "TIME", "what clients get to leave in when it ends, such as 30 or 5m", _seconds),
    _Setting("app_dir", "FOLDER", "where MODULE is looked for first (default: the current folder)", _folder),
)
_OPERATIONS = (
    _Setting("ops_port", "PORT", "a port of their own for /healthz, /readyz and /metrics (default: PORT)", _port),
    _Setting("ops_host", "HOST", "the address for it", _text),
    _Setting("log_format", "FORMAT", "human, or json for an object in each line", _one_of("human", "json")),
    _Setting("log_level", "LEVEL", f"from which one on: {', '.join(LEVELS)}", _one_of(*LEVELS)),
)
_GROUPS = (
    ("where", None, _WHERE),
    ("the server without an application", "An application says these itself, in Realtime(...).", _READY),
    ("processes and machines", None, _PROCESSES),
    ("health, metrics and logs", None, _OPERATIONS),
)
_SETTINGS = (_APPLICATION, *_WHERE, *_READY, *_PROCESSES, *_OPERATIONS)

_DESCRIPTION = """\
Serves channels with history, presence and recovery over WebSocket and
Server-Sent Events, with an HTTP API for back ends in any language; or an
application of yours.
"""
_EPILOG = """\
Every option can come from the environment: --log-format is
STREET_FAST_LOG_FORMAT; of several values, spaces stand between them. A secret
is better there, or in a file that @FILE names, than on the command line, which
others on this machine can see.

SIGTERM, Ctrl-C  nobody new is let in; who is there is told when to come back
SIGHUP           with several workers: they are replaced one by one, by the
                 code and the certificate of now; nobody is refused meanwhile;
                 one process alone ends, as by SIGTERM
"""


def _parser() -> tuple[_Parser, _Parser]:
    """The parser of everything, and the one of `serve` in it."""
    parser = _Parser(
        prog="street-fast", description="Real-time server: channels over WebSocket and Server-Sent Events."
    )
    parser.add_argument("--version", action="version", version=f"street_fast {street_fast.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    serve = commands.add_parser(
        "serve",
        help="a server that is ready to use, or your application, on one core or on all",
        usage="street-fast serve [MODULE:ATTRIBUTE] [options]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    serve.add_argument("application", nargs="*", metavar=_APPLICATION.metavar, help=_APPLICATION.help)
    for title, description, settings in _GROUPS:
        group = serve.add_argument_group(title, description)
        for setting in settings:
            if setting.switch:
                group.add_argument(setting.option, action="store_const", const=True, help=setting.help)
            else:
                group.add_argument(
                    setting.option,
                    metavar=setting.metavar,
                    action="append" if setting.several else "store",
                    type=_reads(setting.read),
                    help=_with_default(setting),
                )
    demo = commands.add_parser("demo", help="a chat with rooms, presence and typing, in the browser")
    demo.add_argument("--host", default="127.0.0.1", help="address to listen on (default %(default)s)")
    demo.add_argument(
        "--port", default=3000, type=_reads(_port), help="port to listen on (default %(default)s; 0: any free one)"
    )
    return parser, serve


def _with_default(setting: _Setting) -> str:
    default = getattr(Options(), setting.name)
    if "(default" in setting.help or default in (None, []):
        return setting.help
    return f"{setting.help} (default {f'{default:g}' if isinstance(default, float) else default})"


def options_of(parsed: argparse.Namespace, environment: Mapping[str, str], serve: argparse.ArgumentParser) -> Options:
    """The options: those of the command line, then of the environment, then the defaults. Exits with status 2."""
    given: dict[str, Any] = {}
    parsed.application = _only(parsed.application, serve)
    for setting in _SETTINGS:
        value = getattr(parsed, setting.name)
        if value is None:
            value = _from_environment(setting, environment, serve)
        elif "application" in given and setting in _READY:
            serve.error(f"{setting.option}: {given['application']} says that itself; it is for a server without one")
        if value is not None:
            given[setting.name] = value
    if given.pop("no_guests", False):
        given["guests"] = False
    tokens = "jwt_key" in given or "jwks" in given
    if "tls_key" in given and "tls_cert" not in given:
        serve.error("--tls-key: --tls-cert is needed, too")
    if "jwt_key" in given and "jwks" in given:
        serve.error("--jwks: there is a --jwt-key; give one of the two")
    for name in ("jwt_issuer", "jwt_audience", "guests"):
        if name in given and not tokens:
            option = "--no-guests" if name == "guests" else f"--{name.replace('_', '-')}"
            serve.error(f"{option}: nobody could log in; give --jwt-key or --jwks, too")
    options = Options(**given)
    if options.ops_port and options.uds is None and options.ops_port == options.port:
        serve.error(f"--ops-port: {options.port} is the --port already; without --ops-port both are on that one")
    return options


def _only(applications: Sequence[str], serve: argparse.ArgumentParser) -> str | None:
    """The application, checked. Not by argparse, which would take the value of an unknown option for one."""
    if len(applications) > 1:
        serve.error(f"{applications[1]!r}: there is an application already, {applications[0]}")
    try:
        return _APPLICATION.read(applications[0]) if applications else None
    except _Wrong as error:
        serve.error(str(error))


def _check_unknown(unknown: Sequence[str], parser: argparse.ArgumentParser) -> None:
    """Says which option there is not, and which one may have been meant."""
    if unknown:
        options = [option for action in parser._actions for option in action.option_strings]
        close = difflib.get_close_matches(unknown[0].partition("=")[0], options, 1)
        parser.error(f"there is no {unknown[0]}{f'; did you mean {close[0]}?' if close else ''}")


def _from_environment(setting: _Setting, environment: Mapping[str, str], serve: argparse.ArgumentParser) -> Any:
    text = environment.get(setting.variable, "")
    if not text or (setting is _PORT and text.startswith("tcp://")):
        return None  # the latter is what Kubernetes says of a service that is called street-fast
    try:
        return [setting.read(word) for word in text.split()] if setting.several else setting.read(text)
    except (_Wrong, ConfigurationError) as error:
        serve.error(f"{setting.variable}: {error}")


_PORT = _WHERE[1]


# --- the commands ---


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command; `arguments` default to those of the process."""
    parser, serve = _parser()
    parsed, unknown = parser.parse_known_args(arguments)
    _check_unknown(unknown, serve if parsed.command == "serve" else parser)
    if parsed.command == "demo":
        from street_fast import demo

        demo.run(parsed.host, parsed.port)
    else:
        _serve(options_of(parsed, os.environ, serve))


def _serve(options: Options) -> None:
    logs.set_up(options.log_format, options.log_level)
    try:
        if options.workers > 1:
            from street_fast.supervisor import supervise

            status = supervise(options)
            if status:
                raise SystemExit(status)
            return
        found = import_application(options)

        async def start() -> Serving:
            serving = await serve(options, found)
            tell(options, serving.facts)
            return serving

        run(start)
    except CannotServe as error:
        _exit(options, error, error.status, error.traceback)
    except ConfigurationError as error:
        _exit(options, error, 2)
    except ListenError as error:
        _exit(options, error, 1)
    except KeyboardInterrupt:  # while the application is imported
        raise SystemExit(130) from None


def _exit(options: Options, error: StreetError, status: int, traceback: str = "") -> NoReturn:
    if options.log_format == "json":
        logger.error("%s", error, extra={"fields": {"traceback": traceback} if traceback else {}})
    else:
        print(f"{traceback}street-fast serve: {error}", file=sys.stderr)
    raise SystemExit(status)
