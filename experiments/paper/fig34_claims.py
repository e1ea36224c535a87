"""What the paper and this project say of estimates at fixed weights, against the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from experiments.paper.fig34_numbers import best_plateau, error_at, fastest
from experiments.paper.study import Claim, Row

PAPER = "section 4.2"
OURS = "robust-agg"


def claims(
    rows: Sequence[Row],
    *,
    sizes: Sequence[int],
    columns: int,
    tau: float,
    iterations: int,
    level: float,
) -> list[Claim]:
    """Verdicts at the common τ, and on what it leaves out."""

    def errors(method: str, iteration: int) -> list[float]:
        return [error_at(rows, method, size, tau, iteration) for size in sizes]

    return [
        _first(errors("CClip", 10), errors("momentum", 10), errors("VClip", 10), iterations),
        _ratio(errors("VClip", 100), errors("momentum", 100), iterations),
        _last(errors("momentum", 1000), errors("VClip", 1000), errors("CClip", 1000), iterations),
        _finite_variance(rows, sizes, columns),
        *(_tuned(rows, size, level) for size in sizes),
    ]


def _list(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.3g}" for value in values)


def _first(
    cclip: Sequence[float], momentum: Sequence[float], vclip: Sequence[float], iterations: int
) -> Claim:
    return Claim(
        statement="At a common τ = 0.01 CClip is by far the fastest at iteration 10",
        source=PAPER,
        measured=f"CClip {_list(cclip)}; momentum {_list(momentum)}; VClip {_list(vclip)} "
        "(by batch size)",
        holds=all(c < 0.7 * min(m, v) for c, m, v in zip(cclip, momentum, vclip, strict=True))
        if iterations >= 10
        else None,
    )


def _ratio(vclip: Sequence[float], momentum: Sequence[float], iterations: int) -> Claim:
    ratios = [v / m for v, m in zip(vclip, momentum, strict=True)]
    falls = all(b < a for a, b in pairwise(ratios))
    return Claim(
        statement="VClip is below momentum at iteration 100, the more so the larger the batch",
        source=PAPER,
        measured=f"ratios {_list(ratios)} by batch size",
        holds=max(ratios) < 1 and falls if iterations >= 100 else None,
    )


def _last(
    momentum: Sequence[float], vclip: Sequence[float], cclip: Sequence[float], iterations: int
) -> Claim:
    return Claim(
        statement="At iteration 1000 the order is momentum < VClip < CClip",
        source=PAPER,
        measured=f"momentum {_list(momentum)}; VClip {_list(vclip)}; CClip {_list(cclip)}",
        holds=all(m < v < c for m, v, c in zip(momentum, vclip, cclip, strict=True))
        if iterations >= 1000
        else None,
    )


def _finite_variance(rows: Sequence[Row], sizes: Sequence[int], columns: int) -> Claim:
    noise = {row["noise_of"]: row["noise"] for row in rows if "noise_of" in row}
    scaled = [noise[size] * (size / columns) ** 0.5 for size in sizes]
    return Claim(
        statement="Minibatch noise has finite variance: relative to ‖ḡ‖ it falls as 1/√b",
        source=OURS,
        measured=f"noise {_list([noise[size] for size in sizes])} at b = "
        f"{', '.join(map(str, sizes))}; "
        f"times √b, relative to the smallest: {_list([s / scaled[0] for s in scaled])}",
        holds=all(0.8 < s / scaled[0] < 1.25 for s in scaled),
    )


def _tuned(rows: Sequence[Row], size: int, level: float) -> Claim:
    names = ("momentum", "bias-corrected momentum", "VClip", "CClip")
    times = {name: fastest(rows, name, size, level) for name in names}
    lows = {name: best_plateau(rows, name, size, level) for name in names}

    def ours(values: dict[str, float]) -> float:
        return min(values[names[0]], values[names[1]])

    def theirs(values: dict[str, float]) -> float:
        return min(values[names[2]], values[names[3]])

    steps = {name: float("inf") if time is None else float(time) for name, time in times.items()}
    return Claim(
        statement=f"With τ tuned or bias-corrected, momentum matches or beats both at b = {size}",
        source=OURS,
        measured="; ".join(
            f"{name}: {times[name] or 'no'} iterations to {level}, least plateau {lows[name]:.3g}"
            for name in names
        ),
        holds=ours(steps) <= 1.1 * theirs(steps) and ours(lows) <= 1.05 * theirs(lows),
    )
