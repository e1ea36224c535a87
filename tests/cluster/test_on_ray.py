"""The scripts on Ray: the same numbers, and through the loss of a rank."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cluster_samples import RANKS, SMALL, losses, until

from experiments.cluster.on_ray import run
from workers import ray_compat
from workers.transport import HostError

STATEFUL: dict[str, Any] = {"defence": "VClip", "bad": (1,), "flips": 0.01}


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    ray_compat.connect(cpus=RANKS)
    yield
    ray_compat.disconnect()


def rank_processes() -> list[int]:
    """Those of actors that train; Ray names them so."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if (process / "cmdline").read_bytes().startswith(b"ray::_Rank.train"):
                found.append(int(process.name))
    return found


def test_a_job_goes_on_after_a_rank_was_killed(tmp_path: Path) -> None:
    longer: dict[str, Any] = {**STATEFUL, "steps": 120, "checkpoint_every": 20}
    setting = replace(SMALL, out=tmp_path / "ray", **longer)

    def kill() -> None:
        until((setting.out / "checkpoint.safetensors").exists)
        os.kill(rank_processes()[-1], signal.SIGKILL)

    with ThreadPoolExecutor() as pool:
        killed = pool.submit(kill)
        report = run("ddp", setting, ranks=RANKS, max_restarts=1)
        killed.result()
    assert report.restarts == 1
    expected = losses(tmp_path / "here", **longer)[0]
    assert report.losses == [[step, pytest.approx(loss, abs=1e-4)] for step, loss in expected]
    assert [each.startswith("rank 1 (") for each in report.suspects] == [True]


def test_what_a_rank_raises_is_told_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"on_ray: a rank is lost: DataError: ptb: words must be"):
        run("ddp", replace(SMALL, out=tmp_path, words=10**6), ranks=RANKS)
