"""Curves, tables and claims about ranks that flip bits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import TYPE_CHECKING, Any

from experiments.cluster.setting import PLAIN as PLAIN
from experiments.studies.canvas import new_figure
from experiments.studies.paired import below, difference
from experiments.studies.study import Claim, Row, Table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's colours, which colour-blind readers tell apart.
STYLES: dict[str, dict[str, Any]] = {
    "mean": {"color": "#D55E00"},
    "clip": {"color": "#CC79A7"},
    "CoordinateWiseMedian": {"color": "#009E73"},
    "GeometricMedian": {"color": "#000000", "linestyle": "--"},
    "VClip": {"color": "#0072B2", "linestyle": ":"},
}
OURS = "robust-agg"
WORSE, AS_WELL = 1.10, 1.02
"""The mean is spoilt above the one, a rule does well below the other: times the clean loss."""


def finals(rows: Sequence[Row], optimizer: str, flips: float, defence: str) -> list[float]:
    """The last validation loss of every seed."""
    own = _curves(rows, optimizer, flips, defence)
    last = max(row["step"] for row in own)
    return [row["loss"] for row in own if row["step"] == last]


def _curves(rows: Sequence[Row], optimizer: str, flips: float, defence: str) -> list[Row]:
    wanted = (optimizer, flips, defence)
    return [
        row
        for row in rows
        if "loss" in row and (row["optimizer"], row["flips"], row["defence"]) == wanted
    ]


def _settings(rows: Sequence[Row]) -> dict[tuple[str, float], list[str]]:
    """Optimizers and rates, and the defences there are of each."""
    found: dict[tuple[str, float], list[str]] = {}
    for row in rows:
        if "loss" in row:
            defences = found.setdefault((row["optimizer"], row["flips"]), [])
            if row["defence"] not in defences:
                defences.append(row["defence"])
    return found


def _title(optimizer: str, flips: float) -> str:
    name = {"sgd": "SGD", "adamw": "AdamW"}[optimizer]
    return f"{name}, flips with probability {flips:g}" if flips else f"{name}, clean"


def draw(rows: Sequence[Row], guess: float) -> Mapping[str, Figure]:
    """Validation loss against steps, a panel a setting; means, and bands from least to largest."""
    settings = _settings(rows)
    figure = new_figure(3.6 * len(settings), 4.4)
    panels = figure.subplots(1, len(settings), squeeze=False, sharey=True)[0]
    for axes, ((optimizer, flips), defences) in zip(panels, settings.items(), strict=True):
        for defence in defences:
            own = _curves(rows, optimizer, flips, defence)
            steps = sorted({row["step"] for row in own})
            losses = [[r["loss"] for r in own if r["step"] == step] for step in steps]
            style = STYLES.get(defence, {})
            (line,) = axes.plot(steps, list(map(mean, losses)), label=defence, **style)
            axes.fill_between(
                steps, list(map(min, losses)), list(map(max, losses)), alpha=0.2,
                color=line.get_color(), linewidth=0,
            )  # fmt: skip
        axes.axhline(guess, color="#999999", linewidth=0.7)
        axes.set(title=_title(optimizer, flips), xlabel="step")
        axes.grid(alpha=0.25)
    panels[0].set_ylim(top=1.1 * guess)
    panels[0].set_ylabel("validation loss, nats a word (line: uniform guess)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    return {"bitflip": figure}


def tables(rows: Sequence[Row], bad: Sequence[int]) -> Mapping[str, Table]:
    """Final losses, how often ranks were flagged, and what a step takes."""
    return {
        "Final validation loss, mean (least to largest) over seeds": _losses(rows),
        "Share of steps in which ranks were flagged, mean over seeds": _flags(rows, bad),
        "A step": _times(rows),
    }


def _losses(rows: Sequence[Row]) -> Table:
    settings = _settings(rows)
    lines = [["defence", *(_title(*setting) for setting in settings)]]
    for defence in dict.fromkeys(name for names in settings.values() for name in names):
        line = [defence]
        for setting, names in settings.items():
            losses = finals(rows, *setting, defence) if defence in names else []
            spread = f"({min(losses):.3f} to {max(losses):.3f})" if losses else ""
            line.append(f"{mean(losses):.3f} {spread}" if losses else "")
        lines.append(line)
    return lines


def _flagged(rows: Sequence[Row], cell: tuple[str, float, str]) -> dict[int, list[float]]:
    """By rank, the share of steps in which it was flagged, for each seed."""
    found: dict[int, list[float]] = {}
    for row in rows:
        if "flagged" in row and (row["optimizer"], row["flips"], row["defence"]) == cell:
            found.setdefault(row["rank"], []).append(row["flagged"])
    return found


def _flags(rows: Sequence[Row], bad: Sequence[int]) -> Table:
    lines = [["setting", "defence", "bad rank", "other ranks, the most"]]
    for setting, defences in _settings(rows).items():
        for defence in defences:
            shares = _flagged(rows, (*setting, defence))
            if shares:
                of_bad = mean(share for rank in bad for share in shares[rank])
                others = max(mean(shares[rank]) for rank in shares if rank not in bad)
                lines.append([_title(*setting), defence, f"{of_bad:.1%}", f"{others:.1%}"])
    return lines


def _times(rows: Sequence[Row]) -> Table:
    plain = {row["turn"]: row["ms"] for row in rows if row.get("defence") == "mean" and "ms" in row}
    lines = [["defence", "ms, median of turns", "x mean, median of turns"]]
    for defence in dict.fromkeys(row["defence"] for row in rows if "ms" in row):
        own = {row["turn"]: row["ms"] for row in rows if "ms" in row and row["defence"] == defence}
        ratio = median(own[turn] / plain[turn] for turn in own)
        lines.append([defence, f"{median(own.values()):.1f}", f"{ratio:.2f}"])
    return lines


def claims(rows: Sequence[Row], bad: Sequence[int]) -> list[Claim]:
    """Verdicts on the final losses by seed, and on the evidence."""
    found = []
    for (optimizer, flips), defences in _settings(rows).items():
        title, clean = _title(optimizer, flips), finals(rows, optimizer, 0.0, "mean")
        for defence in defences:
            if defence == "mean" and flips:
                found.append(_spoilt(title, finals(rows, optimizer, flips, defence), clean))
            elif defence != "mean":
                losses = finals(rows, optimizer, flips, defence)
                found.append(_as_well(title, defence, losses, clean))
            shares = _flagged(rows, (optimizer, flips, defence))
            if flips and shares:
                found.append(_found_out(title, defence, shares, bad))
    return found


def _spoilt(title: str, losses: Sequence[float], clean: Sequence[float]) -> Claim:
    gap, error = difference([WORSE * loss for loss in clean], losses)
    return Claim(
        statement=f"{title}: the mean ends at least {WORSE - 1:.0%} worse than clean, or diverges",
        source=OURS,
        measured=_measured("mean", losses, clean, difference(losses, clean)),
        holds=below(gap, error),
    )


def _as_well(title: str, defence: str, losses: Sequence[float], clean: Sequence[float]) -> Claim:
    gap, error = difference(losses, [AS_WELL * loss for loss in clean])
    return Claim(
        statement=f"{title}: {defence} ends within {AS_WELL - 1:.0%} of the mean without faults",
        source=OURS,
        measured=_measured(defence, losses, clean, difference(losses, clean)),
        holds=below(gap, error),
    )


def _measured(
    defence: str,
    losses: Sequence[float],
    clean: Sequence[float],
    gap: tuple[float, float],
) -> str:
    return (
        f"{defence} {mean(losses):.3f}, clean mean {mean(clean):.3f}: "
        f"{mean(losses) / mean(clean) - 1:+.1%}, difference {gap[0]:+.3f} ± {gap[1]:.3f}"
    )


def _found_out(
    title: str, defence: str, shares: Mapping[int, Sequence[float]], bad: Sequence[int]
) -> Claim:
    of_bad = [min(shares[rank][seed] for rank in bad) for seed in range(len(shares[bad[0]]))]
    others = max(max(shares[rank]) for rank in shares if rank not in bad)
    return Claim(
        statement=f"{title}: with {defence} the bad rank is reported and no other, with every seed",
        source=OURS,
        measured=f"bad rank flagged in {min(of_bad):.0%} to {max(of_bad):.0%} of the steps, "
        f"any other in {others:.0%} at most",
        holds=min(of_bad) > 0 and others == 0,
    )
