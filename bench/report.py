"""From the figures of a run to tables: medians, spreads, ratios round by round, and the goals.

``write`` keeps a full run as results/results.json, .md and .svg and puts the same tables into docs/performance.md,
between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``. ``python bench/report.py`` does that again from the
results that are there, without measuring.
"""

from __future__ import annotations

import contextlib
import json
import re
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import picture
from programme import GOALS, LOADS, MICRO_GOALS, Goal, Load, MicroGoal
from servers import SERVERS

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

Columns = dict[str, list[float]]
Loads = dict[str, dict[str, Columns]]
Results = dict[str, Any]

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PERFORMANCE = HERE.parent / "docs" / "performance.md"
LOAD = {load.name: load for load in LOADS}
SECTIONS = {  # names of their blocks
    "servers": ("goals", "loads"),
    "realtime": ("realtime-goals", "realtime-loads"),
    "nodes": ("nodes-goals", "nodes-loads"),
}
TOLD = ("uvloop", "picows", "aiohttp", "websockets", "python-socketio", "Node.js", "socket.io")
TOLD_OF_NODES = ("uvloop", "redis", "hiredis", "nats-py", "Valkey", "nats-server", "redis-benchmark")
CALLED = {"redis": "redis-py"}
SHORT = {
    "floor": "bare C",
    "picows": "picows",
    "street_fast": "bare echo",
    "socketio": "python-socketio",
    "socketio_node": "Socket.IO",
    "realtime": "one node alone",
    "apart": "no backplane",
    "redis_benchmark": "redis-benchmark",
}
ORDER = ("machine", *SECTIONS["servers"], *SECTIONS["realtime"], "nodes-machine", *SECTIONS["nodes"], "micro")
BARE_PEER = {"redis": "bare_redis", "nats": "bare_nats"}  # by broker


def ratios(loads: Loads, load: str, server: str, base: str) -> list[float]:
    """Ours by theirs, round by round; empty if one of the two was not measured."""
    ours, theirs = loads.get(load, {}).get(server), loads.get(load, {}).get(base)
    if not ours or not theirs:
        return []
    metric = LOAD[load].metric
    return [a / b for a, b in zip(ours[metric], theirs[metric], strict=True)]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; the first column left, the others right."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" + "---:|" * (len(header) - 1)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def spread(values: Sequence[float], form: Callable[[float], str]) -> str:
    return f"{form(min(values))} – {form(max(values))}"


