"""Small runs for the tests of the experiments, and what of a run's folder must not change."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.config import RunConfig
from experiments.metrics import Metrics
from experiments.progress import Progress
from experiments.run_folder import LOCK
from experiments.simulation import LEDGER

TINY: dict[str, Any] = {
    "workers": 7,
    "byzantine": 2,
    "f": 2,
    "aggregator": ("none",),
    "estimator": ("VClip",),
    "model": "LogisticRegression",
    "rounds": 24,
    "batch_size": 8,
    "evaluate_every": 4,
    "checkpoint_every": 10,
    "transport": "inline",
}

STATEFUL: dict[str, Any] = {
    **TINY,
    "attack": "GaussianNoise(scale=3.0)",
    "estimator": ("VClip(fusion='sequential')",),
    "local_estimator": "Momentum(beta=0.9)",
    "sample": 6,
}
"""Random attack, random order of messages, random workers; memory in server and workers."""

OWN_ATTACK = '''
from __future__ import annotations

import torch

from attacks import Attack, Knowledge


class Drift(Attack):
    """Away from the honest mean, further every round."""

    knows = Knowledge.HONEST

    def __init__(self, step: float = 0.5) -> None:
        self.step = step

    def init(self, like):
        return {"distance": torch.zeros(())}

    def __call__(self, view, state, generator):
        distance = state["distance"] + self.step
        row = view.honest.mean(dim=0) - distance * torch.randn(view.dim, generator=generator)
        return row.repeat(view.byzantine, 1), {"distance": distance}
'''


def tiny(**changes: Any) -> RunConfig:
    return RunConfig(**{**TINY, **changes})


def options(config: RunConfig) -> list[str]:
    """The configuration as one writes it on the command line."""
    given: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value is not None:
            values = value if isinstance(value, tuple) else (value,)
            given += [f"--{field.name.replace('_', '-')}", *map(str, values)]
    return given


def start(*arguments: str, **settings: Any) -> subprocess.Popen[str]:
    """The command line in a process of its own, with as many threads as here."""
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        **settings,
    )


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "2", "COLUMNS": "100"}


def outcome(folder: Path) -> dict[str, Any]:
    """All files of a run's folder by name, without the times in them."""
    return {
        str(path.relative_to(folder)): _content(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LOCK
    }


def _content(path: Path) -> Any:
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text().splitlines()]
    return _timeless(json.loads(path.read_text())) if path.suffix == ".json" else path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key != "seconds"}
    return value


def rounds_done(folder: Path, training: str) -> int:
    """Lines in the ledger of a training, whole or not."""
    path = folder / training / LEDGER
    return path.read_bytes().count(b"\n") if path.exists() else 0


class CtrlC(Progress):
    """Sends this process the signal of Ctrl-C after so many rounds."""

    def __init__(self, rounds: int, console: Console | None = None) -> None:
        super().__init__(console or Console(quiet=True))
        self.left = rounds

    def advance(self, done: int, metrics: Metrics | None) -> None:
        super().advance(done, metrics)
        self.left -= 1
        if self.left == 0:
            signal.raise_signal(signal.SIGINT)


def quiet() -> Progress:
    return Progress(Console(quiet=True))
