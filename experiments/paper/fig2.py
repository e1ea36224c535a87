"""Figure 2: online estimates of a vector from α-stable samples (section 4.1), and beyond."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

import torch
from torch import Tensor

from experiments.paper import fig2_claims, fig2_figures
from experiments.paper.streams import UPDATES, Update, follow, log_spaced
from experiments.stable import elliptical_stable, symmetric_stable
from experiments.studies.study import Claim, Piece, Preset, Row, Study, Tick
from robust_agg import Adaptive, CoordinateWiseMedian, GeometricMedian, Mean, OnlineMedian
from robust_agg.seeding import generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REFERENCES = {
    "sample mean": Mean(),
    "coordinate-wise median": CoordinateWiseMedian(),
    "geometric median": GeometricMedian(),
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What the samples are, and where the estimates start.

    Attributes:
        noise: stable in each coordinate independently (the paper), or elliptical.
        d: numbers a sample.
        start: m₀: zero (the paper), or the first sample.
    """

    noise: Literal["independent", "elliptical"] = "independent"
    d: int = 10
    start: Literal["zero", "first sample"] = "zero"


SETTINGS = {
    "paper": Setting(),
    "elliptical noise": Setting(noise="elliptical"),
    "d=100": Setting(d=100),
    "first sample as start": Setting(start="first sample"),
}


