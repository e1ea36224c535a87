"""Which cells a sweep wants: a grid whole, a search by what it knows."""

from __future__ import annotations

from itertools import product
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.sweeps.cells import Point
from experiments.sweeps.config import Breakdown, SweepConfig
from experiments.sweeps.plan import bisect, searched, wanted


def test_a_grid_is_the_product_of_its_lists_with_seeds_slowest() -> None:
    sweep = SweepConfig(
        base={"rounds": 3},
        grid={"defence": ("Mean", "Krum"), "attack": ("none", "SignFlip"), "seed": (1, 0)},
        tune={"lr": (0.1, 1.0)},
    )
    points = wanted(sweep, lambda point: None)
    found = [tuple(p.given[n] for n in ("seed", "defence", "attack", "lr")) for p in points]
    assert found == [*product((1, 0), ("Mean", "Krum"), ("none", "SignFlip"), (0.1, 1.0))]
    assert all(point.given["rounds"] == 3 for point in points)
    assert points[1].group == (("defence", "Mean"),)
    assert points[1].tuned == (("lr", 1.0),)
    assert wanted(sweep, lambda point: 0.5) == points


def test_a_sweep_without_lists_is_one_cell() -> None:
    (point,) = wanted(SweepConfig(base={"defence": "Mean"}), lambda point: None)
    assert (point.defence, point.group, point.tuned) == ("Mean", (), ())


@given(st.integers(1, 40), st.integers(1, 45))
def test_bisection_finds_the_smallest_f_of_a_monotone_loss(most: int, breaks_at: int) -> None:
    calls: list[int] = []

    def below(f: int) -> bool:
        calls.append(f)
        return f >= breaks_at

    asked, found, finished = bisect(below, most)
    by_force = next((f for f in range(1, most + 1) if f >= breaks_at), None)
    assert (found, finished) == (by_force, True)
    assert asked == calls
    assert len(set(asked)) == len(asked) <= most.bit_length()
    assert all(1 <= f <= most for f in asked)


@given(st.lists(st.booleans(), min_size=1, max_size=30))
def test_bisection_of_any_loss_ends_where_it_falls(broken: list[bool]) -> None:
    _, found, finished = bisect(lambda f: broken[f - 1], len(broken))
    assert finished
    if found is None:
        assert not broken[-1]
    else:
        assert broken[found - 1]
        assert found == 1 or not broken[found - 2]


def test_a_search_asks_for_all_seeds_of_one_f_at_a_time() -> None:
    sweep = SweepConfig(
        grid={"defence": ("Mean", "Krum"), "attack": ("none", "SignFlip"), "seed": (0, 1)},
        breakdown=Breakdown(accuracy=0.5, most=6),
    )

    def made_up(point: Point) -> float:
        """Mean breaks down at 1 under the attack, Krum at 4, in the mean over the seeds."""
        f = point.given["f"]
        assert isinstance(f, int)
        if point.attack == "none":
            return 0.9
        limit = {"Mean": 1, "Krum": 4}[point.defence]
        return (0.52 if f < limit else 0.48) + (0.01 if point.given["seed"] == 0 else -0.01)

    known: dict[Point, float] = {}
    steps = 0
    while missing := [p for p in wanted(sweep, known.get) if p not in known]:
        of_search = {(p.defence, p.attack, p.given["f"]) for p in missing}
        assert len(missing) == 2 * len(of_search), "both seeds, side by side"
        assert len({(d, a) for d, a, _ in of_search}) == len(of_search), "one f of each search"
        known |= {point: made_up(point) for point in missing}
        steps += 1
    assert steps <= 3
    by_force = {
        (defence, attack): next(
            (
                f
                for f in range(1, 7)
                if sum(
                    made_up(
                        Point((("defence", defence), ("attack", attack), ("seed", s), ("f", f)), ())
                    )
                    for s in (0, 1)
                )
                / 2
                < 0.5
            ),
            None,
        )
        for defence in ("Mean", "Krum")
        for attack in ("none", "SignFlip")
    }
    searches = searched(sweep, known.get)
    assert {(s.first.defence, s.first.attack): s.found for s in searches} == by_force
    assert all(search.finished for search in searches)
    assert by_force == {
        ("Mean", "none"): None,
        ("Mean", "SignFlip"): 1,
        ("Krum", "none"): None,
        ("Krum", "SignFlip"): 4,
    }


def test_an_attack_that_cannot_be_made_is_no_fall() -> None:
    sweep = SweepConfig(base={"defence": "Mean"}, breakdown=Breakdown(accuracy=0.5, most=7))
    (search,) = searched(sweep, lambda point: inf if int(point.given["f"] or 0) < 3 else 0.1)
    assert (search.found, search.finished) == (3, True)
    (search,) = searched(sweep, lambda point: inf)
    assert (search.found, search.finished) == (None, True)


@pytest.mark.parametrize("seeds_known", [0, 1])
def test_a_search_waits_for_the_last_seed(seeds_known: int) -> None:
    sweep = SweepConfig(
        base={"defence": "Mean"},
        grid={"seed": (0, 1)},
        breakdown=Breakdown(accuracy=0.5, most=7),
    )
    first = wanted(sweep, lambda point: None)
    assert [point.given["f"] for point in first] == [4, 4]
    known = dict.fromkeys(first[:seeds_known], 0.0)
    assert wanted(sweep, known.get) == first
    (search,) = searched(sweep, known.get)
    assert (search.found, search.finished) == (None, False)
