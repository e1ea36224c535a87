"""Sweeps as their engine leaves them, made up: the numbers in them are known."""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from experiments.sweeps.report.cells import BREAKDOWN, CURVES, RESULTS, SWEEP

Row = dict[str, Any]

GM, CWM, MEAN = "GeometricMedian", "CoordinateWiseMedian", "Mean"
FLIP, ALIE = "SignFlip", "ALittleIsEnough(z=1.5)"


def row(defence: str, attack: str, seed: int, test: float | None, **changes: Any) -> Row:
    """One finished cell with all of its columns; its setting was chosen if it was tested."""
    attacked = attack != "none"
    about = repr((defence, attack, seed, changes))
    cell = hashlib.sha256(about.encode()).hexdigest()[:16]
    return {
        "cell": cell,
        "state": "done",
        "failure": None,
        "command": f"robust-agg run --aggregator '{defence}' --attack '{attack}' --seed {seed}",
        "defence": defence,
        "attack": attack,
        "tuned": "",
        "chosen": test is not None,
        "config.defence": defence,
        "config.attack": attack,
        "config.f": 2,
        "config.byzantine": 2 if attacked else 0,
        "config.workers": 12 if attacked else 10,
        "config.partition": "IID()",
        "config.model": "LogisticRegression()",
        "config.lr": 0.1,
        "config.seed": seed,
        "accuracy": None if test is None else test + 0.01,
        "test_accuracy": test,
        "loss": 0.5,
        "error": 0.25,
        "kappa": 1.5,
        "byzantine_weight": None if defence == CWM else 0.1,
        "accepted": None if defence == CWM else 0.5,
        "rounds_to_target": 120.0,
        "skipped": 0,
        "missing": 0,
        "bytes": 3_000_000,
        "success": None,
        "seconds": 12.0,
        "seconds_per_round": 0.06,
        "aggregate_seconds": {MEAN: 0.001, GM: 0.004}.get(defence, 0.008),
        **changes,
    }


def write(
    folder: Path,
    rows: Sequence[Row],
    *,
    curve_rows: Sequence[Row] = (),
    breakdown_rows: Sequence[Row] = (),
    **about: Any,
) -> Path:
    """The files of a sweep."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"title": "A sweep", "notes": ["ten thousand images"], **about})
    (folder / SWEEP).write_text(text, encoding="utf-8")
    for name, lines in ((RESULTS, rows), (CURVES, curve_rows), (BREAKDOWN, breakdown_rows)):
        if lines:
            columns = list(dict.fromkeys(key for line in lines for key in line))
            table = {key: [line.get(key) for line in lines] for key in columns}
            parquet.write_table(pyarrow.table(table), folder / name)
    return folder


def curves_of(rows: Sequence[Row], *, rounds: int = 200, every: int = 10) -> list[Row]:
    """Curves that rise to the final validation accuracy of each cell."""
    return [
        {"cell": each["cell"], "round": at, "accuracy": _rise(at / rounds, each["accuracy"], at)}
        for each in rows
        if each["state"] == "done" and each["accuracy"] is not None
        for at in range(every, rounds + 1, every)
    ]


def _rise(share: float, final: float, at: int) -> float:
    wave = 0.02 * math.sin(at + 50 * final) * (1 - share)
    return min(1.0, max(0.0, 0.1 + (final - 0.1) * (1 - math.exp(-5 * share)) + wave))


TESTED: Mapping[tuple[str, str], tuple[float, ...]] = {
    (GM, "none"): (0.95, 0.94, 0.96),
    (GM, FLIP): (0.90, 0.88, 0.92),
    (GM, ALIE): (0.80, 0.85, 0.81),
    (CWM, "none"): (0.93, 0.93, 0.93),
    (CWM, FLIP): (0.75, 0.77, 0.70),
    (CWM, ALIE): (0.88, 0.86, 0.87),
    (MEAN, "none"): (0.97, 0.97, 0.97),
    (MEAN, FLIP): (0.10, 0.12, 0.11),
    (MEAN, ALIE): (0.60, 0.62, 0.61),
}
"""Test accuracies of three seeds; the worst cases are GM 0.82, CWM 0.74 and Mean 0.11."""


def small(**changes: Callable[[Row], Any] | Any) -> list[Row]:
    """One scenario with three seeds, in an order that is not the leaderboard's."""
    rows = [
        row(defence, attack, seed, test)
        for (defence, attack), tests in reversed(TESTED.items())
        for seed, test in enumerate(tests)
    ]
    return [{**each, **changes} for each in rows]


