"""What a sweep knows of its cells, in a file of SQLite that outlives the process at any moment."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from experiments.config import ConfigError
from experiments.sweeps.cells import Cell
from experiments.sweeps.outcome import Outcome
from robust_agg import __version__

FILE = "sweep.sqlite"

State = Literal["pending", "running", "done", "failed"]

_VERSION = 2
_TABLE = """
CREATE TABLE IF NOT EXISTS cells (
    id TEXT PRIMARY KEY,
    place INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'done', 'failed')),
    reason TEXT,
    outcome TEXT,
    test_accuracy REAL,
    changed REAL NOT NULL,
    refused INTEGER NOT NULL DEFAULT 0,
    version TEXT
)
"""
# A file of the first version has the columns but the last two.
_FROM_FIRST = (
    "ALTER TABLE cells ADD COLUMN refused INTEGER NOT NULL DEFAULT 0",
    "ALTER TABLE cells ADD COLUMN version TEXT",
    "UPDATE cells SET refused = 1 WHERE state = 'failed' AND reason LIKE 'ConfigError: %'",
)


@dataclass(frozen=True)
class Entry:
    """What is known of a cell.

    Attributes:
        state: where it stands.
        reason: of a failed one, the traceback or what is known instead.
        outcome: of one that is done.
        test_accuracy: of one that was chosen, after all were done.
        version: of this package, with which it was trained; several if it was resumed by another.
    """

    state: State
    reason: str | None = None
    outcome: Outcome | None = None
    test_accuracy: float | None = None
    version: str | None = None


class Store:
    """The states of the cells; of one process, which holds the folder's lock, at a time.

    Every change is a transaction of its own, in a write-ahead log: whoever opens the file after
    kill -9 finds it whole. Readers are not kept waiting.

    Args:
        folder: of the sweep; the file is made if it is not there. What an earlier process was
            working on is pending again.

    Raises:
        ConfigError: the file is none of ours.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / FILE
        self._connection = sqlite3.connect(path, isolation_level=None)
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            (version,) = self._connection.execute("PRAGMA user_version").fetchone()
            if version not in (0, 1, _VERSION):
                raise ConfigError(f"{path}: version {_VERSION} is required, found {version}")
            self._connection.execute("BEGIN IMMEDIATE")
            for statement in _FROM_FIRST if version == 1 else (_TABLE,):
                self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {_VERSION}")
            self._connection.execute("COMMIT")
            self._connection.execute("UPDATE cells SET state = 'pending' WHERE state = 'running'")
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise ConfigError(f"{path}: a sweep's database is required, found {error}") from None
        except BaseException:
            self._connection.close()
            raise

    def add(self, cells: Iterable[Cell]) -> None:
        """Cells that are wanted: new ones are pending, or failed where there is no such run."""
        (count,) = self._connection.execute("SELECT count(*) FROM cells").fetchone()
        rows = [
            (c.id, count + i, "failed" if refused else "pending", c.refusal, time.time(), refused)
            for i, c in enumerate(cells)
            for refused in [c.refusal is not None]
        ]
        self._connection.execute("BEGIN")
        self._connection.executemany(
            "INSERT OR IGNORE INTO cells (id, place, state, reason, changed, refused) "
            "VALUES (?,?,?,?,?,?)",
            rows,
        )
        self._connection.execute("COMMIT")

    def begin(self, cell: str) -> None:
        """A process of this version works on it."""
        self._set(cell, "running")
        (before,) = self._connection.execute(
            "SELECT version FROM cells WHERE id = ?", (cell,)
        ).fetchone()
        known = [] if before is None else before.split(", ")
        if __version__ not in known:
            versions = ", ".join([*known, __version__])
            self._connection.execute("UPDATE cells SET version = ? WHERE id = ?", (versions, cell))

    def finish(self, cell: str, outcome: Outcome) -> None:
        self._set(cell, "done", outcome=json.dumps(asdict(outcome), allow_nan=False))

    def fail(self, cell: str, reason: str) -> None:
        self._set(cell, "failed", reason=reason)

    def fail_test(self, cell: str, reason: str) -> None:
        """Its final parameters cannot be read; what was chosen by its outcome stays so."""
        self._connection.execute(
            "UPDATE cells SET state = 'failed', reason = ?, changed = ? WHERE id = ?",
            (reason, time.time(), cell),
        )

    def put_back(self, cell: str) -> None:
        """Nobody works on it any more; it goes on from its checkpoint."""
        self._set(cell, "pending")

    def retry(self) -> int:
        """Failed cells are pending again, except those of which there is no run; how many."""
        found = self._connection.execute(
            "UPDATE cells SET state = 'pending', reason = NULL, outcome = NULL "
            "WHERE state = 'failed' AND NOT refused"
        )
        return found.rowcount

    def keep_test(self, cell: str, accuracy: float) -> None:
        """The test accuracy of a chosen cell, measured once."""
        self._connection.execute(
            "UPDATE cells SET test_accuracy = ? WHERE id = ?", (accuracy, cell)
        )

    def entries(self) -> dict[str, Entry]:
        """All cells by their ids, in the order they were wanted in."""
        rows = self._connection.execute(
            "SELECT id, state, reason, outcome, test_accuracy, version FROM cells "
            "ORDER BY place, rowid"
        )
        return {
            cell: Entry(
                *(state, reason, None if found is None else Outcome(**json.loads(found))),
                *(test, version),
            )
            for cell, state, reason, found, test, version in rows
        }

    def close(self) -> None:
        self._connection.close()

    def _set(
        self, cell: str, state: State, *, reason: str | None = None, outcome: str | None = None
    ) -> None:
        self._connection.execute(
            "UPDATE cells SET state = ?, reason = ?, outcome = ?, changed = ? WHERE id = ?",
            (state, reason, outcome, time.time(), cell),
        )
