"""The public names are typed for those who use them: mypy --strict reads usage.py without a complaint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def run_mypy(*arguments: str) -> str:
    command = [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", "--python-version", "3.11", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[1], timeout=300, check=False)
    return result.stdout + result.stderr


def test_usage_is_clean_under_strict_mypy() -> None:
    assert run_mypy(str(HERE / "usage.py")) == ""
