"""Where a number comes from: machine, versions and commit, in one line."""

from __future__ import annotations

import platform
import subprocess
from contextlib import suppress
from pathlib import Path

import torch


def where() -> str:
    """The machine, the versions and the commit."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return (
        f"{_processor()}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, commit {commit}"
    )


def _processor() -> str:
    # What platform.processor() has is empty on many Linux systems.
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return f"{value.strip()} ({platform.machine()})"
    return platform.processor() or platform.machine()
