"""Faults: what arrives of honest messages, what is said of the rest, and what is admitted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from attack_rounds import random_rows, seeded, updates_of

from attacks import (
    Crash,
    DropCoordinates,
    Duplicate,
    Fault,
    FaultyWorkers,
    Stale,
    Straggle,
)
from robust_agg import Rejection, State, Update
from robust_agg.admission import Admitted, admit
from robust_agg.checkpoint import load_checkpoint, save_checkpoint
from robust_agg.messages import Schema

FAULTS: list[Fault] = [
    Crash(round=2),
    Straggle(),
    Stale(),
    Stale(age=3),
    Duplicate(),
    Duplicate(copies=4),
    DropCoordinates(probability=0.5),
]
BAD = frozenset({1, 3})
D = 200


def rounds_of(
    fault: Fault, rounds: int = 6, *, dtype: torch.dtype = torch.float32
) -> Iterator[tuple[list[Update], list[Update], list[Rejection], Admitted]]:
    """What the workers send, what arrives, what is said, and what admission makes of it."""
    workers, state = FaultyWorkers(fault=fault, byzantine=BAD), {}
    for round in range(rounds):
        sent = updates_of(random_rows(5, D, dtype, seed=round), round=round)
        kept = [update.row.clone() for update in sent]
        before = {name: tensor.clone() for name, tensor in state.items()}
        arrived, refused, new = workers.deliver(sent, state, generator=seeded(round))
        again = workers.deliver(sent, state, generator=seeded(round))
        assert_equal(arrived, again[0])
        assert refused == again[1]
        assert all(torch.equal(u.row, row) for u, row in zip(sent, kept, strict=True))
        assert list(before) == list(state)
        assert all(torch.equal(before[name], state[name]) for name in before)
        state = dict(new)
        schema = Schema(round=round, dim=D, dtype=dtype, senders=frozenset(range(5)))
        yield sent, arrived, refused, admit(arrived, schema, refused=refused)


def assert_equal(one: list[Update], other: list[Update]) -> None:
    assert [(u.sender, u.round) for u in one] == [(u.sender, u.round) for u in other]
    assert all(torch.equal(a.row, b.row) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_fault_is_pure_and_costs_its_workers_alone(fault: Fault, dtype: torch.dtype) -> None:
    for sent, arrived, refused, admitted in rounds_of(fault, dtype=dtype):
        assert all(update.row.dtype == dtype for update in arrived)
        for update in sent:
            if update.sender not in BAD:
                assert any(each is update for each in arrived)
        assert {rejection.sender for rejection in refused} <= BAD
        assert {rejection.sender for rejection in admitted.rejections} <= BAD
        assert {0, 2, 4} <= set(admitted.senders)
        assert bool(admitted.rows.isfinite().all())


def reasons(admitted: Admitted) -> list[str]:
    return [rejection.reason for rejection in admitted.rejections]


def test_a_crash() -> None:
    for round, (_, _, _, admitted) in enumerate(rounds_of(Crash(round=2))):
        crashed = round >= 2
        assert admitted.senders == ((0, 2, 4) if crashed else (0, 1, 2, 3, 4))
        said = [f"lost: worker {i} crashed in round 2" for i in (1, 3)]
        assert reasons(admitted) == (said if crashed else [])


def test_stragglers_are_late_as_often_as_they_are_said_to_be() -> None:
    late = 0
    for round, (_, _, _, admitted) in enumerate(rounds_of(Straggle(probability=0.25), 400)):
        for rejection in admitted.rejections:
            late += 1
            assert rejection.sender not in admitted.senders
            assert rejection.reason == (
                f"late: worker {rejection.sender} did not answer round {round} in time"
            )
        assert len(admitted.senders) == 5 - len(admitted.rejections)
    # 200 of 800 expected; five standard deviations are 61.
    assert 139 <= late <= 261
    for _, _, _, admitted in rounds_of(Straggle(probability=1.0), 5):
        assert admitted.senders == (0, 2, 4)


@pytest.mark.parametrize("age", [1, 3])
def test_stale_messages(age: int) -> None:
    history: list[list[Update]] = []
    for round, (sent, arrived, _, admitted) in enumerate(rounds_of(Stale(age=age))):
        history.append(sent)
        assert admitted.senders == (0, 2, 4)
        if round < age:
            assert [u.sender for u in arrived] == [0, 2, 4]
            assert reasons(admitted) == ["missing: no message arrived"] * 2
            continue
        assert_equal(
            [u for u in arrived if u.sender in BAD], [history[-1 - age][i] for i in (1, 3)]
        )
        assert reasons(admitted) == [f"stale: round {round - age}, expected {round}"] * 2


def test_a_worker_that_is_not_asked_every_round_is_as_stale_as_it_says() -> None:
    workers, state = FaultyWorkers(fault=Stale(age=2), byzantine=frozenset({4})), {}
    found = []
    for round in (0, 3, 4, 9):
        row = torch.full((2,), float(round))
        arrived, _, state = workers.deliver(
            [Update(sender=4, round=round, row=row)], state, generator=seeded()
        )
        found += [(u.round, float(u.row[0])) for u in arrived]
    assert found == [(0, 0.0), (3, 3.0)]


@pytest.mark.parametrize("copies", [2, 5])
def test_duplicates_count_once(copies: int) -> None:
    for sent, arrived, _, admitted in rounds_of(Duplicate(copies=copies)):
        assert [u.sender for u in arrived] == [0, *[1] * copies, 2, *[3] * copies, 4]
        assert admitted.senders == (0, 1, 2, 3, 4)
        assert torch.equal(admitted.rows, torch.stack([u.row for u in sent]))
        said = "duplicate: an earlier message of this round counts"
        assert reasons(admitted) == [said] * (2 * (copies - 1))


def test_dropped_coordinates() -> None:
    lost = 0
    for sent, arrived, refused, admitted in rounds_of(DropCoordinates(probability=0.1), 40):
        assert refused == []
        assert reasons(admitted) == []
        for before, after in zip(sent, arrived, strict=True):
            if before.sender in BAD:
                same = after.row == before.row
                assert bool((after.row[~same] == 0).all())
                lost += int((~same).sum())
    # 1600 of 16,000 expected; five standard deviations are 190.
    assert 1410 <= lost <= 1790


def test_what_is_not_a_number_can_be_lost_too() -> None:
    row = torch.full((50,), torch.nan)
    workers = FaultyWorkers(fault=DropCoordinates(probability=1.0), byzantine=frozenset({0}))
    (arrived,), _, _ = workers.deliver([Update(0, 0, row)], {}, generator=seeded())
    assert torch.equal(arrived.row, torch.zeros(50))


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_fault_s_state_can_be_saved_and_loaded(fault: Fault, tmp_path) -> None:
    workers, state = FaultyWorkers(fault=fault, byzantine=BAD), {}
    for round in range(4):
        sent = updates_of(random_rows(5, 3, seed=round), round=round)
        _, _, state = workers.deliver(sent, state, generator=seeded(round))
    save_checkpoint(tmp_path / "fault", {"state": dict(state)})
    loaded = load_checkpoint(tmp_path / "fault")["state"]
    sent = updates_of(random_rows(5, 3, seed=9), round=4)
    one, other = (workers.deliver(sent, s, generator=seeded(4)) for s in (state, loaded))
    assert_equal(one[0], other[0])
    assert one[1] == other[1]


def test_the_workers_of_a_fault_do_not_share_a_state() -> None:
    class Counts(Fault):
        def __call__(
            self, update: Update, state: State, generator: torch.Generator
        ) -> tuple[list[Update], State]:
            seen = state.get("seen", torch.zeros(())) + 1
            return [Update(update.sender, update.round, seen.expand(2))], {"seen": seen}

    workers = FaultyWorkers(fault=Counts(), byzantine=frozenset({1, 11}))
    state: State = {}
    for senders, expected in (([1], [1.0]), ([1, 11], [2.0, 1.0]), ([11], [2.0])):
        sent = updates_of(torch.zeros(len(senders), 2), senders)
        arrived, _, state = workers.deliver(sent, state, generator=seeded())
        assert [float(u.row[0]) for u in arrived] == expected


def test_a_fault_forges_nothing() -> None:
    class Forges(Fault):
        def __call__(
            self, update: Update, state: State, generator: torch.Generator
        ) -> tuple[list[Update], State]:
            return [Update(0, update.round, update.row)], state

    workers = FaultyWorkers(fault=Forges(), byzantine=BAD)
    with pytest.raises(ValueError, match=r"^Forges: messages must be of sender 1, found 0$"):
        workers.deliver(updates_of(random_rows(3, 2)), {}, generator=seeded())


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
def test_a_fault_does_not_touch_the_global_generator(fault: Fault) -> None:
    before = torch.get_rng_state()
    expected = [arrived for _, arrived, _, _ in rounds_of(fault, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    sent = updates_of(random_rows(5, D, torch.float32, seed=0), round=0)
    workers, draw = FaultyWorkers(fault=fault, byzantine=BAD), seeded(0)
    with torch.device("meta"):
        arrived, _, _ = workers.deliver(sent, {}, generator=draw)
    assert_equal(arrived, expected[0])


@pytest.mark.parametrize(
    ("fault", "parameters", "message"),
    [
        (Crash, {"round": -1}, "Crash: round must be an integer >= 0, found -1"),
        (Straggle, {"probability": 0.0}, r"Straggle: probability must be in \(0, 1\], found 0.0"),
        (Stale, {"age": 0}, "Stale: age must be an integer >= 1, found 0"),
        (Duplicate, {"copies": 1}, "Duplicate: copies must be an integer >= 2, found 1"),
        (
            DropCoordinates,
            {"probability": 1.5},
            r"DropCoordinates: probability must be in \(0, 1\], found 1.5",
        ),
    ],
)
def test_bad_parameters(fault: type[Fault], parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}$"):
        fault(**parameters)
