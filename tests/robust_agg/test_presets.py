"""A preset gives the numbers of the library whose name it has: of itself, where it is installed."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from oracles import rules as oracle
from peer_packages import from_peer
from torch import Tensor

import robust_agg as ra
from experiments.bench import peers
from robust_agg.mixings.mixing import Mixing
from robust_agg.presets import byzfl, byzpy, epfml, flower
from robust_agg.span import measure

SIZES = [(5, 1), (8, 2), (9, 2), (11, 4), (12, 0)]
Arguments = list[dict[str, Any]]

BYZFL: Mapping[str, Any] = {
    "Average": lambda f: [{}],
    "Median": lambda f: [{}],
    "TrMean": lambda f: [{"f": f}],
    "Meamed": lambda f: [{"f": f}],
    "GeometricMedian": lambda f: [{}, {"nu": 4.0, "T": 6}],
    "Krum": lambda f: [{"f": f}],
    "MultiKrum": lambda f: [{"f": f}],
    "MDA": lambda f: [{"f": f}],
    "MoNNA": lambda f: [{"f": f}, {"f": f, "idx": 3}],
    "CenteredClipping": lambda f: [{}, {"L": 3, "tau": 2.0}],
    "NNM": lambda f: [{"f": f}],
    "Bucketing": lambda f: [{}, {"s": 2}, {"s": 3}],
    "Clipping": lambda f: [{}, {"c": 5.0}],
    "ARC": lambda f: [{"f": f}],
}
"""With which parameters each name is tried, for f of n rows."""

BYZPY: Mapping[str, Any] = {
    "CoordinateWiseMedian": lambda f: [{}],
    "CoordinateWiseTrimmedMean": lambda f: [{"f": f}],
    "Krum": lambda f: [{"f": f}],
    "MultiKrum": lambda f: [{"f": f, "q": 1}, {"f": f, "q": 3}],
    "MinimumDiameterAveraging": lambda f: [{"f": f}],
    "MoNNA": lambda f: [{"f": f}, {"f": f, "reference_index": 3}],
    "SMEA": lambda f: [{"f": f}],
    "CenteredClipping": lambda f: [{"c_tau": 2.0}, {"c_tau": 3.0, "M": 2, "init": "zero"}],
    "ComparativeGradientElimination": lambda f: [{"f": f}],
    "NearestNeighborMixing": lambda f: [{"f": f}],
    "Bucketing": lambda f: [{"bucket_size": 1}, {"bucket_size": 2}, {"bucket_size": 3}],
    "Clipping": lambda f: [{}, {"threshold": 5.0}],
    "ARC": lambda f: [{"f": f}],
}

LEFT_OUT = {
    byzfl: {"CAF", "SMEA"},
    byzpy: {"CAF", "GeometricMedian", "MeanOfMedians"},
}
NOT_OURS = {byzfl: {"m"}, byzpy: {"chunk_size", "feature_chunk_size", "eps", "perm", "rng"}}
"""Parameters that a preset has not: they change nothing, or the module's docstring says why."""


def draw(n: int, f: int, seed: int = 0) -> Tensor:
    """Rows about a point that is not the origin, f of them off to one side."""
    generator = torch.Generator().manual_seed(100 * n + 10 * f + seed)
    rows = torch.randn(n, 20, generator=generator, dtype=torch.float64) + 0.5
    rows[:f] += 1.5
    return rows[torch.randperm(n, generator=generator)]


def public(module: ModuleType) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if inspect.isfunction(value) and value.__module__ == module.__name__
    }


def mixed(mixing: Mixing, rows: Tensor, generator: torch.Generator | None = None) -> Tensor:
    assert mixing.check(len(rows)) >= 1
    return mixing.mix(measure(rows)[0], generator).coefficients @ rows


def near(found: Any, expected: Any, tolerance: float = 1e-11) -> None:
    assert found.dtype == torch.float64
    expected = torch.as_tensor(expected).double()
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def the_peer(module: ModuleType) -> SimpleNamespace:
    """The peer's own classes by name; without the peer the test is skipped."""
    if module is byzfl:
        places = [from_peer("byzfl", lambda: peers.part("byzfl", "aggregators"))]
    else:
        parts = [f"aggregators.{part}_wise" for part in ("coordinate", "geometric", "norm")]
        places = [
            from_peer("byzpy", partial(peers._module, f"byzpy.{part}"))
            for part in (*parts, "pre_aggregators")
        ]
    return SimpleNamespace(**{
        name: value
        for place in places
        for name, value in vars(place).items()
        if inspect.isclass(value) and not inspect.isabstract(value)
    })  # fmt: skip


