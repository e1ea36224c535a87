"""The report that follows a sweep while it runs, in a real process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from report_samples import FLIP, MEAN, row, write

from experiments.sweeps.folder import PAGE
from experiments.sweeps.known import Tally
from experiments.sweeps.live import LiveReport

TALLY = Tally({}, 0, 0, {})


def looked_until(live: LiveReport, what: Callable[[], bool]) -> None:
    while not what():
        live.look(TALLY)
        time.sleep(0.02)


def test_the_page_follows_the_sweep(tmp_path: Path) -> None:
    told: list[str] = []
    live = LiveReport(tmp_path, lambda: told.append("there is one"), every=0.0, share=1.0)
    live.look(TALLY)
    assert live.process is None, "nothing has been exported yet"
    page = tmp_path / PAGE
    write(tmp_path, [row(MEAN, FLIP, 0, 0.25)])
    live.look(TALLY)
    assert live.process is not None
    assert os.getpriority(os.PRIO_PROCESS, live.process.pid) == 19
    looked_until(live, lambda: bool(told))
    assert "| 25.0 |" in (tmp_path / "report.md").read_text()
    write(tmp_path, [row(MEAN, FLIP, 0, 0.75)])
    looked_until(live, lambda: "| 75.0 |" in (tmp_path / "report.md").read_text())
    assert told == ["there is one"]
    # A page in progress must not replace the last one.
    before = live.process
    looked_until(live, lambda: live.process not in (None, before))
    process = live.process
    page.unlink()
    live.close()
    assert process is not None
    assert process.returncode == -signal.SIGKILL
    assert not page.exists()


def test_a_page_is_not_written_more_often_than_asked(tmp_path: Path) -> None:
    write(tmp_path, [row(MEAN, FLIP, 0, 0.25)])
    told: list[str] = []
    live = LiveReport(tmp_path, lambda: told.append("there is one"))
    looked_until(live, lambda: bool(told))
    live.look(TALLY)
    assert live.process is None


def test_a_machine_without_a_process_to_spare_has_no_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_arguments: object, **_more: object) -> None:
        raise BlockingIOError("Resource temporarily unavailable")

    write(tmp_path, [row(MEAN, FLIP, 0, 0.25)])
    live = LiveReport(tmp_path, lambda: None)
    monkeypatch.setattr(subprocess, "Popen", none)
    live.look(TALLY)
    assert live.process is None
    live.close()


def test_a_page_that_cannot_be_written_is_no_matter(tmp_path: Path) -> None:
    write(tmp_path, [row(MEAN, FLIP, 0, 0.25)])
    (tmp_path / PAGE).mkdir()
    told: list[str] = []
    live = LiveReport(tmp_path, lambda: told.append("there is one"))
    live.look(TALLY)
    looked_until(live, lambda: live.process is None)
    assert not told
