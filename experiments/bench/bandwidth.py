"""What share of a device's copy bandwidth the rules of ``robust-agg bench aggregators`` reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter

from experiments.bench.aggregators_report import OURS
from experiments.bench.rules import COORDINATEWISE
from experiments.studies.study import Claim, Row, Table

BYTES = 4
"""Of a float32 number."""


@dataclass(frozen=True)
class Bound:
    """At least such a share of the bandwidth, by rules that must read the rows so often."""

    rules: tuple[str, ...]
    passes: int
    counts: tuple[int, ...]
    least: float


BOUNDS = (
    Bound(COORDINATEWISE, 1, (8, 16, 32), 0.75),
    Bound(COORDINATEWISE, 1, (64,), 0.4),
    Bound(("GeometricMedian", "VClip", "L2 batch"), 2, (8, 16, 32, 64), 0.6),
)
"""For float32 rows on a GPU, of each count the longest that were measured."""


def claims(rows: Sequence[Row]) -> Iterator[Claim]:
    """The bounds, as far as they were measured on a device whose bandwidth was."""
    for bound in BOUNDS:
        measured = [row for row in _longest(rows) if _bound(row) is bound]
        if measured:
            shares = [_share(row, bound) for row in measured]
            least, worst = min(zip(shares, measured, strict=True), key=itemgetter(0))
            counts = ", ".join(str(n) for n in sorted({row["n"] for row in measured}))
            passes = "a pass" if bound.passes == 1 else f"{bound.passes} passes"
            yield Claim(
                statement=f"{', '.join(dict.fromkeys(row['rule'] for row in measured))} of "
                f"{counts} float32 rows: {passes} over them at {bound.least:.0%} of the device's "
                "copy bandwidth or more",
                source="this project",
                measured=f"{least:.0%} at least ({worst['rule']}, n = {worst['n']})",
                holds=least >= bound.least,
            )


def tables(rows: Sequence[Row]) -> Mapping[str, Table]:
    """The share that each of those rules reaches."""
    measured = [(row, bound) for row in _longest(rows) if (bound := _bound(row))]
    if not measured:
        return {}
    copied = measured[0][0]["copy_gbs"]
    return {
        f"Share of the {copied:.0f} GB/s at which the device copies, float32": [
            ("rule", "n", "d", "passes", "share"),
            *(
                (
                    *(row["rule"], str(row["n"]), str(row["d"])),
                    *(str(bound.passes), f"{_share(row, bound):.0%}"),
                )
                for row, bound in measured
            ),
        ]
    }


def _share(row: Row, bound: Bound) -> float:
    """Bytes of the rows, times the passes, over what would be copied in the time."""
    read = bound.passes * row["n"] * row["d"] * BYTES
    return float(read / (1e-3 * row["ms"] * 1e9 * row["copy_gbs"]))


def _bound(row: Row) -> Bound | None:
    """The bound that a rule of so many rows is held to, if any."""
    held = (b for b in BOUNDS if row["rule"] in b.rules and row["n"] in b.counts)
    return next(held, None)


def _longest(rows: Sequence[Row]) -> list[Row]:
    """This library's float32 rows, of each rule and count those with the most columns."""
    found: dict[tuple[str, int], Row] = {}
    for row in rows:
        if row.get("copy_gbs") and row["who"] == OURS and row["dtype"] == "float32":
            key = row["rule"], row["n"]
            if key not in found or row["d"] > found[key]["d"]:
                found[key] = row
    return list(found.values())
