"""Writes docs/limits.md from the source of `Limits`: the names, defaults and reasons are there and nowhere else.

    python tools/limits_table.py

A test compares the file with what this would write.
"""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs" / "limits.md"

HEAD = """\
# Limits

Every bound of the server, with its default. The end of a name is its unit: `_s` seconds, `_bytes` bytes, `_per_second`
a rate; anything else is a count. Times are at most 1,000,000, everything else is at most 2,147,483,647. Where a type
has `None`, None switches the limit off, if nothing else is said. A number at the end says what others use.

    server = StreetWebSocketServer(limits=Limits(message_bytes=65_536, messages_per_second=None))

This file is written by `tools/limits_table.py` from `street_fast/limits.py`.
"""


def table() -> str:
    """The whole file, as it should be."""
    source = (ROOT / "street_fast" / "limits.py").read_text(encoding="utf-8")
    lines = source.splitlines()
    limits = next(node for node in ast.parse(source).body if isinstance(node, ast.ClassDef) and node.name == "Limits")
    headings = {number: line.strip(" #-") for number, line in enumerate(lines, 1) if line.strip().startswith("# --- ")}
    parts = [HEAD]
    for field, reason in zip(limits.body, limits.body[1:], strict=False):
        if not isinstance(field, ast.AnnAssign) or not isinstance(reason, ast.Expr):
            continue
        heading = headings.get(field.lineno - 1)
        if heading:
            parts.append(
                f"\n## {heading[0].upper()}{heading[1:]}\n\n| name | type | default | why, and what others do |"
            )
            parts.append("\n|---|---|---|---|\n")
        text = " ".join(ast.literal_eval(reason.value).split())
        assert field.value is not None
        default = ast.get_source_segment(source, field.value)
        kind = ast.unparse(field.annotation).replace("|", "\\|")
        parts.append(f"| `{ast.unparse(field.target)}` | `{kind}` | {default} | {text} |\n")
    return "".join(parts)


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
