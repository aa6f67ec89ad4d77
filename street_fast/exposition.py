"""From snapshots to the text that Prometheus reads.

A snapshot (`Operations.snapshot`) of another version may have other numbers than `METRICS` names: what is missing is
left out. What a backplane counts beyond those is told as ``street_fast_backplane_<name>``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from street_fast.metric_names import METRICS

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from prometheus_client import Metric as Family

    from street_fast.metric_names import Metric

__all__ = ["CONTENT_TYPE", "Snapshot", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of what `render` makes."""

Snapshot: TypeAlias = Mapping[str, Any]
Values: TypeAlias = "list[tuple[dict[str, str], float]]"

_NAMED_OF_BACKPLANE = {
    path.partition(".")[2] for metric in METRICS for path in metric.sources.values() if path.startswith("backplane.")
}
_NAMES = {metric.name.removesuffix("_total") for metric in METRICS}
_MOST_NAMES_OF_BACKPLANE = 100
_NAME = re.compile(r"[a-z][a-z0-9_]{0,60}")


def render(snapshots: Mapping[str, Snapshot]) -> bytes:
    """The snapshots, by the name of the worker, in the text format of Prometheus.

    The name is the label ``worker``; the name "" gets no label: that of a process that is alone, or of a supervisor
    beside its workers. Raises ImportError without the package prometheus-client.
    """
    from prometheus_client import CollectorRegistry, generate_latest  # an extra: only who asks needs it

    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshots(snapshots))
    return generate_latest(registry)


class _Snapshots:
    """What prometheus-client asks for its families."""

    def __init__(self, snapshots: Mapping[str, Snapshot]) -> None:
        self._snapshots = snapshots

    def collect(self) -> Iterator[Family]:
        from prometheus_client.core import (
            CounterMetricFamily,
            GaugeMetricFamily,
            HistogramMetricFamily,
            UnknownMetricFamily,
        )

        kinds = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily, "histogram": HistogramMetricFamily}
        for metric in METRICS:
            name = metric.name.removesuffix("_total")
            family = kinds[metric.kind](name, metric.help)
            for worker, snapshot in self._snapshots.items():
                labels = {"worker": worker} if worker else {}
                if metric.kind == "histogram":
                    _add_histogram(family, labels, snapshot.get(metric.sources[""]))
                    continue
                for own, value in _values(metric, snapshot):
                    family.add_sample(metric.name, {**own, **labels}, value)
            if family.samples:
                yield family
        for name in self._other_names():
            family = UnknownMetricFamily(_name_of_other(name), f"{name}, as the backplane counts it.")
            for worker, snapshot in self._snapshots.items():
                number = _number(snapshot, f"backplane.{name}")
                if number is not None:
                    family.add_sample(family.name, {"worker": worker} if worker else {}, number)
            yield family

    def _other_names(self) -> list[str]:
        """What backplanes count that no name here is for."""
        names: dict[str, None] = {}
        for snapshot in self._snapshots.values():
            counted = snapshot.get("backplane")
            for name in counted if isinstance(counted, Mapping) else ():
                known = name in _NAMED_OF_BACKPLANE or not _NAME.fullmatch(name) or _taken(name)
                if not known and _number(snapshot, f"backplane.{name}") is not None:
                    names[name] = None
        return sorted(names)[:_MOST_NAMES_OF_BACKPLANE]


def _taken(name: str) -> bool:
    return _name_of_other(name).removesuffix("_total") in _NAMES


def _name_of_other(name: str) -> str:
    if name.endswith("_ms"):
        name = f"{name.removesuffix('_ms')}_seconds"
    return f"street_fast_backplane_{name}"


def _values(metric: Metric, snapshot: Snapshot) -> Values:
    """The numbers of a metric, with the labels of each."""
    if metric.sources == {"": "about"}:
        about = snapshot.get("about")
        return [({name: str(text) for name, text in about.items()}, 1)] if about else []
    if metric.label and "" in metric.sources:
        several = _look_up(snapshot, metric.sources[""])
        pairs: Iterable[tuple[object, Any]] = ()
        if isinstance(several, Mapping):
            pairs = sorted(several.items())
        elif isinstance(several, list):
            pairs = enumerate(several)
        return [({metric.label: str(key)}, value) for key, value in pairs]
    found: Values = []
    for label, path in metric.sources.items():
        value = _number(snapshot, path)
        if value is not None:
            found.append(({metric.label: label} if label else {}, value))
    return found


def _look_up(snapshot: Snapshot, path: str) -> object:
    group, _, name = path.partition(".")
    found = snapshot.get(group)
    return found.get(name) if name and isinstance(found, Mapping) else found


def _number(snapshot: Snapshot, path: str) -> float | None:
    value = _look_up(snapshot, path)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value / 1_000 if path.endswith("_ms") else value


def _add_histogram(family: Any, labels: dict[str, str], told: object) -> None:
    if not isinstance(told, Mapping):
        return
    total = 0
    for bound, count in zip([*told["bounds"], float("inf")], told["counts"], strict=True):
        total += count
        le = "+Inf" if bound == float("inf") else repr(float(bound))
        family.add_sample(f"{family.name}_bucket", {**labels, "le": le}, total)
    family.add_sample(f"{family.name}_sum", labels, told["sum"])
    family.add_sample(f"{family.name}_count", labels, total)
