"""The adversary replaces the Byzantine rows and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from attack_rounds import ATTACKS, MeanDefence, random_rows, seeded, too_small, updates_of

from attacks import (
    Adversary,
    Attack,
    InnerProductManipulation,
    Knowledge,
    NonFinite,
    Replay,
    SignFlip,
)


class Echo(Attack):
    knows = Knowledge.HONEST

    def __call__(self, view, state, generator):
        return view.honest[:1].repeat(view.byzantine, 1), state


class Sends(Attack):
    """Answers with whatever it was made with."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def __call__(self, view, state, generator):
        return self.answer


class Counting(Attack):
    """Sends the number of rounds it has seen, and keeps what it sent in its state."""

    def init(self, like):
        return {"rounds": torch.zeros((), dtype=like.dtype)}

    def __call__(self, view, state, generator):
        rounds = state["rounds"] + 1
        sent = rounds.expand(view.byzantine, view.dim)
        return sent, {"rounds": rounds}


class Adaptive(Attack):
    """Reverses the defence's answer to the honest rows, as often as its declared f."""

    knows = Knowledge.HONEST | Knowledge.DEFENCE

    def __call__(self, view, state, generator):
        target = -view.f * view.defence.aggregate(view.honest)
        return target.expand(view.byzantine, -1), state


class Vandal(Attack):
    """Works in place in all it is given, and in what it has sent."""

    knows = Knowledge.OWN | Knowledge.HONEST

    def __init__(self) -> None:
        self.sent: list[torch.Tensor] = []

    def __call__(self, view, state, generator):
        for rows in self.sent:
            rows.fill_(torch.nan)
        view.honest.fill_(-1.0)
        rows = view.own.fill_(5.0)
        self.sent.append(rows)
        return rows, state


def corrupt(attack, updates, byzantine, state=None, **extra):
    adversary = Adversary(attack=attack, byzantine=frozenset(byzantine))
    if state is None:
        state = adversary.init(updates[0].row) if updates else {}
    return adversary.corrupt(updates, state, round=7, generator=seeded(), **extra)


