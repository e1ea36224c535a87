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
from cluster_samples import RANKS, SMALL, children, losses, until

from experiments.cluster import checkpoint
from experiments.cluster.on_ray import run
from experiments.config import ConfigError
from experiments.data import DataError
from workers import ray_connection
from workers.transport import HostError

STATEFUL: dict[str, Any] = {"defence": "VClip", "bad": (1,), "flips": 0.01}


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    ray_connection.connect(cpus=RANKS)
    yield
    ray_connection.disconnect()


def rank_processes() -> list[int]:
    """Those of this cluster's actors that train; Ray names them so."""
    found = []
    for raylet in children(os.getpid()):
        for process in children(raylet):
            with suppress(OSError):
                if Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::_Rank.train"):
                    found.append(process)
    return found


def test_a_job_goes_on_after_a_rank_was_killed(tmp_path: Path) -> None:
    longer: dict[str, Any] = {**STATEFUL, "steps": 120, "checkpoint_every": 20}
    setting = replace(SMALL, out=tmp_path / "ray", **longer)

    def kill() -> None:
        until((setting.out / checkpoint.NAME).exists)
        os.kill(rank_processes()[-1], signal.SIGKILL)

    with ThreadPoolExecutor() as pool:
        killed = pool.submit(kill)
        report = run("ddp", setting, ranks=RANKS, max_restarts=1)
        killed.result()
    assert report.restarts == 1
    expected = losses(tmp_path / "here", **longer)
    assert report.losses == [[step, pytest.approx(loss, abs=1e-4)] for step, loss in expected]
    assert [each.startswith("rank 1 (") for each in report.suspects] == [True]


def test_what_a_new_start_would_not_help_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^ptb: words must be"):
        run("ddp", replace(SMALL, out=tmp_path, words=10**6), ranks=1, max_restarts=3)
    with pytest.raises(ConfigError, match=r"bad must be ranks in \[0, 3\), found \(3,\)"):
        run("ddp", replace(SMALL, out=tmp_path, bad=(3,)), ranks=RANKS)


def test_a_cluster_without_room_is_an_error(tmp_path: Path) -> None:
    found = "on_ray: rank 0 did not start within 1 s; has the cluster the resources"
    with pytest.raises(HostError, match=found):
        run("ddp", replace(SMALL, out=tmp_path), ranks=1, num_gpus=5, start_timeout=1.0)