@pytest.mark.parametrize(("n", "f"), SIZES)
@pytest.mark.parametrize("name", sorted(BYZFL))
def test_byzfl(name: str, n: int, f: int) -> None:
    peer = the_peer(byzfl)
    for arguments in BYZFL[name](f):
        rule = getattr(byzfl, name)(**arguments)
        theirs = getattr(peer, name)(**arguments)
        rows = draw(n, f)
        if name == "Bucketing":
            with torch.random.fork_rng():
                torch.manual_seed(7)
                expected = theirs(rows)  # it makes float32 of tensors
            near(mixed(rule, rows, torch.Generator().manual_seed(7)), expected, 1e-6)
        elif isinstance(rule, Mixing):
            near(mixed(rule, rows), theirs(rows.numpy().copy()))
        elif isinstance(rule, ra.OnlineMedian):
            state = rule.init(rows[0])
            for round_ in range(4):
                rows = draw(n, f, round_)
                estimate, state = rule.step(rows, state)
                near(estimate, theirs(rows.numpy()))
        else:
            near(rule(rows), theirs(rows.numpy()))


@pytest.mark.parametrize(("n", "f"), SIZES)
@pytest.mark.parametrize("name", sorted(BYZPY))
def test_byzpy(name: str, n: int, f: int) -> None:
    peer = the_peer(byzpy)
    rows = draw(n, f)
    for arguments in BYZPY[name](f):
        rule = getattr(byzpy, name)(**arguments)
        own = dict(arguments)
        if name == "Bucketing":
            own["perm"] = torch.randperm(n, generator=torch.Generator().manual_seed(7)).tolist()
        theirs = getattr(peer, name)(**own)
        if isinstance(rule, Mixing):
            expected = torch.stack(theirs.pre_aggregate(list(rows.clone())))
            near(mixed(rule, rows, torch.Generator().manual_seed(7)), expected)
        else:
            near(rule(rows), theirs.aggregate(list(rows.clone())))


@pytest.mark.parametrize(("module", "cases"), [(byzfl, BYZFL), (byzpy, BYZPY)])
def test_a_peer_is_covered_but_for_what_is_left_out(module: ModuleType, cases: Any) -> None:
    assert public(module) == set(cases)
    assert set(vars(the_peer(module))) == public(module) | LEFT_OUT[module]


@pytest.mark.parametrize(
    ("module", "name"), [(m, name) for m in (byzfl, byzpy) for name in sorted(public(m))]
)
def test_parameters_and_defaults_are_the_peers(module: ModuleType, name: str) -> None:
    ours = inspect.signature(getattr(module, name)).parameters
    theirs = inspect.signature(getattr(the_peer(module), name)).parameters
    assert list(ours) == [key for key in theirs if key not in NOT_OURS[module]]
    for key, parameter in ours.items():
        assert (parameter.default, parameter.kind) == (theirs[key].default, theirs[key].kind)


def test_the_chains_form_of_byzfls_centered_clipping_is_its_first_call() -> None:
    rows = draw(9, 2)
    rule = ra.CenteredClipping(radius=2.0, iterations=3, start="zero")
    online = byzfl.CenteredClipping(L=3, tau=2.0)
    near(rule(rows), online.step(rows, online.init(rows[0]))[0])


