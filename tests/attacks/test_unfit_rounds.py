"""Rounds that are too small for an attack: its workers are honest in them, and the run goes on."""

from __future__ import annotations

import itertools

import pytest
import torch
from attack_rounds import (
    ATTACKS,
    MeanDefence,
    forge,
    random_rows,
    seeded,
    too_small,
    updates_of,
)

from attacks import (
    Adversary,
    ALittleIsEnough,
    Attack,
    FangAttack,
    InnerProductManipulation,
    Knowledge,
    MinMax,
    SignFlip,
    UnfitRoundError,
    check_some_round,
)

SIZES = [*itertools.product(range(1, 5), range(7))]


def unfit(attack: Attack, k: int, h: int) -> bool:
    """By the table of attacks, and for the want of honest rows."""
    return too_small(attack, k, h) or (Knowledge.HONEST in attack.knows and h == 0)


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_an_attack_says_which_rounds_it_can_be_made_in(attack: Attack) -> None:
    for k, h in SIZES:
        if unfit(attack, k, h):
            match = rf"^{type(attack).__name__}: .* found .*n={k + h}"
            with pytest.raises(UnfitRoundError, match=match):
                attack.check(k, h)
        else:
            attack.check(k, h)


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_it_refuses_those_itself_and_makes_rows_in_the_others(attack: Attack) -> None:
    for k, h in SIZES:
        if h == 0:
            continue
        own, honest = random_rows(k, 5, seed=1), random_rows(h, 5, seed=2)
        if unfit(attack, k, h):
            with pytest.raises(UnfitRoundError):
                forge(attack, own, honest)
        else:
            assert forge(attack, own, honest).shape == own.shape


def test_without_z_a_little_is_enough_needs_a_positive_one() -> None:
    for n, k in itertools.product(range(2, 13), range(1, 7)):
        supporters = n // 2 + 1 - k
        fits = n - k >= 2 and supporters >= 1 and (n - k - supporters) / (n - k) > 0.5
        if fits:
            ALittleIsEnough().check(k, n - k)
        elif n > k:
            with pytest.raises(UnfitRoundError, match=r"^ALittleIsEnough: "):
                ALittleIsEnough().check(k, n - k)


@pytest.mark.parametrize(
    "attack",
    [a for a in ATTACKS if unfit(a, 1, 1)] + [ALittleIsEnough()],
    ids=repr,
)
def test_in_such_a_round_its_workers_send_what_they_are_and_it_remembers_nothing(
    attack: Attack,
) -> None:
    adversary = Adversary(attack=attack, byzantine=frozenset({4}))
    updates = updates_of(random_rows(2, 3), [1, 4])
    state = attack.init(updates[0].row)
    reason = adversary.unfit([1, 4])
    assert reason is not None
    assert "n=2" in reason
    assert adversary.idle([1, 4]) == ()
    received, after = adversary.corrupt(
        updates, state, round=7, generator=seeded(), defence=MeanDefence()
    )
    assert received == updates
    assert after is state


def test_only_a_round_with_attackers_can_be_unfit() -> None:
    adversary = Adversary(attack=MinMax(), byzantine=frozenset({4, 5}))
    assert adversary.unfit([0]) is None
    assert adversary.unfit([]) is None
    assert adversary.unfit([0, 4]) is not None
    assert adversary.unfit([0, 1, 4, 5]) is None
    assert adversary.idle([0, 1, 4, 5]) == (4, 5)


def test_who_has_computed_nothing_sends_nothing_where_honest_rows_are_lost() -> None:
    """They were asked to be idle for a round that would have been large enough."""
    adversary = Adversary(attack=MinMax(), byzantine=frozenset({3, 4}))
    assert adversary.idle([0, 1, 3, 4]) == (3, 4)
    updates = updates_of(random_rows(1, 3), [0])
    received, _ = adversary.corrupt(updates, {}, round=7, generator=seeded(), idle=(3, 4))
    assert received == updates


def test_an_error_of_another_kind_is_no_unfit_round() -> None:
    class Broken(Attack):
        def check(self, byzantine: int, honest: int) -> None:
            raise ValueError("mine")

        def __call__(self, view, state, generator):
            return view.own, state

    adversary = Adversary(attack=Broken(), byzantine=frozenset({1}))
    with pytest.raises(ValueError, match=r"^mine$"):
        adversary.idle([0, 1])
    with pytest.raises(ValueError, match=r"^mine$"):
        adversary.corrupt(updates_of(torch.ones(2, 3)), {}, round=0, generator=seeded())


@pytest.mark.parametrize(
    ("attack", "workers", "byzantine", "rows", "found"),
    [
        (ALittleIsEnough(), 10, 2, 10, "n=10, k=2"),
        (ALittleIsEnough(), 20, 2, 10, "n=10, k=2"),
        (ALittleIsEnough(), 10, 3, 10, None),
        # Of 10 out of 20, 3 may be Byzantine.
        (ALittleIsEnough(), 20, 4, 10, None),
        (FangAttack(against="krum"), 7, 3, 7, "n=7, k=3"),
        (FangAttack(against="krum"), 7, 3, 5, None),
        # Of 5 out of 6 at least 2 are.
        (FangAttack(against="krum"), 6, 3, 5, "n=5, k=3"),
        (MinMax(), 2, 1, 2, "n=2"),
        (MinMax(), 3, 2, 2, "n=2"),
        (InnerProductManipulation(), 4, 3, 1, "n=1"),
        (SignFlip(), 1, 1, 1, None),
        (MinMax(), 2, 0, 2, None),
    ],
)
def test_an_attack_that_no_round_is_fit_for(
    attack: Attack, workers: int, byzantine: int, rows: int, found: str | None
) -> None:
    if found is None:
        check_some_round(attack, workers=workers, byzantine=byzantine, rows=rows)
        return
    with pytest.raises(UnfitRoundError, match=found):
        check_some_round(attack, workers=workers, byzantine=byzantine, rows=rows)
