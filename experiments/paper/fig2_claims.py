"""What the paper and this project say of α-stable noise, against the numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from experiments.studies.study import Claim, Row

PAPER = "section 4.1, figure 2"
OURS = "robust-agg"
SETTLED = 1000
"""Iterations before which what is said of the errors' end is not decided: ten times 1/τ."""


def claims(iterations: int, seeds: int, rows: Sequence[Row]) -> list[Claim]:
    """Verdicts on the errors after the last iteration."""
    settled = iterations >= SETTLED
    last = [row for row in rows if row.get("iteration") == iterations]

    def final(method: str, setting: str = "paper") -> dict[float, float]:
        return {
            row["inverse_alpha"]: row["error"]
            for row in last
            if row["method"] == method and row["setting"] == setting
        }

    return [
        _momentum_fails(final("momentum")),
        _cclip_is_flat(final("CClip"), settled=settled),
        _vclip_is_bounded(final("VClip"), final("momentum")),
        _alike(final("VClip"), final("adaptive momentum"), "Adaptive momentum", "VClip"),
        _alike(final("CClip"), final("signed increment"), "The signed increment", "CClip"),
        _median_is_better(final("coordinate-wise median"), final("CClip")),
        _first_sample(final("CClip", "first sample as start"), final("CClip")),
        _decreasing(final("CClip", "decreasing tau"), final("CClip")),
        *_minibatches(last, settled=settled),
        _prediction(final("momentum", "prediction"), final("momentum"), enough=seeds >= 20),
    ]


def _momentum_fails(error: dict[float, float]) -> Claim:
    low, high = error[min(error)], error[max(error)]
    return Claim(
        statement="Momentum fails for heavy tails",
        source=PAPER,
        measured=f"median error {low:.2g} at 1/α = {min(error)}, {high:.2g} at {max(error)}; "
        "an estimate of 0 has error 1",
        holds=high > 1,
    )


def _cclip_is_flat(error: dict[float, float], *, settled: bool) -> Claim:
    low, high, most = error[min(error)], error[max(error)], max(error.values())
    return Claim(
        statement="CClip's error does not grow with the tails",
        source=PAPER,
        measured=f"{low:.3g} at 1/α = {min(error)}, {high:.3g} at {max(error)}, at most {most:.3g}",
        holds=high <= 1.05 * low and most <= 1.2 * low if settled else None,
    )


def _vclip_is_bounded(error: dict[float, float], momentum: dict[float, float]) -> Claim:
    heavy = [a for a in error if a >= 0.75 - 1e-9]
    return Claim(
        statement="VClip stays bounded and beats momentum for 1/α >= 0.75, though its error grows",
        source=PAPER,
        measured=", ".join(
            f"{error[a]:.2g} against {momentum[a]:.2g} at 1/α = {a:.2g}"
            for a in sorted({heavy[0], 1.0, heavy[-1]})
        ),
        holds=all(error[a] < momentum[a] and error[a] <= 1 for a in heavy)
        and error[heavy[-1]] > error[min(error)],
    )


def _alike(a: dict[float, float], b: dict[float, float], who: str, whom: str) -> Claim:
    worst = max(abs(b[x] / a[x] - 1) for x in a)
    return Claim(
        statement=f"{who} behaves like {whom}",
        source="appendix B",
        measured=f"median errors differ by at most {worst:.2%} at any α",
        holds=worst < 0.1,
    )


def _median_is_better(median: dict[float, float], cclip: dict[float, float]) -> Claim:
    ratios = [cclip[a] / median[a] for a in median]
    return Claim(
        statement="The coordinate-wise median of all samples is better than CClip, at any α",
        source=OURS,
        measured=f"CClip's error is {min(ratios):.1f} to {max(ratios):.1f} times as large",
        holds=min(ratios) > 1,
    )


def _first_sample(first: dict[float, float], zero: dict[float, float]) -> Claim:
    high = max(first)
    return Claim(
        statement="The first sample as m₀ breaks the robustness of CClip",
        source=OURS,
        measured=f"error {first[high]:.2g} instead of {zero[high]:.2g} at 1/α = {high}",
        holds=first[high] > 2 * zero[high],
    )


def _decreasing(decreasing: dict[float, float], fixed: dict[float, float]) -> Claim:
    ratios = [decreasing[a] / fixed[a] for a in fixed]
    return Claim(
        statement="A decreasing τ with averaged estimates improves on CClip at τ = 0.01, at any α",
        source=OURS,
        measured=f"errors {min(ratios):.2f} to {max(ratios):.2f} times those of the fixed τ",
        holds=max(ratios) < 1,
    )


def _minibatches(last: Sequence[Row], *, settled: bool) -> list[Claim]:
    errors: dict[tuple[str, str, float], dict[int, float]] = defaultdict(dict)
    for row in last:
        if row["setting"].startswith("minibatches"):
            fusion = row["setting"].removeprefix("minibatches, ")
            errors[fusion, row["method"], row["inverse_alpha"]][row["batch"]] = row["error"]
    heavy = max(inverse for _, _, inverse in errors)
    found = []
    for fusion, statement, grows in (
        ("batch mean", "Clipping the mean of a batch gets worse with b for α < 1", True),
        ("averaged", "Averaging clipped samples gets better with b for α < 1", False),
        ("batch", "The exact proximal step of a batch gets better with b for α < 1", False),
    ):
        shown, holds = [], True
        for method in ("VClip", "CClip"):
            sizes = errors[fusion, method, heavy]
            small, large = sizes[min(sizes)], sizes[max(sizes)]
            shown.append(f"{method} {small:.2g} at b = {min(sizes)}, {large:.2g} at {max(sizes)}")
            holds = holds and (large > small if grows else large < small)
        found.append(
            Claim(
                statement=statement,
                source=OURS,
                measured=f"{'; '.join(shown)} (1/α = {heavy:.2f})",
                holds=holds if settled else None,
            )
        )
    return found


def _prediction(
    predicted: dict[float, float], momentum: dict[float, float], *, enough: bool
) -> Claim:
    worst = max(abs(momentum[a] / predicted[a] - 1) for a in predicted)
    return Claim(
        statement="Momentum's error is α-stable, for large T of scale τ/(1-(1-τ)^α)^{1/α}",
        source=OURS,
        measured=f"medians differ from the predicted ones by at most {worst:.0%}",
        holds=worst < 0.35 if enough else None,
    )
