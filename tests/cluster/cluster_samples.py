"""Small trainings, ways to start them, and what the processes of a job are."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.cluster.local import on_ranks
from experiments.cluster.setting import Setting

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


def torchrun(script: str, setting: Setting, *, restarts: int = 0) -> list[str]:
    """The command that the guide gives, for this machine."""
    return [
        sys.executable, "-m", "torch.distributed.run", "--standalone",
        f"--nproc-per-node={RANKS}", f"--max-restarts={restarts}",
        "-m", f"experiments.cluster.{script}", *options(setting),
    ]  # fmt: skip


def trained(script: str, setting: Setting) -> tuple[list[Any], list[int]]:
    """On a rank: losses, and the ranks that stood out."""
    setting.out.mkdir(parents=True, exist_ok=True)
    outcome = importlib.import_module(f"experiments.cluster.{script}").train(setting)
    return outcome.losses, [suspect.rank for suspect in outcome.suspects]


def losses(folder: Path, script: str = "ddp", **changes: Any) -> tuple[list[Any], list[int]]:
    """Those of an undisturbed training, and the ranks that stood out."""
    setting = replace(SMALL, out=folder, **changes)
    found: tuple[list[Any], list[int]] = on_ranks(RANKS, trained, script, setting)
    return found


def until(condition: Callable[[], Any], *, seconds: float = 60.0) -> Any:
    """What ``condition`` returns, once that is true."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it does not come true"
        time.sleep(0.01)
    return found


def ranks_of(parent: int) -> dict[int, int]:
    """By rank, the processes that torchrun has started; as Linux shows them."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "stat").read_text()
            if int(line.rpartition(")")[2].split()[1]) == parent:
                words = (process / "environ").read_bytes().decode().split("\0")
                settings = dict(word.split("=", 1) for word in words if "=" in word)
                if "RANK" in settings:
                    found[int(settings["RANK"])] = int(process.name)
        except OSError:  # ended in between
            continue
    return found
