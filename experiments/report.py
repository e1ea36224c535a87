"""What a finished run says in numbers: a table for people, a summary for programs."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from experiments.config import RunConfig
from experiments.metrics import Metrics

Results = Mapping[tuple[str, bool], Sequence[Metrics]]
"""The evaluated rounds of each (defence, attacked)."""

_NONE = "-"

NOISE = (
    "against those who do not know the seed, which the noise is drawn from; rounds that a resumed "
    "run does again, and other trainings with this seed, draw the same: who sees both subtracts it"
)
"""What the privacy of a codec with noise takes for granted."""


def untrained(metrics: Sequence[Metrics]) -> bool:
    """Whether every round was skipped: the model is the one the training began with."""
    return metrics[-1].skipped == metrics[-1].round


def table(config: RunConfig, results: Results, *, samples: int) -> Table:
    """One line a defence: accuracy without and with the attack, and how the rows were weighed.

    Args:
        config: the run.
        results: of every defence, attacked and not.
        samples: samples that the accuracies were measured on.
    """
    shown = Table(
        title=f"{config.byzantine} of {config.workers} workers: {config.attack_label}",
        caption="\n".join(_caption(config, results, samples)),
        caption_justify="left",
    )
    shown.add_column("defence")
    aims = has_goal(results)
    headings = ["no attack", "attacked", "lost", *(["success"] if aims else [])]
    for heading in (*headings, "error", "Byzantine weight", "aggregation ms"):
        shown.add_column(heading, justify="right")
    for defence in config.defences:
        honest, attacked = results[defence, False], results[defence, True]
        before, after = _accuracy(honest), _accuracy(attacked)
        shown.add_row(
            defence,
            _NONE if before is None else f"{before:.1%}",
            _NONE if after is None else f"{after:.1%}",
            _NONE if before is None or after is None else f"{100 * (before - after):+.1f} pts",
            *([_success(honest, attacked)] if aims else []),
            _error(_mean(attacked, "error")),
            _NONE if (weight := _mean(attacked, "byzantine_weight")) is None else f"{weight:.0%}",
            _NONE if (time := _mean(attacked, "seconds")) is None else f"{1e3 * time:.1f}",
        )
    return shown


def has_goal(results: Results) -> bool:
    """Whether the attack has a goal of its own, so that its success was measured."""
    return any(m.success is not None for metrics in results.values() for m in metrics)


def write_summary(
    path: Path, config: RunConfig, results: Results, note: str, *, samples: int
) -> None:
    """The final numbers as JSON; its presence says that the run is complete.

    An accuracy is null where every round was skipped: nothing was trained.

    Args:
        path: the file.
        config: the run.
        results: of every defence, attacked and not.
        note: where the data came from.
        samples: samples that the accuracies were measured on.
    """
    content = {
        "attack": config.attack_label,
        "data": note,
        "seed": config.seed,
        "rounds": config.rounds,
        f"{config.split}_samples": samples,
        "privacy": _privacy(config, results),
        "defences": {d: _final(results[d, False], results[d, True]) for d in config.defences},
    }
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _final(honest: Sequence[Metrics], attacked: Sequence[Metrics]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for suffix, metrics in (("", honest), ("_under_attack", attacked)):
        content[f"accuracy{suffix}"] = _accuracy(metrics)
        if metrics[-1].success is not None:
            content[f"success{suffix}"] = metrics[-1].success
        content[f"skipped{suffix}"] = metrics[-1].skipped
        content[f"missing{suffix}"] = metrics[-1].missing
        content[f"bytes{suffix}"] = metrics[-1].bytes
    return {**content, "last_evaluation": asdict(attacked[-1])}


def _privacy(config: RunConfig, results: Results) -> dict[str, Any] | None:
    """(ε, δ) of the data of the worker that sent most messages, in one training, and its terms."""
    spent = [metrics[-1].epsilon for metrics in results.values()]
    known = [value for value in spent if value is not None]
    if not known:
        return None
    return {"epsilon": max(known), "delta": config.delta, "holds": NOISE}


def _accuracy(metrics: Sequence[Metrics]) -> float | None:
    return None if untrained(metrics) else metrics[-1].accuracy


def _success(honest: Sequence[Metrics], attacked: Sequence[Metrics]) -> str:
    """Under attack, and in brackets what a model does that was not attacked."""
    after, before = (
        _NONE if untrained(metrics) or metrics[-1].success is None else f"{metrics[-1].success:.1%}"
        for metrics in (attacked, honest)
    )
    return f"{after} ({before})"


def _mean(metrics: Sequence[Metrics], name: str) -> float | None:
    """Over the evaluated rounds that have the value."""
    values = [v for m in metrics if (v := getattr(m, name)) is not None]
    # Divided first: the sum of what an attack can do need not be finite.
    return sum(v / len(values) for v in values) if values else None


def _error(value: float | None) -> str:
    if value is None:
        return _NONE
    return f"{value:.2f}" if value == 0 or 0.01 <= value < 1000 else f"{value:.0e}"


def _caption(config: RunConfig, results: Results, samples: int) -> list[str]:
    """What the columns are, and what says that a training is not what was asked for."""
    lines = [
        f"accuracies: on {samples} {config.split} samples after {config.rounds} rounds at learning "
        f"rate {config.lr}, seed {config.seed}",
        *(
            [
                f"success: share of the attacker's {config.split} samples labelled as it wants "
                "(without attack)"
            ]
            if has_goal(results)
            else []
        ),
        "error: ‖m - honest mean‖ / ‖honest mean‖, m: the estimate the model is stepped by",
        "Byzantine weight: Σ|w| of the Byzantine rows / Σ|w| of all; - for rules without weights",
        "error, Byzantine weight, aggregation ms: means over the evaluated rounds under attack",
    ]
    if config.row_codec() is not None:
        sent = [metrics[-1].bytes / 1e6 for metrics in results.values()]
        lines.append(
            f"codec: {config.codec}, {_between(min(sent), max(sent))} MB of messages a training"
        )
    privacy = _privacy(config, results)
    if privacy is not None:
        lines.append(
            f"privacy: all data of a worker, in one training: ε = {privacy['epsilon']:.3g} "
            f"at δ = {privacy['delta']:g}"
        )
        lines.append(f"privacy holds {NOISE}")
    for what, name, most in (
        (f"rounds skipped of {config.rounds} (see ledger.jsonl)", "skipped", config.rounds),
        (f"rows missing of {config.rows * config.rounds}", "missing", config.rows * config.rounds),
        (
            f"rounds too small for the attack, and spared by it, of {config.rounds}",
            "spared",
            config.rounds,
        ),
    ):
        counts = {key: getattr(metrics[-1], name) for key, metrics in results.items()}
        if any(counts.values()):
            lines.append(f"{what}: {_each(counts, most)}")
    return lines


def _between(least: float, most: float) -> str:
    low, high = f"{least:.3g}", f"{most:.3g}"
    return low if low == high else f"{low} to {high}"


def _each(counts: Mapping[tuple[str, bool], int], most: int) -> str:
    """The count of every training that has one."""
    if len(set(counts.values())) == 1:
        (count,) = set(counts.values())
        return f"{'all' if count == most else count} in every training"
    return ", ".join(
        f"{defence}{' attacked' if attacked else ''} {'all' if count == most else count}"
        for (defence, attacked), count in counts.items()
        if count
    )