# --- as large as a real one -----------------------------------------------------------------------

DEFENCES = {
    "Clip(threshold=2.0) + NearestNeighborMixing + GeometricMedian": (0.96, 0.5, 0.0094),
    "Clip(threshold=2.0) + NearestNeighborMixing + TrimmedMean": (0.955, 0.55, 0.0121),
    "VClip(fusion='averaged')": (0.95, 0.7, 0.0021),
    "CClip(fusion='batch')": (0.93, 0.8, 0.0046),
    "CenteredClipping(tau=10.0, iterations=3)": (0.95, 0.9, 0.0026),
    "MultiKrum": (0.92, 1.3, 0.0030),
    "CoordinateWiseMedian": (0.91, 1.5, 0.0052),
    "Krum": (0.86, 1.6, 0.0029),
    "Mean": (0.97, 3.5, 0.0007),
}
"""Accuracy without attack, how fast it falls, seconds of an aggregation."""
ATTACKS = {
    "none": 0.0,
    "SignFlip": 0.06,
    "InnerProductManipulation(epsilon=10.0)": 0.11,
    "ALittleIsEnough(z=1.5)": 0.15,
    "OptimalALIE": 0.19,
    "Mimic": 0.07,
    "LabelFlip": 0.05,
}


def realistic(
    *,
    fs: Sequence[int] = (2,),
    gammas: Sequence[float] = (0.33,),
    seeds: int = 5,
    defences: int = len(DEFENCES),
    attacks: int = len(ATTACKS),
) -> list[Row]:
    """Every defence under every attack in every scenario."""
    rows = []
    for defence, attack, f, gamma, seed in product(
        list(DEFENCES)[:defences], list(ATTACKS)[:attacks], fs, gammas, range(seeds)
    ):
        best, falls, seconds = DEFENCES[defence]
        harm = falls * ATTACKS[attack] * (f / 2) * (1.6 - gamma)
        draw = random.Random(f"{defence}{attack}{f}{gamma}{seed}").gauss(0, 0.006 + 0.06 * harm)
        test = min(0.99, max(0.09, best * math.exp(-2.2 * harm) + draw))
        rows.append(
            row(
                *(defence, attack, seed, test),
                **{
                    "config.f": f,
                    "config.byzantine": f if attack != "none" else 0,
                    "config.workers": 10 + (f if attack != "none" else 0),
                    "config.partition": f"GammaSimilarity(gamma={gamma})",
                    "error": 0.1 + harm,
                    "kappa": 0.4 + 3 * harm,
                    "byzantine_weight": None if "Median" in defence else 0.2 * min(harm, 1.0),
                    "rounds_to_target": 80.0 + 900 * harm if test > 0.8 else None,
                    "aggregate_seconds": seconds,
                },
            )
        )
    return rows


def breakdowns() -> list[Row]:
    """Where each defence falls, up to f = 4."""
    return [
        {
            "defence": defence,
            "attack": attack,
            "breakdown_f": None if 0.5 / (harm * falls) > 4 else math.ceil(0.5 / (harm * falls)),
            "most": 4,
            "accuracy": 0.5,
        }
        for defence, (_, falls, _) in DEFENCES.items()
        for attack, harm in ATTACKS.items()
        if attack != "none"
    ]
