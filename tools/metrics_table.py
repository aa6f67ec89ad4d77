"""Writes the table of metrics into docs/operations.md, from the names in the code.

    python tools/metrics_table.py

A test compares the file with what this would write.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "operations.md"
BEGIN, END = "<!-- metrics:begin -->\n", "<!-- metrics:end -->\n"

sys.path.insert(0, str(ROOT))
from street_fast.metric_names import METRICS, Metric  # noqa: E402


def row(metric: Metric) -> str:
    """One line of the table."""
    label = metric.label
    if not label:
        labels = ""
    elif "" in metric.sources:
        labels = f"`{label}`"
    else:
        labels = f"`{label}`: {', '.join(metric.sources)}"
    return f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |\n"


def table() -> str:
    """What stands between the marks."""
    return "\n| name | kind | label | what it tells |\n|---|---|---|---|\n" + "".join(map(row, METRICS)) + "\n"


def page() -> str:
    """The whole page, as it should be."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}{table()}{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
