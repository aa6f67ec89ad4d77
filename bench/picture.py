"""The results as one SVG: a panel of horizontal bars per load, drawn by hand, readable on light and dark pages."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from html import escape
from statistics import median

from servers import SERVERS

WIDTH = 1080
MARGIN = 28
GUTTER = 36
LABEL = 196  # width of the servers' names
VALUE = 60  # room for the figure behind the longest bar
BAR, STEP = 16, 25
HEAD = 92
PANEL_HEAD = 50

OURS, OURS_SOFT, PEER, FLOOR = "#0f766e", "#7cc4bb", "#b3bac4", "#334155"
COLOURS = dict.fromkeys(("street_fast", "hub", "socket", "realtime", "history"), OURS)
COLOURS |= {"floor": FLOOR, "pure": OURS_SOFT}

TITLE = "What a message costs the server"
SUBTITLE = (
    "CPU time of the server's process, user and system. Shorter is better; "
    "the dashed line is a bare C loop with one send() per recipient."
)

STYLE = """
text { font-family: system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1f2937; }
.title { font-size: 22px; font-weight: 600; }
.subtitle, .note { font-size: 13px; fill: #5b6675; }
.panel { font-size: 15px; font-weight: 600; }
.label, .value { font-size: 13px; }
.ours { font-weight: 600; }
.value { paint-order: stroke; stroke: #fff; stroke-width: 5px; stroke-linejoin: round; }
"""


@dataclass(frozen=True)
class Panel:
    load: str
    metric: str
    title: str
    unit: str
    scale: float = 1.0


PANELS = (
    Panel("broadcast", "server_us", "Broadcast to 1,000, one at a time", "µs per delivery"),
    Panel("burst", "server_us", "Broadcast to 1,000, bursts of 16", "µs per delivery"),
    Panel("echo", "server_us", "Echo, 200 connections, 1 in flight", "µs per message"),
    Panel("pipelined", "server_us", "Echo, 200 connections, 16 in flight", "µs per message"),
    Panel("idle", "bytes_per_connection", "Memory of an idle connection, 10,000 open", "KB of the process", 1e-3),
    Panel("fairness", "worst_echo_ms", "Longest wait of an echo during a broadcast to 10,000", "ms"),
    Panel("publish", "server_us", "Realtime: one publish to 1,000", "µs per delivery"),
    Panel("rooms", "server_us", "Realtime: 1,000 rooms of 10", "µs per delivery"),
)


def text(x: float, y: float, content: str, kind: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(content)}</text>'


def rectangle(x: float, y: float, width: float, height: float, fill: str, radius: float = 2) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius:g}" fill="{fill}"/>'


def draw_panel(panel: Panel, rows: dict[str, list[float]], left: float, top: float, width: float) -> list[str]:
    """Bars of medians; the dark line in a bar runs from the lowest to the highest round."""
    parts = [text(left, top + 16, panel.title, "panel"), text(left, top + 34, panel.unit, "note")]
    room = width - LABEL - VALUE
    largest = max(max(values) for values in rows.values()) * panel.scale or 1.0
    start = left + LABEL
    if "floor" in rows:
        x = start + room * median(rows["floor"]) * panel.scale / largest
        bottom = top + PANEL_HEAD + (len(rows) - 1) * STEP + BAR + 4
        parts.append(
            f'<path d="M{x:.1f} {top + PANEL_HEAD - 4:.1f}V{bottom:.1f}" stroke="{FLOOR}" stroke-dasharray="3 3"/>'
        )
    y = top + PANEL_HEAD
    for name, values in rows.items():
        middle, low, high = (f(values) * panel.scale for f in (median, min, max))
        ours = " ours" if COLOURS.get(name) == OURS else ""
        parts.append(text(start - 8, y + 12.5, SERVERS[name].label, f"label{ours}", "end"))
        parts.append(rectangle(start, y, max(1.5, room * middle / largest), BAR, COLOURS.get(name, PEER)))
        if high > low:
            centre = y + BAR / 2
            parts.append(
                f'<path d="M{start + room * low / largest:.1f} {centre:.1f}H{start + room * high / largest:.1f}" '
                'stroke="#111827" stroke-opacity=".45" stroke-width="1.5"/>'
            )
        shown = f"{middle:,.1f}" if middle >= 10 else f"{middle:.2f}"
        parts.append(text(start + room * high / largest + 7, y + 12.5, shown, f"value{ours}"))
        y += STEP
    return parts


def draw(loads: dict[str, dict[str, dict[str, list[float]]]], facts: str) -> str:
    """The whole picture; ``facts`` stands below it."""
    width = (WIDTH - 2 * MARGIN - GUTTER) / 2
    body: list[str] = []
    top: float = HEAD
    shown = [panel for panel in PANELS if loads.get(panel.load)]
    for i in range(0, len(shown), 2):
        tallest = 0
        for column, panel in enumerate(shown[i : i + 2]):
            servers = loads[panel.load]
            rows = {name: columns[panel.metric] for name, columns in servers.items() if meaningful(panel, name)}
            body += draw_panel(panel, rows, MARGIN + column * (width + GUTTER), top, width)
            tallest = max(tallest, len(rows))
        top += PANEL_HEAD + tallest * STEP + 26
    notes = textwrap.wrap(facts, 150)
    height = top + 18 * len(notes) + 12
    body += [text(MARGIN, top + 10 + 18 * i, line, "note") for i, line in enumerate(notes)]
    heading = [text(MARGIN, 40, TITLE, "title"), text(MARGIN, 64, SUBTITLE, "subtitle")]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
            f'height="{height:.0f}" role="img" aria-label="{TITLE}, by library">',
            f"<style>{STYLE}</style>",
            rectangle(0.5, 0.5, WIDTH - 1, height - 1, "#ffffff", 10),
            *heading,
            *body,
            "</svg>\n",
        ]
    )


def meaningful(panel: Panel, name: str) -> bool:
    """Bare C keeps nothing for an idle connection that could be compared."""
    return not (panel.load == "idle" and name == "floor")
