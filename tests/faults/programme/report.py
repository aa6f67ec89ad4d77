"""The table of all runs, for the terminal and for docs/operations.md."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.faults.programme.faults import FAULTS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from tests.faults.programme.run import Outcome

BEGIN, END = "<!-- faults:begin -->", "<!-- faults:end -->"
SHOWN = {
    "resumed_history_s": "resumed {:.2f} s",
    "resumed_live_s": "without history {:.2f} s",
    "left_s": "left after {:.1f} s",
    "refused": "refused {:.0f}",
    "broken_handshakes": "broken handshakes {:.0f}",
    "restart_s": "restart took {:.0f} s",
    "acknowledged_per_s_before": "{:,.0f} acknowledged/s before it",
    "acknowledged_per_s": "{:,.0f} during it",
    "cut_by_the_broker": "cut {:.0f} times",
}
COUNTS = ("acknowledged", "owed", "once", "flagged", "repeated", "twice", "silent")


def rows(by_fault: Mapping[str, Sequence[Outcome]]) -> list[list[str]]:
    """Head and rows, as text."""
    head = [
        "fault",
        "runs",
        *COUNTS,
        "out of order",
        "without history: arrived, flagged, not promised, again",
        "the slowest run",
    ]
    found = [head]
    for fault, outcomes in by_fault.items():
        verdicts = [outcome.verdict for outcome in outcomes]
        counts = [f"{sum(getattr(verdict, name) for verdict in verdicts):,}" for name in COUNTS]
        wrong = sum(verdict.jumps + verdict.disorder + verdict.mixed + verdict.forked for verdict in verdicts)
        live = [
            sum(getattr(v, f"live_{name}") for v in verdicts) for name in ("once", "flagged", "unpromised", "repeated")
        ]
        figures = []
        for name, form in SHOWN.items():
            values = [outcome.figures[name] for outcome in outcomes if name in outcome.figures]
            if values:
                figures.append(form.format(min(values) if name.startswith("acknowledged") else max(values)))
        failed = sum(not outcome.good for outcome in outcomes)
        runs = str(len(outcomes)) if not failed else f"{len(outcomes)}, {failed} FAILED"
        live_text = ", ".join(f"{number:,}" for number in live)
        found.append([fault, runs, *counts, str(wrong), live_text, ", ".join(figures)])
    return found


def terminal(by_fault: Mapping[str, Sequence[Outcome]]) -> str:
    """In columns."""
    lines = rows(by_fault)
    lines[0][-2] = "live"
    lines[0][-1] = ""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if column in (0, len(widths) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def table(by_fault: Mapping[str, Sequence[Outcome]]) -> str:
    """Markdown: the figures, and what each fault is."""
    head, *lines = rows(by_fault)
    text = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    text += [f"| {' | '.join(line)} |" for line in lines]
    text += ["", *(f"- `{name}`: {what(name)}" for name in by_fault)]
    return "\n".join(text)


def what(name: str) -> str:
    """What a fault is, in a line."""
    return (FAULTS[name].__doc__ or "").strip()


def write_between_markers(path: Path, text: str) -> None:
    """Replaces what is between the markers. Raises ValueError if they are not there."""
    whole = path.read_text("utf-8")
    before, begin, rest = whole.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path}: has no {BEGIN} with an {END} behind it")
    path.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", "utf-8")
