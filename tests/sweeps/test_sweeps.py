"""Sweeps on real Ray: what they leave, and bad cells that are alone with what they do."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from sweep_samples import BASE, Told, carried_out, rows, small, timeless
from torch import nn

from experiments import assembly, provenance
from experiments.config import ConfigError
from experiments.data import load
from experiments.metrics import METRICS, Metrics, read_metrics
from experiments.run_folder import CONFIG, LOCK, locked
from experiments.simulation import CHECKPOINT, LEDGER
from experiments.sweeps import carry_out as carrying
from experiments.sweeps.cells import run_config
from experiments.sweeps.config import Breakdown, Published
from experiments.sweeps.export import BREAKDOWN, CURVES, RESULTS
from experiments.sweeps.folder import CELLS, SWEEP
from experiments.sweeps.known import Tally
from experiments.sweeps.outcome import TIME
from experiments.sweeps.pool import Pool, Watch
from experiments.sweeps.report.cells import read as read_folder
from experiments.sweeps.report.content import compose
from experiments.sweeps.store import FILE
from experiments.sweeps.work import MODEL, STARTED, train
from robust_agg import Ledger, __version__
from robust_agg.checkpoint import load_checkpoint
from workers import ray_connection
from workers.transport import HostError


@pytest.fixture(scope="module", autouse=True)
def ray_cluster() -> Iterator[None]:
    ray_connection.connect(cpus=4)
    yield
    ray_connection.disconnect()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep") / "small"
    carried_out(small(), folder)
    return folder


def test_a_sweep_leaves_every_cell_and_their_numbers(finished: Path) -> None:
    found = rows(finished)
    assert len(found) == 8
    assert all(row["state"] == "done" and row["failure"] is None for row in found)
    for row in found:
        folder = finished / CELLS / row["cell"]
        left = {path.name for path in folder.iterdir()}
        assert left == {CONFIG, METRICS, LEDGER, MODEL, TIME, STARTED, LOCK}
        metrics = read_metrics(folder)
        assert [m.round for m in metrics] == [4, 8, 12]
        assert row["accuracy"] == metrics[-1].accuracy
        assert row["kappa"] == pytest.approx(sum(m.kappa or 0 for m in metrics) / 3)
        attacked = row["attack"] != "none"
        assert row["config.byzantine"] == (2 if attacked else 0)
        assert row["config.workers"] == (7 if attacked else 5)
        # A sequence of steps has no weights.
        assert row["accepted"] == (1.0 if attacked and row["defence"] == "Mean" else None)
        assert row["seconds"] > 0
        assert row["group"] == f"defence={row['defence']}"
        assert row["command"].startswith("env OMP_NUM_THREADS=1 robust-agg run ")
    curves = rows(finished, CURVES)
    assert [row["round"] for row in curves] == [4, 8, 12] * 8
    assert {row["cell"] for row in curves} == {row["cell"] for row in found}
    # Identities vary with the seed.
    senders = {frozenset(assembly_of(finished, row)) for row in found if row["attack"] != "none"}
    assert len(senders) > 1


def assembly_of(folder: Path, row: dict[str, Any]) -> frozenset[int]:
    from experiments.config import RunConfig

    content = json.loads((folder / CELLS / row["cell"] / CONFIG).read_text())
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in content.items()}
    return assembly.byzantine(RunConfig(**values)).at(0)


def test_training_is_measured_on_validation_data_and_the_test_data_at_its_end(
    finished: Path,
) -> None:
    data = load("digits")
    for row in rows(finished):
        parameters = load_checkpoint(finished / CELLS / row["cell"] / MODEL)["parameters"]
        factory = assembly.ModelFactory("LogisticRegression", 0, data.input_shape, 10)
        model = factory()
        nn.utils.vector_to_parameters(parameters, model.parameters())
        with torch.inference_mode():
            on = {
                split: float((model(samples.inputs).argmax(1) == samples.targets).double().mean())
                for split, samples in (("validation", data.validation), ("test", data.test))
            }
        assert (row["accuracy"], row["test_accuracy"]) == (on["validation"], on["test"])
        assert row["chosen"]


def test_the_command_beside_a_cell_trains_it_again(finished: Path, tmp_path: Path) -> None:
    row = next(row for row in rows(finished) if row["attack"] != "none")
    words = shlex.split(row["command"])
    subprocess.run(
        [*words[:2], sys.executable, "-m", "experiments", *words[3:], "--out", str(tmp_path)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    found = [read_metrics(path.parent) for path in tmp_path.rglob(METRICS)]
    cell = [timed(metrics) for metrics in read_metrics(finished / CELLS / row["cell"])]
    assert cell in [[timed(metrics) for metrics in each] for each in found]


def timed(metrics: Metrics) -> Metrics:
    """With another time, the same for all."""
    return dataclasses.replace(metrics, seconds=0.0)


def test_a_finished_sweep_is_only_read(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying, "Pool", None)
    monkeypatch.setattr(carrying, "tested", None)
    before = timeless(finished)
    result = carried_out(small(), finished)
    assert [row.entry.state for row in result.rows] == ["done"] * 8
    assert timeless(finished) == before


def test_the_test_data_is_read_once_for_what_validation_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    tested: list[tuple[str, dict[str, int]]] = []
    real = carrying.tested

    def watched(folder: Path, config: Any) -> float:
        tested.append((folder.name, told.tallies[-1].states))
        return real(folder, config)

    monkeypatch.setattr(carrying, "tested", watched)
    sweep = small(
        grid={"defence": ("Mean",), "attack": ("none", "SignFlip"), "seed": (0, 1)},
        tune={"lr": (1e-9, 1.0)},
    )
    carried_out(sweep, tmp_path, told)
    found = rows(tmp_path)
    chosen = {row["cell"] for row in found if row["chosen"]}
    assert [row["tuned"] for row in found if row["chosen"]] == ["lr=1.0"] * 4
    assert {cell for cell, _ in tested} == chosen
    assert len(tested) == 4
    assert all(states["done"] == 8 for _, states in tested)
    assert all((row["test_accuracy"] is not None) == row["chosen"] for row in found)


BAD = """
import os
import time
from pathlib import Path

