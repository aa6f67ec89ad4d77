"""The hot path of a publish, compiled or in pure Python: the two of `_core` go with their own `_publish`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from street_fast._core import COMPILED

__all__ = ["Outlet", "Publisher"]

if TYPE_CHECKING or COMPILED:
    from street_fast._publish import Outlet, Publisher
else:
    from street_fast._publish_py import Outlet, Publisher
