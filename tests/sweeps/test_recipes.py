"""The sweeps that come with the project: every cell is a run, and the smallest form runs."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import get_args

import pytest
from pyarrow import parquet

from experiments import cli
from experiments.config import ConfigError
from experiments.data import DATA_VARIABLE
from experiments.studies.study import Preset
from experiments.sweeps.cells import run_config
from experiments.sweeps.plan import wanted
from experiments.sweeps.reading import read
from experiments.sweeps.recipes import NAMES, located


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("preset", get_args(Preset))
def test_every_preset_is_a_grid_that_can_be_run(name: str, preset: Preset) -> None:
    sweep = read(located(name), preset)
    points = wanted(sweep, lambda point: None)
    assert len(points) == prod(len(values) for values in sweep.grid.values())
    if preset != "full":
        for point in points:
            run_config(point.given)


@pytest.mark.parametrize("name", ["byzfl", "bucketing"])
def test_published_numbers_are_of_cells_of_the_grid(name: str) -> None:
    sweep = read(located(name))
    assert sweep.published is not None
    assert len(sweep.published.rows) == {"byzfl": 16, "bucketing": 40}[name]
    for row in sweep.published.rows:
        assert 0 < row.value < 1
        for key, value in row.where.items():
            assert value in sweep.grid[key]
    assert len({repr(row.where) for row in sweep.published.rows}) == len(sweep.published.rows)


def test_a_file_is_preferred_to_a_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert located("online").suffix == ".toml"
    assert located("online.toml") == Path("online.toml")
    monkeypatch.chdir(tmp_path)
    Path("online").touch()
    assert located("online") == Path("online")


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("onlin", ", did you mean 'online'?"),
        ("ByzFL", ", did you mean 'byzfl'?"),
        ("x", ", known are bucketing, byzfl, online"),
    ],
)
def test_a_word_that_is_no_recipe_is_told_the_nearest(word: str, near: str) -> None:
    with pytest.raises(ConfigError) as refused:
        located(word)
    assert str(refused.value) == f"file: a file or a recipe is required, found {word!r}{near}"
    assert located(f"./{word}") == Path(word)


@pytest.mark.parametrize(("name", "cells"), [("byzfl", 4), ("bucketing", 4), ("online", 9)])
def test_one_command_makes_the_numbers_and_the_page(name: str, cells: int, tmp_path: Path) -> None:
    if name != "online" and not os.environ.get(DATA_VARIABLE):
        pytest.skip(f"MNIST's files are needed: {DATA_VARIABLE} is not set")
    arguments = ["sweep", name, "--preset", "smoke", "--jobs", "2", "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0
    rows = parquet.read_table(tmp_path / "results.parquet").to_pylist()
    assert len(rows) == cells
    assert all(row["state"] == "done" and row["chosen"] for row in rows)
    assert all(0 <= row["test_accuracy"] <= 1 for row in rows)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Leaderboard" in page
    assert rows[-1]["attack"].partition("(")[0] in page
    assert ("Published numbers" in page) == (name != "online")