from attacks import Attack, Knowledge


class Bad(Attack):
    knows = Knowledge.HONEST

    def __init__(self, what, flag=""):
        self.what, self.flag = what, flag

    def __call__(self, view, state, generator):
        if view.round == 3 and (not self.flag or Path(self.flag).exists()):
            if self.what == "exits":
                os._exit(1)
            if self.what == "hangs":
                time.sleep(3600)
            raise KeyError("it")
        return view.honest.mean(dim=0).repeat(view.byzantine, 1), state
"""


def test_a_crash_a_hang_and_an_error_cost_one_cell_each(
    finished: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    bad = tuple(f"{tmp_path / 'bad.py'}:Bad(what='{w}')" for w in ("exits", "hangs", "raises"))
    grid = small().grid
    told = Told()
    attacks = (*bad, *grid["attack"])
    sweep = small(grid={"defence": ("Mean",), "attack": attacks, "seed": (0,)})
    carried_out(sweep, tmp_path / "out", told, stall=12.0)
    found = {row["attack"]: row for row in rows(tmp_path / "out")}
    states = {attack: row["state"] for attack, row in found.items()}
    reasons = {cell.point.attack: reason for cell, reason in told.failures}
    assert states == {
        "bad.py:Bad(what='exits')": "failed",
        "bad.py:Bad(what='hangs')": "failed",
        "bad.py:Bad(what='raises')": "failed",
        "none": "done",
        "GaussianNoise(scale=3.0)": "done",
    }, reasons
    assert "its process died: WorkerCrashedError" in reasons["bad.py:Bad(what='exits')"]
    assert reasons["bad.py:Bad(what='hangs')"] == "Stalled: no round in 12 s"
    raised = reasons["bad.py:Bad(what='raises')"]
    assert raised.startswith("Traceback")
    assert re.search(r"AttackError: attack: Bad failed at .*bad\.py:\d+: KeyError: 'it'", raised)
    for attack, row in found.items():
        assert (row["failure"] is None) == (row["state"] == "done")
        assert row["failure"] is None or row["failure"] in reasons[attack]
    # The others are what they are without the bad ones.
    alone = {row["cell"]: row for row in timeless(finished)[RESULTS]}
    for row in timeless(tmp_path / "out")[RESULTS]:
        if row["state"] == "done":
            assert {n: row[n] for n in alone[row["cell"]]} == alone[row["cell"]]
    # Nothing of Ray's own is shown to the user.
    assert capfd.readouterr() == ("", "")
    # What a failed cell would have been is not known.
    (entry,) = compose(read_folder(tmp_path / "out")).entries
    assert (entry.rank, entry.missing) == (None, 3)


def test_failed_cells_are_tried_again_when_asked_from_their_checkpoints(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    (flag := tmp_path / "flag").touch()
    attack = f"{tmp_path / 'bad.py'}:Bad(what='raises', flag='{flag}')"
    base = {**BASE, "defence": "Mean", "checkpoint_every": 2}
    sweep = small(base=base, grid={"attack": (attack,), "seed": (0,)})
    assert len(carried_out(sweep, tmp_path / "out").failed) == 1
    (cell,) = (tmp_path / "out" / CELLS).iterdir()
    assert load_checkpoint(cell / CHECKPOINT)["server"]["round"] == 2
    flag.unlink()
    assert len(carried_out(sweep, tmp_path / "out").failed) == 1
    assert carried_out(sweep, tmp_path / "out", retry=True).failed == []
    assert [line["round"] for line in Ledger(cell / LEDGER)] == [*range(12)]


def test_a_cell_that_cannot_be_is_a_failed_one(tmp_path: Path) -> None:
    """Said before anything runs, and not tried again."""
    base = {name: value for name, value in BASE.items() if name != "f"}
    sweep = small(
        base={**base, "honest": 4, "attack": "SignFlip"},
        grid={"defence": ("Mean", "Krum"), "f": (1, 2), "seed": (0,)},
    )
    for retry in (False, True):
        carried_out(sweep, tmp_path, retry=retry)
        found = {(row["defence"], row["config.f"]): row for row in rows(tmp_path)}
        states = {key: row["state"] for key, row in found.items()}
        assert states == {
            ("Mean", 1): "done",
            ("Mean", 2): "done",
            ("Krum", 1): "done",
            ("Krum", 2): "failed",
        }
        assert "Krum: n >= 2f + 3 is required, found n=6, f=2" in found["Krum", 2]["failure"]
        assert found["Krum", 2]["command"] is None


def test_a_sweep_of_nothing_that_can_be_leaves_nothing(tmp_path: Path) -> None:
    sweep = small(base={**BASE, "rounds": -1})
    with pytest.raises(
        ConfigError, match=r"every cell is refused, the first one by .* rounds must"
    ):
        carried_out(sweep, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_breakdowns_are_those_that_all_f_would_show(tmp_path: Path) -> None:
    base = {name: value for name, value in BASE.items() if name != "f"}
    base |= {"attack": "InnerProductManipulation(epsilon=10.0)", "rounds": 30}
    grid = {"defence": ("Mean", "CoordinateWiseMedian"), "seed": (0, 1)}
    sweep = small(base=base, grid=grid, breakdown=Breakdown(accuracy=0.5, most=3))
    carried_out(sweep, tmp_path / "search")
    carried_out(small(base=base, grid={**grid, "f": (1, 2, 3)}), tmp_path / "all")
    accuracies: dict[tuple[str, int], list[float]] = {}
    for row in rows(tmp_path / "all"):
        accuracies.setdefault((row["defence"], row["config.f"]), []).append(row["accuracy"] or 0.0)
    for row in rows(tmp_path / "search", BREAKDOWN):
        below = [f for f in (1, 2, 3) if sum(accuracies[row["defence"], f]) / 2 < 0.5]
        assert row["breakdown_f"] == (below[0] if below else None)
        assert row["finished"]
    assert {r["defence"]: r["breakdown_f"] for r in rows(tmp_path / "search", BREAKDOWN)}[
        "Mean"
    ] == 1
    assert len(rows(tmp_path / "search")) < len(rows(tmp_path / "all"))


def test_an_f_that_a_rule_cannot_bear_is_one_that_breaks_it(tmp_path: Path) -> None:
    base = {name: value for name, value in BASE.items() if name not in ("f", "honest")}
    base |= {"defence": "Krum", "workers": 7, "attack": "SignFlip", "rounds": 60}
    sweep = small(base=base, grid={}, breakdown=Breakdown(accuracy=0.3, most=7))
    carried_out(sweep, tmp_path)
    (row,) = rows(tmp_path, BREAKDOWN)
    assert (row["breakdown_f"], row["finished"]) == (3, True)
    # n = 7 >= 2f + 3.
    states = {row["config.f"]: row["state"] for row in rows(tmp_path)}
    assert states == {4: "failed", 2: "done", 3: "failed"}


def test_an_attack_that_cannot_be_made_brings_no_rule_down(tmp_path: Path) -> None:
    """ALittleIsEnough has no z for f = 1 and 2 of an even n, 1 of an odd one."""
    base = {name: value for name, value in BASE.items() if name not in ("f", "honest")}
    base |= {"defence": "CoordinateWiseMedian", "workers": 8, "attack": "ALittleIsEnough"}
    sweep = small(base=base, grid={}, breakdown=Breakdown(accuracy=1e-6, most=3))
    carried_out(sweep, tmp_path)
    (row,) = rows(tmp_path, BREAKDOWN)
    assert (row["breakdown_f"], row["finished"]) == (None, True)
    assert {r["config.f"]: r["state"] for r in rows(tmp_path)} == {2: "failed", 3: "done"}


def test_an_attack_that_cannot_be_made_is_left_out_of_the_choice(tmp_path: Path) -> None:
    attacks = ("SignFlip", "ALittleIsEnough")
    sweep = small(
        base={**BASE, "f": 1, "defence": "Mean"},
        grid={"attack": attacks, "seed": (0,)},
        tune={"lr": (1e-9, 1.0)},
    )
    carried_out(sweep, tmp_path)
    found = {(r["attack"], r["tuned"]): (r["state"], r["chosen"]) for r in rows(tmp_path)}
    assert found == {
        ("SignFlip", "lr=1e-09"): ("done", False),
        ("SignFlip", "lr=1.0"): ("done", True),
        ("ALittleIsEnough", "lr=1e-09"): ("failed", False),
        ("ALittleIsEnough", "lr=1.0"): ("failed", False),
    }


def test_a_search_on_whose_way_a_cell_has_failed_is_not_finished(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(BAD)
    (flag := tmp_path / "flag").touch()
    attack = f"{tmp_path / 'bad.py'}:Bad(what='raises', flag='{flag}')"
    base = {name: value for name, value in BASE.items() if name != "f"}
    base |= {"defence": "Mean", "attack": attack}
    sweep = small(base=base, grid={}, breakdown=Breakdown(accuracy=0.1, most=1))
    carried_out(sweep, tmp_path / "out")
    (row,) = rows(tmp_path / "out", BREAKDOWN)
    assert (row["breakdown_f"], row["finished"]) == (None, False)
    flag.unlink()
    carried_out(sweep, tmp_path / "out", retry=True)
    (row,) = rows(tmp_path / "out", BREAKDOWN)
    assert (row["breakdown_f"], row["finished"]) == (None, True)


def test_a_cell_that_ray_lets_not_begin_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.sweeps.pool._START", 2.0)
    base = {**BASE, "defence": "Mean", "hosts": 5, "threads": 256}
    result = carried_out(small(base=base, grid={"seed": (0, 1)}), tmp_path, stall=1.0)
    for row in result.failed:
        assert row.entry.reason is not None
        assert re.match(r"Not begun in 2 s: CPU: 1280, GPU: 0 is needed, Ray", row.entry.reason)
    assert len(result.failed) == 2


def test_more_gpus_than_ray_has_are_refused(tmp_path: Path) -> None:
    base = {**BASE, "defence": "Mean", "transport": "ray", "num_gpus": 999.0, "device": "cpu"}
    with pytest.raises(ConfigError, match=r"num_gpus must be at most what Ray has, \d+, found 999"):
        carried_out(small(base=base, grid={}), tmp_path)


def test_parameters_that_are_gone_cost_their_own_cell(tmp_path: Path) -> None:
    class Losing(Told):
        """Loses the parameters of two cells before they are tested."""

        def look(self, tally: Tally) -> None:
            super().look(tally)
            models = [tmp_path / CELLS / row["cell"] / MODEL for row in lost]
            if tally.states["done"] == 4 and not tally.tested:
                models[0].unlink()
                models[1].write_bytes(b"damaged")

    sweep = small(grid={**small().grid, "seed": (0,)})
    carried_out(sweep, tmp_path)
    before, lost = timeless(tmp_path), rows(tmp_path)[1:3]
    with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
        connection.execute("UPDATE cells SET test_accuracy = NULL")
        connection.execute("UPDATE cells SET state = 'pending' WHERE id = ?", (lost[0]["cell"],))
    told = Losing()
    failed = carried_out(sweep, tmp_path, told).failed
    assert {row.cell.id for row in failed} == {row["cell"] for row in lost}
    assert [reason.split(":")[0] for _, reason in told.failures] == ["CheckpointError"] * 2
    assert [tally.tested for tally in told.tallies][-4:] == [1, 1, 1, 2]
    assert [r["test_accuracy"] is None for r in rows(tmp_path)] == [False, True, True, False]
    assert carried_out(sweep, tmp_path, retry=True).failed == []
    assert timeless(tmp_path) == before


def test_a_cell_is_not_begun_while_another_process_is_in_its_folder(tmp_path: Path) -> None:
    config = run_config({**BASE, "defence": "Mean"})
    thread = threading.Thread(target=train, args=(tmp_path, config))
    with locked(tmp_path):
        thread.start()
        thread.join(1.0)
        assert thread.is_alive()
        assert not (tmp_path / STARTED).exists()
    thread.join()
    assert (tmp_path / STARTED).exists()


def test_a_ledger_may_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch("cell", tmp_path)
    assert watch.look(1.0) == 0.0
    (tmp_path / STARTED).touch()
    assert (watch.look(2.0), watch.look(5.0), watch.rounds) == (0.0, 3.0, 0)
    (tmp_path / LEDGER).write_text("a\nb\nc")
    assert (watch.look(6.0), watch.look(7.0), watch.rounds) == (0.0, 1.0, 2)
    (tmp_path / LEDGER).write_text("a\n")
    assert (watch.look(8.0), watch.rounds) == (0.0, 1)
    (tmp_path / LEDGER).unlink()
    # Gone after one has asked.
    monkeypatch.setattr(Path, "exists", lambda path: True)
    assert (watch.look(9.0), watch.rounds) == (0.0, 0)


def test_what_ray_does_to_a_cell_is_not_the_cells_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Losing(Pool):
        """The second cell's task is lost with what Ray says of it."""

        def begin(self, *cell: Any) -> None:
            super().begin(*cell)
            if len(self._running) == 2:
                self._ray.cancel([*self._running][1], force=False)

    sweep = small(base={**BASE, "rounds": 25000}, grid={"defence": ("Mean",), "seed": (0, 1, 2)})
    with monkeypatch.context() as patched:
        patched.setattr(carrying, "Pool", Losing)
        with pytest.raises(HostError, match=r"^Ray has failed; .*: TaskCancelledError: "):
            carried_out(sweep, tmp_path)
    assert [row["state"] for row in rows(tmp_path)] == ["pending"] * 3


