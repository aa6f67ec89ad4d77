"""The text for Prometheus: what its own parser makes of it, and the rules of ``promtool check metrics``."""

from __future__ import annotations

import re
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from street_fast.exposition import render
from street_fast.metric_names import METRICS


def snapshot(**groups: Any) -> dict[str, Any]:
    """One with every number that has a name; each is another one."""
    told: dict[str, Any] = {}
    number = 0
    for metric in METRICS:
        for path in metric.sources.values():
            number += 1
            group, _, name = path.partition(".")
            if name:
                told.setdefault(group, {})[name] = number
            else:
                told[group] = number
    told |= {
        "about": {"version": "1.2", "python": "3.11", "build": "compiled"},
        "closed": {"1000": 5, "other": 1},
        "fan_out": {"bounds": [0.001, 0.1], "counts": [3, 2, 1], "sum": 0.75},
        "gc": {"collections": [7, 8, 9], "collected": [4, 5, 6], "uncollectable": [0, 0, 0]},
    }
    return told | groups


def samples(text: bytes) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"twice: {key}"
            found[key] = sample.value
    return found


def test_every_name_is_told_with_its_kind_and_its_help():
    told = {family.name: family for family in text_string_to_metric_families(render({"": snapshot()}).decode())}
    assert set(told) == {metric.name.removesuffix("_total") for metric in METRICS}
    for metric in METRICS:
        family = told[metric.name.removesuffix("_total")]
        assert family.type == metric.kind
        assert family.documentation == metric.help
        assert family.samples


def test_every_number_comes_from_its_place():
    one = snapshot()
    told = samples(render({"": one}))
    for metric in METRICS:
        for label, path in metric.sources.items():
            group, _, name = path.partition(".")
            number = one[group].get(name) if name else one[group]
            if isinstance(number, int):
                labels = ((metric.label, label),) if label else ()
                assert told[metric.name, labels] == (number / 1_000 if path.endswith("_ms") else number), metric.name
    assert told["street_fast_info", (("build", "compiled"), ("python", "3.11"), ("version", "1.2"))] == 1
    assert told["street_fast_connections_closed_total", (("code", "1000"),)] == 5
    assert told["street_fast_connections_closed_total", (("code", "other"),)] == 1
    assert told["python_gc_collections_total", (("generation", "2"),)] == 9


def test_a_histogram_is_cumulative():
    told = samples(render({"": snapshot()}))
    name = "street_fast_fan_out_seconds"
    assert [told[f"{name}_bucket", (("le", le),)] for le in ("0.001", "0.1", "+Inf")] == [3, 5, 6]
    assert told[f"{name}_count", ()] == 6
    assert told[f"{name}_sum", ()] == 0.75


def test_workers_are_told_apart_and_their_supervisor_has_no_label():
    supervisor = {"supervisor": {"workers": 2, "restarts": 1}}
    text = render({"0": snapshot(ready=1), "1": snapshot(ready=0), "": supervisor})
    told = samples(text)
    assert told["street_fast_ready", (("worker", "0"),)] == 1
    assert told["street_fast_ready", (("worker", "1"),)] == 0
    assert ("street_fast_ready", ()) not in told
    assert told["street_fast_workers", ()] == 2
    assert told["street_fast_connections", (("transport", "sse"), ("worker", "1"))] > 0
    assert told["street_fast_fan_out_seconds_bucket", (("le", "+Inf"), ("worker", "1"))] == 6
    assert text.count(b"# TYPE street_fast_ready ") == 1


def test_what_is_missing_or_strange_is_left_out():
    assert render({}) == render({"0": {}}) == b""
    strange = snapshot(backplane=None, loop={"messages_in": "many", "bytes_in": True}, closed=7, fan_out=[1], gc={})
    told = samples(render({"": strange}))
    assert ("street_fast_sessions", ()) in told
    for name in ("street_fast_messages_received_total", "street_fast_received_bytes_total"):
        assert not [key for key in told if key[0] == name]


def test_what_a_backplane_counts_beyond_the_names_is_told_too():
    one = {"backplane": {"up": 1, "pigeons": 3, "probe_ms": 40, "Bad name": 1, "who": "me", "ok": True, 'x"\n': 1}}
    told = samples(render({"": one, "1": {"backplane": {"pigeons": 4}}}))
    assert told == {
        ("street_fast_backplane_up", ()): 1,
        ("street_fast_backplane_pigeons", ()): 3,
        ("street_fast_backplane_pigeons", (("worker", "1"),)): 4,
        ("street_fast_backplane_probe_seconds", ()): 0.04,
    }
    taken = {"lag_ms": 5, "gaps_total": 1, "gaps": 2}  # the first two have the names of other numbers
    assert samples(render({"": {"backplane": taken}})) == {("street_fast_backplane_gaps_total", ()): 2}
    many = {f"name_{number}": number for number in range(1_000)}
    assert len(samples(render({"": {"backplane": many}}))) == 100


def test_the_text_keeps_the_rules_of_the_format():
    lines = render({"0": snapshot(), "1": snapshot()}).decode().split("\n")
    assert lines.pop() == ""
    name = ""
    seen = set()
    for line in lines:
        if line.startswith("# HELP "):
            name = line.split()[2]
            assert name not in seen
            seen.add(name)
        elif line.startswith("# TYPE "):
            assert line.split()[2] == name
        else:
            assert re.fullmatch(r'[a-z_]+(_bucket|_sum|_count)?(\{([a-z]+="[^"\\]*",?)+\})? [0-9.e+-]+', line)
            assert line.startswith(name)
