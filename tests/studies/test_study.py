"""Studies: kept piece by piece, bound to their folder, honest on their page."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

import pytest
from pyarrow import parquet

from experiments.config import ConfigError
from experiments.studies.canvas import new_figure
from experiments.studies.carry_out import Outcome, carry_out
from experiments.studies.study import Claim, Piece, Preset, Row, Study, Table, Tick

if TYPE_CHECKING:
    from matplotlib.figure import Figure

done: list[str] = []


@dataclass(frozen=True, kw_only=True)
class Squares(Study):
    """Squares of a few numbers,
    for a test."""

    title: ClassVar[str] = "Squares"
    count: int = 3
    fails: bool = False

    @classmethod
    def preset(cls, name: Preset) -> Self:
        return cls()

    def pieces(self, folder: Path) -> Mapping[str, Piece]:
        return {f"of {i}": partial(self._square, i) for i in range(self.count)}

    def _square(self, i: int, tick: Tick) -> list[Row]:
        if (i, (self.count, fail)) == (1, (3, True)):
            raise KeyboardInterrupt
        done.append(str(i))
        tick(0.5)
        return [{"i": i, "square": i * i, **({"odd": "yes"} if i % 2 else {})}]

    def figures(self, rows: Sequence[Row]) -> Mapping[str, Figure]:
        return {"squares": new_figure(2, 2)}

    def claims(self, rows: Sequence[Row]) -> list[Claim]:
        largest = max(row["square"] for row in rows)
        return [
            Claim(statement="|x|² grows", source="Euclid", measured=f"{largest}", holds=True),
            Claim(statement="all are even", source="nobody", measured="1", holds=False),
            Claim(statement="all are real", source="nobody", measured="-", holds=None),
        ]

    def tables(self, rows: Sequence[Row]) -> Mapping[str, Table]:
        lines = ((str(row["i"]), str(row["square"])) for row in rows)
        return {"All of them": [("number", "square"), *lines]}

    def notes(self, rows: Sequence[Row]) -> list[str]:
        return [f"{len(rows)} numbers"]


fail = False


@pytest.fixture(autouse=True)
def fresh() -> None:
    global fail  # noqa: PLW0603 - a switch of the study, whose fields are its identity
    fail = False
    done.clear()


def work(
    study: Study, folder: Path, told: list[tuple[str, int, int, float]], *, where: str = "here"
) -> Outcome:
    def on_piece(name: str, place: int, count: int, kept: bool) -> Tick:
        return lambda share: told.append((f"{name}{' kept' * kept}", place, count, share))

    return carry_out(study, folder, command="do it", where=where, on_piece=on_piece)


def test_a_study_leaves_numbers_figures_and_a_page(tmp_path: Path) -> None:
    told: list[tuple[str, int, int, float]] = []
    outcome = work(Squares(), tmp_path / "a" / "b", told)
    folder = tmp_path / "a" / "b"
    with (folder / "numbers.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"i": "0", "square": "0", "odd": ""},
            {"i": "1", "square": "1", "odd": "yes"},
            {"i": "2", "square": "4", "odd": ""},
        ]
    assert parquet.read_table(folder / "numbers.parquet").to_pylist() == [
        {"i": 0, "square": 0, "odd": None},
        {"i": 1, "square": 1, "odd": "yes"},
        {"i": 2, "square": 4, "odd": None},
    ]
    assert (folder / "squares.png").read_bytes().startswith(b"\x89PNG")
    assert (folder / "squares.pdf").read_bytes().startswith(b"%PDF")
    lines = outcome.page.read_text().splitlines()
    assert lines[0] == "# Squares"
    assert "Squares of a few numbers, for a test." in lines
    assert "| \\|x\\|² grows | Euclid | 4 | yes |" in lines
    assert "| all are even | nobody | 1 | **no** |" in lines
    assert "| all are real | nobody | - | not decided here |" in lines
    assert "## All of them" in lines
    assert lines[lines.index("| number | square |") + 1 :][:4] == [
        "| --- | --- |",
        "| 0 | 0 |",
        "| 1 | 1 |",
        "| 2 | 4 |",
    ]
    assert {"- 3 numbers", "- here", "- `do it`"} <= set(lines)
    assert told[:3] == [("of 0", 0, 4, 0.5), ("of 0", 0, 4, 1.0), ("of 1", 1, 4, 0.5)]
    assert told[-1] == ("figures and page", 3, 4, 1.0)


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    global fail  # noqa: PLW0603 - a study's fields are its configuration
    fail = True
    with pytest.raises(KeyboardInterrupt):
        work(Squares(), tmp_path, [])
    fail = False
    assert done == ["0"]
    assert not (tmp_path / "README.md").exists()
    work(Squares(), tmp_path, [])
    assert done == ["0", "1", "2"]
    before = (tmp_path / "README.md").read_text()
    work(Squares(), tmp_path, [], where="there")
    assert done == ["0", "1", "2"]
    assert (tmp_path / "README.md").read_text() == before


def test_a_folder_is_one_study_s(tmp_path: Path) -> None:
    work(Squares(), tmp_path, [])
    with pytest.raises(
        ConfigError, match=r"out: .* holds another study, found count=3 instead of 4; choose"
    ):
        work(Squares(count=4), tmp_path, [])
    assert json.loads((tmp_path / "config.json").read_text())["count"] == 3
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="out: a folder that can be written is required"):
        work(Squares(), tmp_path / "file" / "x", [])


def test_a_folder_is_bound_to_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work(Squares(), tmp_path, [])
    monkeypatch.setattr(Squares, "fingerprint", "0123")
    with pytest.raises(ConfigError, match=r"holds another study, found data='' instead of '0123'"):
        work(Squares(), tmp_path, [])


def test_what_lies_in_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ConfigError, match=r"must be empty, or hold config.json .* found README.md"):
        work(Squares(), tmp_path, [])
    assert (tmp_path / "README.md").read_text() == "mine"
    assert [each.name for each in tmp_path.iterdir()] == ["README.md"]


def test_a_damaged_piece_is_done_again(tmp_path: Path) -> None:
    work(Squares(), tmp_path, [])
    numbers = (tmp_path / "numbers.csv").read_text()
    (tmp_path / "pieces" / "of 1.json").write_text('{"seconds": 1.0, "ro')
    first = (tmp_path / "pieces" / "of 0.json").read_text()
    (tmp_path / "pieces" / "of 2.json").write_text(first)
    done.clear()
    told: list[tuple[str, int, int, float]] = []
    work(Squares(), tmp_path, told)
    assert told[0] == ("of 0 kept", 0, 4, 1.0)
    assert done == ["1", "2"]
    assert (tmp_path / "numbers.csv").read_text() == numbers


def test_a_damaged_configuration_is_named(tmp_path: Path) -> None:
    work(Squares(), tmp_path, [])
    (tmp_path / "config.json").write_text("")
    with pytest.raises(ConfigError, match=r"config.json must be a configuration, found a damaged"):
        work(Squares(), tmp_path, [])


def test_a_study_that_is_too_small_decides_nothing(tmp_path: Path) -> None:
    outcome = work(Squares(decides=False), tmp_path, [])
    assert {claim.holds for claim in outcome.claims} == {None}
    assert "- so small a study only shows that everything runs" in outcome.page.read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_and_what_is_done_is_kept(number: int, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["bench", "aggregators", "--preset", "smoke", "--out", str(out)]
    begun = subprocess.Popen(
        [sys.executable, "-m", "experiments", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert begun.stdout is not None
    lines = iter(begun.stdout.readline, "")
    before = [next(lines) for _ in range(3)]  # the title, the first piece, the second
    begun.send_signal(number)
    said, error = begun.communicate(timeout=60)
    assert (begun.returncode, error) == (128 + number, "")
    assert before[2].startswith("2/")
    assert said.endswith(f"interrupted; continue with: robust-agg {' '.join(command)}\n")
    assert list(out.glob("pieces/[!.]*.json"))
