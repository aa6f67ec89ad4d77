"""What the first parameter of a handler declares, whatever kind of callable it is."""

from __future__ import annotations

import functools
import gc
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pytest

from street_fast import handler_types
from street_fast.errors import ConfigurationError
from street_fast.handler_types import declared_type, takes

if TYPE_CHECKING:
    from decimal import Decimal


class Chat(msgspec.Struct):
    text: str


class Handlers:
    def method(self, data: Chat) -> None: ...

    @classmethod
    def class_method(cls, data: Chat) -> None: ...

    @staticmethod
    def static(data: Chat) -> None: ...

    def __call__(self, data: Chat) -> None: ...


def plain(data: Chat, other: int = 0) -> None: ...


async def coroutine(data: Chat) -> None: ...


def second(hub: object, data: Chat) -> None: ...


@functools.wraps(plain)
def wrapped(*args: Any) -> None: ...


def optional(data: Chat | None) -> None: ...


def constrained(data: Annotated[int, msgspec.Meta(ge=0)]) -> None: ...


def other_annotations_are_bad(data: Chat, more: Decimal | Nowhere = 0) -> Nowhere: ...  # type: ignore  # noqa: F821, PGH003


@pytest.mark.parametrize(
    "handler",
    [
        plain,
        coroutine,
        Handlers().method,
        Handlers.class_method,
        Handlers.static,
        Handlers(),
        functools.partial(second, None),
        functools.partial(functools.partial(second), None),
        wrapped,
        other_annotations_are_bad,
    ],
)
def test_a_struct(handler: Any) -> None:
    assert declared_type(handler) is Chat


def test_other_types() -> None:
    assert declared_type(optional) == Chat | None
    assert declared_type(constrained) == Annotated[int, msgspec.Meta(ge=0)]


def untyped(data) -> None: ...  # type: ignore[no-untyped-def]


def takes_object(data: object) -> None: ...


def takes_rest(*data: Chat) -> None: ...


@pytest.mark.parametrize("handler", [untyped, takes_object, takes_rest, lambda data: None, [].append, print, dict])
def test_nothing_declared(handler: Any) -> None:
    assert declared_type(handler) is None


def test_one_code_bound_in_two_ways() -> None:
    assert declared_type(second) is None
    assert declared_type(functools.partial(second, None)) is Chat
    assert declared_type(second) is None


def test_any_is_declared_as_any() -> None:
    def anything(data: Any) -> None: ...

    assert declared_type(anything) is Any


@pytest.mark.parametrize("handler", [lambda: None, functools.partial(plain, 1, 2)])
def test_handlers_without_an_argument(handler: Any) -> None:
    with pytest.raises(ConfigurationError, match="takes no argument"):
        declared_type(handler)


def test_an_annotation_that_cannot_be_resolved_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    class Local(msgspec.Struct):
        text: str

    for _ in range(3):

        def handler(data: Local) -> None: ...

        assert declared_type(handler) is None
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "Local" in caplog.text
    assert "type=" in caplog.text


def test_annotations_that_are_no_strings() -> None:
    namespace: dict[str, Any] = {"Chat": Chat}
    exec(compile("def handler(data: Chat): ...", "x", "exec", dont_inherit=True), namespace)
    assert declared_type(namespace["handler"]) is Chat


CELL = """
from __future__ import annotations
import msgspec
class Say(msgspec.Struct): text: str
def connected():
    def say(message: Say): ...
    return say
"""


def test_code_that_is_run_again_declares_its_own_types() -> None:
    namespace: dict[str, Any] = {"__name__": "notebook"}
    handlers = []  # of clients that are still there
    for _ in range(2):
        exec(compile(CELL, "cell", "exec", dont_inherit=True), namespace)
        for _ in range(2):
            handlers.append(namespace["connected"]())
            assert declared_type(handlers[-1]) is namespace["Say"]


def test_what_is_known_of_code_goes_with_it() -> None:
    gc.collect()
    before = len(handler_types._known)
    namespace: dict[str, Any] = {"__name__": "notebook"}
    exec(compile(CELL, "cell", "exec", dont_inherit=True), namespace)
    for _ in range(3):
        declared_type(namespace["connected"]())
    assert len(handler_types._known) == before + 1
    namespace.clear()
    gc.collect()
    assert len(handler_types._known) == before


class Two:
    def method(self, one: object, two: object) -> None: ...

    @classmethod
    def class_method(cls, one: object, two: object) -> None: ...

    @staticmethod
    def static(one: object, two: object) -> None: ...

    def __call__(self, one: object, two: object) -> None: ...

    def __init__(self, one: object = 1, two: object = 2) -> None: ...


async def two(one: object, two: object) -> None: ...


def three(one: object, two: object, three: object) -> None: ...


@functools.wraps(three)
def gives_the_third(*arguments: object) -> None: ...


@functools.wraps(two)
def needs_a_third(one: object, two: object, three: object) -> None: ...


@pytest.mark.parametrize(
    "handler",
    [
        two,
        Two().method,
        Two.class_method,
        Two.static,
        Two(),
        Two,
        gives_the_third,
        functools.partial(three, 1),
        functools.partial(three, three=3),
        lambda one, two=2: None,
        lambda one, two, three=3: None,
        lambda one, two, *, three=3: None,
        lambda *arguments: None,
        lambda *arguments, **options: None,
        dict.fromkeys,
        max,
    ],
)
def test_handlers_that_take_two(handler: Any) -> None:
    assert takes(handler, 2)


@pytest.mark.parametrize(
    "handler",
    [
        three,
        needs_a_third,
        Two.method,
        functools.partial(two, 1),
        functools.partial(three),
        lambda: None,
        lambda one: None,
        lambda one=1: None,
        lambda one, two, *, three: None,
        lambda one, **options: None,
    ],
)
def test_handlers_that_do_not(handler: Any) -> None:
    assert not takes(handler, 2)