def test_what_byzfl_clips_is_rounded_where_the_docstring_says() -> None:
    """``int(2 f/n (n - f))`` in floating point, and the whole number here."""
    other = [
        (n, f)
        for n in range(1, 400)
        for f in range((n + 1) // 2)
        if int(2 * f / n * (n - f)) != 2 * f * (n - f) // n
    ]
    assert other == [(242, 33)]


@pytest.mark.parametrize("init", ["median", 0])
def test_byzpys_centered_clipping_has_no_start_that_differs(init: Any) -> None:
    with pytest.raises(ValueError, match=r"^CenteredClipping: init must be 'mean' or 'zero', "):
        byzpy.CenteredClipping(c_tau=1.0, init=init)


# --- not installed: what was read of them, naively ------------------------------------------------


@pytest.mark.parametrize(("n", "f"), SIZES)
def test_epfml(n: int, f: int) -> None:
    rows = draw(n, f)
    x = rows.numpy()
    near(epfml.Mean()(rows), oracle.mean(x))
    near(epfml.CM()(rows), oracle.coordinate_median(x))
    near(epfml.TM(f)(rows), oracle.trimmed_mean(x, f))
    for steps, nu in ((3, 0.1), (8, 0.1), (4, 5.0)):
        expected = oracle.smoothed_weiszfeld(x, nu, steps, np.zeros(20))
        near(epfml.RFA(steps, nu)(rows), expected)
    near(epfml.RFA(8)(rows), epfml.RFA(T=8, nu=0.1)(rows))


@pytest.mark.parametrize(("tau", "n_iter"), [(100.0, 1), (2.0, 1), (2.0, 3)])
def test_epfmls_clipping_goes_on_from_its_last_result(tau: float, n_iter: int) -> None:
    rule = epfml.Clipping(tau, n_iter)
    state = rule.init(draw(9, 2)[0])
    v = np.zeros(20)
    for round_ in range(4):
        rows = draw(9, 2, round_)
        estimate, state = rule.step(rows, state)
        v = oracle.centered_clipping(rows.numpy(), tau, iterations=n_iter, start=v)
        near(estimate, v)
    assert epfml.Clipping(2.0) == epfml.Clipping(tau=2.0, n_iter=1)


@pytest.mark.parametrize("s", [1, 2, 3])
@pytest.mark.parametrize("n", [8, 9])
def test_epfmls_bucketing(n: int, s: int) -> None:
    rows = draw(n, 2)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(5)).tolist()
    found = mixed(epfml.Bucketing(s), rows, torch.Generator().manual_seed(5))
    near(found, oracle.bucketing(rows.numpy(), s, order))


@pytest.mark.parametrize(("n", "f"), [(7, 1), (8, 1), (11, 2), (12, 2), (5, 0)])
def test_flower(n: int, f: int) -> None:
    rows = draw(n, f)
    x = rows.numpy()
    near(flower.FedMedian()(rows), oracle.coordinate_median(x))
    near(flower.Krum(f)(rows), oracle.krum(x, f))
    near(flower.Krum()(rows), oracle.krum(x, 0))
    near(flower.MultiKrum(f)(rows), oracle.krum(x, f))
    near(flower.MultiKrum(f, 3)(rows), oracle.multi_krum(x, f, 3))
    selected = x[oracle.krum_order(x, f)[: n - 2 * f]]
    near(flower.Bulyan(f)(rows), oracle.near_median(selected, 2 * f))
    for beta in (0.0, 0.2, 0.25, 0.4):
        near(flower.FedTrimmedAvg(beta)(rows), oracle.trimmed_mean(x, int(beta * n)))
    assert flower.FedTrimmedAvg().beta == 0.2


def test_what_flower_trims_is_rounded_where_the_docstring_says() -> None:
    default, other = flower.FedTrimmedAvg(), flower.FedTrimmedAvg(beta=0.29)
    assert all(default.trimmed(n) == int(0.2 * n) for n in range(1, 100_001))
    assert (other.trimmed(100), int(0.29 * 100)) == (29, 28)


# --- the tables -----------------------------------------------------------------------------------


@pytest.mark.parametrize("module", [byzfl, byzpy, epfml, flower])
def test_the_table_has_every_name_and_its_rule(module: ModuleType) -> None:
    assert module.__doc__ is not None
    table = module.__doc__.split("=\n")[2]
    lines = [line for line in table.splitlines() if re.match(r"\w+.* {2,}|\w+\(.*\) \w", line)]
    found = {}
    for line in lines:
        name, rule = re.fullmatch(r"(\w+).*? +(\w+)\(.*", line).groups()  # type: ignore[union-attr]
        found["Bucketing" if name == "bucketing_wrapper" else name] = rule
    assert set(found) == public(module)
    for name, rule in found.items():
        assert getattr(module, name).__annotations__["return"] == f"ra.{rule}", name
