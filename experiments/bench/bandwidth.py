"""What share of a device's copy bandwidth the rules of ``robust-agg bench aggregators`` reach."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from experiments.bench.aggregators_report import OURS
from experiments.bench.rules import COORDINATEWISE
from experiments.studies.study import Claim, Row, Table

BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
TWO_PASSES = ("GeometricMedian", "VClip", "L2 batch")


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
    Bound(TWO_PASSES, 2, (8, 16, 32, 64), 0.6),
)
"""For float32 rows on a GPU, of each count the longest that were measured."""


def claims(rows: Sequence[Row]) -> Iterator[Claim]:
    """The bounds, as far as they were measured on a device whose bandwidth was."""
    for bound in BOUNDS:
        measured = [row for row in _longest(rows) if _is_of(row, bound)]
        if measured:
            worst = min(measured, key=_share)
            counts = ", ".join(str(n) for n in sorted({row["n"] for row in measured}))
            passes = "a pass" if bound.passes == 1 else f"{bound.passes} passes"
            yield Claim(
                statement=f"{', '.join(dict.fromkeys(row['rule'] for row in measured))} of "
                f"{counts} float32 rows: {passes} over them at {bound.least:.0%} of the device's "
                "copy bandwidth or more",
                source="this project",
                measured=f"{_share(worst):.0%} at least ({worst['rule']}, n = {worst['n']})",
                holds=_share(worst) >= bound.least,
            )


def tables(rows: Sequence[Row]) -> Mapping[str, Table]:
    """The share that each of those rules reaches."""
    measured = [row for row in _longest(rows) if any(_is_of(row, bound) for bound in BOUNDS)]
    if not measured:
        return {}
    copied = measured[0]["copy_gbs"]
    return {
        f"Share of the {copied:.0f} GB/s at which the device copies, float32": [
            ("rule", "n", "d", "passes", "share"),
            *(
                (row["rule"], str(row["n"]), str(row["d"]), str(_passes(row)), f"{_share(row):.0%}")
                for row in measured
            ),
        ]
    }


def _share(row: Row) -> float:
    """Bytes of the rows, times the passes, over what would be copied in the time."""
    read = _passes(row) * row["n"] * row["d"] * BYTES[row["dtype"]]
    return float(read / (1e-3 * row["ms"] * 1e9 * row["copy_gbs"]))


def _passes(row: Row) -> int:
    return 2 if row["rule"] in TWO_PASSES else 1


def _is_of(row: Row, bound: Bound) -> bool:
    return row["rule"] in bound.rules and row["n"] in bound.counts


def _longest(rows: Sequence[Row]) -> list[Row]:
    """This library's float32 rows, of each rule and count those with the most columns."""
    found: dict[tuple[str, int], Row] = {}
    for row in rows:
        if row.get("copy_gbs") and row["who"] == OURS and row["dtype"] == "float32":
            key = row["rule"], row["n"]
            if key not in found or row["d"] > found[key]["d"]:
                found[key] = row
    return list(found.values())
