"""Attacks that remember, or that aim at a defence's memory, against their formulas over rounds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from attack_rounds import MeanDefence, as_numpy, check, forge, next_round, random_rows, seeded
from oracles import attacks as oracle
from torch import Tensor

import robust_agg as ra
from attacks import ROP, AntiClip, Attack, Drift, Mimic, Replay
from robust_agg import State

DTYPES = [torch.float32, torch.float64, torch.bfloat16]

# --- mimic ----------------------------------------------------------------------------------------


def biased_rounds(rounds: int, h: int = 6, d: int = 5, dtype: torch.dtype = torch.float64):
    """Workers with data of their own: a mean each, which varies most along the first axis."""
    means = random_rows(h, d, seed=11) * torch.tensor([5.0, *[1.0] * (d - 1)])
    for round in range(rounds):
        yield (means + 0.3 * random_rows(h, d, seed=100 + round)).to(dtype)


@pytest.mark.parametrize("warmup", [1, 3, 6])
def test_mimic_copies_whom_the_rule_finds(warmup: int) -> None:
    attack, senders = Mimic(warmup=warmup), [2, 3, 5, 7, 8, 9]
    start = as_numpy(torch.randn(5, generator=seeded(0)))
    naive = oracle.Mimicry(warmup, start)
    state: State | None = None
    for round, honest in enumerate(biased_rounds(8)):
        # Some workers are not in every round.
        here = [i for i in range(6) if (i + round) % 5]
        ids = [senders[i] for i in here]
        rows, state = next_round(
            attack,
            honest[:2],
            honest[here],
            state,
            round=round,
            honest_senders=ids,
        )
        expected = naive.round(as_numpy(honest[here]), ids)
        check(rows, np.tile(expected, (2, 1)), honest[:2])
        np.testing.assert_allclose(as_numpy(state["centre"]), naive.centre, atol=1e-12)
        np.testing.assert_allclose(as_numpy(state["direction"]), naive.direction, atol=1e-12)
        assert int(state["target"]) == naive.target


def test_mimic_finds_the_direction_in_which_workers_differ() -> None:
    state: State | None = None
    attack = Mimic(warmup=20)
    copied = []
    for round, honest in enumerate(biased_rounds(30)):
        rows, state = next_round(attack, honest[:1], honest, state, round=round)
        copied.append(int((honest == rows[0]).all(dim=1).nonzero()))
    assert state is not None
    every = torch.cat(list(biased_rounds(20)))
    top = torch.linalg.eigh((every - every.mean(dim=0)).T.cov()).eigenvectors[:, -1]
    assert abs(float(top @ state["direction"])) > 0.99
    assert len(set(copied[5:])) == 1


def test_mimic_of_a_given_worker() -> None:
    honest = random_rows(4, 3)
    attack = Mimic(target=7)
    for ids, place in (([2, 7, 8, 9], 1), ([2, 3, 8, 9], 0)):
        rows, state = next_round(attack, honest[:2], honest, None, round=0, honest_senders=ids)
        assert torch.equal(rows, honest[[place, place]])
        assert state == {}


# --- replay ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("every", [None, 1, 2, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_replay(every: int | None, dtype: torch.dtype) -> None:
    attack = Replay(every=every)
    state: State | None = None
    kept: dict[int, tuple[int, Tensor]] = {}
    for round in range(9):
        own = random_rows(3, 4, dtype, seed=round)
        # Worker 5 does not take part in every round.
        ids = [4, 6] if round % 3 == 1 else [4, 5, 6]
        rows, state = next_round(attack, own[: len(ids)], own, state, round=round, senders=ids)
        for sender, row, mine in zip(ids, rows, own, strict=False):
            if sender not in kept or (every is not None and round - kept[sender][0] >= every):
                kept[sender] = round, mine.clone()
            assert torch.equal(row, kept[sender][1])
        own.zero_()
    if every == 1:
        assert all(since >= 7 for since, _ in kept.values())


# --- rop ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize(
    "parameters",
    [
        {"z": 1.0, "relocation": 1.0, "memory": 0.9, "angle": 90.0},
        {"z": 3.5, "relocation": 0.0, "memory": 0.0, "angle": 90.0},
        {"z": 0.1, "relocation": 0.3, "memory": 1.0, "angle": 135.0},
        {"z": 2.0, "relocation": 0.5, "memory": 0.5, "angle": 180.0},
    ],
    ids=str,
)
def test_rop(parameters: dict[str, float], last: bool, dtype: torch.dtype) -> None:
    own, honest = random_rows(2, 6, dtype, seed=1), random_rows(5, 6, dtype, seed=2)
    estimate = random_rows(1, 6, dtype, seed=3)[0] if last else None
    expected = oracle.rop(
        as_numpy(honest), None if estimate is None else as_numpy(estimate), **parameters
    )
    defence = MeanDefence(estimate=estimate)
    check(forge(ROP(**parameters), own, honest, defence=defence), np.tile(expected, (2, 1)), own)


def test_rop_is_orthogonal_and_as_long_as_asked_for() -> None:
    own, honest, last = random_rows(1, 40, seed=1), random_rows(5, 40, seed=2), random_rows(1, 40)
    row = forge(ROP(z=2.5), own, honest, defence=MeanDefence(estimate=last[0]))[0]
    reference = 0.9 * last[0] + 0.1 * honest.mean(dim=0)
    off = row - last[0]
    assert float(off.norm()) == pytest.approx(2.5)
    assert abs(float(off @ reference)) < 1e-9


def test_rop_where_nothing_is_orthogonal() -> None:
    """In one dimension, or where all coordinates are equal: it stays where it is."""
    for d in (1, 5):
        honest = torch.full((3, d), 2.0, dtype=torch.float64)
        row = forge(ROP(), honest[:1], honest, defence=MeanDefence(estimate=honest[0]))
        torch.testing.assert_close(row, honest[:1], rtol=0, atol=1e-12)


# --- anticlip -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("radius", [None, 0.7])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(("k", "h"), [(1, 1), (1, 4), (2, 5), (4, 3)])
def test_anti_clip_against_the_mean(k: int, h: int, norm, radius, dtype: torch.dtype) -> None:
    own, honest = random_rows(k, 7, dtype, seed=1), random_rows(h, 7, dtype, seed=2)
    for last in (None, random_rows(1, 7, dtype, seed=3)[0]):
        centre = np.zeros(7) if last is None else as_numpy(last)
        expected = oracle.anti_clip(
            as_numpy(honest), centre, n=k + h, radius=radius, share=0.9, norm=norm
        )
        found = forge(
            AntiClip(norm=norm, radius=radius, share=0.9),
            own,
            honest,
            defence=MeanDefence(estimate=last),
        )
        check(found, np.tile(expected, (k, 1)), own)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_anti_clip_keeps_a_fixed_direction(norm) -> None:
    attack = AntiClip(norm=norm, direction="fixed", radius=2.0, share=0.5)
    state: State | None = None
    offsets = []
    for round in range(3):
        last = random_rows(1, 30, seed=round)[0]
        rows, state = next_round(
            attack, last[None], last[None], state, round=round, defence=MeanDefence(estimate=last)
        )
        offsets.append(rows[0] - last)
    for offset in offsets:
        torch.testing.assert_close(offset, offsets[0])
        length = offset.norm() if norm == "l2" else offset.abs()
        torch.testing.assert_close(length, torch.ones_like(length))
    other, _ = next_round(attack, last[None], last[None], None, round=9)
    assert not torch.allclose(other[0], offsets[0])


@pytest.mark.parametrize(
    ("estimator", "norm"),
    [
        (ra.VClip(tau=0.5), "l2"),
        (ra.VClip(), "l2"),
        (ra.CClip(tau=0.5), "linf"),
        (ra.CClip(), "linf"),
    ],
    ids=repr,
)
def test_what_clips_takes_anti_clip_in_full(estimator: ra.OnlineMedian, norm) -> None:
    """It moves the estimate by k/n of its distance, though a row a hair farther out is cut."""
    n, k = 10, 4
    model = torch.nn.Linear(20, 1, bias=False, dtype=torch.float64)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    server = ra.Server(model, optimizer, estimator, f=k, device="cpu")
    honest = random_rows(n - k, 20, seed=2)
    before = random_rows(n, 20, seed=3)
    server.step([ra.Update(sender=i, round=0, row=row) for i, row in enumerate(before)])
    assert server.estimate is not None
    tau = None if estimator.tau is None else 0.5
    rows = forge(AntiClip(norm=norm, radius=tau), honest[:k], honest, defence=server)
    without = server.aggregate(torch.cat([honest, server.estimate.expand(k, -1)]))
    moved = server.aggregate(torch.cat([honest, rows])) - without
    if estimator.tau is not None:
        torch.testing.assert_close(moved, k / n * (rows[0] - server.estimate))
    farther = server.estimate + 2 * (rows[0] - server.estimate)
    more = server.aggregate(torch.cat([honest, farther.expand(k, -1)])) - without
    ratio = float(more.norm() / moved.norm())
    assert ratio < 1.1 / 0.99, "twice as far moves it no farther"


# --- drift ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("strength", [0.2, 3.0])
def test_drift(strength: float, dtype: torch.dtype) -> None:
    attack = Drift(strength=strength)
    state: State | None = None
    for round in range(3):
        own, honest = random_rows(2, 9, dtype, seed=1), random_rows(5, 9, dtype, seed=20 + round)
        rows, state = next_round(attack, own, honest, state, round=round)
        direction = as_numpy(state["direction"])
        if round == 0:
            first = direction
        assert np.array_equal(direction, first)
        assert np.linalg.norm(direction) == pytest.approx(1, abs=1e-6)
        check(rows, np.tile(oracle.drift(as_numpy(honest), direction, strength), (2, 1)), own)


def test_drift_has_a_direction_of_its_own_in_every_run() -> None:
    honest = random_rows(4, 200)
    rows = [forge(Drift(), honest[:1], honest, seed=seed)[0] for seed in range(8)]
    off = torch.stack(rows) - honest.mean(dim=0)
    cosines = torch.corrcoef(off)[~torch.eye(8, dtype=torch.bool)]
    assert float(cosines.abs().max()) < 5 / math.sqrt(200)


@pytest.mark.parametrize(
    ("attack", "parameters", "message"),
    [
        (Mimic, {"warmup": 0}, "Mimic: warmup must be an integer >= 1, found 0"),
        (Mimic, {"target": -1}, "Mimic: target must be an integer >= 0, found -1"),
        (Replay, {"every": 0}, "Replay: every must be an integer >= 1, found 0"),
        (ROP, {"z": 0.0}, "ROP: z must be a positive finite number, found 0.0"),
        (ROP, {"relocation": 1.5}, r"ROP: relocation must be in \[0, 1\], found 1.5"),
        (ROP, {"memory": -0.1}, r"ROP: memory must be in \[0, 1\], found -0.1"),
        (ROP, {"angle": math.inf}, "ROP: angle must be finite, found inf"),
        (AntiClip, {"radius": 0.0}, "AntiClip: radius must be a positive finite number, found 0.0"),
        (AntiClip, {"share": 1.01}, r"AntiClip: share must be in \(0, 1\], found 1.01"),
        (AntiClip, {"norm": "l1"}, "AntiClip: norm must be 'l2' or 'linf', found 'l1'"),
        (AntiClip, {"direction": "up"}, "AntiClip: direction must be 'against' or 'fixed', found"),
        (Drift, {"strength": 0.0}, "Drift: strength must be a positive finite number, found 0.0"),
    ],
)
def test_bad_parameters(attack: type[Attack], parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}"):
        attack(**parameters)


def test_one_honest_row_has_no_scatter_to_drift_in() -> None:
    with pytest.raises(ValueError, match=r"^Drift: at least 2 honest rows are required, "):
        forge(Drift(), random_rows(1, 3), random_rows(1, 3))
