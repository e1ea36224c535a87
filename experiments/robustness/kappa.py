"""κ: what theory says of every rule, beside the worst that a search finds."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray

from experiments import specs
from experiments.robustness.ratios import climb, honest_sets, inputs, ratio_of
from experiments.specs import SpecError
from experiments.studies.canvas import new_figure
from experiments.studies.study import Claim, Piece, Preset, Row, Study, Table, Tick
from robust_agg import Aggregator, ConstraintError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ALONE = "alone"
_ROUNDING = 1e-6
_LOOKS = (("o", "#0072B2"), ("D", "#D55E00"), ("s", "#009E73"), ("^", "#CC79A7"))


@dataclass(frozen=True, kw_only=True)
class Kappa(Study):
    """A rule is (f, κ)-robust if, whichever n - f of the rows are honest, the squared distance of
    its result to their mean is at most κ times their variance. Each constant that theory gives a
    rule of the catalogue, alone and after a mixing, stands beside the largest ratio that was found:
    over random inputs, and by climbing from the worst of these. The least constant that holds lies
    between the two. No rule can have one below f/(n-2f)."""

    title: ClassVar[str] = "κ: the largest error found, beside what theory allows"

    cases: tuple[tuple[int, int], ...] = ((5, 2), (7, 2), (9, 3))
    """n and f."""
    samples: int = 2000
    climbs: int = 4
    steps: int = 150
    seed: int = 0

    @classmethod
    def preset(cls, name: Preset) -> Self:
        if name == "smoke":
            return cls(cases=((5, 1), (7, 2)), samples=60, climbs=1, steps=40, decides=False)
        if name == "full":
            cases = ((5, 1), (5, 2), (7, 2), (9, 3), (11, 2), (11, 4))
            return cls(cases=cases, samples=20_000, climbs=30, steps=1000)
        return cls()

    def pieces(self, folder: Path) -> Mapping[str, Piece]:
        return {f"n={n} f={f}": partial(self._case, n, f) for n, f in self.cases}

    def _case(self, n: int, f: int, tick: Tick) -> list[Row]:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # of so few numbers the others would only wait
        try:
            return self._ratios(n, f, tick)
        finally:
            torch.set_num_threads(threads)

    def _ratios(self, n: int, f: int, tick: Tick) -> list[Row]:
        rules = list(bounded_rules(n, f))
        draw = np.random.default_rng([self.seed, n, f])
        tried = list(inputs(n, f, self.samples, draw))
        rows = []
        for place, (name, mixing, rule, constant) in enumerate(rules):
            found, dimension, how = self._worst(rule, tried, n, f)
            rows.append(
                {
                    "n": n,
                    "f": f,
                    "rule": name,
                    "mixing": mixing,
                    "found": found,
                    "constant": constant,
                    "least": f / (n - 2 * f),
                    "dimension": dimension,
                    "how": how,
                }
            )
            tick((place + 1) / len(rules))
        return rows

    def _worst(
        self, rule: Aggregator, tried: Sequence[NDArray[np.float64]], n: int, f: int
    ) -> tuple[float, int, str]:
        """The largest ratio, in which dimension, and by what."""
        ratio = ratio_of(rule, honest_sets(n, f))
        found = [ratio(rows) for rows in tried]
        best = max(range(len(tried)), key=found.__getitem__)
        worst = found[best], tried[best].shape[1], "sample"
        for start in heapq.nlargest(self.climbs, range(len(tried)), key=found.__getitem__):
            draw = np.random.default_rng([self.seed, n, f, start])
            rows, reached = climb(ratio, tried[start], self.steps, draw)
            worst = max(worst, (reached, rows.shape[1], "climb"))
        return worst

    def figures(self, rows: Sequence[Row]) -> Mapping[str, Figure]:
        names = list(dict.fromkeys(row["rule"] for row in rows))
        figure = new_figure(3.5 + 3 * len(self.cases), 1.6 + 0.36 * len(names))
        panels = figure.subplots(1, len(self.cases), sharey=True, squeeze=False)[0]
        for axes, (n, f) in zip(panels, self.cases, strict=True):
            self._panel(axes, names, [row for row in rows if (row["n"], row["f"]) == (n, f)])
            axes.set(title=f"n = {n}, f = {f}", xlabel="κ", xscale="log")
        panels[0].set_yticks(range(len(names)), names)
        panels[0].invert_yaxis()
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
        return {"kappa": figure}

    def _panel(self, axes: Axes, names: Sequence[str], rows: Sequence[Row]) -> None:
        axes.axvline(rows[0]["least"], color="#555555", linestyle="--", label="f/(n-2f)")
        for place, mixing in enumerate(_mixings(rows)):
            marker, colour = _LOOKS[place % len(_LOOKS)]
            some = [row for row in rows if row["mixing"] == mixing]
            heights = [names.index(row["rule"]) + 0.2 * place for row in some]
            look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": "none"}
            found, constants = ([row[what] for row in some] for what in ("found", "constant"))
            axes.plot(found, heights, label=f"found, {_after(mixing)}", **look)
            hollow = {**look, "markerfacecolor": "white"}
            axes.plot(constants, heights, label=f"constant, {_after(mixing)}", **hollow)
        axes.grid(alpha=0.25)

    def tables(self, rows: Sequence[Row]) -> Mapping[str, Table]:
        return {
            f"n = {n}, f = {f}: found of constant, f/(n-2f) = {f / (n - 2 * f):.3g}": _table(
                [row for row in rows if (row["n"], row["f"]) == (n, f)]
            )
            for n, f in self.cases
        }

    def claims(self, rows: Sequence[Row]) -> list[Claim]:
        nearest = max(rows, key=lambda row: row["found"] / row["constant"])
        lowest = min(rows, key=lambda row: row["found"] / row["least"])
        return [
            Claim(
                statement="No rule errs by more than its constant allows",
                source="the sources of the constants",
                measured=f"{len(rows)} constants; the nearest is {_about(nearest)}: "
                f"{nearest['found']:.4g} of {nearest['constant']:.4g}",
                holds=all(row["found"] <= row["constant"] * (1 + _ROUNDING) for row in rows),
            ),
            Claim(
                statement="Every rule errs by f/(n-2f) somewhere, as any rule must",
                source="Allouah et al., AISTATS 2023",
                measured=f"the least is {_about(lowest)}: {lowest['found']:.4g} where f/(n-2f) is "
                f"{lowest['least']:.4g}",
                holds=all(row["found"] >= row["least"] * (1 - _ROUNDING) for row in rows),
            ),
        ]

    def notes(self, rows: Sequence[Row]) -> list[str]:
        climbed = sum(row["how"] == "climb" for row in rows)
        return [
            f"{self.samples} inputs in 1 to 3 dimensions for every n and f, {self.climbs} climbs "
            f"of {self.steps} steps for every rule, seed {self.seed}; all sets of n - f rows are "
            "tried as the honest ones",
            f"{climbed} of {len(rows)} largest ratios were found by a climb",
            "a mixing stands in the table where theory gives what follows it a constant; a rule "
            "that needs more rows than n is left out",
        ]


def bounded_rules(n: int, f: int) -> Iterator[tuple[str, str, Aggregator, float]]:
    """Every rule of the catalogue that has a κ for n and f, alone and after each mixing.

    With its default parameters; name, mixing, rule and constant.
    """
    catalogue = specs.catalogue()
    mixings = [mixing.__name__ for mixing in catalogue["mixings, before an aggregator"]]
    for rule in catalogue["aggregators"]:
        for mixing in (ALONE, *mixings):
            text = rule.__name__ if mixing == ALONE else f"{mixing} + {rule.__name__}"
            try:
                made = specs.parse_defence(text, f=f)
                assert isinstance(made, Aggregator)
                made.check(n)
            except (SpecError, ConstraintError):
                continue  # it has a parameter beside f, or needs more rows
            constant = made.kappa(n, f)
            if constant is not None:
                yield rule.__name__, mixing, made, constant


def _mixings(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["mixing"] for row in rows))


def _after(mixing: str) -> str:
    return mixing if mixing == ALONE else f"after {mixing}"


def _about(row: Row) -> str:
    return f"{row['rule']} {_after(row['mixing'])} (n={row['n']}, f={row['f']})"


def _table(rows: Sequence[Row]) -> Table:
    mixings = _mixings(rows)
    cells = {
        (row["rule"], row["mixing"]): f"{row['found']:.3g} of {row['constant']:.3g}" for row in rows
    }
    names = dict.fromkeys(row["rule"] for row in rows)
    lines = [[name, *(cells.get((name, mixing), "-") for mixing in mixings)] for name in names]
    return [["rule", *map(_after, mixings)], *lines]
