"""Where a number comes from: machine, versions and commit, in one line."""

from __future__ import annotations

import platform
import subprocess
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
        f"{platform.machine()}, {torch.get_num_threads()} threads{gpu}, torch {torch.__version__}, "
        f"Python {platform.python_version()}, commit {commit}"
    )
