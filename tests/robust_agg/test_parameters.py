"""Every parameter of every public class names itself where its value is wrong, in one line."""

from __future__ import annotations

import dataclasses
import inspect
import math
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import robust_agg as ra

Class = type[Any]

# What the parameters without a default may be.
NEEDED: dict[Class, dict[str, Any]] = {
    ra.AdaptiveClip: {"f": 1},
    ra.BetaTrimmedMean: {"beta": 0.2},
    ra.Bucketing: {"s": 2},
    ra.Bulyan: {"f": 1},
    ra.CAF: {"f": 1},
    ra.CGE: {"f": 1},
    ra.BlockL2: {"sizes": (1, 2)},
    ra.Chain: {"mixings": [ra.Bucketing(s=2)], "rule": ra.Mean()},
    ra.Clip: {"threshold": 1.0},
    ra.DivideAndConquer: {"f": 1},
    ra.FLTrust: {"reference": torch.ones(2)},
    ra.Huber: {"delta": 1.0},
    ra.Krum: {"f": 1},
    ra.KrumSelection: {"f": 1},
    ra.MeanAroundMedian: {"f": 1},
    ra.MinimumDiameterAveraging: {"f": 1},
    ra.MoNNA: {"f": 1},
    ra.Momentum: {"tau": 0.5},
    ra.MultiKrum: {"f": 1},
    ra.NearestNeighborMixing: {"f": 1},
    ra.Phocas: {"f": 1},
    ra.Resample: {"s": 2},
    ra.SMEA: {"f": 1},
    ra.TrimmedMean: {"f": 1},
}
# Data that the library makes for its users: nobody else gives these their values.
MADE_HERE = {ra.Explanation, ra.Record}
DATA: dict[Class, dict[str, Any]] = {
    ra.Rejection: {"sender": 1, "reason": "late"},
    ra.Update: {"sender": 1, "round": 0, "row": torch.ones(2)},
}

WRONG: dict[str, Any] = {
    "a string": "a",
    "None": None,
    "True": True,
    "nan": math.nan,
    "inf": math.inf,
    "-1": -1,
    "a huge number": 10**400,
    "an object": object(),
    "a class": ra.L2,
    "a list": [],
    "a tensor": torch.tensor([1, 2]),
    "a matrix": torch.zeros(50, 70),
    "an array": np.array([1.5, 2.5]),
}

MAY_BE = {
    # None is a default of its own.
    *((c, "tau", "None") for c in (ra.VClip, ra.CClip, ra.AdaptiveMomentum, ra.SignedIncrement)),
    (ra.OnlineMedian, "tau", "None"),
    (ra.Adaptive, "rho", "None"),
    (ra.Momentum, "beta", "None"),
    (ra.CenteredClipping, "radius", "None"),
    (ra.CenteredClipping, "start", "a tensor"),
    (ra.FLTrust, "reference", "a tensor"),
    (ra.SignGuard, "bandwidth", "None"),
    (ra.MultiKrum, "m", "None"),
    (ra.Chain, "mixings", "a list"),
    # No memory is taken by a count.
    *(
        (c, name, "a huge number")
        for c, name in [
            (ra.GeometricMedian, "max_iterations"),
            (ra.CenteredClipping, "iterations"),
            (ra.CenteredClipping, "start"),
            (ra.SmoothedGeometricMedian, "iterations"),
            (ra.MoNNA, "reference"),
            (ra.Resample, "s"),
            (ra.Bulyan, "f"),
            (ra.CAF, "f"),
            (ra.CGE, "f"),
            (ra.KrumSelection, "f"),
            (ra.MinimumDiameterAveraging, "f"),
            (ra.MoNNA, "f"),
            (ra.SMEA, "f"),
            (ra.OnlineMedian, "iterations"),
            (ra.VClip, "iterations"),
            (ra.CClip, "iterations"),
            (ra.AdaptiveMomentum, "iterations"),
            (ra.SignedIncrement, "iterations"),
            (ra.Momentum, "iterations"),
            (ra.Adaptive, "window"),
            (ra.Bucketing, "s"),
            (ra.Krum, "f"),
            (ra.MultiKrum, "f"),
            (ra.MultiKrum, "m"),
            (ra.NearestNeighborMixing, "f"),
            (ra.TrimmedMean, "f"),
            (ra.MeanAroundMedian, "f"),
            (ra.Phocas, "f"),
            (ra.AdaptiveClip, "f"),
            (ra.DivideAndConquer, "f"),
            (ra.DivideAndConquer, "iterations"),
            (ra.DivideAndConquer, "coordinates"),
            (ra.ClippedClustering, "window"),
        ]
    ),
    *((c, "sender", value) for c in DATA for value in ("-1", "a huge number")),
    *((ra.Update, "round", value) for value in ("-1", "a huge number")),
}
# Judged together, so that either may be named.
TOGETHER = {(ra.Momentum, "tau", "None"): "tau and beta"}
# A row is for admission to judge, a reason for people.
UNCHECKED = {(ra.Update, "row"), (ra.Rejection, "reason"), (ra.Rejection, "keeps_place")}


def classes() -> list[Class]:
    exported = (getattr(ra, name) for name in ra.__all__)
    found = [c for c in exported if inspect.isclass(c) and dataclasses.is_dataclass(c)]
    return [c for c in found if c not in MADE_HERE]


def cases() -> Iterator[Any]:
    for c in classes():
        for field in dataclasses.fields(c):
            if field.init and (c, field.name) not in UNCHECKED:
                for what in WRONG:
                    yield pytest.param(c, field.name, what, id=f"{c.__name__}-{field.name}-{what}")


