"""Sweeps on real Ray that are stopped and killed: what is resumed is what was not disturbed."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sweep_samples import carried_out, rows, timeless

from experiments.cli import main
from experiments.simulation import CHECKPOINT, LEDGER
from experiments.sweeps.folder import CELLS
from experiments.sweeps.reading import read
from experiments.sweeps.work import MODEL
from robust_agg import Ledger
from robust_agg.checkpoint import load_checkpoint

KILLS = int(os.environ.get("ROBUST_AGG_KILLS", "2"))
"""How often a sweep is killed at random moments."""

LONG = """
[base]
honest = 5
f = 2
model = "LogisticRegression"
rounds = 400
batch_size = 8
evaluate_every = 50
checkpoint_every = 20

[grid]
defence = ["Mean", "VClip(fusion='sequential')"]
attack = ["none", "GaussianNoise(scale=3.0)"]
seed = [0, 1]
"""


def test_stopped_killed_and_resumed_equals_undisturbed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "long.toml"
    file.write_text(LONG)
    out = tmp_path / "out"
    command = ["sweep", str(file), "--out", str(out), "--jobs", "2"]

    # Ctrl-C, when cells have checkpoints.
    begun = pressed(lambda: len([*out.glob(f"{CELLS}/*/{CHECKPOINT}")]) == 2)
    with begun, pytest.raises(SystemExit) as ended:
        main(command)
    assert ended.value.code == 130
    said = capsys.readouterr().out
    again = re.search(r"interrupted; continue with: robust-agg (.*)\n", said)
    assert again is not None, said
    assert {row["state"] for row in rows(out)} <= {"done", "pending"}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    # kill -9, when a cell is finished and another has a checkpoint; that may be finished too before
    # its process has noticed: then once more.
    kept: dict[Path, list[dict[str, Any]]] = {}
    while not kept:
        process = started(*again[1].split())
        finished = len([*out.glob(f"{CELLS}/*/{MODEL}")])
        wait_for(
            process,
            lambda before=finished: (
                len([*out.glob(f"{CELLS}/*/{MODEL}")]) > before
                and any(0 < checkpoint_round(p) <= 100 for p in out.glob(f"{CELLS}/*/{CHECKPOINT}"))
            ),
        )
        process.kill()
        process.communicate()
        checkpoints = {
            path.parent: checkpoint_round(path) for path in out.glob(f"{CELLS}/*/{CHECKPOINT}")
        }
        kept = {cell: lines(cell)[:round] for cell, round in checkpoints.items() if round}
    assert len([*out.glob(f"{CELLS}/*/{MODEL}")]) < 8

    carried_out(read(file), out)
    for cell, before in kept.items():
        # The times in them show that these rounds were not done again.
        assert lines(cell)[: len(before)] == before
    check_equals_undisturbed(file, out, tmp_path / "undisturbed")


@pytest.mark.timeout(300 + 60 * KILLS)
def test_kills_at_random_moments_change_no_number(tmp_path: Path) -> None:
    """While it starts, trains or writes; as many as ROBUST_AGG_KILLS says, if it takes so long."""
    file = tmp_path / "long.toml"
    file.write_text(LONG.replace("400", str(300 * KILLS)))
    out = tmp_path / "out"
    moments = random.Random(KILLS)
    kills = 0
    while kills < KILLS:
        process = started("sweep", str(file), "--out", str(out), "--jobs", "2")
        try:
            said, errors = process.communicate(timeout=moments.uniform(1.0, 12.0))
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            kills += 1
        else:  # on a fast machine
            assert (process.returncode, errors) == (0, ""), said
            break
    assert kills > 0
    print(f"{kills} kills; cells finished by then: {len([*out.glob(f'{CELLS}/*/{MODEL}')])} of 8")
    carried_out(read(file), out)
    check_equals_undisturbed(file, out, tmp_path / "undisturbed")


def test_a_signal_to_all_processes_fails_no_cell(tmp_path: Path) -> None:
    """As a scheduler sends it."""
    file = tmp_path / "long.toml"
    file.write_text(LONG.replace("400", "25000"))
    out = tmp_path / "out"
    process = started("sweep", str(file), "--out", str(out), "--jobs", "2")
    wait_for(process, lambda: len([*out.glob(f"{CELLS}/*/{CHECKPOINT}")]) == 2)
    os.killpg(process.pid, signal.SIGTERM)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors == "stopping in order; once more: at once\n"
    assert "interrupted; continue with: robust-agg sweep" in said
    assert {row["state"] for row in rows(out)} == {"pending"}


def started(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", *arguments],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"},
    )


@contextmanager
def pressed(when: Callable[[], bool]) -> Iterator[None]:
    """Ctrl-C for this process, at the moment that it is time."""
    ended = threading.Event()

    def press() -> None:
        while not when():
            if ended.wait(0.01):
                return
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def wait_for(process: subprocess.Popen[str], what: Callable[[], bool]) -> None:
    while not what():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def checkpoint_round(path: Path) -> int:
    """0 where it is gone by now: its cell is finished."""
    try:
        return int(load_checkpoint(path)["server"]["round"])
    except ValueError:
        return 0


def check_equals_undisturbed(file: Path, out: Path, undisturbed: Path) -> None:
    """Tables, final parameters and ledgers, but for the times in them."""
    carried_out(read(file), undisturbed)
    assert timeless(out) == timeless(undisturbed)
    for cell in (out / CELLS).iterdir():
        same = undisturbed / CELLS / cell.name
        assert (cell / MODEL).read_bytes() == (same / MODEL).read_bytes()
        assert [without_times(line) for line in Ledger(cell / LEDGER)] == [
            without_times(line) for line in Ledger(same / LEDGER)
        ]


def lines(cell: Path) -> list[dict[str, Any]]:
    return [*Ledger(cell / LEDGER)]


def without_times(line: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name != "seconds"}
