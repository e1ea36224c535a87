"""What is measured of a training in its evaluated rounds, and the file where it is kept."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

METRICS = "metrics.jsonl"


@dataclass(frozen=True)
class Metrics:
    """One evaluated round.

    Attributes:
        round: rounds done so far.
        accuracy: share of the evaluated samples that the model labels correctly.
        loss: their mean loss.
        error: ‖estimate - mean of the honest rows‖₂ relative to the mean's norm, in this round;
            rejected rows are left out.
        byzantine_weight: share of the weights that Byzantine rows had; None for rules without.
        skipped: rounds skipped so far.
        missing: rows so far that were asked for and did not come.
        seconds: of the server's aggregation in this round.
        success: share of the evaluated samples of the attacker's choice that the model labels as
            the attacker wants; None for an attack without such a goal.
        bytes: of the messages so far.
        epsilon: the ε, at the run's δ, that the data of the worker asked most often have spent so
            far; None without noise.
        kappa: ‖estimate - ḡ‖₂² over the mean of ‖g_i - ḡ‖₂², g_i the honest rows that are not
            rejected and ḡ their mean, in this round; None where these rows are all one.
        accepted: share of the Byzantine rows of this round whose weight is not 0; None for rules
            without weights, and where there are no such rows.
    """

    round: int
    accuracy: float
    loss: float
    error: float | None
    byzantine_weight: float | None
    skipped: int
    missing: int
    seconds: float | None
    success: float | None = None
    bytes: int = 0
    epsilon: float | None = None
    kappa: float | None = None
    accepted: float | None = None


def line(metrics: Metrics) -> str:
    """The metrics as one line of strict JSON."""
    return json.dumps(asdict(metrics), allow_nan=False) + "\n"


def read_metrics(folder: Path) -> list[Metrics]:
    """The evaluated rounds of a folder; a last line that was cut short is left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [Metrics(**json.loads(line)) for line in lines if line.endswith("\n")]
