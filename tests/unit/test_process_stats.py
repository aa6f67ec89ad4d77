"""What the kernel and Python tell about a process."""

from __future__ import annotations

import gc
import os
import sys
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from street_fast.process_stats import gc_stats, process_stats

if TYPE_CHECKING:
    from pathlib import Path

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@linux
def test_what_linux_tells():
    told = process_stats()
    assert 0 < told["cpu_seconds"] < 100_000
    assert 5_000_000 < told["resident_memory_bytes"] < told["virtual_memory_bytes"]
    assert 0 < time.time() - told["start_time_seconds"] < 1_000_000
    assert told["max_fds"] >= told["open_fds"] > 2


@linux
def test_descriptors_are_counted():
    before = process_stats()["open_fds"]
    files = [os.open("/", os.O_RDONLY) for _ in range(20)]
    try:
        assert process_stats()["open_fds"] == before + 20
    finally:
        for file in files:
            os.close(file)
    assert process_stats()["open_fds"] == before


@linux
def test_files_of_an_older_kernel_and_a_name_with_parentheses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "self" / "fd").mkdir(parents=True)
    for name in ("0", "1", "2"):
        (tmp_path / "self" / "fd" / name).touch()
    fields = [str(number) for number in range(3, 53)]
    fields[22 - 3], fields[23 - 3], fields[24 - 3] = str(50 * os.sysconf("SC_CLK_TCK")), "9000", "7"
    (tmp_path / "self" / "stat").write_text(f"17 (a ) b) {' '.join(fields)}\n")
    (tmp_path / "stat").write_text("cpu 1 2\nbtime 1000\n")
    monkeypatch.setattr(os, "stat", lambda path: SimpleNamespace(st_size=0))
    told = process_stats(tmp_path)
    assert told["start_time_seconds"] == 1_050
    assert told["virtual_memory_bytes"] == 9_000
    assert told["resident_memory_bytes"] == 7 * os.sysconf("SC_PAGE_SIZE")
    assert told["open_fds"] == 3


@pytest.mark.parametrize("text", [None, "", "1 (x) S 1", "nonsense"])
def test_where_there_is_no_proc_the_rest_is_told(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "self").mkdir()
        (tmp_path / "self" / "stat").write_text(text)
        (tmp_path / "stat").write_text("cpu 1\n")
    told = process_stats(tmp_path)
    assert "cpu_seconds" in told
    assert "resident_memory_bytes" not in told
    assert "open_fds" not in told


def test_the_garbage_collector_is_counted_by_generation():
    before = gc_stats()
    gc.collect()
    after = gc_stats()
    assert after["collections"][2] == before["collections"][2] + 1
    assert len(after["collected"]) == len(after["uncollectable"]) == 3
