"""Figure 1: what 20 % of outliers do to a mean and to a median."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import pi
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor

from experiments.studies.canvas import new_figure
from experiments.studies.study import Claim, Piece, Preset, Row, Study, Tick
from robust_agg import CoordinateWiseMedian, GeometricMedian, Mean
from robust_agg.seeding import generator

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ESTIMATORS = {
    "sample mean": Mean(),
    "coordinate-wise median": CoordinateWiseMedian(),
    "geometric median": GeometricMedian(),
}
ARRANGEMENTS = ("clustered", "symmetric")
_MARKERS = {"sample mean": "X", "coordinate-wise median": "P", "geometric median": "*"}
_COLOURS = {
    "sample mean": "#D55E00",
    "coordinate-wise median": "#009E73",
    "geometric median": "#0072B2",
}


@dataclass(frozen=True, kw_only=True)
class Outliers(Study):
    """Standard normal points in the plane, and outliers on a far circle: all in one place, or
    evenly around it. The error is the distance of an estimate to the mean of the normal
    distribution, 0."""

    title: ClassVar[str] = "Figure 1: mean against median under outliers"

    points: int = 100
    outliers: int = 20
    radius: float = 10.0
    seeds: int = 200

    @classmethod
    def preset(cls, name: Preset) -> Self:
        return cls(seeds=20) if name == "smoke" else cls()

    def pieces(self, folder: Path) -> Mapping[str, Piece]:
        return {name: partial(self._errors, name) for name in ARRANGEMENTS}

    def sample(self, arrangement: str, seed: int) -> Tensor:
        """``(points, 2)``, the outliers last."""
        draw = generator(seed, "figure 1", ARRANGEMENTS.index(arrangement))
        inliers = torch.randn(self.points - self.outliers, 2, generator=draw, dtype=torch.float64)
        turn = torch.rand((), generator=draw, dtype=torch.float64)
        place = torch.arange(self.outliers, dtype=torch.float64) / self.outliers
        # In a cluster, over a tenth of a radian.
        angles = (
            2 * pi * (turn + place) if arrangement == "symmetric" else 2 * pi * turn + place / 10
        )
        circle = self.radius * torch.stack([angles.cos(), angles.sin()], dim=1)
        return torch.cat([inliers, circle])

    def _errors(self, arrangement: str, tick: Tick) -> list[Row]:
        rows: list[Row] = []
        for seed in range(self.seeds):
            sample = self.sample(arrangement, seed)
            rows += [
                {
                    "outliers": arrangement,
                    "seed": seed,
                    "estimator": name,
                    "error": float(rule(sample).norm()),
                }
                for name, rule in ESTIMATORS.items()
            ]
            tick((seed + 1) / self.seeds)
        return rows

    def figures(self, rows: Sequence[Row]) -> Mapping[str, Figure]:
        figure = new_figure(11, 7)
        for line, arrangement in zip(figure.subplots(2, 2), ARRANGEMENTS, strict=True):
            self._picture(line[0], arrangement)
            self._distribution(line[1], arrangement, rows)
        handles, labels = line[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
        return {"fig1": figure}

    def _picture(self, axes: Axes, arrangement: str) -> None:
        sample = self.sample(arrangement, 0)
        x, y = sample.numpy().T
        axes.scatter(
            x[: -self.outliers], y[: -self.outliers], s=10, color="#888888", label="inliers"
        )
        far = slice(-self.outliers, None)
        axes.scatter(x[far], y[far], s=14, color="black", marker="x", label="outliers")
        for name, rule in ESTIMATORS.items():
            x, y = rule(sample).tolist()
            axes.scatter(
                x,
                y,
                s=110,
                marker=_MARKERS[name],
                color=_COLOURS[name],
                edgecolor="white",
                label=name,
                zorder=3,
            )
        axes.set(title=f"{arrangement} outliers, one seed", aspect="equal")
        axes.grid(alpha=0.25)

    def _distribution(self, axes: Axes, arrangement: str, rows: Sequence[Row]) -> None:
        errors = [_errors_of(rows, arrangement, name) for name in ESTIMATORS]
        parts = axes.boxplot(
            errors, orientation="horizontal", whis=(0, 100), widths=0.6, patch_artist=True
        )
        for box, name in zip(parts["boxes"], ESTIMATORS, strict=True):
            box.set(facecolor=_COLOURS[name], alpha=0.6)
        axes.set_yticks(range(1, len(ESTIMATORS) + 1), list(ESTIMATORS))
        axes.set(
            title=f"{self.seeds} seeds (whiskers: least to largest)",
            xlabel="distance of the estimate to the inliers' true mean",
        )
        axes.set_xlim(left=0)
        axes.grid(alpha=0.25, axis="x")

    def claims(self, rows: Sequence[Row]) -> list[Claim]:
        def middle(arrangement: str, name: str) -> float:
            return median(_errors_of(rows, arrangement, name))

        mean, *medians = (middle("clustered", name) for name in ESTIMATORS)
        apart = [middle("symmetric", name) for name in ESTIMATORS]
        return [
            Claim(
                statement="Clustered outliers drag the mean far away, a median only a little",
                source="section 2, figure 1",
                measured=f"median error of the mean {mean:.2f}, of the coordinate-wise median "
                f"{medians[0]:.2f}, of the geometric median {medians[1]:.2f}",
                holds=max(medians) < mean / 3,
            ),
            Claim(
                statement="Outliers evenly around leave all three near the true mean",
                source="section 2, figure 1",
                measured=f"median errors {apart[0]:.2f} (mean), {apart[1]:.2f}, {apart[2]:.2f}",
                holds=max(apart) < 0.5,
            ),
        ]

    def notes(self, rows: Sequence[Row]) -> list[str]:
        return [
            f"{self.points} points, {self.outliers} of them outliers at distance {self.radius:g}, "
            f"{self.seeds} seeds; clustered ones span a tenth of a radian"
        ]


def _errors_of(rows: Sequence[Row], arrangement: str, name: str) -> list[float]:
    return [
        row["error"] for row in rows if (row["outliers"], row["estimator"]) == (arrangement, name)
    ]
