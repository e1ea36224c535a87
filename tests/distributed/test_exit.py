"""A script may end with a collective, whether or not it destroys its process group."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import torch
import torch.distributed as dist
from robust_agg import VClip
from robust_agg.distributed import RobustAllReduce

dist.init_process_group("gloo")
row = torch.full((1000,), float(dist.get_rank()))
reduction = RobustAllReduce(VClip(tau=3.0))
for _ in range(20):
    reduction(row, out=row)
{end}
"""


@pytest.mark.parametrize("end", ["", "dist.destroy_process_group()"], ids=["bare", "destroyed"])
def test_a_script_ends_well(end: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(end=end))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*torchrun, "--nproc-per-node", "4", str(script)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
