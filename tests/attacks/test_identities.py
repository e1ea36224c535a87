"""Who is Byzantine: as many as asked for, reproducibly, and fairly drawn."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from attack_rounds import seeded
from hypothesis import given
from hypothesis import strategies as st

from attacks import Identities, byzantine_ids


@given(st.integers(0, 30).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n))))
def test_byzantine_ids(case: tuple[int, int]) -> None:
    n, count = case
    fixed, drawn = byzantine_ids(n, count), byzantine_ids(n, count, seeded(n))
    assert sorted(fixed) == list(range(n - count, n))
    assert len(drawn) == count
    assert drawn <= set(range(n))
    assert drawn == byzantine_ids(n, count, seeded(n))


def test_random_byzantine_ids_reach_every_worker() -> None:
    generator = seeded()
    drawn = Counter(i for _ in range(600) for i in byzantine_ids(6, 2, generator))
    # 200 expected each; five standard deviations of a binomial are 58.
    assert all(142 <= drawn[i] <= 258 for i in range(6))


@pytest.mark.parametrize(("n", "count"), [(4, 5), (4, -1), (-1, 0)])
def test_impossible_byzantine_ids(n: int, count: int) -> None:
    message = rf"^byzantine_ids: .* found n={n}, count={count}$"
    with pytest.raises(ValueError, match=message):
        byzantine_ids(n, count)
    with pytest.raises(ValueError, match=message):
        Identities(workers=n, count=count)


def test_the_last_ones() -> None:
    who = Identities(workers=9, count=3, seed=4)
    assert {who.at(round) for round in range(20)} == {frozenset({6, 7, 8})}


def test_a_draw_for_the_run_holds_for_all_its_rounds_and_follows_the_seed() -> None:
    drawn = set()
    for seed in range(40):
        who = Identities(workers=9, count=3, choice="run", seed=seed)
        (ids,) = {who.at(round) for round in range(5)}
        assert len(ids) == 3
        assert ids <= set(range(9))
        drawn.add(ids)
    assert len(drawn) > 20  # of 84


def test_a_draw_for_every_round_is_independent_of_the_others() -> None:
    who = Identities(workers=6, count=2, choice="round", seed=1)
    again = Identities(workers=6, count=2, choice="round", seed=1)
    rounds = [who.at(round) for round in range(600)]
    assert rounds[::-1] == [again.at(round) for round in reversed(range(600))]
    counts = Counter(i for ids in rounds for i in ids)
    assert all(142 <= counts[i] <= 258 for i in range(6))
    # Two rounds in a row are alike once in 15: 40 expected, five standard deviations are 31.
    assert 9 <= sum(a == b for a, b in pairwise(rounds)) <= 71
    assert rounds != [
        Identities(workers=6, count=2, choice="round", seed=2).at(round) for round in range(600)
    ]


def test_an_unknown_choice() -> None:
    with pytest.raises(ValueError, match=r"Identities: choice must be 'last', 'run' or 'round'"):
        Identities(workers=3, count=1, choice="first")  # type: ignore[arg-type]  # as a user may
