"""A backplane by its address."""

from __future__ import annotations

import builtins
import sys

import pytest

from street_fast.backplanes.urls import backplane_at, without_password
from street_fast.errors import ConfigurationError


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://localhost", "redis://localhost"),
        ("redis://:secret@localhost:6379/0", "redis://localhost:6379/0"),
        ("nats://me:secret@a:4222,you:p@ss@b", "nats://a:4222,b"),
        ("nats://token@a", "nats://a"),
        ("me:secret@localhost", "..."),
        ("", ""),
    ],
)
def test_no_password_is_shown(url, shown):
    assert without_password(url) == shown


@pytest.mark.parametrize("url", ["", "localhost", "http://a", "redis:/a", "REDIS://a", "redis//a"])
def test_what_is_no_address_of_a_broker_is_refused(url):
    with pytest.raises(ConfigurationError, match="must be the address of a Redis"):
        backplane_at(url)


@pytest.mark.parametrize(
    ("url", "library", "extra"), [("redis://localhost", "redis", "redis"), ("nats://localhost", "nats", "nats")]
)
def test_a_library_that_is_not_there_is_named(monkeypatch, url, library, extra):
    for name in [*sys.modules]:
        if name.partition(".")[0] == library or name.startswith(f"street_fast.backplanes.{library}"):
            monkeypatch.delitem(sys.modules, name)
    imported = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == library:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigurationError, match=rf"{library} is not installed; pip install 'street_fast\[{extra}\]'"):
        backplane_at(url)


@pytest.mark.parametrize("url", ["redis://localhost", "nats://localhost"])
def test_the_rest_is_for_the_backplane_to_look_at(url):
    assert not backplane_at(url).health().ok