# --- folders --------------------------------------------------------------------------------------


def test_a_folder_is_bound_to_its_sweep(finished: Path, tmp_path: Path) -> None:
    before = timeless(finished)
    with pytest.raises(ConfigError, match=r"out: .* holds another sweep, found grid="):
        carried_out(small(grid={**small().grid, "seed": (0,)}), finished)
    with pytest.raises(ConfigError, match=r"holds another sweep, found target=None instead of 0.5"):
        carried_out(small(target=0.5), finished)
    assert timeless(finished) == before
    (where,) = json.loads((finished / SWEEP).read_text())["where"]
    assert where.rpartition(", ")[0] == provenance.where().rpartition(", ")[0]
    # What is for the report may change, and what has not changed is not written.
    about = finished / SWEEP
    number = about.stat().st_ino
    carried_out(small(), finished)
    assert about.stat().st_ino == number
    published = Published(source="us", rows=())
    carried_out(small(title="Other", notes=("new",), published=published), finished)
    assert json.loads(about.read_text())["title"] == "Other"
    assert len(json.loads(about.read_text())["where"]) == 1
    carried_out(small(), finished)
    assert timeless(finished) == before
    assert {row["version"] for row in rows(finished)} == {__version__}
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"must be empty, or hold sweep.json .*, found file"):
        carried_out(small(), tmp_path)
    with pytest.raises(ConfigError, match="out: a folder is required, found Not a directory"):
        carried_out(small(), tmp_path / "file")
    with locked(finished), pytest.raises(ConfigError, match="another process is working in it"):
        carried_out(small(), finished)


def test_a_sweep_goes_on_with_its_own_attacks_and_data_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mine := tmp_path / "bad.py").write_text(BAD)
    attack = f"{mine}:Bad(what='raises', flag='{tmp_path / 'none'}')"
    sweep = small(base={**BASE, "defence": "Mean"}, grid={"attack": (attack,)})
    (row,) = carried_out(sweep, tmp_path / "out").rows
    assert row.entry.state == "done"
    mine.write_text(BAD + "# another\n")
    with pytest.raises(ConfigError, match=r"holds another sweep, found grid=.*attacks/\w{16}/bad"):
        carried_out(sweep, tmp_path / "out")
    mine.write_text(BAD)
    digits = load("digits")
    other = dataclasses.replace(digits, train=digits.validation)
    monkeypatch.setattr("experiments.sweeps.folder.loaded", lambda name: other)
    with pytest.raises(ConfigError, match="holds another sweep, found data="):
        carried_out(sweep, tmp_path / "out")


def test_a_folder_can_be_moved(finished: Path, tmp_path: Path) -> None:
    moved = Path(shutil.copytree(finished, tmp_path / "elsewhere"))
    assert [row.entry.state for row in carried_out(small(), moved).rows] == ["done"] * 8
