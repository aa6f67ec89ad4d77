"""The application that ``street-fast serve`` is to serve: ``module:attribute``, and what can be wrong with it.

It is a Realtime, an HttpServer, or a function, a coroutine function too, that returns one. The module is imported
before there is an event loop, the function is called in it. What fails is a `CannotServe` with one sentence, and with
the traceback of the application if there is one, without the frames of whoever called it.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
import traceback
from typing import TYPE_CHECKING

from street_fast.http_server import HttpServer
from street_fast.options import CannotServe
from street_fast.realtime import Realtime
from street_fast.server import StreetWebSocketServer

if TYPE_CHECKING:
    from street_fast.options import Options

__all__ = ["import_application", "made"]


def import_application(options: Options) -> object:
    """The attribute that the application is, imported; None if there is none. Raises CannotServe."""
    if options.application is None:
        return None
    folder = os.path.abspath(options.app_dir or os.getcwd())
    if folder not in sys.path[:1]:
        sys.path.insert(0, folder)
    name, _, attribute = options.application.partition(":")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _failed(f"{name} cannot be imported: {error}", error) from None
        raise CannotServe(
            f"there is no module {error.name!r} in {folder} or where Python looks else; --app-dir names another folder"
        ) from None
    except SystemExit as error:
        raise _failed(f"{name} ends the process while it is imported (SystemExit: {error.code})", error) from None
    except Exception as error:
        raise _failed(f"{name} cannot be imported: {type(error).__name__}: {error}", error) from None
    found: object = module
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            close = difflib.get_close_matches(part, [known for known in dir(found) if known[:1] != "_"], 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise CannotServe(f"module {name!r} has no {attribute!r}{hint}") from None
    if not (isinstance(found, Realtime | HttpServer) or _is_factory(found)):
        raise CannotServe(_wrong_kind(options.application, "is", found))
    return found


def _is_factory(found: object) -> bool:
    return callable(found) and not _is_asgi(found)


def _is_asgi(found: object) -> bool:
    kinds = {base.__module__.partition(".")[0] for base in type(found).__mro__}
    return bool(kinds & {"starlette", "fastapi", "aiohttp"})


def _wrong_kind(application: str, verb: str, found: object) -> str:
    kind = type(found).__name__
    hint = ""
    if isinstance(found, StreetWebSocketServer):
        hint = "; attach it to an HttpServer, with its handler, and name that one"
    elif _is_asgi(found):
        hint = "; run it with its own server, and attach a Realtime to that"
    what = "None" if found is None else f"{'an' if kind[0] in 'aeiouAEIO' else 'a'} {kind}"
    return f"{application} {verb} {what}: must be a Realtime, an HttpServer, or a function that returns one{hint}"


async def made(application: str, found: object) -> Realtime | HttpServer:
    """What is to be served; calls the function, if it is one."""
    if isinstance(found, Realtime | HttpServer):
        return found
    assert callable(found)
    try:
        made = found()
        if inspect.isawaitable(made):
            made = await made
    except Exception as error:
        raise _failed(f"{application}() failed: {type(error).__name__}: {error}", error) from None
    if not isinstance(made, Realtime | HttpServer):
        raise CannotServe(_wrong_kind(f"{application}()", "returned", made))
    return made


def _failed(problem: str, error: BaseException) -> CannotServe:
    return CannotServe(problem, _traceback_of(error))


def _traceback_of(error: BaseException) -> str:
    """Without the frames of this module and of the import system: those of the application are left, if any."""
    told = traceback.TracebackException.from_exception(error)
    seen: traceback.TracebackException | None = told
    while seen is not None:
        seen.stack = traceback.StackSummary.from_list([f for f in seen.stack if not _is_ours(f.filename)])
        seen = seen.__cause__ or seen.__context__
    return "".join(told.format()) if told.stack or isinstance(error, SyntaxError) else ""


def _is_ours(filename: str) -> bool:
    return filename in (__file__, importlib.__file__) or filename.startswith("<frozen importlib")