@dataclass(frozen=True, kw_only=True)
class StableNoise(Study):
    """One vector ĝ ~ N(0, I) is to be estimated from samples ĝ + ξ with α-stable ξ of scale 1, one
    sample a step. Errors are ‖m - ĝ‖₂/‖ĝ‖₂: the median over seeds, with the least and the largest
    as a band."""

    title: ClassVar[str] = "Figure 2: α-stable noise"

    inverse_alphas: tuple[float, ...] = (
        0.5,
        0.6,
        0.7,
        0.75,
        0.8,
        0.9,
        1.0,
        1.1,
        1.2,
        1.3,
        1.4,
        1.5,
    )
    seeds: int = 50
    iterations: int = 1000
    tau: float = 0.01
    batch_sizes: tuple[int, ...] = (1, 16, 64)
    batch_alphas: tuple[float, ...] = (2.0, 1.25, 0.75)
    batch_seeds: int = 10
    adaptive_seeds: int = 10

    @classmethod
    def preset(cls, name: Preset) -> Self:
        if name == "smoke":
            return cls(
                inverse_alphas=(0.5, 1.0, 1.5),
                seeds=4,
                iterations=100,
                batch_sizes=(1, 16),
                batch_alphas=(0.75,),
                batch_seeds=2,
                adaptive_seeds=1,
            )
        return cls() if name == "default" else cls(batch_seeds=50, adaptive_seeds=50)

    def pieces(self, folder: Path) -> Mapping[str, Piece]:
        settings = {name: partial(self._table, name, each) for name, each in SETTINGS.items()}
        return {
            **settings,
            "decreasing tau": self._decreasing,
            **{
                f"adaptive tau, {method}": partial(self._adaptive, method)
                for method in ("VClip", "CClip")
            },
            **{
                f"minibatches, α {alpha:g}, b {size}": partial(self._minibatches, alpha, size)
                for alpha in self.batch_alphas
                for size in self.batch_sizes
            },
            "predictions": self._predictions,
        }

    def oracle(self, d: int) -> Tensor:
        """ĝ, the vector that all seeds of a setting estimate."""
        return torch.randn(d, generator=generator(0, "oracle", d), dtype=torch.float64)

    def _samples(self, setting: Setting, alphas: Sequence[float], seeds: int) -> Iterator[Tensor]:
        """``(1, len(alphas) · seeds, d)`` for each iteration, the streams of an α together."""
        draw = symmetric_stable if setting.noise == "independent" else elliptical_stable
        oracle = self.oracle(setting.d)
        for t in range(self.iterations + 1):
            noise = [
                draw(alpha, seeds, setting.d, generator=generator(t, "stable", place))
                for place, alpha in enumerate(alphas)
            ]
            yield (torch.cat(noise) + oracle)[None]

    def _alphas(self) -> list[float]:
        return [1 / each for each in self.inverse_alphas]

    def _table(self, name: str, setting: Setting, tick: Tick) -> list[Row]:
        """Every method of the paper's table 1, and the references that see all samples at once."""
        alphas, rows = self._alphas(), []
        streams = len(alphas) * self.seeds
        oracle = self.oracle(setting.d)
        samples = self._samples(setting, alphas, self.seeds)
        start = torch.zeros(streams, setting.d, dtype=torch.float64)
        if setting.start == "first sample":
            start = next(samples)[0]
        rules = {
            method: update.rule(tau=self.tau, streams=streams, d=setting.d)
            for method, update in UPDATES.items()
        }
        at = log_spaced(self.iterations, 60)
        for t, method, estimate in follow(rules, samples, start=start, at=at):
            rows += self._summaries(name, method, alphas, t, estimate - oracle)
            tick(0.8 * t / self.iterations)
        if setting.start == "zero":
            rows += self._references(name, setting, alphas)
        return rows

    def _references(self, name: str, setting: Setting, alphas: Sequence[float]) -> list[Row]:
        samples = self._samples(setting, alphas, self.seeds)
        everything = torch.cat([next(samples) for _ in range(self.iterations)])
        rows: list[Row] = []
        for method, rule in REFERENCES.items():
            found = torch.stack([rule(stream) for stream in everything.unbind(dim=1)])
            gaps = found - self.oracle(setting.d)
            rows += self._summaries(name, method, alphas, self.iterations, gaps)
        return rows

    def _summaries(
        self, setting: str, method: str, alphas: Sequence[float], t: int, gaps: Tensor, **more: int
    ) -> list[Row]:
        """One row an α of the relative errors of its streams; ``gaps`` are ``(streams, d)``."""
        errors = gaps.norm(dim=1) / self.oracle(gaps.shape[1]).norm()
        return [
            {
                "setting": setting,
                "method": method,
                "inverse_alpha": 1 / alpha,
                "iteration": t,
                "error": float(own.median()),
                "least": float(own.min()),
                "largest": float(own.max()),
                **more,
            }
            for alpha, own in zip(alphas, errors.chunk(len(alphas)), strict=True)
        ]

    def _decreasing(self, tick: Tick) -> list[Row]:
        """τ_t = (t+1)^-0.6, and the mean of the second half of the estimates (Polyak, Ruppert)."""
        alphas, rows, setting = self._alphas(), [], Setting()
        streams, oracle = len(alphas) * self.seeds, self.oracle(setting.d)
        start = torch.zeros(streams, setting.d, dtype=torch.float64)
        methods = ("momentum", "VClip", "CClip")
        rules = {
            method: UPDATES[method].rule(tau=self.tau, streams=streams, d=setting.d)
            for method in methods
        }
        last = range(self.iterations // 2, self.iterations + 1)
        totals = {method: torch.zeros_like(start) for method in methods}
        samples = self._samples(setting, alphas, self.seeds)
        for t, method, estimate in follow(
            rules, samples, start=start, at=last, tau=lambda t: (t + 1) ** -0.6
        ):
            totals[method] += estimate
            tick(t / self.iterations)
        for method, total in totals.items():
            gaps = total / len(last) - oracle
            rows += self._summaries("decreasing tau", method, alphas, self.iterations, gaps)
        return rows

    def _adaptive(self, method: str, tick: Tick) -> list[Row]:
        """τ that follows each stream's own distances, so that every stream is run alone."""
        alphas, setting = self._alphas(), Setting()
        rule = OnlineMedian(divergence=UPDATES[method].divergence, tau=Adaptive(rho=self.tau))
        samples = self._samples(setting, alphas, self.adaptive_seeds)
        start = torch.zeros(setting.d, dtype=torch.float64)
        states = [rule.init(start)] * (len(alphas) * self.adaptive_seeds)
        for t in range(self.iterations):
            streams = next(samples)[0]
            stepped = [
                rule.step(row[None], state) for row, state in zip(streams, states, strict=True)
            ]
            states = [state for _, state in stepped]
            tick(t / self.iterations)
        gaps = torch.stack([m for m, _ in stepped]) - self.oracle(setting.d)
        return self._summaries("adaptive tau", method, alphas, self.iterations, gaps)

    def _minibatches(self, alpha: float, size: int, tick: Tick) -> list[Row]:
        """b samples a step: the batch mean clipped, the mean of clipped samples, the exact prox."""
        d, streams = 10, self.batch_seeds
        rows: list[Row] = []
        fusions: list[tuple[str, str, Update]] = [("momentum", "batch mean", UPDATES["momentum"])]
        for method in ("VClip", "CClip"):
            update = UPDATES[method]
            fusions += [
                (method, "batch mean", update),
                (method, "averaged", update),
                (method, "batch", replace(update, fusion="batch")),
            ]
        for place, (method, fusion, update) in enumerate(fusions):
            samples = self._batches(alpha, size, streams, d, mean=fusion == "batch mean")
            rules = {method: update.rule(tau=self.tau, streams=streams, d=d)}
            start = torch.zeros(streams, d, dtype=torch.float64)
            for t, _, estimate in follow(rules, samples, start=start, at=[self.iterations]):
                gaps = estimate - self.oracle(d)
                rows += self._summaries(
                    f"minibatches, {fusion}", method, [alpha], t, gaps, batch=size
                )
            tick((place + 1) / len(fusions))
        return rows

    def _batches(
        self, alpha: float, size: int, streams: int, d: int, *, mean: bool
    ) -> Iterator[Tensor]:
        oracle = self.oracle(d)
        for t in range(self.iterations):
            draw = generator(t, "minibatch", size)
            rows = symmetric_stable(alpha, size, streams, d, generator=draw) + oracle
            yield rows.mean(dim=0, keepdim=True) if mean else rows

    def _predictions(self, tick: Tick) -> list[Row]:
        """What theory says of momentum's law and of VClip's transient.

        Momentum: ``m_T - ĝ = -(1-τ)^T ĝ + ξ'``, ξ' α-stable of scale
        ``τ ((1-(1-τ)^{αT})/(1-(1-τ)^α))^{1/α}``, at last ``τ/(1-(1-τ)^α)^{1/α}``.
        VClip far from ĝ but within the noise: the error falls at the rate
        ``τ (1 - 1/d) E[1/‖ξ‖]``.
        """
        d, many = 10, 4000
        oracle = self.oracle(d)
        rows: list[Row] = []
        for place, alpha in enumerate(self._alphas()):
            draw = generator(place, "prediction")
            noise = symmetric_stable(alpha, many, d, generator=draw)
            kept = (1 - self.tau) ** alpha
            scale = self.tau * ((1 - kept**self.iterations) / (1 - kept)) ** (1 / alpha)
            gaps = scale * noise - (1 - self.tau) ** self.iterations * oracle
            rows += self._summaries("prediction", "momentum", [alpha], self.iterations, gaps)
            rate = self.tau * (1 - 1 / d) * float((1 / noise.norm(dim=1)).mean())
            rows.append(
                {
                    "setting": "prediction",
                    "method": "VClip",
                    "inverse_alpha": 1 / alpha,
                    "rate": rate,
                }
            )
        return rows

    def figures(self, rows: Sequence[Row]) -> Mapping[str, Figure]:
        return fig2_figures.draw(self.iterations, self.tau, rows)

    def claims(self, rows: Sequence[Row]) -> list[Claim]:
        return fig2_claims.claims(self.iterations, self.seeds, rows)

    def notes(self, rows: Sequence[Row]) -> list[str]:
        return [
            f"‖ĝ‖ = {float(self.oracle(10).norm()):.3f} at d = 10, "
            f"{float(self.oracle(100).norm()):.3f} at d = 100; all errors scale with its inverse",
            f"{self.seeds} seeds, {self.iterations} iterations, τ = {self.tau}; minibatches: "
            f"{self.batch_seeds} seeds; adaptive τ: {self.adaptive_seeds}",
            "decreasing τ: τ_t = (t+1)^-0.6 and the mean of the second half of the estimates",
            "adaptive τ: ρ = τ times the running median of the stream's own distances",
        ]
