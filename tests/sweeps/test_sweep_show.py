"""What a sweep shows: how far it is, when it will be done, what it has found."""

from __future__ import annotations

import io
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from rich.console import Console
from sweep_samples import small

from experiments import cli
from experiments.sweeps import found, show
from experiments.sweeps.cells import Cell, Point
from experiments.sweeps.config import Breakdown
from experiments.sweeps.known import Tally
from experiments.sweeps.plan import Search
from experiments.sweeps.report.tables import Table


def tally(done: int, rounds: int, *, failed: int = 0) -> Tally:
    states = {"done": done, "failed": failed, "running": 2, "pending": 8 - done - failed}
    return Tally(states, rounds, 100, {"a": 3, "b": 4})


def test_the_progress_tells_of_the_tests() -> None:
    ended = Tally({"done": 8, "failed": 0, "running": 0, "pending": 0}, 100, 100, {}, 3)
    assert show.counts(ended) == "8/8 cells done, 0 running, 3 tested"


def test_the_time_left_is_that_of_the_pace_so_far() -> None:
    assert show.time_left(10, 30, 5.0) == 15.0
    assert show.time_left(0, 30, 5.0) is None
    assert show.spoken(None) == "time left not known yet"
    assert show.spoken(3.0) == "about 10 s left"
    assert show.spoken(44.0) == "about 40 s left"
    assert show.spoken(1234.0) == "about 21 min left"
    assert show.spoken(7200.0) == "about 2.0 h left"


def test_a_log_has_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    times = iter((0.0, 10.0, 31.0, 40.0, 62.0))
    shown = show.Shown(Console(width=120), clock=lambda: next(times))
    shown.look(tally(1, 20))
    shown.look(tally(2, 30))
    shown.look(tally(3, 51))  # 31 rounds in 31 s since the first look
    shown.look(tally(3, 60))
    shown.look(tally(4, 82, failed=1))
    shown.stop()
    assert capsys.readouterr().out.splitlines() == [
        "3/10 cells done, 2 running; about 50 s left",
        "4/10 cells done, 1 failed, 2 running; about 20 s left",
    ]


def test_a_terminal_has_a_bar(capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    shown = show.Shown(Console(file=screen, width=120, force_terminal=True))
    shown.look(tally(1, 20))
    shown.look(tally(2, 50))
    shown.stop()
    assert "2/10 cells done, 2 running" in screen.getvalue()
    assert "50%" in screen.getvalue()


def point(**values: str | int) -> Point:
    named = tuple(values.items())
    return Point(named, tuple(pair for pair in named if pair[0] == "defence"), (("lr", 0.1),))


def test_a_failure_is_one_line() -> None:
    cell = Cell("id", point(defence="Krum", attack="/a/b/mine.py:Bad", f=3, seed=1), None)
    assert show.failure(cell, "Traceback\n  File\nValueError: no\n") == (
        "failed: defence=Krum, lr=0.1, attack=mine.py:Bad, f=3, seed=1: ValueError: no"
    )


def printed(shown: object) -> str:
    screen = io.StringIO()
    Console(file=screen, width=120).print(shown)
    return screen.getvalue()


def test_a_table_of_the_report_is_shown_as_it_is_and_a_long_one_in_part() -> None:
    lines = tuple((f"[b]rule {place}", f"{place}.5 ± 1.0") for place in range(25))
    screen = io.StringIO()
    table = Table("", ("defence", "worst case, %"), lines)
    found.put(table, "A sweep", Console(file=screen, width=80))
    shown = screen.getvalue()
    assert [cell.strip() for cell in shown.splitlines()[4].split("│")[1:-1]] == [
        "[b]rule 0",
        "0.5 ± 1.0",
    ]
    assert "rule 19" in shown
    assert "rule 20" not in shown
    assert "and 5 lines more, in the report" in shown


def test_breakdowns_are_shown_by_attack() -> None:
    sweep = small(
        base={"rounds": 1},
        grid={"defence": ("Mean", "Krum"), "attack": ("none", "SignFlip")},
        breakdown=Breakdown(accuracy=0.5, most=4),
    )
    known = {("Mean", "none"): None, ("Mean", "SignFlip"): 1, ("Krum", "SignFlip"): 3}
    searches = [
        Search(point(defence=defence, attack=attack), (), True, f)
        for (defence, attack), f in known.items()
    ]
    searches.append(Search(point(defence="Krum", attack="none"), (), False, None))
    lines = [line.split() for line in printed(found.breakdowns(sweep, searches)).splitlines()]
    assert ["│", "Mean", "│", ">", "4", "│", "1", "│"] in lines
    assert ["│", "Krum", "│", "?", "│", "3", "│"] in lines


def test_the_command_says_what_it_found_and_by_its_exit_code_that_cells_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a sweep that is finished, so that it only reads."""
    (tmp_path / "few.toml").write_text(
        '[base]\nhonest = 4\nmodel = "LogisticRegression"\nrounds = 2\nseed = 0\n'
        'attack = "SignFlip"\n'
        '[grid]\ndefence = ["Mean", "Krum"]\nf = [1, 2]\n'
    )
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with pytest.raises(SystemExit) as ended:
            cli.main(["sweep", "few.toml", "--jobs", "1"])
        assert ended.value.code == 3
        said = capsys.readouterr()
        assert said.err == ""
        assert "3 of 4 cells done: runs/sweep/few-default/results.parquet" in said.out
        (failed,) = (line for line in said.out.splitlines() if line.startswith("failed: "))
        assert "defence=Krum, f=2" in failed
        assert "n >= 2f + 3 is required" in failed
        assert "worst case, %" in said.out
    # A database that cannot be read, or written to, is one line.
    with closing(sqlite3.connect("runs/sweep/few-default/sweep.sqlite")) as connection:
        connection.execute("ALTER TABLE cells RENAME COLUMN outcome TO other")
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", "few.toml", "--jobs", "1"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == "robust-agg: error: no such column: outcome\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["nothing.toml"], "nothing.toml: a sweep's file is required, found No such file"),
        (["a.toml", "--preset", "smoke"], "a.toml: preset smoke needs a table of that name"),
        (["a.toml", "--jobs", "0"], "jobs must be at least 1, found 0"),
        (["a.toml", "--stall", "0"], "stall must be a positive number of seconds, found 0"),
        (["a.toml", "--gpus", "-1"], "num_gpus must be a number >= 0, found -1"),
        (["a.toml", "--out", "a.toml"], "out: a folder is required, found Not a directory"),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    given: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text('[base]\ndefence = "Mean"\n')
    with pytest.raises(SystemExit) as ended:
        cli.main(["sweep", *given])
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.toml"]
