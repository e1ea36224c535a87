"""Selection by the worst case over attacks: by hand."""

from __future__ import annotations

from experiments.sweeps.cells import Point
from experiments.sweeps.config import SweepConfig
from experiments.sweeps.plan import wanted
from experiments.sweeps.selection import chosen

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


def test_where_nothing_is_tuned_all_are_chosen_failed_cells_or_not() -> None:
    sweep = SweepConfig(grid={**SWEEP.grid}, base={"lr": 1.0})
    points = wanted(sweep, lambda point: None)
    assert {point for setting in chosen(points, accuracy) for point in setting.points} == {*points}
