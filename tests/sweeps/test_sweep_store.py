"""The store: whole after a kill at any moment, for one version of itself."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from experiments.config import ConfigError
from experiments.sweeps.cells import Cell, Point
from experiments.sweeps.outcome import Outcome
from experiments.sweeps.store import FILE, Entry, Store
from robust_agg import __version__

POINT = Point((("defence", "Mean"),), ())
CONFIG = None
OUTCOME = Outcome(
    accuracy=1 / 3,
    loss=0.5,
    success=None,
    error=1e-300,
    kappa=None,
    byzantine_weight=0.1,
    accepted=0.25,
    skipped=1,
    missing=0,
    bytes=2**40,
    seconds=1.5,
    seconds_per_round=0.01,
    aggregate_seconds=None,
)


def cells(*names: str, refusal: str | None = None) -> list[Cell]:
    return [Cell(name, POINT, CONFIG, refusal) for name in names]


def test_cells_go_through_their_states(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(cells("c", "a", "b"))
    store.add(cells("z", refusal="ConfigError: no"))
    store.add(cells("a", "d"))
    assert [*store.entries()] == ["c", "a", "b", "z", "d"]
    assert store.entries()["z"] == Entry("failed", "ConfigError: no")
    store.begin("a")
    assert store.entries()["a"] == Entry("running", version=__version__)
    store.finish("a", OUTCOME)
    store.keep_test("a", 0.75)
    assert store.entries()["a"] == Entry("done", None, OUTCOME, 0.75, __version__)
    store.begin("b")
    store.fail("b", "a\ntraceback")
    assert store.entries()["b"] == Entry("failed", "a\ntraceback", version=__version__)
    store.begin("c")
    store.put_back("c")
    assert store.entries()["c"] == Entry("pending", version=__version__)
    assert store.retry() == 1
    states = {cell: entry.state for cell, entry in store.entries().items()}
    assert states == {"c": "pending", "a": "done", "b": "pending", "z": "failed", "d": "pending"}
    assert store.entries()["b"].reason is None
    store.close()


KILLED = """
import os, signal, sys
from pathlib import Path
from experiments.sweeps.store import Store
sys.path.insert(0, sys.argv[2])
from test_sweep_store import OUTCOME, cells
store = Store(Path(sys.argv[1]))
store.add(cells("a", "b", "c"))
store.begin("a")
store.finish("a", OUTCOME)
store.begin("b")
store._connection.execute("BEGIN")
store._connection.execute("UPDATE cells SET state = 'done' WHERE id = 'c'")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_written_outlives_a_kill_and_what_was_running_is_pending(tmp_path: Path) -> None:
    here = str(Path(__file__).parent)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), here], env={**os.environ}, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    store = Store(tmp_path)
    assert store.entries() == {
        "a": Entry("done", None, OUTCOME, None, __version__),
        "b": Entry("pending", version=__version__),
        "c": Entry("pending"),
    }
    store.close()


def test_a_reader_is_not_kept_waiting(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.add(cells("a"))
    store._connection.execute("BEGIN IMMEDIATE")
    store._connection.execute("UPDATE cells SET state = 'running'")
    reader = sqlite3.connect(f"file:{tmp_path / FILE}?mode=ro", uri=True, timeout=0)
    assert reader.execute("SELECT state FROM cells").fetchall() == [("pending",)]
    reader.close()
    store.close()


def test_another_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("no database" * 100)
    with pytest.raises(ConfigError, match=r"a sweep's database is required, found file is not"):
        Store(tmp_path)
    (tmp_path / FILE).unlink()
    Store(tmp_path).close()
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("PRAGMA user_version = 9")
    connection.close()
    with pytest.raises(ConfigError, match="version 2 is required, found 9"):
        Store(tmp_path)


def test_a_cell_has_the_versions_that_trained_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Store(tmp_path)) as store:
        store.add(cells("a", "b"))
        for version in ("7.0", "7.0", "7.1"):
            monkeypatch.setattr("experiments.sweeps.store.__version__", version)
            store.begin("a")
            store.put_back("a")
        store.begin("b")
        versions = {cell: entry.version for cell, entry in store.entries().items()}
        assert versions == {"a": "7.0, 7.1", "b": "7.1"}


def test_what_is_refused_is_not_tried_again_however_much_of_it_there_is(tmp_path: Path) -> None:
    many = [f"{i}" for i in range(40_000)]
    with closing(Store(tmp_path)) as store:
        store.add(cells(*many, refusal="ConfigError: no"))
        store.add(cells("a"))
        store.fail("a", "reason")
        assert store.retry() == 1
        assert store.entries()["a"] == Entry("pending")


def test_a_file_of_the_first_version_is_read_on(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / FILE)) as connection, connection:
        connection.execute(
            "CREATE TABLE cells (id TEXT PRIMARY KEY, place INTEGER NOT NULL, state TEXT NOT NULL, "
            "reason TEXT, outcome TEXT, test_accuracy REAL, changed REAL NOT NULL)"
        )
        connection.executemany(
            "INSERT INTO cells VALUES (?, ?, 'failed', ?, NULL, NULL, 0)",
            [("a", 0, "ConfigError: no"), ("b", 1, "Traceback\nKeyError")],
        )
        connection.execute("PRAGMA user_version = 1")
    for again in (1, 0):
        with closing(Store(tmp_path)) as store:
            assert store.retry() == again
            assert store.entries() == {
                "a": Entry("failed", "ConfigError: no"),
                "b": Entry("pending"),
            }
