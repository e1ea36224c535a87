"""What an attack does not declare to know, it cannot read."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from attack_rounds import ATTACKS, GATED, MeanDefence, open_view, random_rows, seeded, updates_of

import robust_agg as ra
from attacks import Adversary, Attack, Knowledge, KnowledgeError, NonFinite, View
from robust_agg.span import Geometry, measure

EVERYTHING = Knowledge.OWN | Knowledge.HONEST | Knowledge.DEFENCE | Knowledge.ESTIMATE


class Spy(Attack):
    """Reads one attribute of the view and sends zeros."""

    def __init__(self, attribute: str, declared: Knowledge) -> None:
        self.attribute = attribute
        self.declared = declared

    @property
    def knows(self) -> Knowledge:
        return self.declared

    def __call__(self, view, state, generator):
        getattr(view, self.attribute)
        return torch.zeros(view.byzantine, view.dim, dtype=view.dtype), state


def greedy(attack: Attack, attribute: str) -> Attack:
    """The same attack, which also reads ``attribute``."""

    def call(self, view, state, generator):
        getattr(view, attribute)
        return type(attack).__call__(self, view, state, generator)

    cls = type(type(attack).__name__, (type(attack),), {"__call__": call})
    parameters = {f.name: getattr(attack, f.name) for f in dataclasses.fields(attack)}
    return cls(**parameters)


def run(attack: Attack) -> None:
    rows = random_rows(7, 4)
    Adversary(attack=attack, byzantine=frozenset({1, 4})).corrupt(
        updates_of(rows),
        attack.init(rows[0]),
        round=7,
        generator=seeded(),
        defence=MeanDefence(estimate=rows[0]),
    )


@pytest.mark.parametrize("attribute", GATED)
@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_each_attack_is_held_to_its_declaration(attack: Attack, attribute: str) -> None:
    needed = GATED[attribute]
    reader = greedy(attack, attribute)
    if needed in attack.knows:
        run(reader)
        return
    with pytest.raises(KnowledgeError) as caught:
        run(reader)
    message = str(caught.value)
    assert message == (
        f"{type(attack).__name__}: reading view.{attribute} requires {needed}, "
        f"declared {attack.knows}"
    )


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_each_attack_needs_all_it_declares(attack: Attack) -> None:
    own, honest = random_rows(2, 4), random_rows(5, 4, seed=1)
    for part in attack.knows:
        view = open_view(attack, own, honest, knows=attack.knows & ~part)
        with pytest.raises(KnowledgeError):
            attack(view, attack.init(own[0]), seeded())


@pytest.mark.parametrize("declared", [Knowledge.NOTHING, *Knowledge, EVERYTHING], ids=str)
@pytest.mark.parametrize("attribute", GATED)
def test_a_read_is_open_exactly_when_declared(attribute: str, declared: Knowledge) -> None:
    spy = Spy(attribute, declared)
    if GATED[attribute] in declared:
        run(spy)
    else:
        with pytest.raises(KnowledgeError, match=f"^Spy: reading view.{attribute} requires"):
            run(spy)


def test_an_attack_that_declares_nothing_reads_only_the_shape_of_the_round() -> None:
    own, honest = random_rows(2, 4, torch.bfloat16), random_rows(5, 4, torch.bfloat16)
    view = open_view(NonFinite(), own, honest)
    assert (view.n, view.byzantine, view.dim, view.round) == (7, 2, 4, 7)
    assert (view.dtype, view.device) == (torch.bfloat16, torch.device("cpu"))
    # Not even through a private attribute: what is not granted is not there.
    reachable = [v for v in vars(view).values() if v is not None]
    assert not any(isinstance(v, torch.Tensor) for v in reachable)
    assert all(not v for v in reachable if isinstance(v, dict))


def test_granted_reads_give_the_rows_and_the_defence() -> None:
    own, honest, defence = random_rows(2, 4), random_rows(5, 4, seed=1), MeanDefence(f=3)
    view = open_view(NonFinite(), own, honest, knows=EVERYTHING, defence=defence)
    assert view.estimate is None
    torch.testing.assert_close(view.own, own, rtol=0, atol=0)
    torch.testing.assert_close(view.honest, honest, rtol=0, atol=0)
    assert view.f == 3
    torch.testing.assert_close(view.defence.aggregate(view.honest), honest.mean(dim=0))


def test_an_oracle_is_all_there_is_of_the_defence() -> None:
    """Of the server itself an attack could read the model and its parameters, and change them."""
    model = torch.nn.Linear(4, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    server = ra.Server(model, optimizer, ra.VClip(), f=2, device="cpu")
    rows = random_rows(7, 4, torch.float32)
    server.step(updates_of(rows, round=0))
    view = open_view(NonFinite(), rows[:2], rows[2:], knows=Knowledge.DEFENCE, defence=server)
    oracle = view.defence
    assert {name for name in dir(oracle) if not name.startswith("_")} == {
        *("f", "aggregate", "weights_from")
    }
    assert not hasattr(oracle, "__dict__")
    reachable = [*vars(view).values(), *(getattr(oracle, name) for name in oracle.__slots__)]
    assert not any(held is server for held in reachable)
    for name, value in {"f": 0, "aggregate": torch.mean, "round": 5}.items():
        with pytest.raises((dataclasses.FrozenInstanceError, AttributeError, TypeError)):
            setattr(oracle, name, value)
    assert oracle.f == server.f == 2


@pytest.mark.parametrize("rule", [ra.VClip(tau=1e-9), ra.GeometricMedian(), ra.Mean()], ids=repr)
def test_what_an_attack_does_with_an_answer_changes_no_defence(
    rule: ra.Aggregator | ra.Estimator,
) -> None:
    model = torch.nn.Linear(4, 1, bias=False)
    server = ra.Server(model, torch.optim.SGD(model.parameters()), rule, f=2, device="cpu")
    rows = random_rows(7, 4, torch.float32)
    server.step(updates_of(rows, round=0))
    before = copy.deepcopy(server.state_dict())
    view = open_view(NonFinite(), rows[:2], rows[2:], knows=EVERYTHING, defence=server)
    asked = rows.clone()
    for _ in range(2):
        answer = view.defence.aggregate(asked)
        torch.testing.assert_close(answer, server.aggregate(rows), rtol=0, atol=0)
        answer.fill_(torch.nan)
        weights = view.defence.weights_from(measure(rows)[0])
        if weights is not None:
            weights.zero_()
    assert torch.equal(asked, rows)
    assert_same(server.state_dict(), before)


class Cached(MeanDefence):
    """Answers with what it keeps."""

    kept = torch.ones(4)

    def aggregate(self, rows: torch.Tensor) -> torch.Tensor:
        return self.kept

    def weights_from(self, geometry: Geometry) -> torch.Tensor:
        return self.kept


def test_answers_are_copies() -> None:
    rows = random_rows(4, 4)
    view = open_view(NonFinite(), rows, rows, knows=Knowledge.DEFENCE, defence=Cached())
    view.defence.aggregate(rows).zero_()
    weights = view.defence.weights_from(measure(rows)[0])
    assert weights is not None
    weights.zero_()
    assert Cached.kept.tolist() == [1.0] * 4


def assert_same(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert_same(value, other[key])
    elif isinstance(one, torch.Tensor):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)
    else:
        assert one == other


def test_who_sends_the_rows() -> None:
    updates = updates_of(random_rows(5, 4), [8, 3, 5, 1, 9])
    seen = []

    class Looks(Attack):
        knows = Knowledge.HONEST

        def __call__(self, view, state, generator):
            seen.append((view.senders, view.honest_senders))
            return torch.zeros(view.byzantine, view.dim, dtype=view.dtype), state

    adversary = Adversary(attack=Looks(), byzantine=frozenset({3, 9, 7}))
    adversary.corrupt(updates, {}, round=7, generator=seeded(), idle=(7,))
    assert seen == [((3, 9, 7), (8, 5, 1))]
    view = open_view(NonFinite(), random_rows(2, 4), random_rows(3, 4), knows=EVERYTHING)
    assert (view.senders, view.honest_senders) == ((3, 4), (0, 1, 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_last_estimate_is_a_copy_of_the_rows_dtype(dtype: torch.dtype) -> None:
    own, last = random_rows(1, 4, dtype), random_rows(1, 4, torch.float32)[0]
    kept = last.clone()
    defence = MeanDefence(estimate=last)
    view = open_view(NonFinite(), own, own, knows=Knowledge.ESTIMATE, defence=defence)
    assert view.estimate is not None
    assert view.estimate.dtype == dtype
    view.estimate.zero_()
    assert torch.equal(last, kept)
    torch.testing.assert_close(view.estimate, last.to(dtype), rtol=0, atol=0)


def test_a_view_is_a_copy() -> None:
    own, honest = random_rows(2, 4), random_rows(5, 4, seed=1)
    kept = own.clone(), honest.clone()
    view = open_view(NonFinite(), own, honest, knows=EVERYTHING, defence=MeanDefence())
    view.own.fill_(torch.nan)
    view.honest.zero_()
    assert torch.equal(own, kept[0])
    assert torch.equal(honest, kept[1])


def test_nothing_is_copied_before_it_is_read() -> None:
    own, honest = random_rows(1, 4), random_rows(3, 4, seed=1)
    view = open_view(NonFinite(), own, honest, knows=EVERYTHING, defence=MeanDefence())
    honest[0] = 5.0
    assert view.honest[0].tolist() == [5.0] * 4
    assert view.honest is view.honest


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "order",
    [range(5), range(0, 5, 2), (4, 3, 2, 1, 0), (0, 1, 3), (2,), (1, 1, 1)],
    ids=lambda order: str(tuple(order)),
)
def test_the_honest_mean_is_that_of_the_copies(order: Sequence[int], dtype: torch.dtype) -> None:
    block = random_rows(5, 300, dtype)
    separate = list(block.clone().unbind())
    columns = block.T.contiguous().T
    for rows in (block, separate, columns, block[:, 7:], [r.requires_grad_() for r in separate]):
        chosen = [rows[i] for i in order]
        view = View(reader="test", knows=Knowledge.HONEST, round=0, own=[chosen[0]], honest=chosen)
        mean = view.honest_mean
        assert torch.equal(mean, view.honest.mean(dim=0))
        assert not mean.requires_grad
        view.honest.zero_()
        assert torch.equal(view.honest_mean, mean)
    blind = View(reader="test", knows=Knowledge.OWN, round=0, own=[block[0]], honest=list(block))
    with pytest.raises(KnowledgeError, match=r"honest_mean requires Knowledge\.HONEST"):
        _ = blind.honest_mean


def test_the_mean_of_rows_that_have_no_memory() -> None:
    rows = list(torch._efficientzerotensor((3, 5)))
    view = View(reader="test", knows=Knowledge.HONEST, round=0, own=[rows[0]], honest=rows)
    assert view.honest_mean.tolist() == [0.0] * 5


def test_a_view_carries_no_gradient() -> None:
    own = random_rows(1, 4).requires_grad_()
    view = open_view(NonFinite(), own, random_rows(2, 4), knows=Knowledge.OWN)
    assert not view.own.requires_grad


def test_a_view_refuses_what_cannot_be_known() -> None:
    rows = random_rows(2, 4).unbind()

    def view(knows: Knowledge, own=rows, honest=rows) -> View:
        return View(reader="Spy", knows=knows, round=0, own=own, honest=honest)

    with pytest.raises(ValueError, match=r"^Spy: at least one Byzantine row is required, found 0$"):
        view(Knowledge.NOTHING, own=())
    with pytest.raises(ValueError, match=r"^Spy: at least one honest row .* found 0 of n=2$"):
        view(Knowledge.HONEST, honest=())
    for granted in (Knowledge.DEFENCE, Knowledge.ESTIMATE):
        found = rf"^Spy: a defence to query .*{granted.name}, found None$"
        with pytest.raises(ValueError, match=found):
            view(granted)
    assert view(Knowledge.OWN, honest=()).n == 2


def test_knowledge_combines() -> None:
    both = Knowledge.OWN | Knowledge.DEFENCE
    assert Knowledge.OWN in both
    assert Knowledge.HONEST not in both
    assert not Knowledge.NOTHING
