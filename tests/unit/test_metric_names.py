"""The names keep the rules that ``promtool check metrics`` has, and ours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from street_fast.metric_names import METRICS, Metric

UNITS = ("_seconds", "_bytes")
NOT_BASE_UNITS = re.compile(
    r"(_|^)(ms|millis|milliseconds|microseconds|minutes|hours|kb|mb|kilobytes|percent|bits)(_|$)"
)
SUFFIXES = ("_total", "_count", "_sum", "_bucket", "_created")


def test_no_name_is_there_twice():
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_name_says_its_kind_and_its_unit(metric: Metric) -> None:
    name = metric.name
    assert re.fullmatch(r"(street_fast|process|python_gc)_[a-z_]+[a-z]", name)
    assert not NOT_BASE_UNITS.search(name)
    assert metric.kind in {"counter", "gauge", "histogram"}
    assert name.endswith("_total") == (metric.kind == "counter")
    assert not name.removesuffix("_total").endswith(SUFFIXES)
    assert not re.search(r"(_|^)(counter|gauge|histogram|summary)(_|$)", name)
    for path in metric.sources.values():
        if path.endswith(("_ms", "_seconds")):
            assert "_seconds" in name, path
        if "bytes" in path:
            assert "_bytes" in name, path


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_a_metric_explains_itself(metric: Metric) -> None:
    assert metric.help[0].isupper() or metric.help[0] == "1"
    assert metric.help.endswith(".")
    assert "\n" not in metric.help


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_labels_are_few_and_no_strangers(metric: Metric) -> None:
    assert metric.label in {"", "transport", "cause", "code", "result", "generation", "direction", "kind"}
    assert len(metric.sources) <= 8
    if not metric.label:
        assert set(metric.sources) == {""}
    for value in metric.sources:
        assert re.fullmatch(r"[a-z_]*", value)


def test_the_page_has_the_table_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[2] / "tools")
    from metrics_table import BEGIN, END, PAGE, page

    text = PAGE.read_text(encoding="utf-8")
    assert text.count(BEGIN) == text.count(END) == 1
    assert text == page(), "run tools/metrics_table.py"
