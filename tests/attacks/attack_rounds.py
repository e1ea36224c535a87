"""The table of attacks and the rounds the tests run them in."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from attacks import (
    ROP,
    ALittleIsEnough,
    AntiClip,
    Attack,
    BitFlip,
    Defence,
    Drift,
    FangAttack,
    GaussianNoise,
    InnerProductManipulation,
    Knowledge,
    Mimic,
    MinMax,
    MinSum,
    NonFinite,
    OptimalALIE,
    OptimalIPM,
    Replay,
    Scale,
    SignFlip,
    View,
    Zero,
)
from robust_agg import Aggregator, State
from robust_agg.messages import Update
from robust_agg.span import Geometry

ATTACKS: list[Attack] = [
    SignFlip(),
    SignFlip(of="mean", scale=3.0),
    InnerProductManipulation(),
    InnerProductManipulation(epsilon=2.0),
    ALittleIsEnough(z=1.5),
    ALittleIsEnough(z=1.5, of="own", sign=1),
    OptimalIPM(largest=4.0),
    OptimalALIE(largest=4.0, ddof=1, refinements=2),
    MinMax(),
    MinMax(perturbation="unit"),
    MinMax(perturbation="sign"),
    MinSum(),
    MinSum(perturbation="unit"),
    MinSum(perturbation="sign"),
    FangAttack(),
    FangAttack(of="own"),
    FangAttack(against="krum"),
    Mimic(),
    Mimic(target=3),
    ROP(),
    ROP(z=0.5, relocation=0.25, angle=120.0),
    AntiClip(),
    AntiClip(norm="linf"),
    AntiClip(radius=2.0, direction="fixed", norm="linf"),
    Drift(),
    GaussianNoise(),
    GaussianNoise(around="own", scale=0.5, mean=1.0),
    BitFlip(probability=1.0),
    BitFlip(probability=1.0, bits=(14,)),
    Scale(),
    Replay(),
    Replay(every=2),
    Zero(),
    NonFinite(kind="nan"),
    NonFinite(kind="inf"),
    NonFinite(kind="-inf"),
    NonFinite(kind="huge"),
    NonFinite(kind="mixed"),
]

GATED = {
    "own": Knowledge.OWN,
    "honest": Knowledge.HONEST,
    "honest_mean": Knowledge.HONEST,
    "honest_senders": Knowledge.HONEST,
    "defence": Knowledge.DEFENCE,
    "f": Knowledge.DEFENCE,
    "estimate": Knowledge.ESTIMATE,
}


def too_small(attack: Attack, k: int, h: int) -> bool:
    """Whether a round of k Byzantine and h honest rows is one that the attack refuses."""
    match attack:
        case FangAttack(against="krum"):
            return h + k < 2 * k + 3
        case FangAttack(of="own") | ALittleIsEnough(of="own"):
            return k < 2
        case ALittleIsEnough() | OptimalALIE() | MinMax() | MinSum() | Drift():
            return h < 2
    return False


@dataclass
class MeanDefence:
    """A plain mean that remembers what it was asked, and shows no weights."""

    f: int = 1
    asked: list[Tensor] = field(default_factory=list)
    estimate: Tensor | None = None

    def aggregate(self, rows: Tensor) -> Tensor:
        self.asked.append(rows)
        return rows.mean(dim=0)

    def weights_from(self, geometry: Geometry) -> Tensor | None:
        return None


@dataclass
class RuleDefence:
    """A rule of the library, asked over the rows or, where ``shows``, in weight space too."""

    rule: Aggregator
    f: int = 1
    shows: bool = True
    estimate: Tensor | None = None
    queries: int = 0

    def aggregate(self, rows: Tensor) -> Tensor:
        self.queries += 1
        return self.rule(rows, generator=seeded())

    def weights_from(self, geometry: Geometry) -> Tensor | None:
        return self.rule.weights_from(geometry, generator=seeded()) if self.shows else None


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_rows(
    n: int, d: int, dtype: torch.dtype = torch.float64, *, seed: int = 0, shift: float = 1.0
) -> Tensor:
    return (torch.randn(n, d, dtype=torch.float64, generator=seeded(seed)) + shift).to(dtype)


def as_numpy(rows: Tensor) -> np.ndarray:
    return rows.to(torch.float64).numpy()


TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 2e-2}


def check(found: Tensor, expected: np.ndarray, like: Tensor, *, factor: float = 1.0) -> None:
    """Of the shape and dtype of ``like``, and equal to ``expected`` as far as they allow."""
    assert found.shape == like.shape
    assert found.dtype == like.dtype
    atol = factor * TOLERANCE[like.dtype] * (1.0 + np.abs(expected).max())
    np.testing.assert_allclose(as_numpy(found), expected, rtol=0, atol=atol)


def open_view(
    attack: Attack,
    own: Tensor,
    honest: Tensor,
    *,
    knows: Knowledge | None = None,
    defence: Defence | None = None,
    round: int = 7,
    senders: list[int] | None = None,
    honest_senders: list[int] | None = None,
) -> View:
    return View(
        reader=type(attack).__name__,
        knows=attack.knows if knows is None else knows,
        round=round,
        own=own.unbind(),
        honest=honest.unbind(),
        defence=MeanDefence() if defence is None else defence,
        senders=senders,
        honest_senders=honest_senders,
    )


def forge(
    attack: Attack, own: Tensor, honest: Tensor, *, seed: int = 0, defence: Defence | None = None
) -> Tensor:
    """The rows one attack sends in its first round."""
    view = open_view(attack, own, honest, defence=defence)
    rows, _ = attack(view, attack.init(own[0]), seeded(seed))
    return rows


def next_round(
    attack: Attack,
    own: Tensor,
    honest: Tensor,
    state: State | None,
    *,
    round: int,
    seed: int = 0,
    defence: Defence | None = None,
    senders: list[int] | None = None,
    honest_senders: list[int] | None = None,
) -> tuple[Tensor, State]:
    """One of several rounds; the state is None before the first."""
    view = open_view(
        attack,
        own,
        honest,
        defence=defence,
        round=round,
        senders=senders,
        honest_senders=honest_senders,
    )
    return attack(view, attack.init(own[0]) if state is None else state, seeded(seed + round))


def updates_of(rows: Tensor, senders: list[int] | None = None, *, round: int = 7) -> list[Update]:
    ids = range(len(rows)) if senders is None else senders
    return [Update(sender=i, round=round, row=row) for i, row in zip(ids, rows, strict=True)]
