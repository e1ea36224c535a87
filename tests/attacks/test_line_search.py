"""The optimised attacks: as strong as a search over a fine grid, at the price of one Gram."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from attack_rounds import RuleDefence, as_numpy, forge, open_view, random_rows, seeded
from oracles import attacks as oracle
from oracles import rules
from torch import Tensor

import attacks.line_search as search
import robust_agg as ra
from attacks import ALittleIsEnough, Attack, InnerProductManipulation, OptimalALIE, OptimalIPM
from attacks.line_search import Line, maximise
from robust_agg import kernels
from robust_agg.span import Geometry

SMALLEST = 2.0 ** (-0.625 * 23)
# What the coarse search begins with, as a share of the largest.
K, H, D = 2, 7, 6
HONEST = random_rows(H, D, seed=3, shift=0.5)
OWN = random_rows(K, D, seed=4)

RULES: dict[str, tuple[ra.Aggregator, oracle.Defence]] = {
    "mean": (ra.Mean(), rules.mean),
    "krum": (ra.Krum(f=K), lambda rows: rules.krum(rows, K)),
    "multi-krum": (ra.MultiKrum(f=K), lambda rows: rules.multi_krum(rows, K, H)),
    "median": (ra.CoordinateWiseMedian(), rules.coordinate_median),
    "trimmed mean": (ra.TrimmedMean(f=K), lambda rows: rules.trimmed_mean(rows, K)),
}
WEIGHTED: list[ra.Aggregator] = [
    ra.Mean(),
    ra.Krum(f=K),
    ra.MultiKrum(f=K, m=3),
    ra.GeometricMedian(),
    ra.chain(ra.NearestNeighborMixing(f=K), ra.GeometricMedian()),
    ra.chain(ra.Clip(threshold=1.0), ra.GeometricMedian()),
    ra.chain(ra.AdaptiveClip(f=K), ra.Mean()),
    ra.chain(ra.Bucketing(s=2), ra.GeometricMedian()),
]
OTHERS: list[ra.Aggregator] = [
    ra.CoordinateWiseMedian(),
    ra.TrimmedMean(f=K),
    ra.CenteredClipping(),
    ra.chain(ra.NearestNeighborMixing(f=K), ra.TrimmedMean(f=K)),
]


def sent(attack: Attack, t: float) -> np.ndarray:
    """The row of a parameter, by the attack's formula."""
    honest = as_numpy(HONEST)
    mean = rules.mean(honest)
    if isinstance(attack, OptimalIPM):
        return -t * mean
    return mean - t * np.sqrt(((honest - mean) ** 2).sum(axis=0) / H)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("attack", [OptimalIPM(largest=32.0), OptimalALIE(largest=32.0)], ids=repr)
def test_no_parameter_of_a_fine_grid_does_more_harm(attack: Attack, rule: str) -> None:
    ours, theirs = RULES[rule]
    rows = forge(attack, OWN, HONEST, defence=RuleDefence(ours))
    assert torch.equal(rows[0], rows[1])
    honest = as_numpy(HONEST)
    done = oracle.damage(theirs, honest, as_numpy(rows)[0], K)
    grid = np.geomspace(1e-3, 32.0, 1000)
    most = max(oracle.damage(theirs, honest, sent(attack, t), K) for t in grid)
    # The best of a selecting rule is at a cliff, and a higher one may be between coarse steps.
    assert done >= 0.95 * most


