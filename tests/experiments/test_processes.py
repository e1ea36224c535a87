"""Ranks that are processes of this machine: their answers, and their end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from experiments.processes import LocalError, on_ranks

PARENT = """
import runpy
import sys
from experiments.processes import on_ranks

if __name__ == "__main__":
    on_ranks(2, runpy.run_path, sys.argv[1])
"""
RANK = """
import os, pathlib, time
pathlib.Path(__file__).with_name(f"rank {os.getpid()}").touch()
time.sleep(600)
"""


def test_every_rank_answers() -> None:
    assert on_ranks(2, dist.get_rank) == [0, 1]


def test_what_cannot_be_sent_is_told() -> None:
    with pytest.raises(LocalError, match=r"^rank 0: TypeError: cannot pickle '_thread\.lock'"):
        on_ranks(1, threading.Lock)


def test_ranks_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "parent.py").write_text(PARENT)
    (tmp_path / "script.py").write_text(RANK)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "parent.py", tmp_path / "script.py"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [os.getcwd(), *sys.path]))},
    )
    end = time.monotonic() + 60
    try:
        while len(ranks := [int(p.name.split()[1]) for p in tmp_path.glob("rank *")]) < 2:
            assert time.monotonic() < end
            time.sleep(0.02)
    finally:
        parent.send_signal(signal.SIGKILL)
        parent.wait()
    while any(runs(rank) for rank in ranks):
        assert time.monotonic() < end
        time.sleep(0.02)


def runs(process: int) -> bool:
    """Whether a process is there, and not only its name."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
