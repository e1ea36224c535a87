"""Rules that trust a row trust its sender: in a server another is not trusted in his place."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import robust_agg as ra
from robust_agg.trust import for_senders, trusted

RULES: dict[str, Callable[[int], ra.Aggregator]] = {
    "monna": lambda place: ra.MoNNA(f=1, reference=place),
    "clipping": lambda place: ra.CenteredClipping(start=place),
    "nnm, monna": lambda place: ra.chain(
        ra.NearestNeighborMixing(f=1), ra.MoNNA(f=1, reference=place)
    ),
    "clip, clipping": lambda place: ra.chain(
        ra.Clip(threshold=9.0), ra.Chain(mixings=[], rule=ra.CenteredClipping(start=place))
    ),
}
every_rule = pytest.mark.parametrize("rule", RULES)
WHO = [ra.Mean(), ra.CenteredClipping(), ra.CenteredClipping(start=torch.zeros(3)), ra.VClip()]


def serve(rule: ra.Aggregator) -> ra.Server:
    net = torch.nn.Linear(3, 2)
    return ra.Server(net, torch.optim.SGD(net.parameters(), lr=0.1), rule, f=1, device="cpu")


def rows_of(senders: list[int]) -> Tensor:
    """Of each sender the same row, whoever else is there."""
    rows = torch.randn(9, 8, generator=torch.Generator().manual_seed(2))
    return rows[senders]


def step(server: ra.Server, senders: list[int]) -> ra.Record:
    return server.step(
        [ra.Update(i, server.round, row) for i, row in zip(senders, rows_of(senders), strict=True)],
        senders=range(6),
    )


@every_rule
@pytest.mark.parametrize("place", [1, 3, 5])
@pytest.mark.parametrize("late", [[], [0], [0, 2], [4]], ids=str)
def test_whoever_is_late_the_same_sender_is_trusted(rule: str, place: int, late: list[int]) -> None:
    senders = [i for i in range(6) if i not in late]
    server = serve(RULES[rule](place))
    record = step(server, senders)
    assert record.skipped is None
    expected = RULES[rule](senders.index(place)).explain(rows_of(senders))
    assert server.estimate is not None
    assert torch.equal(server.estimate, expected.output)
    assert expected.weights is not None
    assert record.weights == tuple(expected.weights.tolist())


@every_rule
@pytest.mark.parametrize("place", [0, 3])
def test_a_round_without_the_trusted_row_does_not_count(rule: str, place: int) -> None:
    server = serve(RULES[rule](place))
    before = server.parameters().clone()
    record = step(server, [i for i in range(6) if i != place])
    assert record.skipped is not None
    assert record.skipped.endswith(
        f": a row of sender {place}, whom it trusts, is required, found none"
    )
    assert [(r.sender, r.reason) for r in record.rejected] == [
        (place, "missing: no message arrived")
    ]
    assert torch.equal(server.parameters(), before)
    assert step(server, list(range(6))).skipped is None


@every_rule
def test_a_round_in_which_the_trusted_row_is_none_does_not_count(rule: str) -> None:
    server = serve(RULES[rule](2))
    updates = [ra.Update(i, 0, row) for i, row in enumerate(rows_of(list(range(6))))]
    updates[2] = ra.Update(2, 0, torch.full((8,), torch.nan))
    record = server.step(updates)
    assert record.skipped is not None
    assert record.skipped.endswith("found row 2 rejected")


def test_a_round_that_may_raise_names_the_sender() -> None:
    net = torch.nn.Linear(3, 2)
    server = ra.Server(
        net,
        torch.optim.SGD(net.parameters(), lr=0.1),
        ra.MoNNA(f=1, reference=4),
        f=1,
        device="cpu",
        on_failure="raise",
    )
    with pytest.raises(ra.ConstraintError, match=r"^MoNNA: a row of sender 4, whom it trusts, "):
        step(server, [0, 1, 2, 3, 5])


@every_rule
def test_rows_of_all_senders_are_where_they_say(rule: str) -> None:
    made = RULES[rule](2)
    assert trusted(made) == 2
    rows = rows_of(list(range(6)))
    assert torch.equal(for_senders(made, range(6))(rows), made(rows))


@pytest.mark.parametrize("rule", WHO, ids=lambda rule: rule.name)
def test_a_rule_that_trusts_no_row_is_left_alone(rule: ra.Aggregator | ra.Estimator) -> None:
    assert trusted(rule) is None
    assert for_senders(rule, [4, 7]) is rule
