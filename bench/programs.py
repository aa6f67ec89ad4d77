"""Makes ready what is not Python, when its sources are newer: the load generator and the floor server, which need a C
compiler only, and the peers on Node.js, which are installed with npm. All of it in build/bench.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

SOURCES = Path(__file__).parent / "load"
PEERS = SOURCES.parent / "peers"
ROOT = SOURCES.parent.parent
OUT = ROOT / "build" / "bench"
PROGRAMS = {"loadgen": ("loadgen.c", "client.c", "meter.c"), "floor": ("floor.c",)}
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
NODE_SOURCES = (".npmrc", "package.json", "package-lock.json", "server.mjs")


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


def install_node_peer(name: str) -> Path | None:
    """Returns the path of its program; None, after an explanation, where there is no Node.js.

    Raises CalledProcessError with npm's own words on stderr.
    """
    wanted = subprocess.run(["sh", str(ROOT / "tools" / "install_node.sh")], check=True, stdout=subprocess.PIPE)
    if not wanted.stdout.strip():
        return None
    folder = OUT / name
    lock, installed = PEERS / name / "package-lock.json", folder / "installed-lock.json"
    folder.mkdir(parents=True, exist_ok=True)
    for source in NODE_SOURCES:
        shutil.copyfile(PEERS / name / source, folder / source)
    if not installed.exists() or installed.read_bytes() != lock.read_bytes():
        subprocess.run(
            ["npm", "--prefix", str(folder), "--loglevel=error", "ci"], check=True, stdout=subprocess.DEVNULL
        )
        shutil.copyfile(lock, installed)
    return folder / "server.mjs"
