"""The table of rules under attack: trainings that are told apart by rule, attack and seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from experiments import cli
from experiments.config import RunConfig
from experiments.robustness.matrix import NONE, WORST, Matrix
from experiments.robustness.training import train
from experiments.studies.study import Row

SMALL = Matrix(
    aggregators=("Mean", "CoordinateWiseMedian"),
    estimators=("VClip",),
    attacks=(NONE, "InnerProductManipulation(epsilon=10)"),
    rounds=40,
    seeds=1,
)


def test_a_mean_is_lost_under_an_attack_that_a_median_bears(tmp_path: Path) -> None:
    pieces = SMALL.pieces(tmp_path)
    assert len(pieces) == 6
    rows: list[Row] = [row for piece in pieces.values() for row in piece(lambda share: None)]
    (table,) = SMALL.tables(rows).values()
    found = {
        line[0]: dict(zip(table[0][1:], map(float, line[1:]), strict=True)) for line in table[1:]
    }
    assert found["Mean"][NONE] > 80
    assert found["Mean"][WORST] < 30
    assert found["CoordinateWiseMedian"][WORST] > 60
    assert found["VClip"][WORST] > 60
    for line in found.values():
        assert line[WORST] == min(line.values())
    assert set(SMALL.figures(rows)) == {"rules_under_attack"}


def test_what_is_trained_is_what_the_row_says() -> None:
    run = SMALL._run("VClip", "InnerProductManipulation(epsilon=10)", 3)
    assert (run.defences, run.byzantine, run.f, run.seed) == (("VClip",), 4, 4, 3)
    honest = SMALL._run("Mean", NONE, 0)
    assert (honest.defences, honest.byzantine, honest.f) == (("Mean",), 0, 4)


def test_a_training_is_the_same_again() -> None:
    run = RunConfig(
        aggregator=("Krum",), estimator=(), transport="inline", hosts=1, rounds=3, attack="SignFlip"
    )
    told: list[float] = []
    first, second = (train(run, told.append) for _ in range(2))
    assert (first.accuracy, first.loss) == (second.accuracy, second.loss)
    assert told == pytest.approx([1 / 3, 2 / 3, 1, 1 / 3, 2 / 3, 1])


def test_every_preset_can_be_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("default", "full"):
        study = Matrix.preset(name)  # type: ignore[arg-type]  # of a loop over texts
        for defence in (*study.aggregators, *study.estimators):
            for attack in study.attacks:
                study._run(defence, attack, 0)
    with pytest.raises(SystemExit) as ended:
        cli.main(["study", "attacks", "--preset", "smoke", "--out", str(tmp_path / "page")])
    assert ended.value.code == 0
    assert "Accuracy (%) under each attack" in capsys.readouterr().out
    assert (tmp_path / "page" / "rules_under_attack.png").stat().st_size > 10_000
