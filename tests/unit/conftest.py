"""Both implementations of the connection layer, and a world that is turned by hand for each."""

from __future__ import annotations

import pytest

from tests.connection_harness import World, load_core
from tests.frames_harness import IMPLEMENTATIONS


@pytest.fixture(params=IMPLEMENTATIONS)
def core(request):
    return load_core(request.param)


@pytest.fixture
def world(core):
    world = World(core)
    yield world
    assert world.loop.failures == []
