"""Small trainings, ways to start them, and what the processes of a job are."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.cluster.setting import Setting
from experiments.processes import on_ranks
from robust_agg.distributed import Suspect

RANKS = 3
SMALL = Setting(
    words=200, columns=8, length=10, lr=0.1, steps=24, validation_words=640, evaluate_every=8,
    checkpoint_every=100, timeout=20.0,
)  # fmt: skip


def options(setting: Setting) -> list[str]:
    """Those of the command line that make a setting of the default one."""
    default, found = Setting(), []
    for name, value in vars(setting).items():
        if value != getattr(default, name):
            values = value if isinstance(value, tuple) else (value,)
            found += [f"--{name.replace('_', '-')}", *map(str, values)]
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def agents(script: str, setting: Setting, *ranks: int, restarts: int) -> list[list[str]]:
    """The commands that the guide gives for machines with so many ranks each, all on this one."""
    port = free_port()
    return [
        [
            sys.executable, "-m", "torch.distributed.run", f"--nnodes={len(ranks)}",
            f"--nproc-per-node={count}", f"--max-restarts={restarts}", "--rdzv-backend=c10d",
            f"--rdzv-endpoint=127.0.0.1:{port}", "--local-addr=127.0.0.1",
            "-m", f"experiments.cluster.{script}", *options(setting),
        ]
        for count in ranks
    ]  # fmt: skip


@contextmanager
def by_hand(script: str, setting: Setting, ranks: int) -> Iterator[list[subprocess.Popen[str]]]:
    """The ranks of a training, as any launcher may start them."""
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    world |= {"WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks)}
    begun = [
        subprocess.Popen(
            [sys.executable, "-m", f"experiments.cluster.{script}", *options(setting)],
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        yield begun
    finally:
        for rank in begun:
            rank.kill()
            rank.communicate()


def trained(script: str, setting: Setting) -> tuple[list[Any], list[Suspect]]:
    """On a rank: losses, and the ranks that stood out."""
    setting.out.mkdir(parents=True, exist_ok=True)
    outcome = importlib.import_module(f"experiments.cluster.{script}").train(setting)
    return outcome.losses, outcome.suspects


def training(
    folder: Path, script: str = "ddp", *, ranks: int = RANKS, **changes: Any
) -> tuple[list[Any], list[Suspect]]:
    """Losses of an undisturbed one, and the ranks that stood out."""
    setting = replace(SMALL, out=folder, **changes)
    found: tuple[list[Any], list[Suspect]]
    found, *_ = on_ranks(ranks, trained, script, setting)
    return found


def losses(folder: Path, script: str = "ddp", **changes: Any) -> list[Any]:
    """Those of an undisturbed training."""
    return training(folder, script, **changes)[0]


def until(condition: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    """What ``condition`` returns, once that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.01)
    return found


def children(parent: int) -> list[int]:
    """The processes that a process has started; as Linux shows them."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # ended in between
            line = (process / "stat").read_text()
            if int(line.rpartition(")")[2].split()[1]) == parent:
                found.append(int(process.name))
    return found


def ranks_of(parent: int) -> dict[int, int]:
    """By rank, the processes that torchrun has started."""
    found = {}
    for process in children(parent):
        with suppress(OSError):
            words = Path(f"/proc/{process}/environ").read_bytes().decode().split("\0")
            settings = dict(word.split("=", 1) for word in words if "=" in word)
            if "RANK" in settings:
                found[int(settings["RANK"])] = process
    return found
