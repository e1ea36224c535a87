"""Rules that choose a set of rows: the best set there is, the lowest of those that are as good."""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import rules as oracle

import robust_agg as ra
from robust_agg import vertex_covers
from robust_agg.budget import Budget
from robust_agg.server import Server
from robust_agg.vertex_covers import CoverSearch, first_independent_set
from robust_agg.weightings import minimum_diameter_averaging, smea
from robust_agg.weightings.minimum_diameter_averaging import smallest_diameter
from robust_agg.weightings.smea import smallest_top_eigenvalue

Array = npt.NDArray[np.float64]
seeds = st.integers(0, 2**31)
KINDS = ["normal", "outliers", "twins", "integers"]


def draw(seed: int, n: int, d: int, f: int, kind: str) -> Array:
    rng = np.random.default_rng(seed)
    if kind == "integers":
        # Distances are exact, so ties are ties.
        return rng.integers(-2, 3, size=(n, d)).astype(np.float64)
    rows = rng.normal(size=(n, d))
    if kind == "outliers":
        rows[rng.permutation(n)[:f]] += rng.choice([2.0, 1e3, 1e9])
    if kind == "twins":
        rows[n // 2 :] = rows[: n - n // 2]
    return rows


def chosen(rule: ra.Aggregator, rows: Array) -> list[int]:
    weights = rule.weights(torch.from_numpy(rows))
    places = weights.nonzero().flatten().tolist()
    assert weights[places].tolist() == [1 / len(places)] * len(places)
    return places


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=seeds, n=st.integers(1, 10), d=st.integers(1, 6), data=st.data())
def test_no_set_has_a_smaller_diameter(
    kind: str, seed: int, n: int, d: int, data: st.DataObject
) -> None:
    f = data.draw(st.integers(0, (n - 1) // 2))
    rows = draw(seed, n, d, f, kind)
    found = chosen(ra.MinimumDiameterAveraging(f=f), rows)
    expected = oracle.minimum_diameter_set(rows, f)
    assert len(found) == n - f
    least = oracle.diameter(rows[list(expected)])
    # What is left of the last digits beside the longest rows.
    assert oracle.diameter(rows[found]) <= least * (1 + 1e-9) + 1e-12
    if kind == "integers":
        assert tuple(found) == expected


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(seed=seeds, n=st.integers(1, 10), d=st.integers(1, 6), data=st.data())
def test_no_set_has_a_smaller_top_eigenvalue(
    kind: str, seed: int, n: int, d: int, data: st.DataObject
) -> None:
    f = data.draw(st.integers(0, (n - 1) // 2))
    rows = draw(seed, n, d, f, kind)
    found = chosen(ra.SMEA(f=f), rows)
    expected = oracle.smallest_eigenvalue_set(rows, f)
    assert len(found) == n - f
    least = oracle.top_eigenvalue(rows[list(expected)])
    assert oracle.top_eigenvalue(rows[found]) <= least * (1 + 2e-9) + 1e-12
    if kind == "integers" and least > 1e-9:
        assert tuple(found) == expected


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=25, deadline=None)
@given(seed=seeds, n=st.integers(1, 16), d=st.integers(1, 6))
def test_no_row_has_a_smaller_sum_of_distances(kind: str, seed: int, n: int, d: int) -> None:
    """Of an even number of numbers, both in the middle have the least, but for rounding."""
    rows = draw(seed, n, d, (n - 1) // 2, kind)
    (found,) = chosen(ra.MedoidMedian(), rows)
    expected = oracle.medoid(rows)
    least = oracle.geometric_median_objective(rows, rows[expected])
    assert oracle.geometric_median_objective(rows, rows[found]) <= least * (1 + 1e-9) + 1e-9
    if kind == "integers" and d == 1:
        assert found == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("neighbours", ["n-f-2", "n-f-1"])
@settings(max_examples=25, deadline=None)
@given(seed=seeds, n=st.integers(7, 16), d=st.integers(1, 6), m=st.integers(1, 5))
def test_no_rows_have_smaller_scores_of_plain_distances(
    neighbours: Any, kind: str, seed: int, n: int, d: int, m: int
) -> None:
    """Numbers in a row often have scores that are equal but for rounding."""
    rows = draw(seed, n, d, 2, kind)
    q = n - 2 - int(neighbours[-1])
    rule = ra.MultiKrum(f=2, m=m, neighbours=neighbours, distances="plain")
    found = chosen(rule, rows)
    order = oracle.krum_order(rows, 2, neighbours=q, squared=False)
    scores = oracle.krum_scores(rows, 2, neighbours=q, squared=False)
    limit = scores[order[m - 1]]
    assert len(found) == m
    assert (scores[found] <= limit * (1 + 1e-9) + 1e-9).all()
    if kind == "integers" and d == 1:
        assert found == sorted(order[:m])


@pytest.mark.parametrize(
    "rule", [ra.MinimumDiameterAveraging(f=2), ra.SMEA(f=2)], ids=lambda rule: rule.name
)
def test_of_sets_as_good_the_lowest_is_taken(rule: ra.Aggregator) -> None:
    # A regular simplex: all sets of five are congruent.
    assert chosen(rule, np.eye(7)) == [0, 1, 2, 3, 4]
    assert chosen(rule, np.zeros((7, 3))) == [0, 1, 2, 3, 4]
    assert chosen(rule, np.full((7, 3), 1 / 3)) == [0, 1, 2, 3, 4]
    # Two corners of a square twice, the others once: a side has four rows, by either of two.
    square = np.array([[0, 0], [1, 1], [0, 0], [1, 1], [0, 1], [1, 0]], dtype=np.float64)
    if isinstance(rule, ra.MinimumDiameterAveraging):
        assert chosen(rule, square) == [0, 1, 2, 3]
    rejected = np.eye(7)
    rejected[1] = np.nan
    assert chosen(rule, rejected) == [0, 2, 3, 4, 5]


def test_the_medoid_of_rows_as_good_is_the_lowest() -> None:
    rows = np.array([[9.0, 0], [1, 1], [-1, 1], [-1, -1], [1, -1]])
    # All four corners are as far from the others, and from the first by two and two.
    assert chosen(ra.MedoidMedian(), rows) == [1]
    assert chosen(ra.MedoidMedian(), rows[::-1].copy()) == [0]
    assert chosen(ra.MedoidMedian(), np.array([[0.0], [4.0], [0.0], [4.0]])) == [0]


def test_norms_and_distances_as_good_go_to_the_lowest() -> None:
    rows = np.array([[0.0, 5], [3, 4], [5, 0], [-5, 0], [1, 1]])
    assert chosen(ra.CGE(f=2), rows) == [0, 1, 4]
    assert chosen(ra.MoNNA(f=2, reference=0), np.array([[0.0], [2], [-2], [2], [9]])) == [0, 1, 2]
    # The reference is its own nearest, before twins of a lower place.
    assert chosen(ra.MoNNA(f=3, reference=3), np.zeros((7, 1))) == [0, 1, 2, 3]


def test_krum_selects_one_by_one_or_at_once() -> None:
    # At once the three of the middle have the lowest scores; without one, neighbours are others.
    rows = np.array([[0.0], [1.0], [3.0], [6.0], [10.0], [15.0], [21.0]])
    selected = oracle.krum_selection(rows, 1)
    weights = ra.chain(ra.KrumSelection(f=1), ra.Mean()).weights(torch.from_numpy(rows))
    assert sorted(selected) == weights.nonzero().flatten().tolist()
    at_once = ra.chain(ra.KrumSelection(f=1, rounds="at once"), ra.Mean())
    order = oracle.krum_order(rows, 1)[:5]
    assert sorted(order) == at_once.weights(torch.from_numpy(rows)).nonzero().flatten().tolist()
    mixing = ra.KrumSelection(f=1)
    zeros = ra.chain(mixing, ra.Mean()).weights(torch.zeros(7, 2))
    assert zeros.nonzero().flatten().tolist() == [0, 1, 2, 3, 4]


# --- the search -----------------------------------------------------------------------------------


def graphs(data: st.DataObject, most: int) -> tuple[int, list[int]]:
    n = data.draw(st.integers(1, most))
    share = data.draw(st.sampled_from([0.1, 0.3, 0.6, 0.9]))
    rng = np.random.default_rng(data.draw(seeds))
    joined = np.triu(rng.random((n, n)) < share, 1)
    joined |= joined.T
    return n, [sum(1 << int(j) for j in np.flatnonzero(line)) for line in joined]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_independent_sets_are_those_of_a_look_at_all(data: st.DataObject) -> None:
    n, graph = graphs(data, 9)

    def free(some: tuple[int, ...]) -> bool:
        return all(not graph[i] >> j & 1 for i, j in itertools.combinations(some, 2))

    search = CoverSearch(Budget("me", 10_000))
    for size in range(1, n + 1):
        sets = (some for some in itertools.combinations(range(n), size) if free(some))
        first = next(sets, None)
        assert search.exists(graph, (1 << n) - 1, n - size) == (first is not None)
        if first is not None:
            assert first_independent_set(search, graph, size) == list(first)


def cubic(pairs: int, seed: int) -> list[int]:
    """A ring with random chords: every vertex has three neighbours, no rule but branching helps."""
    n = 2 * pairs
    order = np.random.default_rng(seed).permutation(n)
    graph = [1 << (i + 1) % n | 1 << (i - 1) % n for i in range(n)]
    for a, b in zip(order[::2], order[1::2], strict=True):
        graph[a] |= 1 << int(b)
        graph[b] |= 1 << int(a)
    return graph


@pytest.mark.parametrize("seed", range(5))
def test_graphs_in_which_nothing_but_branching_helps_take_few_nodes(seed: int) -> None:
    graph = cubic(15, seed)
    search = CoverSearch(Budget("me", 100_000))
    sizes = [size for size in range(31) if search.exists(graph, (1 << 30) - 1, size)]
    assert search.nodes <= 2_000
    assert sizes == list(range(sizes[0], 31))
    assert 15 <= sizes[0] <= 20


@pytest.mark.parametrize("seed", range(5))
def test_distances_of_no_space_take_few_nodes(seed: int) -> None:
    """The search asks no triangle inequality of them: the hardest there are for 30 rows."""
    rng = np.random.default_rng(seed)
    for values in (2, 4, 1000):
        table = np.triu(rng.integers(1, values + 1, size=(30, 30)), 1).astype(np.float64)
        found, nodes = smallest_diameter(torch.from_numpy(table + table.T), 20, who="me")
        assert len(found) == 20
        assert nodes <= 500


def test_no_more_vertices_are_looked_at_than_the_budget_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = 0
    each = vertex_covers._bits

    def counting(mask: int) -> Iterator[int]:
        nonlocal looked
        for vertex in each(mask):
            looked += 1
            yield vertex

    monkeypatch.setattr(vertex_covers, "_bits", counting)
    graph = cubic(60, 0)
    for limit in (1_000, 10_000, 100_000):
        looked = 0
        with pytest.raises(ra.SearchLimitError, match=f"^me: at most {limit} search steps are"):
            CoverSearch(Budget("me", limit)).exists(graph, (1 << 120) - 1, 66)
        # A component is asked of each of its vertices once more.
        assert limit / 4 <= looked <= 2 * limit


@pytest.mark.parametrize(("n", "f"), [(30, 12), (60, 25)])
def test_no_more_eigenvalues_are_asked_for_than_the_budget_has(
    n: int, f: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each takes as long as the cube of the number of points."""
    solved = 0

    def counting(inner: Array) -> Any:
        nonlocal solved
        solved += int(np.prod(inner.shape[:-2])) * (1 + inner.shape[-1] ** 3 // smea._CUBE)
        return plain(inner)

    plain = np.linalg.eigvalsh
    monkeypatch.setattr(np.linalg, "eigvalsh", counting)
    monkeypatch.setattr(smea, "MOST_STEPS", 5_000)
    rows = draw(0, n, n, f, "normal")
    with pytest.raises(ra.SearchLimitError, match=r"^SMEA: at most 5000 search steps are "):
        ra.SMEA(f=f)(torch.from_numpy(rows))
    assert solved <= 5_000


@contextmanager
def few_levels() -> Iterator[None]:
    """As if Python had no more levels than some calls of a library need."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 30)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def test_sets_may_have_more_rows_than_there_are_levels() -> None:
    rows = draw(0, 60, 5, 1, "outliers")
    rows -= rows.mean(axis=0)
    gram, table = rows @ rows.T, np.square(rows[:, None] - rows).sum(axis=2)
    with few_levels():
        chosen_by_spread, _ = smallest_top_eigenvalue(gram, 59, who="me")
        chosen_by_diameter, _ = smallest_diameter(torch.from_numpy(table), 59, who="me")
    assert len(chosen_by_spread) == len(chosen_by_diameter) == 59


def test_covers_may_have_more_vertices_than_there_are_levels() -> None:
    # All of four are joined: three cover them, and branching alone says so.
    graph = [(0b1111 << i // 4 * 4) & ~(1 << i) for i in range(200)]
    everyone = (1 << 200) - 1
    with few_levels():
        assert CoverSearch(Budget("me", 10**6)).exists(graph, everyone, 150)


@pytest.mark.parametrize("rule", [ra.SMEA(f=0), ra.MinimumDiameterAveraging(f=0)], ids=repr)
def test_where_all_rows_are_kept_there_is_no_search(
    rule: ra.Aggregator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (smea, minimum_diameter_averaging):
        monkeypatch.setattr(module, "MOST_STEPS", 0)
    rows = torch.randn(1200, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(rule(rows), rows.mean(dim=0))


def test_many_rows_of_which_many_are_far_take_no_long_search(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = draw(0, 400, 4, 100, "normal")
    rows[::4] += 1e6
    monkeypatch.setattr(minimum_diameter_averaging, "MOST_STEPS", 2_000_000)
    assert chosen(ra.MinimumDiameterAveraging(f=100), rows) == [i for i in range(400) if i % 4]


LIMITED: list[tuple[ra.Aggregator, object]] = [
    (ra.MinimumDiameterAveraging(f=5), minimum_diameter_averaging),
    (ra.SMEA(f=5), smea),
]
every_limit = pytest.mark.parametrize(("rule", "module"), LIMITED, ids=["mda", "smea"])


@every_limit
def test_a_search_that_takes_too_long_is_an_error(
    rule: ra.Aggregator, module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_STEPS", 4)
    message = f"^{rule.name}: at most 4 search steps are allowed, found more"
    with pytest.raises(ra.SearchLimitError, match=message) as caught:
        rule(torch.randn(15, 4, generator=torch.Generator().manual_seed(0)))
    assert "\n" not in str(caught.value)


@every_limit
def test_a_server_skips_a_round_whose_search_takes_too_long(
    rule: ra.Aggregator, module: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = torch.nn.Linear(3, 2)
    server = Server(net, torch.optim.SGD(net.parameters(), lr=0.1), rule, f=5, device="cpu")
    before = server.parameters().clone()
    rows = torch.randn(15, before.numel(), generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(module, "MOST_STEPS", 4)
    record = server.step([ra.Update(i, 0, row) for i, row in enumerate(rows)])
    assert record.skipped is not None
    assert "search steps" in record.skipped
    assert torch.equal(server.parameters(), before)
    monkeypatch.undo()
    record = server.step([ra.Update(i, 1, row) for i, row in enumerate(rows)])
    assert record.skipped is None
    assert record.solver is not None
    assert record.solver["reason"] == "exhausted"


# --- what the rules say of themselves -------------------------------------------------------------


def test_a_reference_that_is_rejected_fails_the_round() -> None:
    rows = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    rows[2] = torch.nan
    assert ra.MoNNA(f=2, reference=1)(rows).isfinite().all()
    with pytest.raises(
        ra.TooManyRejectedError, match=r"^MoNNA: the reference .* found row 2 reject"
    ):
        ra.MoNNA(f=2, reference=2)(rows)
    with pytest.raises(
        ra.TooManyRejectedError, match=r"^CenteredClipping: start .* row 2 rejected"
    ):
        ra.CenteredClipping(start=2)(rows)


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (ra.MoNNA(f=1, reference=5), "^MoNNA: reference < n is required, found reference=5, n=5$"),
        (ra.CenteredClipping(start=5), "^CenteredClipping: start < n is required, found start=5"),
        (ra.Bulyan(f=1), r"^Bulyan: n >= 4f \+ 3 is required, found n=5, f=1$"),
        (ra.Krum(f=2), r"^Krum: n >= 2f \+ 3 is required, found n=5, f=2$"),
        (
            ra.Krum(f=3, neighbours="n-f-1"),
            r"^Krum: n >= 2f \+ 1 is required, found n=5, f=3$",
        ),
        (
            ra.chain(ra.KrumSelection(f=2), ra.Mean()),
            r"^KrumSelection: n >= 2f \+ 3 is required, found n=5, f=2$",
        ),
    ],
    ids=lambda p: getattr(p, "name", ""),
)
def test_rows_that_are_too_few_are_named(rule: ra.Aggregator, message: str) -> None:
    with pytest.raises(ra.ConstraintError, match=message):
        rule(torch.zeros(5, 2))


KAPPAS: list[Callable[[int], ra.Aggregator]] = [
    lambda f: ra.Krum(f=f),
    lambda f: ra.Krum(f=f, neighbours="n-f-1"),
    lambda f: ra.Krum(f=f, distances="plain"),
    lambda f: ra.MultiKrum(f=f, neighbours="n-f-1", distances="plain"),
    lambda f: ra.MedoidMedian(),
    lambda f: ra.MinimumDiameterAveraging(f=f),
    lambda f: ra.SMEA(f=f),
    lambda f: ra.CAF(f=f),
    lambda f: ra.Bulyan(f=f),
]


@pytest.mark.parametrize("make", KAPPAS, ids=lambda make: make(1).name)
@pytest.mark.parametrize(("n", "f"), [(5, 1), (7, 1), (9, 3), (11, 2), (13, 2), (16, 3)])
def test_kappa_holds_against_rows_that_hide_at_any_distance(
    make: Callable[[int], ra.Aggregator], n: int, f: int
) -> None:
    rule = make(f)
    kappa = rule.kappa(n, f)
    try:
        rule.check(n)
    except ra.ConstraintError:
        assert kappa is None
        return
    if kappa is None:
        assert isinstance(rule, ra.CAF)
        assert n <= 3 * f
        return
    g = torch.Generator().manual_seed(n)
    worst = 0.0
    for scale in [0.5, 1, 2, 3, 10]:
        for spread in [0.0, 0.5]:
            for d in (1, 20):
                honest = torch.randn(n - f, d, generator=g, dtype=torch.float64)
                away = torch.randn(d, generator=g, dtype=torch.float64)
                away *= scale * honest.square().sum(dim=1).mean().sqrt() / away.norm()
                bad = away + spread * torch.randn(f, d, generator=g, dtype=torch.float64)
                out = rule(torch.cat([bad, honest])).numpy()
                worst = max(worst, oracle.honest_ratio(out, honest.numpy()))
    assert 0 < worst <= kappa
    assert rule.kappa(n, f + 1) is None or isinstance(rule, ra.MedoidMedian)
    fewer = [rule.kappa(n, bad) for bad in range(f)]
    assert all(one is not None and 0 <= one <= kappa for one in fewer)


@pytest.mark.parametrize("make", KAPPAS, ids=lambda make: make(1).name)
@settings(max_examples=40)
@given(seed=seeds, d=st.integers(1, 4), bad=st.integers(0, 2), far=st.floats(-2, 6))
def test_kappa_holds_of_fewer_bad_rows_than_the_rule_bears(
    make: Callable[[int], ra.Aggregator], seed: int, d: int, bad: int, far: float
) -> None:
    rule, rng = make(2), np.random.default_rng(seed)
    rows = rng.standard_t(2, size=(13, d))
    rows[:bad] += 10.0**far * rng.normal(size=d)
    kappa = rule.kappa(13, bad)
    assert kappa is not None
    out = rule(torch.from_numpy(rows)).numpy()
    assert oracle.honest_ratio(out, rows[bad:]) <= kappa * (1 + 1e-9)


def test_kappa_of_a_chain_holds_of_fewer_bad_rows_too() -> None:
    rule = ra.chain(ra.NearestNeighborMixing(f=3), ra.TrimmedMean(f=3))
    constant = 8 * 3 / 10 * (ra.TrimmedMean(f=3).kappa(13, 3) + 1)
    for f in range(4):
        assert rule.kappa(13, f) == pytest.approx(constant)
    assert rule.kappa(13, 4) is None
    # What the mixing is proven for is three bad points, whatever the median would bear.
    median = ra.chain(ra.NearestNeighborMixing(f=3), ra.GeometricMedian())
    assert median.kappa(13, 1) == median.kappa(13, 3) > ra.GeometricMedian().kappa(13, 1)
    assert ra.chain(ra.NearestNeighborMixing(f=3), ra.Krum(f=2)).kappa(13, 2) is None


def test_kappas_in_small_numbers() -> None:
    assert ra.Krum(f=2, neighbours="n-f-1").kappa(10, 2) == pytest.approx(6 * 8 / 6)
    assert ra.SMEA(f=2).kappa(10, 2) == pytest.approx(8 / 6)
    assert ra.MedoidMedian().kappa(10, 2) == pytest.approx(2 * 8 * 7 / 36)
    for rule in (ra.SMEA(f=0), ra.CAF(f=0), ra.Bulyan(f=0), ra.MinimumDiameterAveraging(f=0)):
        assert rule.kappa(9, 0) == 0
        rows = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        torch.testing.assert_close(rule(rows), rows.mean(dim=0))


@pytest.mark.parametrize("far", [1e4, 1e8, 1e16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_filter_leaves_out_rows_one_after_the_other(dtype: torch.dtype, far: float) -> None:
    rows = torch.from_numpy(draw(3, 13, 8, 0, "normal")).to(dtype)
    clean = rows.clone()
    rows[0], rows[5], rows[7] = far, -far / 1e3, 30.0
    why = ra.CAF(f=3).explain(rows)
    assert why.weights is not None
    assert why.weights[[0, 5, 7]].tolist() == [0, 0, 0]
    assert float(why.weights.sum()) == pytest.approx(1)
    others = [i for i in range(13) if i not in (0, 5, 7)]
    assert float((why.output - clean[others].mean(dim=0)).norm()) < 1
    assert why.solver is not None
    assert why.solver.iterations <= 13


def test_the_filter_is_that_of_its_oracle() -> None:
    for seed in range(12):
        for n, f, d in [(5, 2, 3), (7, 1, 1), (9, 3, 20), (14, 4, 5)]:
            rows = draw(seed, n, d, f, "outliers" if seed % 2 else "normal")
            found = ra.CAF(f=f)(torch.from_numpy(rows)).numpy()
            scale = np.abs(rows).max()
            np.testing.assert_allclose(found, oracle.caf(rows, f), atol=1e-8 * scale)


def test_the_filter_ends_where_all_rows_that_are_left_are_one() -> None:
    rows = torch.zeros(7, 3)
    rows[0] = 5
    assert torch.equal(ra.CAF(f=2)(rows), torch.zeros(3))
    torch.testing.assert_close(ra.CAF(f=2)(rows * 0 + 7), torch.full((3,), 7.0))


@pytest.mark.parametrize("ratio", [1.0, 1e3, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_norms_keep_their_digits_far_from_the_rows_centre(dtype: torch.dtype, ratio: float) -> None:
    """A row near the origin, whose norm the rows' geometry has lost, pulls the most from there."""
    rows = torch.from_numpy(draw(5, 9, 50, 0, "normal") + ratio)
    rows[3] *= 1e-3 / rows[3].norm()
    rows = rows.to(dtype)
    rule = ra.SmoothedGeometricMedian(iterations=1, start="zero")
    expected = oracle.smoothed_weiszfeld(rows.double().numpy(), 1e-6, 1, np.zeros(50))
    for each in (rule, ra.chain(ra.Bucketing(s=1), rule)):
        found = each(rows, generator=torch.Generator().manual_seed(0))
        np.testing.assert_allclose(found.double().numpy(), expected, rtol=1e-4)


@pytest.mark.parametrize("far", [1e80, 1e150])
def test_caf_leaves_out_a_row_whose_fourth_power_is_no_number(far: float) -> None:
    rows = torch.randn(10, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows[4] = far
    found = ra.CAF(f=1).explain(rows)
    assert found.weights is not None
    assert float(found.weights[4]) == 0.0
    assert int((found.weights > 0).sum()) >= 8
