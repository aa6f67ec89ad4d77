"""Both builds beside each other: a fixture for each module that exists twice.

A benchmark that works in batches says so in ``benchmark.extra_info["operations"]``; its report is divided by that.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

if TYPE_CHECKING:
    from types import ModuleType


@pytest.fixture(params=["compiled", "pure"])
def frames(request: pytest.FixtureRequest) -> ModuleType:
    return import_module({"compiled": "street_fast._frames", "pure": "street_fast._frames_py"}[request.param])


@pytest.fixture(params=["compiled", "pure"])
def wheel_class(request: pytest.FixtureRequest) -> Any:
    return import_module({"compiled": "street_fast._wheel", "pure": "street_fast._wheel_py"}[request.param]).TimerWheel
