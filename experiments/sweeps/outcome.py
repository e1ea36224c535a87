"""What is kept of a finished cell: numbers of its whole training, from its folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from experiments.metrics import Metrics, read_metrics
from experiments.simulation import LEDGER
from robust_agg import Ledger

TIME = "seconds.json"
"""How long the rounds have taken that are in the checkpoint."""


@dataclass(frozen=True)
class Outcome:
    """The numbers of a training; accuracies and losses are those of validation.

    Attributes:
        accuracy, loss, success: after the last round.
        error, kappa, byzantine_weight, accepted: means over the evaluated rounds that have them.
        skipped, missing, bytes, spared: of all rounds.
        seconds: of the whole training, with its evaluations, however often it was resumed.
        seconds_per_round: the same, a round.
        aggregate_seconds: of the server's aggregation, a round.
        epsilon: that the data have spent; None without noise.
    """

    accuracy: float
    loss: float
    success: float | None
    error: float | None
    kappa: float | None
    byzantine_weight: float | None
    accepted: float | None
    skipped: int
    missing: int
    bytes: int
    seconds: float
    seconds_per_round: float
    aggregate_seconds: float | None
    # Outcomes that were kept before there were these have none.
    spared: int | None = None
    epsilon: float | None = None


def outcome_of(folder: Path) -> Outcome:
    """The outcome of the finished training in ``folder``."""
    metrics = read_metrics(folder)
    last = metrics[-1]
    seconds = read_seconds(folder)
    return Outcome(
        accuracy=last.accuracy,
        loss=last.loss,
        success=last.success,
        error=_mean(m.error for m in metrics),
        kappa=_mean(m.kappa for m in metrics),
        byzantine_weight=_mean(m.byzantine_weight for m in metrics),
        accepted=_mean(m.accepted for m in metrics),
        skipped=last.skipped,
        missing=last.missing,
        bytes=last.bytes,
        seconds=seconds,
        seconds_per_round=seconds / last.round,
        aggregate_seconds=_mean(r["seconds"].get("aggregate") for r in Ledger(folder / LEDGER)),
        spared=last.spared,
        epsilon=last.epsilon,
    )


def rounds_to(target: float, metrics: Iterable[Metrics]) -> int | None:
    """The first evaluated round whose accuracy is at least ``target``; None if it never is."""
    return next((m.round for m in metrics if m.accuracy >= target), None)


def read_seconds(folder: Path) -> float:
    path = folder / TIME
    return float(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else 0.0


def _mean(values: Iterable[float | None]) -> float | None:
    """Of those that are there."""
    known = [value for value in values if value is not None]
    # Divided first: the sum of what an attack can do need not be finite.
    return sum(value / len(known) for value in known) if known else None