def number(value: float) -> str:
    """Three significant digits at least, thousands set apart."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 20 else f"{value:.2f}"


def ratio_cell(values: Sequence[float]) -> str:
    return f"{median(values):.2f}" if values else ""


def cpu_table(load: Load, loads: Loads) -> str:
    per = "connection" if load.mode == "connect" else "message"
    wire = load.section == "realtime"  # where what surrounds the data is not the same for all
    rows = []
    for name, columns in loads[load.name].items():
        cost = columns["server_us"]
        row = [SERVERS[name].label, number(median(cost)), spread(cost, number)]
        row += [ratio_cell(ratios(loads, load.name, name, base)) for base in load.bases]
        row += [number(median(columns["bytes_per_message"]))] if wire else []
        rows.append([*row, "" if load.options.get("spin") else number(median(columns["load_us"]))])
    header = ["server", f"µs per {per}", "lowest – highest", *(f"× {SHORT[base]}" for base in load.bases)]
    return table([*header, *(["bytes on the wire"] if wire else []), "load's µs"], rows)


def recover_table(load: Load, loads: Loads) -> str:
    rows = [
        [
            SERVERS[name].label,
            number(median(columns["server_us"])),
            spread(columns["server_us"], number),
            f"{median(columns['seconds']):.1f} s",
            f"{sum(columns['messages']):,.0f}",
            *(f"{sum(columns[figure]):,.0f}" for figure in ("lost", "twice", "unordered", "unrecovered")),
            number(median(columns["load_us"])),
        ]
        for name, columns in loads[load.name].items()
    ]
    header = ["server", "µs per client", "lowest – highest", "took", "messages", "lost", "twice"]
    return table([*header, "clients out of order", "clients not recovered", "load's µs"], rows)


def idle_table(load: Load, loads: Loads) -> str:
    rows = [
        [SERVERS[name].label, number(median(columns[load.metric])), spread(columns[load.metric], number)]
        for name, columns in loads[load.name].items()
    ]
    return table(["server", "bytes per connection", "lowest – highest"], rows)


def fairness_table(load: Load, loads: Loads) -> str:
    rows = [
        [
            SERVERS[name].label,
            f"{median(columns['fanout_alone_ms']):.1f} ms",
            f"{median(columns['fanout_ms']):.1f} ms",
            f"{median(columns['worst_echo_ms']):.2f} ms",
            f"{median(columns['ratio']):.3f}",
            f"{max(columns['ratio_max']):.3f}",
        ]
        for name, columns in loads[load.name].items()
    ]
    header = ["server", "broadcast alone", "broadcast", "worst echo", "part of the broadcast", "worst of all"]
    return table(header, rows)


def figure_cell(columns: Columns, figure: str) -> str:
    return number(median(columns[figure])) if figure in columns else ""


def paced_table(load: Load, loads: Loads) -> str:
    rows = []
    for name, columns in loads[load.name].items():
        bare = BARE_PEER[SERVERS[name].broker or ""]
        row = [SERVERS[name].label, number(median(columns["p50_us"])), spread(columns["p50_us"], number)]
        row += [ratio_cell(ratios(loads, load.name, name, bare)), figure_cell(columns, "p99_us")]
        processes = () if SERVERS[name].ends == "websocket" else ("publisher_us", "receiver_us")
        rows.append(row + [figure_cell(columns, figure) for figure in processes] + [""] * (2 - len(processes)))
    header = ["way", "p50 µs", "lowest – highest", "× bare client", "p99 µs", "publisher's CPU µs", "receiver's CPU µs"]
    return table(header, rows)


def rate_table(load: Load, loads: Loads) -> str:
    rows = []
    answered = load.mode == "keyed"
    figures = ("p50_us", "p99_us", "publisher_us") if answered else ("publisher_us", "receiver_us", "broker_us")
    for name, columns in loads[load.name].items():
        row = [SERVERS[name].label, number(median(columns["per_second"])), spread(columns["per_second"], number)]
        row += [ratio_cell(ratios(loads, load.name, name, base)) for base in load.bases if not answered]
        rows.append([*row, *(figure_cell(columns, figure) for figure in figures)])
    costs = ["publisher's CPU µs", "receiver's CPU µs", "broker's CPU µs"]
    header = ["way", "answered per second" if answered else "messages per second", "lowest – highest"]
    if answered:
        return table([*header, "answer after µs, p50", "p99", "nodes' CPU µs"], rows)
    return table([*header, *(f"× {SHORT[base]}" for base in load.bases), *costs], rows)


def load_tables(results: Results, section: str) -> str:
    loads: Loads = results["loads"]
    tables = {"idle": idle_table, "fairness": fairness_table, "recover": recover_table}
    tables |= {"paced": paced_table, "flood": rate_table, "keyed": rate_table}
    return "\n\n".join(
        f"### {load.title}\n\n{tables.get(load.mode, cpu_table)(load, loads)}"
        for load in LOADS
        if load.section == section and loads.get(load.name)
    )


def verdict(met: bool) -> str:
    return "yes" if met else "**no**"


def goal_row(goal: Goal, loads: Loads) -> list[str] | None:
    if goal.relative_to:
        values = ratios(loads, goal.load, goal.server, goal.relative_to)
    else:
        values = loads.get(goal.load, {}).get(goal.server, {}).get(goal.figure or LOAD[goal.load].metric, [])
    if not values:
        return None
    whole = goal.relative_to is None and (goal.limit == 0 or goal.limit > 100)
    form = "{:,.0f}".format if whole else "{:.3f}".format
    limit = f"{goal.limit:,.0f}" if whole else f"{goal.limit:.2f}"
    measured = max(values) if goal.limit == 0 else median(values)
    met = measured >= goal.limit if goal.at_least else measured <= goal.limit
    return [goal.text, f"{'≥' if goal.at_least else '≤'} {limit}", form(measured), spread(values, form), verdict(met)]


def micro_goal_row(goal: MicroGoal, micro: dict[str, dict[str, float]]) -> list[str] | None:
    if goal.numerator not in micro or goal.denominator not in micro:
        return None
    measured = micro[goal.numerator]["median"] / micro[goal.denominator]["median"]
    if goal.at_most is not None:
        return [goal.text, f"≤ {goal.at_most}", f"{measured:.2f}", "", verdict(measured <= goal.at_most)]
    assert goal.at_least is not None
    return [goal.text, f"≥ {goal.at_least}", f"{measured:.2f}", "", verdict(measured >= goal.at_least)]


def goals_table(results: Results, section: str) -> str:
    rows = [goal_row(goal, results["loads"]) for goal in GOALS if LOAD[goal.load].section == section]
    if section == "servers":
        rows += [micro_goal_row(goal, results["micro"]) for goal in MICRO_GOALS]
    return table(["goal", "must be", "median", "lowest – highest", "met"], [row for row in rows if row])


def micro_table(results: Results) -> str:
    micro = results["micro"]
    rows = []
    for name, stats in micro.items():
        each = [stats[key] / stats.get("operations", 1) for key in ("median", "q1", "q3")]
        rows.append([f"`{name.removeprefix('bench_')}`", *map(duration, each)])
    return table(["operation", "median", "lower quartile", "upper quartile"], rows) if rows else ""


def duration(seconds: float) -> str:
    for limit, unit in ((1e-6, "ns"), (1e-3, "µs"), (1.0, "ms")):
        if seconds < limit:
            return f"{number(seconds / limit * 1000)} {unit}"
    return f"{number(seconds)} s"


def machine_line(results: Results, told: Sequence[str] = TOLD) -> str:
    facts = results["machine"]
    libraries = [f"{CALLED.get(name, name)} {facts[name]}" for name in told if name in facts]
    foreign = [
        value for servers in results["loads"].values() for columns in servers.values() for value in columns["foreign"]
    ]
    return (
        f"Measured {facts['date']} on {facts['processor']}, {facts['system']}, {facts['python']}, "
        f"{', '.join(libraries)}: {results['rounds']} rounds, {results['seconds']:g} s each. Other programs and the "
        f"hypervisor took {median(foreign):.1%} of the two cores in the median measurement, "
        f"{max(foreign):.1%} in the worst."
    )


def blocks(results: Results) -> dict[str, str]:
    made = {}
    if "loads" in results:
        made["machine"] = machine_line(results)
        made["micro"] = micro_table(results)
    if "nodes" in results:
        made["nodes-machine"] = machine_line(results["nodes"], TOLD_OF_NODES)
    for section, (goals, loads) in SECTIONS.items():
        part = results.get("nodes", {}) if section == "nodes" else results
        if any(LOAD[name].section == section for name, servers in part.get("loads", {}).items() if servers):
            made |= {goals: goals_table(part, section), loads: load_tables(part, section)}
    return {name: made[name] for name in ORDER if made.get(name)}


def markdown(results: Results) -> str:
    return "\n\n".join(blocks(results).values())


def put_blocks(text: str, made: dict[str, str]) -> str:
    """Replaces what stands between the markers of each block. Raises ValueError if a marker is missing."""
    for name, block in made.items():
        begin, end = f"<!-- bench:{name} -->", f"<!-- /bench:{name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise ValueError(f"docs/performance.md needs {begin} and {end}, once each")
        head, _, rest = text.partition(begin)
        tail = rest.partition(end)[2]
        text = f"{head}{begin}\n\n{block}\n\n{end}{tail}"
    return text


def as_json(results: Results) -> str:
    """Indented, with the values of all rounds on one line."""
    text = json.dumps(results, indent=1, ensure_ascii=False)
    return re.sub(r"\[[^\[\]{}]*\]", lambda found: re.sub(r"\s+", " ", found[0]), text) + "\n"


def write(results: Results) -> None:
    """Keeps them; what was not measured this time stays as it was."""
    RESULTS.mkdir(exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        results = json.loads((RESULTS / "results.json").read_text()) | results
    (RESULTS / "results.json").write_text(as_json(results))
    (RESULTS / "results.md").write_text(f"# Results\n\n{markdown(results)}\n")
    (RESULTS / "results.svg").write_text(picture.draw(results["loads"], machine_line(results)))
    PERFORMANCE.write_text(put_blocks(PERFORMANCE.read_text(), blocks(results)))


if __name__ == "__main__":
    write(json.loads((RESULTS / "results.json").read_text()))
