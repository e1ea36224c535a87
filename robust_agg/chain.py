"""Mixings before a rule."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from robust_agg import kernels
from robust_agg.aggregator import (
    Aggregator,
    Coordinatewise,
    Explanation,
    Invariance,
    Weighted,
    explained,
)
from robust_agg.errors import check_instance, check_rejected, shown
from robust_agg.mixings.mixing import Kappa, Mixing
from robust_agg.shards import WHOLE, Shards
from robust_agg.span import Geometry, measure, measure_norms


def chain(*stages: Mixing | Aggregator) -> Chain:
    """``chain(a, b, rule)``: apply mixing a, then b, then the rule.

    Each stage checks its own f against the number of points it receives; f itself is not changed by
    mixing. Whether the points that may be bad are no more than that is asked when a run is declared
    (``check_declared``), for no rule is told how many rows are bad.

    Raises:
        TypeError: the last stage is no aggregator, or an earlier one no mixing.
    """
    if not stages or not isinstance(stages[-1], Aggregator):
        found = type(stages[-1]).__name__ if stages else "nothing"
        raise TypeError(f"chain: the last stage must be an aggregator, found {found}")
    for stage in stages[:-1]:
        if not isinstance(stage, Mixing):
            raise TypeError(
                f"chain: all stages but the last must be mixings, found {type(stage).__name__}"
            )
    mixings = tuple(stage for stage in stages[:-1] if isinstance(stage, Mixing))
    return Chain(mixings=mixings, rule=stages[-1])


@dataclass(frozen=True, kw_only=True)
class Chain(Aggregator):
    """Mixings, left to right, and the rule that follows; made by :func:`chain`.

    With a weighted rule everything happens in weight space. Any other rule needs the mixed rows
    themselves, which are then formed once, in at least float32; for a coordinate-wise rule a block
    of columns at a time.
    """

    mixings: Sequence[Mixing]
    rule: Aggregator

    def __post_init__(self) -> None:
        given: object = self.mixings
        if not isinstance(given, Iterable):
            raise ValueError(f"Chain: mixings must be a sequence, found {shown(given)}")
        stages = tuple(given)
        for mixing in stages:
            check_instance("Chain", "every one of mixings", mixing, Mixing)
        check_instance("Chain", "rule", self.rule, Aggregator)
        object.__setattr__(self, "mixings", stages)

    @property
    def name(self) -> str:
        return "+".join([*(mixing.name for mixing in self.mixings), self.rule.name])

    @property
    def invariances(self) -> frozenset[Invariance]:
        return self.rule.invariances.intersection(*(m.invariances for m in self.mixings))

    @property
    def shardable(self) -> bool:
        return self.rule.shardable

    def check(self, n: int) -> None:
        for mixing in self.mixings:
            n = mixing.check(n)
        self.rule.check(n)

    def max_rejected(self, n: int) -> int:
        """How many rejected *points* every stage bears; a bucket hides a rejected row."""
        bearable = []
        for mixing in self.mixings:
            bearable.append(mixing.max_rejected(n))
            n = mixing.check(n)
        return min([*bearable, self.rule.max_rejected(n)])

    def kappa(self, n: int, f: int) -> float | None:
        """The rule's constant, carried through the mixings from the last to the first."""
        constant: Kappa = self.rule.kappa
        for mixing in reversed(self.mixings):
            constant = partial(mixing.kappa, following=constant)
        return constant(n, f)

    def weights_from(
        self, geometry: Geometry, *, generator: torch.Generator | None = None
    ) -> Tensor | None:
        """None too where a stage loses digits, for which the rows would be measured anew."""
        if not isinstance(self.rule, Weighted):
            return None
        self.check(len(geometry))
        over_points = torch.diag(geometry.accepted.double())
        for mixing in self.mixings:
            _check(mixing.name, mixing, geometry)
            if mixing.loses_digits(geometry):
                return None
            mixed = mixing.mix(geometry, generator)
            over_points = mixed.coefficients @ over_points
            geometry = geometry.mixed(*mixed)
        _check(self.rule.name, self.rule, geometry)
        if self.rule.loses_digits(geometry):
            return None
        return self.rule.weigh(geometry, generator).weights @ over_points

    def _explain(
        self,
        rows: Tensor,
        generator: torch.Generator | None,
        *,
        distances: bool,
        shards: Shards = WHOLE,
    ) -> Explanation:
        sees = self.rule.sees_distances or any(mixing.sees_distances for mixing in self.mixings)
        original = measure(rows, shards=shards)[0] if sees else measure_norms(rows, shards=shards)
        geometry = original
        for mixing in self.mixings:
            _check(mixing.name, mixing, geometry)
            if mixing.loses_digits(geometry):
                geometry = geometry.about_origin(rows, original.accepted, shards=shards)
            geometry = geometry.mixed(*mixing.mix(geometry, generator))
        _check(self.rule.name, self.rule, geometry)
        if isinstance(self.rule, Weighted):
            if self.rule.loses_digits(geometry):
                geometry = geometry.about_origin(rows, original.accepted, shards=shards)
            weights, solver = self.rule.weigh(geometry, generator)
            over_rows = weights @ geometry.coefficients
            return explained(
                kernels.combine(rows, over_rows),
                rows,
                distances=distances,
                weights=over_rows,
                rejected=~original.accepted,
                solver=solver,
                shards=shards,
            )
        if isinstance(self.rule, Coordinatewise):
            output = self.rule.of_mixed(rows, _coefficients(geometry), shards=shards)
            inner = Explanation(output, torch.empty(0, dtype=torch.float64, device="cpu"))
        else:
            mixed = kernels.mix(rows, _coefficients(geometry))
            inner = self.rule._explain(mixed, generator, distances=False, shards=shards)
        return explained(
            inner.output.to(rows.dtype),
            rows,
            distances=distances,
            weights=None if inner.weights is None else inner.weights @ geometry.coefficients,
            rejected=~original.accepted,
            solver=inner.solver,
            shards=shards,
        )


def _check(name: str, stage: Mixing | Aggregator, geometry: Geometry) -> None:
    check_rejected(name, geometry.rejected_count, stage.max_rejected(len(geometry)), len(geometry))


def _coefficients(geometry: Geometry) -> Tensor:
    """``(m, n)``, NaN of a rejected point, whose mixed row is NaN, where others read too."""
    coefficients = geometry.coefficients
    if geometry.rejected_count:
        read = coefficients[geometry.accepted].any(dim=0)
        coefficients = coefficients.clone()
        coefficients[~geometry.accepted] = torch.where(read, torch.nan, 0.0).to(coefficients)
    return coefficients
