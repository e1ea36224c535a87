"""The trainings' curves, their table, and what they say of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING, Any

from experiments.paper.study import Claim, Row
from experiments.paper.style import STYLES, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OTHERS: dict[str, dict[str, Any]] = {
    "SGD": {"color": "#999999"},
    "clip, then momentum": {"color": "#CC79A7"},
    "normalised momentum": {"color": "#CC79A7", "linestyle": ":"},
    "Signum": {"color": "#000000", "linestyle": "--"},
    "Adam": {"color": "#000000"},
}


def finals(rows: Sequence[Row], corruption: str, method: str) -> list[float]:
    """The last validation loss of every seed."""
    own = [r for r in rows if (r["corruption"], r["method"]) == (corruption, method)]
    last = max(row["step"] for row in own)
    return [row["loss"] for row in own if row["step"] == last]


def draw(rows: Sequence[Row], corruptions: Sequence[str]) -> Mapping[str, Figure]:
    """Validation loss against steps, a panel for each corruption; means over seeds."""
    figure = new_figure(4.2 * len(corruptions), 4.8)
    panels = figure.subplots(1, len(corruptions), squeeze=False, sharey=True)[0]
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for axes, corruption in zip(panels, corruptions, strict=True):
        for method in methods:
            own = [r for r in rows if (r["corruption"], r["method"]) == (corruption, method)]
            steps = sorted({row["step"] for row in own})
            losses = [mean(r["loss"] for r in own if r["step"] == step) for step in steps]
            axes.plot(steps, losses, label=method, **{**STYLES, **OTHERS}[method])
        axes.set(title=f"corruption: {corruption}", xlabel="step")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("validation loss, nats a word")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=6, frameon=False)
    return {"training": figure}


def table(rows: Sequence[Row], corruptions: Sequence[str], methods: Sequence[str]) -> list[str]:
    """A line a method: final losses and the winning setting, for the page."""
    lines = []
    for method in methods:
        cells = []
        for corruption in corruptions:
            losses = finals(rows, corruption, method)
            one = next(r for r in rows if (r["corruption"], r["method"]) == (corruption, method))
            tau = "" if one["tau"] is None else f", τ {one['tau']:g}"
            edge = " at the edge of the grid" if one["edge"] else ""
            spread = f"{mean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"
            cells.append(f"{corruption} {spread} at lr {one['lr']:g}{tau}{edge}")
        lines.append(f"**{method}**: {'; '.join(cells)}")
    return lines


def claims(rows: Sequence[Row], corruptions: Sequence[str], methods: Sequence[str]) -> list[Claim]:
    """Verdicts on the means over seeds."""
    found = []
    for corruption in corruptions:
        loss = {method: mean(finals(rows, corruption, method)) for method in methods}
        ranking = sorted(loss, key=loss.__getitem__)
        shown = ", ".join(f"{method} {loss[method]:.3f}" for method in ranking)
        if corruption == "none":
            found += _clean(loss, shown)
        elif {"VClip", "CClip", "momentum"} <= loss.keys():
            found.append(
                Claim(
                    statement=f"With {corruption}, VClip or CClip trains better than momentum",
                    source="robust-agg",
                    measured=shown,
                    holds=min(loss["VClip"], loss["CClip"]) < loss["momentum"],
                )
            )
    return found


def _clean(loss: Mapping[str, float], shown: str) -> list[Claim]:
    if not {"VClip", "CClip", "momentum", "Adam"} <= loss.keys():
        statement = "Clean: VClip and CClip train as well as momentum"
        return [Claim(statement=statement, source="eq. 17", measured=shown, holds=None)]
    return [
        Claim(
            statement=f"Clean: {method} trains at least as well as momentum",
            source="eq. 17",
            measured=shown,
            holds=loss[method] <= loss["momentum"] + 0.005,
        )
        for method in ("VClip", "CClip")
    ] + [
        Claim(
            statement="Clean: Adam is better than all online medians",
            source="robust-agg",
            measured=shown,
            holds=loss["Adam"]
            < min(loss[m] for m in ("VClip", "CClip", "signed increment", "adaptive momentum")),
        )
    ]