def test_a_user_s_attack_is_one_small_class() -> None:
    rows = random_rows(5, 3)
    received, _ = corrupt(Echo(), updates_of(rows), {0, 3})
    assert torch.equal(torch.stack([u.row for u in received]), rows[[1, 1, 2, 1, 4]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("attack", "byzantine"),
    [(a, b) for a in ATTACKS for b in ({4}, {9, 2}) if not too_small(a, len(b), 5 - len(b))],
    ids=repr,
)
def test_every_attack_runs_in_a_round(attack, byzantine, dtype) -> None:
    senders = [4, 9, 0, 2, 7]
    rows = random_rows(5, 6, dtype)
    kept = rows.clone()
    updates = updates_of(rows, senders)
    received, _ = corrupt(attack, updates, byzantine, defence=MeanDefence())
    assert [u.sender for u in received] == senders
    for before, after in zip(updates, received, strict=True):
        if before.sender in byzantine:
            assert after.round == before.round
            assert (after.row.shape, after.row.dtype) == ((6,), dtype)
            # In its first round nothing is old yet.
            assert torch.equal(after.row, before.row) == isinstance(attack, Replay)
        else:
            assert after is before
    assert torch.equal(rows, kept)


def test_sender_round_and_order_are_kept() -> None:
    rows = random_rows(4, 3)
    updates = [replace(u, round=u.sender * 10) for u in updates_of(rows, [8, 3, 5, 1])]
    received, _ = corrupt(SignFlip(), updates, {3, 1})
    assert [(u.sender, u.round) for u in received] == [(8, 80), (3, 30), (5, 50), (1, 10)]
    assert torch.equal(torch.stack([u.row for u in received]), rows * torch.tensor([[1], [-1]] * 2))


def test_two_updates_of_one_byzantine_sender_are_both_replaced() -> None:
    rows = random_rows(3, 2)
    received, _ = corrupt(SignFlip(), updates_of(rows, [5, 6, 5]), {5})
    assert torch.equal(received[0].row, -rows[0])
    assert torch.equal(received[2].row, -rows[2])


def test_without_a_byzantine_update_nothing_happens() -> None:
    updates, state = updates_of(random_rows(3, 2)), {"rounds": torch.tensor(4.0)}
    received, after = corrupt(Sends("never asked"), updates, {17}, state)
    assert received == updates
    assert received is not updates
    assert after is state
    assert corrupt(Sends("never asked"), [], {17}) == ([], {})


def test_who_is_idle() -> None:
    blind, seeing = (
        Adversary(attack=attack, byzantine=frozenset({1, 4, 7}))
        for attack in (InnerProductManipulation(), SignFlip(of="own"))
    )
    assert blind.idle([4, 0, 1, 2]) == (4, 1)
    assert seeing.idle([4, 0, 1, 2]) == ()


@pytest.mark.parametrize(
    "attack",
    [a for a in ATTACKS if Knowledge.OWN not in a.knows and not too_small(a, 2, 3)],
    ids=repr,
)
def test_idle_workers_send_what_they_would_have_sent(attack) -> None:
    rows, defence = random_rows(5, 6), MeanDefence(f=2)
    updates = updates_of(rows, [0, 1, 2, 3, 4])
    expected, _ = corrupt(attack, updates, {3, 4}, defence=defence)
    received, _ = corrupt(attack, updates[:3], {3, 4}, defence=defence, idle=(3, 4))
    assert [(u.sender, u.round) for u in received[3:]] == [(3, 7), (4, 7)]
    for one, other in zip(received, expected, strict=True):
        torch.testing.assert_close(one.row, other.row, equal_nan=True)


def test_idle_workers_alone() -> None:
    like = torch.zeros(3, dtype=torch.bfloat16)
    received, _ = corrupt(NonFinite(), [], {3, 5}, idle=(5, 3), like=like)
    assert [u.sender for u in received] == [5, 3]
    assert {(u.row.shape, u.row.dtype) for u in received} == {((3,), torch.bfloat16)}
    with pytest.raises(ValueError, match=r"^Adversary: like is required with idle workers alone"):
        corrupt(NonFinite(), [], {3, 5}, idle=(5, 3))


@pytest.mark.parametrize(
    ("attack", "idle"),
    [(SignFlip(), (3,)), (NonFinite(), (0, 3)), (NonFinite(), (1,)), (NonFinite(), (3, 3))],
)
def test_who_may_not_be_idle(attack, idle) -> None:
    with pytest.raises(ValueError, match=r"^Adversary: idle must be different Byzantine workers"):
        corrupt(attack, updates_of(random_rows(3, 2), [0, 1, 2]), {1, 3}, idle=idle)


def test_without_an_honest_update() -> None:
    updates = updates_of(random_rows(3, 2))
    received, _ = corrupt(InnerProductManipulation(), updates, {0, 1, 2})
    assert received == updates, "there is nothing to make a row from"
    received, _ = corrupt(SignFlip(), updates, {0, 1, 2})
    assert torch.equal(received[2].row, -updates[2].row)


def test_the_defence_is_queried_with_its_own_f() -> None:
    rows, defence = random_rows(5, 3), MeanDefence(f=1)
    received, _ = corrupt(Adaptive(), updates_of(rows), {2, 3, 4}, defence=defence)
    assert torch.equal(received[4].row, -rows[:2].mean(dim=0))
    assert len(defence.asked) == 1
    with pytest.raises(ValueError, match="Adaptive: a defence to query is required"):
        corrupt(Adaptive(), updates_of(rows), {2})


def test_the_state_is_handed_from_round_to_round() -> None:
    adversary = Adversary(attack=Counting(), byzantine=frozenset({1}))
    updates = updates_of(random_rows(3, 2))
    start = state = adversary.init(updates[0].row)
    for round_ in range(1, 4):
        received, state = adversary.corrupt(updates, state, round=round_, generator=seeded())
        assert received[1].row.tolist() == [round_, round_]
    assert start["rounds"] == 0


def test_an_attack_in_place_reaches_no_row_of_the_server() -> None:
    attack, rows = Vandal(), random_rows(4, 3)
    kept, updates = rows.clone(), updates_of(rows)
    first, _ = corrupt(attack, updates, {1, 2})
    second, _ = corrupt(attack, updates, {1, 2})
    assert torch.equal(rows, kept)
    for received in (first, second):
        assert received[1].row.tolist() == [5.0] * 3
        assert torch.equal(received[0].row, kept[0])


def test_the_server_s_rows_do_not_alias_each_other() -> None:
    received, _ = corrupt(InnerProductManipulation(), updates_of(random_rows(4, 3)), {0, 1})
    kept = received[1].row.clone()
    received[0].row.zero_()
    assert torch.equal(received[1].row, kept)


def test_the_server_s_rows_carry_no_gradient() -> None:
    answer = torch.ones(1, 3, dtype=torch.float64, requires_grad=True)
    received, _ = corrupt(Sends((answer, {})), updates_of(random_rows(4, 3)), {0})
    assert not received[0].row.requires_grad


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ((torch.zeros(3, 3, dtype=torch.float64), {}), r"\(3, 3\) of torch.float64 on cpu"),
        ((torch.zeros(3, dtype=torch.float64), {}), r"\(3,\) of torch.float64 on cpu"),
        ((torch.zeros(2, 3), {}), r"\(2, 3\) of torch.float32 on cpu"),
        ((torch.zeros(2, 3, dtype=torch.float64, device="meta"), {}), r"\(2, 3\) .* on meta"),
        (([[0.0] * 3] * 2, {}), "list"),
    ],
)
def test_rows_of_the_wrong_form(answer, found) -> None:
    expected = r"^Sends: rows \(2, 3\) of torch.float64 on cpu are required, found " + found + "$"
    with pytest.raises(ValueError, match=expected):
        corrupt(Sends(answer), updates_of(random_rows(4, 3)), {0, 1})


@pytest.mark.parametrize("answer", [torch.zeros(2, 3), None, (torch.zeros(2, 3),)], ids=str)
def test_an_answer_that_is_no_pair(answer) -> None:
    with pytest.raises(ValueError, match=r"^Sends: \(rows, state\) is required, found"):
        corrupt(Sends(answer), updates_of(random_rows(4, 3)), {0, 1})


@pytest.mark.parametrize(
    "odd",
    [torch.zeros(4), torch.zeros(3, dtype=torch.float64), torch.zeros(3, 1), torch.zeros(())],
    ids=lambda t: f"{tuple(t.shape)}-{t.dtype}",
)
@pytest.mark.parametrize("place", [0, 2])
def test_updates_that_do_not_match_each_other(odd: torch.Tensor, place: int) -> None:
    updates = updates_of(random_rows(3, 3, torch.float32))
    updates[place] = replace(updates[place], row=odd)
    with pytest.raises(ValueError, match=r"^Adversary: rows \(d,\) alike are required, found .*"):
        corrupt(NonFinite(), updates, {1})
