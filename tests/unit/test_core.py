"""The switch between compiled and pure: all or nothing, and loud about what it does not know."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = ["_connection", "_frames", "_intake", "_publish", "_wheel"]
# An editable installation would find the extensions of its own tree for any other.
REPORT = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if not getattr(finder, "__module__", "").startswith("__editable__")]
from street_fast import _core, publishing
parts = [getattr(door, name) for door in (_core, publishing) for name in door.__all__]
modules = {part.__module__ for part in parts if hasattr(part, "__module__")}
print(_core.COMPILED, *sorted(modules))
"""


def report(root: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "STREET_FAST_PURE"}
    return subprocess.run(
        [sys.executable, "-c", REPORT],
        cwd=root,  # first on the path of -c
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_pure_is_pure_in_every_part() -> None:
    compiled, *modules = report(STREET_FAST_PURE="1").stdout.split()
    assert compiled == "False"
    assert modules == [f"street_fast.{name}_py" for name in MODULES]


@pytest.mark.skipif(os.environ.get("STREET_FAST_PURE") == "1", reason="the extensions may not be built")
def test_compiled_is_compiled_in_every_part() -> None:
    compiled, *modules = report().stdout.split()
    assert compiled == "True"
    assert modules == [f"street_fast.{name}" for name in MODULES]


def test_another_value_is_an_error() -> None:
    result = report(STREET_FAST_PURE="yes")
    assert result.returncode != 0
    assert "STREET_FAST_PURE='yes': must be 0 or 1" in result.stderr


def test_an_extension_that_is_broken_is_no_reason_to_run_pure(tmp_path: Path) -> None:
    """Only an installation without any of them is pure; half of them, or one that does not load, is an error."""
    package = tmp_path / "street_fast"
    shutil.copytree(ROOT / "street_fast", package, ignore=shutil.ignore_patterns("*.so", "*.pyd", "__pycache__"))
    assert report(tmp_path).stdout.split()[0] == "False"
    (package / "_connection.py").write_text("raise ImportError('not for this system')\n")
    assert "there in part only, _frames, _wheel, _intake, _publish missing" in report(tmp_path).stderr
    for name in ("_frames", "_wheel", "_intake", "_publish"):
        (package / f"{name}.py").touch()
    assert "not for this system" in report(tmp_path).stderr
