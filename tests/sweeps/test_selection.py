"""Selection by the worst case over attacks: by hand."""

from __future__ import annotations

from math import inf

import pytest
from scipy import stats

from experiments.sweeps.cells import Point
from experiments.sweeps.config import SweepConfig
from experiments.sweeps.plan import wanted
from experiments.sweeps.selection import chosen, leaderboard

SWEEP = SweepConfig(
    grid={"defence": ("Mean", "Krum"), "attack": ("none", "SignFlip"), "seed": (0, 1)},
    tune={"lr": (1.0, 0.1, 0.01)},
)
POINTS = wanted(SWEEP, lambda point: None)

# By defence and learning rate: of no attack, then of the attack, seeds 0 and 1.
ACCURACIES: dict[tuple[str, float], tuple[float | None, ...]] = {
    ("Mean", 1.0): (0.99, 0.99, 0.10, 0.20),  # best without an attack, worst case 0.15
    ("Mean", 0.1): (0.80, 0.80, 0.50, 0.30),  # 0.40
    ("Mean", 0.01): (0.39, 0.41, 0.60, 0.60),  # 0.40 as well, but later in the list
    ("Krum", 1.0): (0.95, 0.95, 0.95, None),  # a cell has failed
    ("Krum", 0.1): (0.70, 0.90, 0.75, 0.77),  # 0.76
    ("Krum", 0.01): (0.75, 0.75, 0.90, 0.90),  # 0.75
}


def accuracy(point: Point) -> float | None:
    place = 2 * (point.attack == "SignFlip") + int(point.given["seed"] or 0)
    lr = point.given["lr"]
    assert isinstance(lr, float)
    return ACCURACIES[point.defence, lr][place]


def test_the_best_worst_case_is_chosen_the_first_of_equals_and_none_that_failed() -> None:
    assert {setting.group: setting.tuned for setting in chosen(POINTS, accuracy)} == {
        (("defence", "Mean"),): (("lr", 0.1),),
        (("defence", "Krum"),): (("lr", 0.1),),
    }
    for setting in chosen(POINTS, accuracy):
        assert len(setting.points) == 4
        assert all(point.given["lr"] == 0.1 for point in setting.points)


def test_the_choice_depends_on_the_worst_attack_alone() -> None:
    """Whatever the others say, as long as they are better."""
    assert chosen(POINTS, accuracy) == chosen(
        POINTS, lambda p: 1.0 if p.attack == "none" and accuracy(p) == 0.99 else accuracy(p)
    )


def test_a_group_whose_settings_have_all_failed_has_none() -> None:
    found = chosen(
        POINTS,
        lambda p: None if (p.defence, p.given["seed"], p.attack) == ("Krum", 1, "none") else 0.5,
    )
    assert [setting.group for setting in found] == [(("defence", "Mean"),)]
    assert [setting.tuned for setting in found] == [(("lr", 1.0),)]


def test_where_nothing_is_tuned_all_are_chosen_and_what_has_failed_cells_is_not_ranked() -> None:
    sweep = SweepConfig(grid={**SWEEP.grid}, base={"lr": 1.0})
    points = wanted(sweep, lambda point: None)
    settings = chosen(points, accuracy)
    assert {point for setting in settings for point in setting.points} == {*points}
    mean, krum = leaderboard(settings, accuracy)
    assert (mean.mean, mean.failed) == (pytest.approx(0.15), 0)
    # The seed that has failed may be the worst one, or the best.
    assert krum.setting.group == (("defence", "Krum"),)
    assert (krum.attack, krum.mean, krum.failed) == ("", None, 1)
    # A rule that is not for so many Byzantine workers has fallen.
    mean, krum = leaderboard(settings, lambda p: accuracy(p) or 0.0)[::-1]
    assert (krum.attack, krum.mean, krum.failed) == ("SignFlip", pytest.approx(0.475), 0)


def test_the_leaderboard_is_of_test_data_with_students_interval() -> None:
    """Settings are those of validation, whatever the test data says."""

    def test(point: Point) -> float:
        return {"Mean": 0.9, "Krum": 0.6}[point.defence] + 0.1 * int(point.given["seed"] or 0)

    mean, krum = leaderboard(chosen(POINTS, accuracy), test)
    assert [line.setting.tuned for line in (mean, krum)] == [(("lr", 0.1),)] * 2
    assert (mean.attack, mean.mean) == ("none", pytest.approx(0.95))  # equal: the first
    low, high = stats.t.interval(0.95, df=1, loc=0.65, scale=stats.sem([0.6, 0.7]))
    assert krum.mean == pytest.approx((low + high) / 2)
    assert krum.half == pytest.approx((high - low) / 2)


def test_one_seed_has_no_interval() -> None:
    sweep = SweepConfig(base={"defence": "Mean"})
    (line,) = leaderboard(chosen(wanted(sweep, lambda p: None), lambda p: 0.5), lambda p: 0.4)
    assert (line.mean, line.half) == (0.4, inf)
