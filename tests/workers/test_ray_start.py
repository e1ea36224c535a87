"""A cluster of one's own, in a process of its own: tokens, homes and folders of all kinds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

SCRIPT = """
import os
import signal
import torch
from torch import nn
from torch.nn.functional import mse_loss
from workers import HostSpec, LogicalWorker, RayHosts, Shard

shard = Shard(torch.ones(4, 3), torch.ones(4, 2))
spec = HostSpec(
    workers=(LogicalWorker(0, shard),), model=lambda: nn.Linear(3, 2), loss=mse_loss, seed=0
)
def handler(*_):
    pass

signal.signal(signal.SIGTERM, handler)
with RayHosts([spec]) as transport:
    collection = transport.collect(0, torch.zeros(8))
assert signal.getsignal(signal.SIGTERM) is handler
import ray
print(collection.refused, collection.updates[0].row.tolist())
print(os.environ.get("RAY_AUTH_MODE"), "RAY_AUTH_TOKEN" in os.environ, ray.is_initialized())
"""
NOBODY = """
import sys
from workers import HostError, ray_connection
try:
    ray_connection.connect(cpus=1, address=sys.argv[1])
except HostError as error:
    print(error)
"""
# A cluster that takes hardly any memory to be too much.
OUT_OF_MEMORY = """
import time
import ray
from workers import ray_compat

class Sleeper:
    def sleep(self):
        time.sleep(100)

ray.init(
    num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
    _system_config={"memory_usage_threshold": 0.001, "memory_monitor_refresh_ms": 100},
)
with ray_compat.hushed():
    try:
        ray.get(ray.remote(Sleeper).remote().sleep.remote())
    except ray.exceptions.RayError as error:
        print(*ray_compat.reason(error))
"""
ROW = "() [-1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0, -1.0]"


def start(**changes: str | None) -> list[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    for name, value in changes.items():
        environment.pop(name, None)
        if value is not None:
            environment[name] = value
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_where_no_cluster_is() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]  # and nobody listens
        for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}"):
            done = subprocess.run(
                [sys.executable, "-c", NOBODY, address],
                capture_output=True, text=True, timeout=240, check=True,
            )  # fmt: skip
            assert done.stdout.startswith(
                f"cannot join the Ray cluster {address}: nothing answers there: "
            )
            assert done.stdout.count("\n") == 1


def test_who_was_killed_for_memory_is_gone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", OUT_OF_MEMORY],
        capture_output=True, text=True, timeout=240, check=True,
    )  # fmt: skip
    (said,) = (line for line in done.stdout.splitlines() if "OutOfMemoryError" in line)
    assert said.endswith(" True")


def test_without_authentication() -> None:
    assert start(RAY_AUTH_MODE="disabled") == [ROW, "disabled False False"]


def test_with_a_token_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(32 * "ab")
    lines = start(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert lines == [ROW, "token False False"]


def test_where_neither_home_nor_temporary_folder_can_be_written() -> None:
    home = "/proc/nonexistent"
    row, state = start(HOME=home, TMPDIR=f"{home}/tmp")
    assert row == ROW
    # Whether tokens are on where no mode is said, the installed Ray decides.
    assert state.endswith(" True False")