@pytest.mark.parametrize("rule", [*WEIGHTED, *OTHERS], ids=lambda rule: rule.name)
@pytest.mark.parametrize("attack", [OptimalIPM(), OptimalALIE()], ids=lambda a: type(a).__name__)
def test_it_is_the_unoptimised_attack_with_the_parameter_that_was_found(
    attack: Attack, rule: ra.Aggregator
) -> None:
    row = as_numpy(forge(attack, OWN, HONEST, defence=RuleDefence(rule)))[0]
    start, end = sent(attack, 0.0), sent(attack, 1.0)
    t = float(np.dot(row - start, end - start) / np.dot(end - start, end - start))
    assert 0 < t <= 100 * (1 + 1e-12)
    plain: Attack = InnerProductManipulation(epsilon=t)
    if isinstance(attack, OptimalALIE):
        plain = ALittleIsEnough(z=t)
    np.testing.assert_allclose(as_numpy(forge(plain, OWN, HONEST))[0], row, rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("t", [0.01, 0.5, 1.0, 1.7, 9.0, 60.0])
@pytest.mark.parametrize("rule", WEIGHTED, ids=lambda rule: rule.name)
def test_both_paths_measure_the_same_damage(
    rule: ra.Aggregator, t: float, dtype: torch.dtype
) -> None:
    own, honest = OWN.to(dtype), HONEST.to(dtype)
    end = honest.mean(dim=0) - honest.std(dim=0)
    found = []
    for shows in (True, False):
        defence = RuleDefence(rule, shows=shows)
        line = Line(open_view(OptimalIPM(), own, honest, defence=defence), end)
        found.append(line.damage(t))
        assert defence.queries == (0 if shows else 1)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    assert found[0] == pytest.approx(found[1], rel=tolerance, abs=tolerance)


def test_rows_far_from_the_origin_keep_their_digits() -> None:
    """Where a mixing must measure the rows anew, they are asked for themselves."""
    honest = (HONEST + 1e6).float()
    chain = ra.chain(ra.Clip(threshold=1.0), ra.Mean())
    defence = RuleDefence(chain)
    view = open_view(OptimalIPM(), honest[:K], honest, defence=defence)
    near_zero = Line(view, torch.zeros(D))
    damages = [near_zero.damage(t) for t in (0.5, 1.0 - 1e-7, 2.0)]
    shown = [
        Line(
            open_view(OptimalIPM(), honest[:K], honest, defence=RuleDefence(chain, shows=False)),
            torch.zeros(D),
        ).damage(t)
        for t in (0.5, 1.0 - 1e-7, 2.0)
    ]
    np.testing.assert_allclose(damages, shown, rtol=1e-5)


PASSES = ("centred_gram", "gram", "row_distances", "combine", "mean", "mix", "mixed_order_mean")


def counted(monkeypatch: pytest.MonkeyPatch, work: Callable[[], object]) -> dict[str, int]:
    """How often each kernel that reads rows was called."""
    calls = dict.fromkeys(PASSES, 0)

    def counting(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return kernel(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for name in PASSES:
            patch.setattr(kernels, name, counting(name, getattr(kernels, name)))
        work()
    return {name: count for name, count in calls.items() if count}


@pytest.mark.parametrize("refinements", [0, 12])
@pytest.mark.parametrize("rule", WEIGHTED, ids=lambda rule: rule.name)
@pytest.mark.parametrize("kind", [OptimalIPM, OptimalALIE])
def test_a_search_in_weight_space_is_one_pass(
    kind: type[OptimalIPM | OptimalALIE],
    rule: ra.Aggregator,
    refinements: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    defence = RuleDefence(rule)
    attack = kind(refinements=refinements)
    view = open_view(attack, OWN, HONEST, defence=defence)
    calls = counted(monkeypatch, lambda: attack(view, {}, seeded()))
    assert calls == {"centred_gram": 1}
    assert defence.queries == 0


@pytest.mark.parametrize("rule", OTHERS, ids=lambda rule: rule.name)
def test_a_search_over_rows_asks_as_often_as_it_says(rule: ra.Aggregator) -> None:
    defence = RuleDefence(rule)
    forge(OptimalIPM(refinements=3), OWN, HONEST, defence=defence)
    assert defence.queries == 24 + 2 * 3


@pytest.mark.parametrize(
    "estimator", [ra.VClip(), ra.CClip(fusion="batch"), ra.Momentum(beta=0.9)], ids=repr
)
def test_an_estimator_is_queried_and_not_changed(estimator: ra.Estimator) -> None:
    model = torch.nn.Linear(D - 1, 1, dtype=torch.float64)
    server = ra.Server(
        model, torch.optim.SGD(model.parameters(), lr=0.1), estimator, f=K, device="cpu"
    )
    updates = [ra.Update(sender=i, round=0, row=row) for i, row in enumerate(HONEST)]
    server.step(updates)
    before = {name: value.clone() for name, value in server.state_dict()["estimator"].items()}
    rows = forge(OptimalIPM(), OWN, HONEST, defence=server)
    after = server.state_dict()["estimator"]
    torch.testing.assert_close(dict(after), before, rtol=0, atol=0, equal_nan=True)
    assert server.round == 1
    everyone = torch.cat([HONEST, rows])
    harm = (server.aggregate(everyone) - HONEST.mean(dim=0)).norm()
    weaker = torch.cat([HONEST, forge(InnerProductManipulation(epsilon=0.01), OWN, HONEST)])
    assert harm > (server.aggregate(weaker) - HONEST.mean(dim=0)).norm()


def test_a_round_that_is_skipped_is_no_damage() -> None:
    """Krum of f = 4 takes no 9 rows, whatever they are."""
    defence = RuleDefence(ra.Krum(f=4))
    line = Line(open_view(OptimalIPM(), OWN, HONEST, defence=defence), torch.zeros(D).double())
    assert line.damage(3.0) == 0.0
    rows = forge(OptimalIPM(largest=16.0), OWN, HONEST, defence=defence)
    np.testing.assert_allclose(as_numpy(rows)[0], sent(OptimalIPM(), 16.0 * SMALLEST), atol=1e-12)


def test_honest_rows_that_are_no_numbers_end_no_search() -> None:
    honest = HONEST.clone()
    honest[2, 1] = math.nan
    for attack in (OptimalIPM(), OptimalALIE()):
        rows = forge(attack, OWN, honest, defence=RuleDefence(ra.GeometricMedian()))
        assert rows.shape == OWN.shape
        assert rows[:, 0].isfinite().all()


# --- the search itself ----------------------------------------------------------------------------


def test_the_search_finds_a_peak() -> None:
    for peak in (0.02, 0.7, 3.3, 41.0):
        found = maximise(lambda s, at=peak: -abs(math.log(s / at)), largest=64.0, refinements=10)
        assert found == pytest.approx(peak, rel=2e-3)


def test_the_search_comes_to_a_cliff_from_below() -> None:
    for edge in (0.05, 1.9, 2.0, 30.0):
        found = maximise(lambda s, at=edge: s if s <= at else 0.0, largest=64.0, refinements=10)
        assert edge * 0.998 <= found <= edge


def test_the_search_stays_in_its_range_and_counts_its_questions() -> None:
    asked: list[float] = []

    def growing(s: float) -> float:
        asked.append(s)
        return s

    assert maximise(growing, largest=5.0, refinements=4) == 5.0
    assert len(asked) == search.COARSE + 2 * 4
    assert max(asked) == 5.0
    assert min(asked) == pytest.approx(5.0 * SMALLEST)


def test_the_search_takes_the_smallest_of_what_does_equal_harm() -> None:
    assert maximise(lambda s: 1.0, largest=8.0, refinements=3) == pytest.approx(8.0 * SMALLEST)
    assert maximise(lambda s: math.nan, largest=8.0, refinements=3) == pytest.approx(8.0 * SMALLEST)


@pytest.mark.parametrize(
    ("attack", "parameters", "message"),
    [
        *itertools.product(
            (OptimalIPM,),
            ({"largest": 0.0}, {"largest": math.inf}),
            (r"OptimalIPM: largest must be a positive finite number",),
        ),
        (OptimalIPM, {"refinements": -1}, "OptimalIPM: refinements must be an integer >= 0"),
        (OptimalALIE, {"largest": -1.0}, "OptimalALIE: largest must be a positive finite number"),
        (OptimalALIE, {"sign": 0}, "OptimalALIE: sign must be -1 or 1, found 0"),
        (OptimalALIE, {"ddof": 2}, "OptimalALIE: ddof must be 0 or 1, found 2"),
        (OptimalALIE, {"refinements": 1.5}, "OptimalALIE: refinements must be an integer >= 0"),
    ],
)
def test_bad_parameters(attack: type[Attack], parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attack(**parameters)


def test_one_honest_row_has_no_scatter() -> None:
    with pytest.raises(ValueError, match=r"^OptimalALIE: at least 2 honest rows are required"):
        forge(OptimalALIE(), OWN, HONEST[:1])


def test_a_geometry_shows_what_a_defence_decides_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """The h + k points of the round, with their distances, and nothing of their coordinates."""
    seen: list[Geometry] = []

    class Looks(RuleDefence):
        def weights_from(self, geometry: Geometry) -> Tensor | None:
            seen.append(geometry)
            return super().weights_from(geometry)

    line = Line(
        open_view(OptimalIPM(), OWN, HONEST, defence=Looks(ra.Mean())), torch.ones(D).double()
    )
    line.damage(2.0)
    (geometry,) = seen
    everyone = torch.cat([HONEST, line.row(2.0).expand(K, -1)])
    np.testing.assert_allclose(
        geometry.squared_distances.numpy(),
        as_numpy(torch.cdist(everyone, everyone)) ** 2,
        atol=1e-9,
    )
