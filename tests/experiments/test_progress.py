"""What the person who waits sees: lines on a log, bars on a terminal."""

from __future__ import annotations

import io
from dataclasses import replace

from rich.console import Console
from run_samples import tiny

from experiments.metrics import Metrics
from experiments.progress import Progress

TRAINED = Metrics(
    round=30,
    accuracy=0.875,
    loss=0.5,
    error=0.25,
    byzantine_weight=0.125,
    skipped=0,
    missing=0,
    seconds=0.002,
)


def test_progress_on_a_log_is_a_few_lines_a_training() -> None:
    console = Console(file=io.StringIO(), width=40)
    progress = Progress(console)
    progress.start(tiny(rounds=100), 2)
    progress.begin("Mean", True, 0)
    for done in range(1, 101):
        progress.advance(done, replace(TRAINED, round=done) if done % 5 == 0 else None)
    progress.end()
    progress.begin("VClip", False, 60)
    for done in range(61, 101):
        progress.advance(done, replace(TRAINED, round=done) if done % 20 == 0 else None)
    progress.end()
    progress.stop()
    assert isinstance(console.file, io.StringIO)
    assert console.file.getvalue().splitlines() == [
        *(f"Mean, under attack: round {r}/100, accuracy 87.5%" for r in (5, 30, 55, 80, 100)),
        *(f"VClip, no attack: round {r}/100, accuracy 87.5%" for r in (80, 100)),
    ]


def test_progress_on_a_terminal_counts_what_a_resumed_training_has_done() -> None:
    console = Console(
        file=io.StringIO(), width=100, force_terminal=True, _environ={"TERM": "xterm"}
    )
    progress = Progress(console)
    progress.start(tiny(rounds=100), 2)
    for begun in (60, 0):
        progress.begin("VClip", False, begun)
        for done in range(begun + 1, 101):
            progress.advance(done, replace(TRAINED, round=done))
        assert progress._bars is not None
        total, current = progress._bars.tasks
        assert (current.completed, current.total, current.fields["accuracy"]) == (
            100,
            100,
            " 87.5%",
        )
        progress.end()
    assert (total.completed, total.total) == (200, 200)
    progress.stop()
    progress.stop()
    assert isinstance(console.file, io.StringIO)
    assert "200/200" in console.file.getvalue()
