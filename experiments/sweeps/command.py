"""``robust-agg sweep``."""

from __future__ import annotations

import os
import shlex
from dataclasses import replace
from pathlib import Path

from experiments.config import ConfigError
from experiments.console import new_console
from experiments.stopping import InterruptedRun
from experiments.studies.study import Preset
from experiments.sweeps import show
from experiments.sweeps.carry_out import Means, carry_out
from experiments.sweeps.config import SweepConfig
from experiments.sweeps.export import RESULTS
from experiments.sweeps.folder import PAGE
from experiments.sweeps.live import LiveReport
from experiments.sweeps.reading import read
from experiments.sweeps.recipes import located


def sweep(
    file: str,
    *,
    preset: Preset = "default",
    jobs: int | None = None,
    gpus: float | None = None,
    out: Path | None = None,
    stall: float = 300.0,
    retry: bool = False,
) -> int:
    """Train every combination of the values in a file, side by side, and say which defence holds.

    Ends with a leaderboard and a report, one HTML page, which follows the sweep while it runs. A
    cell that fails stops no other. Called again after Ctrl-C, kill -9 or a reboot, it does what is
    left, from the checkpoints of the cells. Exit code 3 where cells have failed.

    Parameters
    ----------
    file
        TOML or YAML: sections base, grid, tune, breakdown, published, and smoke and full of these;
        or a recipe: bucketing, byzfl, online.
    preset
        default is the file as it is; smoke and full lay the tables of these names over it.
    jobs
        Cells at a time; as many as this process has CPUs for, if not given.
    gpus
        GPUs that each cell reserves, fractions allowed: num_gpus of every cell.
    out
        The sweep's folder; runs/sweep/FILE-PRESET if not given.
    stall
        Seconds without a round after which a cell has failed.
    retry
        Do cells that have failed before again.
    """
    path = located(file)
    config = read(path, preset)
    if gpus is not None:
        config = _with_gpus(config, gpus)
    folder = Path("runs", "sweep", f"{path.stem}-{preset}") if out is None else out
    again = _command(file, preset, jobs, gpus, folder, stall)
    jobs = max(1, len(os.sched_getaffinity(0)) // _threads(config)) if jobs is None else jobs
    means = Means(jobs=jobs, stall=stall, retry=retry, preset=preset, command=again)
    console = new_console()
    shown = show.Shown(console)
    page = f"report so far, written again from time to time: {folder / PAGE}"
    live = LiveReport(folder, lambda: console.print(page, soft_wrap=True))
    console.print(f"{config.title}, {preset}: {folder}", soft_wrap=True)
    try:
        result = carry_out(config, folder, means, shown, live)
    except InterruptedRun as stopped:
        shown.stop()
        console.print(f"interrupted; continue with: {again}", soft_wrap=True)
        return 128 + stopped.number
    finally:
        shown.stop()
        live.close()
    for row in result.failed:
        if row.cell.id in shown.told:
            continue
        console.print(show.failure(row.cell, row.entry.reason or ""), soft_wrap=True, markup=False)
    done = sum(row.entry.state == "done" for row in result.rows)
    numbers = f"{done} of {len(result.rows)} cells done: {folder / RESULTS}"
    console.print(numbers, soft_wrap=True, markup=False)
    # What draws takes longer to import than Ctrl-C should wait.
    from experiments.sweeps.found import tell
    from experiments.sweeps.report.write import write

    tell(config, result, write(folder), console)
    console.print(f"report: {folder / PAGE}", soft_wrap=True, markup=False)
    return 3 if result.failed else 0


def _with_gpus(config: SweepConfig, gpus: float) -> SweepConfig:
    if "num_gpus" in {*config.grid, *config.tune}:
        raise ConfigError("gpus must not be given where the file varies num_gpus, found both")
    return replace(config, base={**config.base, "num_gpus": float(gpus)})


def _threads(config: SweepConfig) -> int:
    """Of the largest cell."""
    threads, hosts = (
        max((int(value or 1) for value in config.values_of(name)), default=1)
        for name in ("threads", "hosts")
    )
    return threads * hosts


def _command(
    file: str, preset: Preset, jobs: int | None, gpus: float | None, folder: Path, stall: float
) -> str:
    words = ["robust-agg", "sweep", file, "--preset", preset, "--out", str(folder)]
    for name, value in (("jobs", jobs), ("gpus", gpus), ("stall", stall)):
        if value is not None and (name, value) != ("stall", 300.0):
            words += [f"--{name}", f"{value:g}"]
    return shlex.join(words)
