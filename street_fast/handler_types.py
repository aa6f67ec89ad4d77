"""What a handler says of itself: the type of data that it declares, and how many arguments it takes.

The type is the annotation of the first parameter. Handlers are mostly closures, made anew for each connection, so what
is found is kept by code object. That spares memory too: a function whose annotations are looked at keeps a dict of
them, and so `inspect.signature` is not for closures.
"""

from __future__ import annotations

import functools
import inspect
import logging
import sys
import types
import typing
import weakref
from typing import TYPE_CHECKING, Any

from street_fast.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["declared_type", "takes"]

logger = logging.getLogger("street_fast")


_Facts = dict[tuple[str, int], Any]

# By the id of a code object, for as long as it lives. Code that does the same compares equal, but compiled again it may
# mean another type by the same name.
_known: dict[int, tuple[weakref.ref[types.CodeType], _Facts]] = {}


def takes(handler: Callable[..., object], arguments: int) -> bool:
    """Whether `handler` can be called with so many arguments; also True if it does not say what it takes."""
    function: Any = handler
    if isinstance(handler, types.MethodType):
        function, arguments = handler.__func__, arguments + 1
    if isinstance(function, types.FunctionType):
        code = function.__code__
        most = code.co_argcount
        least = most - len(function.__defaults__ or ())
        keywords = code.co_kwonlyargcount - len(function.__kwdefaults__ or ())
        return least <= arguments and not keywords and (arguments <= most or bool(code.co_flags & inspect.CO_VARARGS))
    try:
        signature = inspect.signature(handler, follow_wrapped=False)
    except (TypeError, ValueError):
        return True  # written in C, perhaps
    try:
        signature.bind(*(None for _ in range(arguments)))
    except TypeError:
        return False
    return True


def declared_type(handler: Callable[..., object]) -> Any:
    """What the first parameter of `handler` is annotated with, or None.

    Each code is looked at once, however many closures are made of it. An annotation that cannot be resolved (a
    name inside another function, or under TYPE_CHECKING) is logged and counts as none. Raises ConfigurationError if
    the handler takes no argument.
    """
    bound = 0  # arguments that are there already
    while True:
        if isinstance(handler, functools.partial):
            bound += len(handler.args)
            handler = handler.func
        elif isinstance(handler, types.MethodType):
            bound += 1
            handler = handler.__func__
        elif hasattr(handler, "__wrapped__"):
            handler = handler.__wrapped__
        elif isinstance(handler, types.FunctionType):
            break
        else:
            method = getattr(type(handler), "__call__", None)  # noqa: B004
            if isinstance(handler, type) or not isinstance(method, types.FunctionType):
                return None  # a class, or something written in C: it does not say
            bound += 1
            handler = method
    code = handler.__code__
    if code.co_argcount <= bound:
        if code.co_flags & inspect.CO_VARARGS:
            return None
        raise ConfigurationError(f"handler {handler.__qualname__} takes no argument; it must take the event's data")
    known = _known_of(code)
    key = handler.__module__, bound  # the same code can be run as another module, too
    if key in known:
        return known[key]
    annotation = _annotations(handler).get(code.co_varnames[bound])
    if annotation is None or annotation is object:
        kind = None
    elif isinstance(annotation, str | typing.ForwardRef):
        kind = _resolve(handler, annotation)
    else:
        return annotation  # an object, which another closure of this code may not have
    known[key] = kind
    return kind


def _known_of(code: types.CodeType) -> _Facts:
    number, everything = id(code), _known
    known = everything.get(number)
    if known is None:
        known = everything[number] = weakref.ref(code, lambda _: everything.pop(number, None)), {}
    return known[1]


def _annotations(function: types.FunctionType) -> dict[str, Any]:
    if sys.version_info >= (3, 14):
        import annotationlib

        # They are evaluated only now; one that fails must not hide the others.
        return annotationlib.get_annotations(function, format=annotationlib.Format.FORWARDREF)
    return function.__annotations__


def _resolve(function: types.FunctionType, annotation: str | typing.ForwardRef) -> Any:
    carrier = types.FunctionType((lambda: None).__code__, function.__globals__)
    carrier.__annotations__ = {"data": annotation}
    try:
        resolved = typing.get_type_hints(carrier, include_extras=True)["data"]
    except Exception as error:
        logger.warning(
            "handler %s: the annotation %s cannot be resolved (%s), so its data is not checked; "
            "on(..., type=...) says it directly",
            function.__qualname__,
            annotation if isinstance(annotation, str) else annotation.__forward_arg__,
            error,
        )
        return None
    return None if resolved is object else resolved