def build(c: Class, **changed: Any) -> Any:
    given = {**NEEDED.get(c, {}), **DATA.get(c, {})}
    if c is ra.Momentum and "beta" in changed and changed["beta"] is not None:
        given = {}
    if issubclass(c, ra.Adaptive):
        given = {}
    return c(**{**given, **changed})


def test_every_public_dataclass_is_looked_at() -> None:
    assert len(classes()) > 20
    for c in classes():
        build(c)


@pytest.mark.parametrize(("c", "name", "what"), list(cases()))
def test_a_wrong_parameter_is_named_in_one_line(c: Class, name: str, what: str) -> None:
    value = WRONG[what]
    if (c, name, what) in MAY_BE:
        build(c, **{name: value})
        return
    with pytest.raises(ValueError, match=f"^{c.__name__}: ") as caught:
        build(c, **{name: value})
    message = str(caught.value)
    assert re.search(rf"\b{TOGETHER.get((c, name, what), name)}\b|every size\b", message)
    assert "found" in message
    assert "\n" not in message
    assert len(message) < 500


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ra.Adaptive(quantile="a"), r"^Adaptive: quantile must be in \(0, 1\), found 'a'$"),
        (lambda: ra.Momentum(beta="a"), r"^Momentum: beta must be in \[0, 1\), found 'a'$"),
        (lambda: ra.Momentum(beta="a", method="prox"), r"beta must be in \(0, 1\), found 'a'$"),
        (lambda: ra.VClip(tau="a"), "^VClip: tau must be a positive finite number, found 'a'$"),
        (lambda: ra.Krum(f="a"), "^Krum: f must be an integer >= 0, found 'a'$"),
        (
            lambda: ra.OnlineMedian(divergence=ra.L2),
            "^OnlineMedian: divergence must be an instance of Divergence, found <class .*L2'>$",
        ),
        (
            lambda: ra.Chain(mixings=[ra.Mean()], rule=ra.Mean()),
            r"^Chain: every one of mixings must be an instance of Mixing, found Mean\(\)$",
        ),
        (
            lambda: ra.Chain(mixings=[], rule=ra.Mean),
            "^Chain: rule must be an instance of Aggregator, found <class .*Mean'>$",
        ),
        (lambda: ra.BlockL2(()), r"^BlockL2: sizes must be one integer or more, found \(\)$"),
        (
            lambda: ra.BlockL2((2, 1.0)),
            r"^BlockL2: every size must be an integer >= 1, found 1\.0$",
        ),
        (
            lambda: ra.CenteredClipping(start=torch.tensor([1.0, math.nan])),
            r"^CenteredClipping: start must be a finite \(d,\) tensor, found shape \(2,\)$",
        ),
        (
            lambda: ra.CenteredClipping(start="average"),
            r"^CenteredClipping: start must be 'median', 'mean', 'zero', the position of a row or "
            r"a \(d,\) tensor, found 'average'$",
        ),
        (
            lambda: ra.Krum(f=1, neighbours="n-f"),
            "^Krum: neighbours must be 'n-f-2' or 'n-f-1', found 'n-f'$",
        ),
        (
            lambda: ra.MultiKrum(f=1, distances="l1"),
            "^MultiKrum: distances must be 'squared' or 'plain', found 'l1'$",
        ),
        (
            lambda: ra.KrumSelection(f=1, rounds=2),
            "^KrumSelection: rounds must be 'one by one' or 'at once', found 2$",
        ),
        (
            lambda: ra.SmoothedGeometricMedian(start="median"),
            "^SmoothedGeometricMedian: start must be 'mean' or 'zero', found 'median'$",
        ),
    ],
)
def test_the_message_says_what_is_required(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("number", [np.float32, np.float64, int], ids=lambda t: t.__name__)
def test_numbers_of_other_libraries_are_numbers(number: Any) -> None:
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    estimator = ra.VClip(tau=number(1))
    found = estimator.step(rows, estimator.init(rows[0]))[0]
    expected = ra.VClip(tau=1.0)
    assert torch.equal(found, expected.step(rows, expected.init(rows[0]))[0])
    assert torch.equal(ra.Krum(f=np.int64(1))(rows), ra.Krum(f=1)(rows))


@pytest.mark.parametrize("value", [1e-300, 1e-30, 1e30, 1e300, 10**30, 10**300])
@pytest.mark.parametrize(
    "make",
    [
        lambda v: ra.chain(ra.Clip(threshold=v), ra.Krum(f=1)),
        lambda v: ra.CenteredClipping(radius=v),
        lambda v: ra.GeometricMedian(tolerance=v),
        lambda v: ra.VClip(tau=v),
        lambda v: ra.VClip(tau=ra.Adaptive(rho=v)),
        lambda v: ra.CClip(tau=ra.Adaptive(rho=v), fusion="batch"),
        lambda v: ra.OnlineMedian(divergence=ra.Huber(v), fusion="batch"),
        lambda v: ra.OnlineMedian(divergence=ra.Huber(v), tau=v),
    ],
    ids=["clip", "centered clipping", "median", "vclip", "adaptive", "cclip", "batch", "huber"],
)
def test_extreme_numbers_are_parameters_too(make: Any, value: float) -> None:
    rule = make(value)
    rows = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    if isinstance(rule, ra.Aggregator):
        found = rule(rows)
    else:
        found = rule.step(rows, rule.init(rows[0]))[0]
    assert found.isfinite().all()
    assert float(found.norm()) <= float(rows.norm(dim=1).max()) * (1 + 1e-6)
