"""Weights from a geometry: those of the rows, of mixed rows, or none where rows must be seen."""

from __future__ import annotations

import pytest
import torch
from rule_table import RULES, F, Row
from server_training import serve
from torch import Tensor

import robust_agg as ra
from robust_agg.aggregator import Weighted
from robust_agg.chain import Chain
from robust_agg.span import measure

IN_WEIGHT_SPACE = [
    row
    for row in RULES
    if isinstance(rule := row.make(), Weighted)
    or (isinstance(rule, Chain) and isinstance(rule.rule, Weighted))
]
OTHERS = [row for row in RULES if row not in IN_WEIGHT_SPACE]


def drawn(n: int, d: int = 30, seed: int = 0) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(3)


def test_the_table_has_both_kinds() -> None:
    assert len(IN_WEIGHT_SPACE) > 5
    assert len(OTHERS) > 5


@pytest.mark.parametrize("row", IN_WEIGHT_SPACE, ids=str)
def test_of_the_rows_themselves(row: Row) -> None:
    rule, rows = row.make(), drawn(13)
    found = rule.weights_from(measure(rows)[0], generator=generator())
    assert found is not None
    torch.testing.assert_close(found, rule.weights(rows, generator=generator()))


@pytest.mark.parametrize("row", IN_WEIGHT_SPACE, ids=str)
def test_of_points_that_are_combinations(row: Row) -> None:
    """Of masses 1, as a round is in which attackers send combinations of rows."""
    rule, base = row.make(), drawn(9)
    mixing = torch.randn(12, 9, generator=generator(), dtype=torch.float64)
    mixing = mixing / mixing.sum(dim=1, keepdim=True).clamp(min=0.5)
    mixing[:, 0] += 1 - mixing.sum(dim=1)
    geometry, _ = measure(base)
    points = geometry.mixed(mixing, torch.ones(12, dtype=torch.bool))
    found = rule.weights_from(points, generator=generator())
    assert found is not None
    answer = rule(mixing @ base, generator=generator())
    torch.testing.assert_close(found @ mixing @ base, answer, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("row", OTHERS, ids=str)
def test_a_rule_that_must_see_rows_has_none(row: Row) -> None:
    assert row.make().weights_from(measure(drawn(13))[0], generator=generator()) is None


@pytest.mark.parametrize("row", IN_WEIGHT_SPACE, ids=str)
def test_rejected_points_have_no_weight(row: Row) -> None:
    rule, rows = row.make(), drawn(14)
    rows[4] = torch.nan
    found = rule.weights_from(measure(rows)[0], generator=generator())
    assert found is not None
    assert found[4] == 0
    torch.testing.assert_close(found, rule.weights(rows, generator=generator()))


def test_constraints_are_those_of_the_rows() -> None:
    geometry, _ = measure(drawn(2 * F + 2))
    for rule in (ra.Krum(f=F), ra.chain(ra.NearestNeighborMixing(f=F), ra.Krum(f=F))):
        with pytest.raises(ra.ConstraintError, match=r"Krum: n >= 2f \+ 3 is required"):
            rule.weights_from(geometry)
    rows = drawn(9)
    rows[:5] = torch.inf
    for rule in (ra.GeometricMedian(), ra.chain(ra.NearestNeighborMixing(f=F), ra.Mean())):
        with pytest.raises(ra.TooManyRejectedError, match="may be non-finite or too far"):
            rule.weights_from(measure(rows)[0])


@pytest.mark.parametrize(
    "rule",
    [
        ra.chain(ra.Clip(threshold=1.0), ra.Mean()),
        ra.SmoothedGeometricMedian(start="zero"),
        ra.chain(ra.SmoothedGeometricMedian(start="zero")),
    ],
    ids=lambda rule: rule.name,
)
def test_what_loses_digits_asks_for_the_rows(rule: ra.Aggregator) -> None:
    """As it does that has them; about the origin, in float64, there are digits enough."""
    rows = (drawn(9) + 1e4).float()
    rows[0] = drawn(1, seed=5)[0].float()
    geometry, _ = measure(rows)
    assert rule.weights_from(geometry) is None
    found = rule.weights_from(geometry.about_origin(rows, geometry.accepted))
    assert found is not None
    torch.testing.assert_close(found, rule.weights(rows), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "rule",
    [ra.GeometricMedian(), ra.chain(ra.Bucketing(s=2), ra.Mean()), ra.TrimmedMean(f=1), ra.VClip()],
    ids=lambda rule: rule.name,
)
def test_a_server_answers_as_it_does_to_rows_and_does_not_change(
    rule: ra.Aggregator | ra.Estimator,
) -> None:
    server = serve(rule, f=1)
    rows = drawn(7, len(server.parameters())).float()
    before = {name: value.clone() for name, value in server.state_dict()["estimator"].items()}
    geometry, _ = measure(rows)
    first, second = server.weights_from(geometry), server.weights_from(geometry)
    torch.testing.assert_close(
        dict(server.state_dict()["estimator"]), before, rtol=0, atol=0, equal_nan=True
    )
    if isinstance(rule, ra.TrimmedMean | ra.VClip):
        assert first is None
        return
    assert first is not None
    assert second is not None
    assert torch.equal(first, second)
    answer = server.aggregate(rows)
    torch.testing.assert_close((first @ rows.double()).float(), answer, rtol=1e-5, atol=1e-6)
