"""Compiles the load generator and the floor server, when their sources are newer. Needs a C compiler only."""

from __future__ import annotations

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

SOURCES = Path(__file__).parent / "load"
OUT = SOURCES.parent.parent / "build" / "bench"
PROGRAMS = {"loadgen": ("loadgen.c", "client.c", "meter.c"), "floor": ("floor.c",)}
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")


def compile_program(name: str) -> Path:
    """Returns the path of the program. Raises CalledProcessError with the compiler's own words on stderr."""
    sources = [SOURCES / source for source in PROGRAMS[name]]
    program = OUT / name
    newest = max(path.stat().st_mtime for path in (*sources, *SOURCES.glob("*.h")))
    if not program.exists() or program.stat().st_mtime < newest:
        OUT.mkdir(parents=True, exist_ok=True)
        compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
        subprocess.run([compiler, *FLAGS, *map(str, sources), "-o", str(program)], check=True)
    return program
