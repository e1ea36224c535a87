"""The report of a sweep that runs, written again and again by a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from experiments.sweeps.cells import Cell
from experiments.sweeps.export import RESULTS
from experiments.sweeps.known import Tally


class LiveReport:
    """A watcher that has ``report.html`` follow the sweep, at the lowest priority.

    Drawing a page of thousands of cells takes longer than the sweep can be left alone for, so
    another process does it. One that fails is no matter: the last page is the sweep's own, and says
    what is wrong if anything is.

    Attributes:
        process: that writes a page now; None where there is none.

    Args:
        folder: of the sweep.
        first: called once, when there is a page.
        every: seconds between two pages, at least.
        share: of the time that passes, in which a page may be being written.
    """

    def __init__(
        self, folder: Path, first: Callable[[], None], *, every: float = 60.0, share: float = 0.05
    ) -> None:
        self._folder, self._first, self._every, self._share = folder, first, every, share
        self.process: subprocess.Popen[bytes] | None = None
        self._begun = self._next = 0.0
        self._told = False

    def look(self, tally: Tally) -> None:
        """Begin a page, or see that one is written."""
        now = time.monotonic()
        if self.process is not None:
            if self.process.poll() is None:
                return
            if self.process.returncode == 0 and not self._told:
                self._told = True
                self._first()
            self.process = None
            self._next = max(self._begun + self._every, now + (now - self._begun) / self._share)
        if now >= self._next and (self._folder / RESULTS).exists():
            self._begun, self._next = now, now + self._every
            with suppress(OSError):  # a machine that has no process to spare, say
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "experiments", "report", str(self._folder)],
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for the sweep
                )
                os.setpriority(os.PRIO_PROCESS, self.process.pid, 19)

    def failed(self, cell: Cell, reason: str) -> None:
        """The page says it."""

    def close(self) -> None:
        """Let no page be written any more: a late one would replace the last."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None
