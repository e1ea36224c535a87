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

FILE = "sweep.sqlite"

State = Literal["pending", "running", "done", "failed"]

_VERSION = 1
_TABLE = """
CREATE TABLE IF NOT EXISTS cells (
    id TEXT PRIMARY KEY,
    place INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'done', 'failed')),
    reason TEXT,
    outcome TEXT,
    test_accuracy REAL,
    changed REAL NOT NULL
)
"""


@dataclass(frozen=True)
class Entry:
    """What is known of a cell.

    Attributes:
        state: where it stands.
        reason: of a failed one, the traceback or what is known instead.
        outcome: of one that is done.
        test_accuracy: of one that was chosen, after all were done.
    """

    state: State
    reason: str | None = None
    outcome: Outcome | None = None
    test_accuracy: float | None = None


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
            if version not in (0, _VERSION):
                raise ConfigError(f"{path}: version {_VERSION} is required, found {version}")
            self._connection.execute(_TABLE)
            self._connection.execute(f"PRAGMA user_version = {_VERSION}")
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
            (c.id, count + i, "pending" if c.refusal is None else "failed", c.refusal, time.time())
            for i, c in enumerate(cells)
        ]
        self._connection.execute("BEGIN")
        self._connection.executemany(
            "INSERT OR IGNORE INTO cells (id, place, state, reason, changed) VALUES (?,?,?,?,?)",
            rows,
        )
        self._connection.execute("COMMIT")

    def begin(self, cell: str) -> None:
        """A process works on it."""
        self._set(cell, "running")

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

    def retry(self, but: Iterable[str] = ()) -> int:
        """Failed cells are pending again, except those of which there is no run; how many."""
        kept = [*but]
        marks = ",".join("?" * len(kept))
        found = self._connection.execute(
            "UPDATE cells SET state = 'pending', reason = NULL, outcome = NULL "
            f"WHERE state = 'failed' AND id NOT IN ({marks})",
            kept,
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
            "SELECT id, state, reason, outcome, test_accuracy FROM cells ORDER BY place, rowid"
        )
        return {
            cell: Entry(
                state, reason, None if found is None else Outcome(**json.loads(found)), test
            )
            for cell, state, reason, found, test in rows
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
