"""What `street-fast serve` serves in the runs that need options no command line has.

The address of the backplane is in FAULTS_BACKPLANE.
"""

from __future__ import annotations

import os

from street_fast import History, Realtime
from street_fast.backplanes.nats import NatsBackplane
from street_fast.backplanes.redis import RedisBackplane

HISTORY = {"room:*": History(2_000, 300), "short:*": History(20, 300), "big:*": History(50, 300)}


def _url() -> str:
    return os.environ["FAULTS_BACKPLANE"]


def durable() -> Realtime:
    """Over a Redis of which it is said that it loses nothing it has answered."""
    return Realtime(history=HISTORY, backplane=RedisBackplane(_url(), durable=True))


def waiting() -> Realtime:
    """Over a Redis with a replica that has to have it, too."""
    return Realtime(history=HISTORY, backplane=RedisBackplane(_url(), durable=True, replicas=1))


def replicated() -> Realtime:
    """Over three NATS servers that all keep the history."""
    return Realtime(history=HISTORY, backplane=NatsBackplane(_url(), replicas=3))
