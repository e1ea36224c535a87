"""``robust-agg bench collectives``: a robust all-reduce beside the plain one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Self

from experiments.bench import collectives_paper as paper
from experiments.bench.collectives_forms import (
    ALL_REDUCE,
    CALLED,
    EXCHANGE,
    GRAM,
    MEDIAN,
    NAIVE,
    VCLIP,
    bytes_sent,
    rules,
    seconds_on_this_rank,
)
from experiments.processes import on_ranks
from experiments.studies.canvas import new_figure
from experiments.studies.study import Claim, Piece, Preset, Row, Study, Table, Tick

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ALONE = (GRAM, MEDIAN)
ALIKE = ("CoordinateWiseMedian", "TrimmedMean")
TARGETS: Mapping[str, tuple[tuple[str, ...], float]] = {
    "CoordinateWiseMedian, TrimmedMean and averaged VClip": (
        (*ALIKE, *(CALLED + name for name in ALIKE), VCLIP),
        2.5,
    ),
    "GeometricMedian": (("GeometricMedian", CALLED + "GeometricMedian"), 3.0),
}
COLOURS = ("#555555", "#0072B2", "#009E73", "#D55E00", "#CC79A7", "#E69F00")


class Case(NamedTuple):
    """So many ranks with a row of d float32 numbers each."""

    ranks: int
    d: int
    repeats: int


@dataclass(frozen=True, kw_only=True)
class Collectives(Study):
    """The time of a robust all-reduce as a multiple of that of `dist.all_reduce`, over gloo between
    processes of one thread each on this machine, in turns in one run. A time is the slowest rank's;
    its median over the repeats counts. Rules are those of a `RobustAllReduce` that keeps its memory
    and gives its result in place, as `all_reduce` does; `function` is `robust_all_reduce`, in fresh
    memory; `communication alone` moves the rows to their slices and the slices back, and does
    nothing with them; `all_gather` gives every rank all rows, for the rule to be applied by each.
    Bytes are those that a rank sends on average, by formula."""

    title: ClassVar[str] = "A robust all-reduce beside the plain one"

    cases: tuple[Case, ...]

    @classmethod
    def preset(cls, name: Preset) -> Self:
        if name == "smoke":
            return cls(cases=(Case(2, 1000, 2), Case(4, 100, 2)), decides=False)
        lengths = {10**5: 20, 10**6: 9, 10**7: 3}
        if name == "full":
            lengths = {d: 3 * repeats for d, repeats in lengths.items()}
        return cls(cases=tuple(Case(n, d, k) for n in (4, 8) for d, k in lengths.items()))

    def pieces(self, folder: Path) -> Mapping[str, Piece]:
        return {
            f"{case.ranks} ranks, {case.d} numbers": partial(self._measure, case)
            for case in self.cases
        }

    def _measure(self, case: Case, tick: Tick) -> list[Row]:
        found: dict[str, list[float]]
        found, *_ = on_ranks(case.ranks, seconds_on_this_rank, case.d, case.repeats)
        plain = median(found[ALL_REDUCE])
        sent = bytes_sent(case.ranks, case.d)
        return [
            {
                "form": form,
                "ranks": case.ranks,
                "d": case.d,
                "repeats": case.repeats,
                "ms": 1e3 * median(seconds),
                "ratio": median(seconds) / plain,
                "sent_bytes": sent.get(form),
            }
            for form, seconds in found.items()
        ]

    def tables(self, rows: Sequence[Row]) -> Mapping[str, Table]:
        headings = ("ranks", "d", "form", "ms", "x all_reduce", "MB sent", "x all_reduce")
        lines = []
        for row in rows:
            plain = bytes_sent(row["ranks"], row["d"])[ALL_REDUCE]
            sent = row["sent_bytes"]
            lines.append(
                (
                    *(str(row["ranks"]), f"{row['d']:,}", row["form"]),
                    *(f"{row['ms']:.2f}", f"{row['ratio']:.2f}"),
                    "" if sent is None else f"{sent / 1e6:.3f}",
                    "" if sent is None else f"{sent / plain:.2f}",
                )
            )
        return {
            "Rows of float32 numbers over gloo": [headings, *lines],
            f"On paper: {paper.PARAMETERS:.0e} parameters in bfloat16 on {paper.H100.name} a "
            "rank": paper.table(paper.H100),
            "The fewest ranks for which a Gram matrix wants groups": _groups(rows),
        }

    def figures(self, rows: Sequence[Row]) -> Mapping[str, Figure]:
        counts = list(dict.fromkeys(row["ranks"] for row in rows))
        figure = new_figure(4.2 * len(counts), 3.8)
        panels = figure.subplots(1, len(counts), sharey=True, squeeze=False)[0]
        for n, axes in zip(counts, panels, strict=True):
            shown = [EXCHANGE, *rules(n), VCLIP]
            for colour, form in zip(COLOURS, shown, strict=True):
                for name, dashes, marker in ((form, "-", "o"), (NAIVE + form, ":", "x")):
                    line = [row for row in rows if row["ranks"] == n and row["form"] == name]
                    axes.plot(
                        [row["d"] for row in line],
                        [row["ratio"] for row in line],
                        color=colour,
                        linestyle=dashes,
                        marker=marker,
                        label=name if dashes == "-" else None,
                    )
            axes.axhline(1.0, color="black", linewidth=0.8)
            axes.set(xscale="log", yscale="log", xlabel="numbers of a row", title=f"{n} ranks")
        panels[0].set(ylabel="times an all_reduce (dotted, crosses: all_gather)")
        panels[0].legend(frameon=False, fontsize=8)
        return {"collectives": figure}

    def claims(self, rows: Sequence[Row]) -> list[Claim]:
        return [_claim(rows, who, forms, limit) for who, (forms, limit) in TARGETS.items()]

    def notes(self, rows: Sequence[Row]) -> list[str]:
        return [
            "all ranks share this machine's cores and its memory: no network, and arithmetic that "
            "ranks of their own would do at once; rows are standard normal, f = ⌊n/4⌋",
            "GeometricMedian is exact; VClip has a fixed τ, averages its n steps and keeps its "
            "state in slices; nothing of rules and estimators is compiled anew within a repeat",
            f"on paper: {paper.H100.source}",
            "on paper: sorting is Batcher's network, of which a median needs a part; a geometric "
            "median of more than 256 rows iterates over them instead of forming their Gram matrix",
        ]


def _claim(rows: Sequence[Row], who: str, forms: tuple[str, ...], limit: float) -> Claim:
    worst = max((row for row in rows if row["form"] in forms), key=lambda row: float(row["ratio"]))
    return Claim(
        statement=f"{who}: at most {limit:g} x all_reduce",
        source="this project",
        measured=f"{worst['ratio']:.2f} x at most ({worst['form']}, {worst['ranks']} ranks, "
        f"d = {worst['d']:,})",
        holds=worst["ratio"] <= limit,
    )


def measured_here(rows: Sequence[Row]) -> paper.Machine:
    """The constants of this machine, from the longest rows of the most ranks."""
    n, d = max((row["ranks"], row["d"]) for row in rows)
    seconds = {row["form"]: row["ms"] / 1e3 for row in rows if (row["ranks"], row["d"]) == (n, d)}
    pairs = paper.comparisons(n, d)
    return paper.Machine(
        name="this machine",
        bandwidth=bytes_sent(n, d)[ALL_REDUCE] / seconds[ALL_REDUCE],
        multiply_adds=paper.multiply_adds(n, d) / seconds[GRAM],
        comparisons=pairs / seconds[MEDIAN],
        source=f"measured: {n} ranks, d = {d:,}",
    )


def _groups(rows: Sequence[Row]) -> Table:
    machines = paper.H100, measured_here(rows)
    constants = {
        "GB/s that a rank sends": [m.bandwidth for m in machines],
        "10⁹ multiply-adds a second": [m.multiply_adds for m in machines],
        "10⁹ comparisons a second": [m.comparisons for m in machines],
    }
    starts = [paper.groups_from(machine) for machine in machines]
    return [
        ("", f"{machines[0].name}, at its peaks", f"{machines[1].name}, measured"),
        *((name, *(f"{value / 1e9:.3g}" for value in found)) for name, found in constants.items()),
        *((f"groups from n: {why}", *(f"{each[why]:,}" for each in starts)) for why in starts[0]),
    ]
