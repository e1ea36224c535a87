"""The trainings' curves, their table, and what they say of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from experiments.paper.style import STYLES
from experiments.studies.canvas import new_figure
from experiments.studies.paired import below, difference
from experiments.studies.study import Claim, Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OTHERS: dict[str, dict[str, Any]] = {
    "SGD": {"color": "#999999"},
    "clip, then momentum": {"color": "#CC79A7"},
    "normalised momentum": {"color": "#CC79A7", "linestyle": ":"},
    "Signum": {"color": "#000000", "linestyle": "--"},
    "Adam": {"color": "#000000"},
}


MARGIN = 0.05
"""Nats a word that make no difference."""

MEDIANS = ("VClip", "CClip", "adaptive momentum", "signed increment")
"""The online medians among the methods."""


def finals(rows: Sequence[Row], corruption: str, method: str) -> list[float]:
    """The last validation loss of every seed."""
    own = _curves(rows, corruption, method)
    last = max(row["step"] for row in own)
    return [row["loss"] for row in own if row["step"] == last]


def _curves(rows: Sequence[Row], corruption: str, method: str) -> list[Row]:
    """The rows of the trainings after the search."""
    return [
        row
        for row in rows
        if (row["corruption"], row["method"]) == (corruption, method) and "step" in row
    ]


def draw(
    rows: Sequence[Row], corruptions: Sequence[str], methods: Sequence[str], guess: float
) -> Mapping[str, Figure]:
    """Validation loss against steps, a panel for each corruption; means over seeds.

    Args:
        guess: the loss of a uniform guess, above which nothing is shown.
    """
    figure = new_figure(4.2 * len(corruptions), 4.8)
    panels = figure.subplots(1, len(corruptions), squeeze=False, sharey=True)[0]
    for axes, corruption in zip(panels, corruptions, strict=True):
        for method in methods:
            own = _curves(rows, corruption, method)
            steps = sorted({row["step"] for row in own})
            losses = [mean(r["loss"] for r in own if r["step"] == step) for step in steps]
            axes.plot(steps, losses, label=method, **{**STYLES, **OTHERS}[method])
        axes.axhline(guess, color="#999999", linewidth=0.7)
        axes.set(title=f"corruption: {corruption}", xlabel="step")
        axes.grid(alpha=0.25)
    panels[0].set_ylim(top=1.05 * guess)
    panels[0].set_ylabel("validation loss, nats a word (line: uniform guess)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=1 + len(corruptions), frameon=False
    )
    return {"training": figure}


def table(
    rows: Sequence[Row], corruptions: Sequence[str], methods: Sequence[str]
) -> list[list[str]]:
    """A line a method: final losses over seeds, and the setting found."""
    lines = [["method", *corruptions]]
    for method in methods:
        line = [method]
        for corruption in corruptions:
            losses = finals(rows, corruption, method)
            one = _curves(rows, corruption, method)[0]
            tau = "" if one["tau"] is None else f", τ {one['tau']:.2g}"
            spread = f"{mean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"
            line.append(f"{spread} at lr {one['lr']:.2g}{tau}")
        lines.append(line)
    return lines


def claims(
    rows: Sequence[Row], corruptions: Sequence[str], methods: Sequence[str], guess: float
) -> list[Claim]:
    """Verdicts on the losses by seed; none where the methods they are about were not trained."""
    found = []
    for corruption in corruptions:
        losses = {method: finals(rows, corruption, method) for method in methods}
        if not {"momentum", "Adam", *MEDIANS} <= losses.keys():
            continue
        if corruption == "none":
            found += [_as_well(losses, method) for method in ("VClip", "CClip")]
        else:
            found += [_better(losses, method, corruption, guess) for method in ("VClip", "CClip")]
        found.append(_best(losses, corruption))
    return found


def _as_well(losses: Mapping[str, list[float]], method: str) -> Claim:
    gap, error = difference(losses[method], losses["momentum"])
    return Claim(
        statement=f"Clean: {method} trains as well as momentum (to {MARGIN} nats)",
        source="eq. 17",
        measured=f"{_against_momentum(losses, method)}: difference {gap:+.3f} ± {error:.3f}",
        holds=below(gap - MARGIN, error),
    )


def _better(losses: Mapping[str, list[float]], method: str, corruption: str, guess: float) -> Claim:
    gap, error = difference(losses[method], losses["momentum"])
    return Claim(
        statement=f"With {corruption}: {method} trains better than momentum, and than a guess",
        source="robust-agg",
        measured=f"{_against_momentum(losses, method)}: difference {gap:+.3f} ± {error:.3f}; "
        f"uniform guess {guess:.3f}",
        holds=False if mean(losses[method]) >= guess else below(gap, error),
    )


def _best(losses: Mapping[str, list[float]], corruption: str) -> Claim:
    ranking = sorted(losses, key=lambda method: mean(losses[method]))
    ours = next(method for method in ranking if method in MEDIANS)
    other = next(method for method in ranking if method not in MEDIANS)
    gap, error = difference(losses[ours], losses[other])
    where = "Clean" if corruption == "none" else f"With {corruption}"
    return Claim(
        statement=f"{where}: an online median is the best of all methods",
        source="robust-agg",
        measured=f"{ours} against {other}: difference {gap:+.3f} ± {error:.3f}; "
        + ", ".join(f"{method} {mean(losses[method]):.3f}" for method in ranking),
        holds=below(gap, error),
    )


def _against_momentum(losses: Mapping[str, list[float]], method: str) -> str:
    return f"{method} {mean(losses[method]):.3f}, momentum {mean(losses['momentum']):.3f}"
