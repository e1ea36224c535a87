"""Tables, figures and verdicts of ``robust-agg bench aggregators``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan
from typing import TYPE_CHECKING, Any

from experiments.studies.canvas import new_figure
from experiments.studies.study import Claim, Row, Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OURS = "robust-agg"
GRAM = (
    "GeometricMedian",
    "Krum",
    "MultiKrum",
    "CenteredClipping",
    "AdaptiveClip + Mean",
    "VClip",
    "L2 batch",
)
# Okabe & Ito's colours, and a marker for those who do not see them.
LOOKS: Mapping[str, dict[str, Any]] = {
    OURS: {"color": "#0072B2", "marker": "o", "linewidth": 2.2},
    "ByzFL": {"color": "#D55E00", "marker": "s"},
    "ByzPy": {"color": "#E69F00", "marker": "D"},
    "geom-median": {"color": "#CC79A7", "marker": "v"},
    "geom-median, ftol 1e-6": {"color": "#CC79A7", "marker": "1", "linestyle": "--"},
    "TorchJD": {"color": "#009E73", "marker": "^"},
    "plain torch": {"color": "#555555", "marker": "x", "linestyle": "--"},
    "plain numpy": {"color": "#999999", "marker": "+", "linestyle": "--"},
}


@dataclass(frozen=True)
class Target:
    """At most so many times the time to read the rows."""

    rules: tuple[str, ...]
    counts: tuple[int, ...]
    limit: float


TARGETS = (
    Target(("CoordinateWiseMedian",), (8, 16, 32), 3),
    Target(("CoordinateWiseMedian",), (64,), 6),
    Target(("CoordinateWiseMedian",), (128,), 20),
    Target(("TrimmedMean",), (8, 16, 32), 4),
    Target(("MeanAroundMedian", "Phocas"), (8, 16, 32), 6),
    Target(("L1 batch",), (8, 16, 32), 8),
    Target(GRAM, (32,), 8),
    # Which also mixes n rows of n, n²d multiply-adds: no memory limits that.
    Target(("NNM + TrimmedMean",), (32,), 8),
)
"""For contiguous float32 rows of 10⁶ columns, on a CPU."""


def _timed(rows: Sequence[Row]) -> Iterator[Row]:
    return (row for row in rows if "read_ms" in row)


def _x_read(row: Row) -> float:
    return float(row["ms"] / row["read_ms"])


def _select(rows: Sequence[Row], **wanted: object) -> list[Row]:
    return [row for row in _timed(rows) if all(row[k] == v for k, v in wanted.items())]


def _values(rows: Sequence[Row], name: str) -> list[Any]:
    return list(dict.fromkeys(row[name] for row in rows))


def tables(rows: Sequence[Row]) -> Mapping[str, Table]:
    """Beside the peers; then this library alone over n, d and dtypes; then first calls."""
    there = {row["who"] for row in _timed(rows)}
    peers = [who for who in LOOKS if who in there and who != OURS]
    timed = _select(rows, who=OURS)
    found: dict[str, Table] = {}
    together = [row for row in timed if len(_beside(rows, row)) > 1]
    if together:
        sizes = ("n", *(name for name in ("d", "dtype") if len(_values(together, name)) > 1))
        found["Beside the peers (peers: times ours)"] = [
            ("rule", *sizes, "read ms", "ms", "x read", *peers, "extra memory"),
            *((*_sizes(row, sizes), *_line(rows, row, peers)) for row in together),
        ]
        found["Relative error against float64"] = [
            ("rule", *sizes, OURS, *peers),
            *((*_sizes(row, sizes), *_errors(rows, row, peers)) for row in together),
        ]
    for title, axis, fixed in (
        ("Over n (times read)", "n", ("d", "dtype")),
        ("Over d (times read)", "d", ("n", "dtype")),
        ("Over dtypes (times read)", "dtype", ("n", "d")),
    ):
        group = _longest(timed, axis, fixed)
        if len(_values(group, axis)) > 1:
            found[f"{title}, {', '.join(f'{k} = {_short(group[0][k])}' for k in fixed)}"] = _matrix(
                group, axis
            )
    if weighed := _select(rows, who=OURS, n=32, dtype="float32"):
        found["Memory that a call adds over d, share of the rows, n = 32"] = _matrix(
            weighed, "d", _percent
        )
    if starts := [row for row in rows if "first" in row]:
        found["Seconds that a process's first call adds"] = _first_calls(starts)
    return found


def _beside(rows: Sequence[Row], row: Row) -> list[Row]:
    return _select(rows, **{name: row[name] for name in ("rule", "n", "d", "dtype")})


def _sizes(row: Row, names: Sequence[str]) -> list[str]:
    return [row["rule"], *(_short(row[name]) for name in names)]


def _line(rows: Sequence[Row], row: Row, peers: Sequence[str]) -> tuple[str, ...]:
    others = {other["who"]: other for other in _beside(rows, row)}
    cells = (_peer(others.get(who), row["ms"]) for who in peers)
    times = f"{row['read_ms']:.2f}", f"{row['ms']:.2f}", f"{_x_read(row):.1f}"
    return (*times, *cells, _percent(row))


def _errors(rows: Sequence[Row], row: Row, peers: Sequence[str]) -> tuple[str, ...]:
    others = {other["who"]: other for other in _beside(rows, row)}
    found = (others.get(who, {}).get("error") for who in (OURS, *peers))
    return tuple("–" if e is None else f"{e:.0e}" for e in found)


def _peer(row: Row | None, ms: float) -> str:
    if row is None:
        return "–"
    if row.get("ms") is not None:
        return f"{row['ms'] / ms:.3g}"
    return "fails" if row["note"].startswith("fails") else "missing"


def _percent(row: Row) -> str:
    return f"{row['extra']:.1%}" if row.get("extra") is not None else ""


def _longest(rows: Sequence[Row], axis: str, fixed: Sequence[str]) -> list[Row]:
    """Those rows, equal in ``fixed``, that have the most values of ``axis``."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in fixed), []).append(row)
    return max(groups.values(), key=lambda group: len(_values(group, axis)), default=[])


def _times_read(row: Row) -> str:
    return f"{_x_read(row):.1f}"


def _matrix(rows: Sequence[Row], axis: str, cell: Callable[[Row], str] = _times_read) -> Table:
    values = _values(rows, axis)
    if axis != "dtype":
        values.sort()
    cells = {(row["rule"], row[axis]): cell(row) for row in rows}
    return [
        ("rule", *(_short(value) for value in values)),
        *((rule, *(cells.get((rule, v), "") for v in values)) for rule in _values(rows, "rule")),
    ]


def _short(value: object) -> str:
    if isinstance(value, int) and value >= 10_000 and f"{value:.0e}".startswith("1e"):
        return f"1e{len(str(value)) - 1}"
    return str(value)


def _first_calls(rows: Sequence[Row]) -> Table:
    cells = {(row["rule"], row["n"]): f"{row['first']:.2f}" for row in rows}
    counts = _values(rows, "n")
    return [
        ("rule", *(f"n = {n}" for n in counts)),
        *((rule, *(cells[rule, n] for n in counts)) for rule in _values(rows, "rule")),
    ]


def claims(rows: Sequence[Row]) -> list[Claim]:
    """The targets, as far as they were measured."""
    found = []
    if all(row["device"] == "cpu" for row in _timed(rows)):
        found += [claim for target in TARGETS if (claim := _within(rows, target))]
    ratios = {
        (row["who"], row["rule"], row["n"], row["d"], row["dtype"]): row["ms"] / ours["ms"]
        for ours in _select(rows, who=OURS)
        for row in _beside(rows, ours)
        if row["who"] != OURS and row.get("ms") is not None
    }
    for them in (lambda who: who.startswith("plain"), lambda who: not who.startswith("plain")):
        others = {key: ratio for key, ratio in ratios.items() if them(key[0])}
        if others:
            least = min(others, key=others.__getitem__)
            names = ", ".join(sorted({who for who, *_ in others}))
            found.append(
                Claim(
                    statement=f"Faster than {names}, in every row of the table",
                    source="this project",
                    measured=f"least: {others[least]:.2f} x "
                    f"({least[0]}, {least[1]}, n = {least[2]})",
                    holds=others[least] > 1,
                )
            )
    return [*found, *_exactness(rows), *_memory(rows)]


def _within(rows: Sequence[Row], target: Target) -> Claim | None:
    chosen = [
        row
        for row in _select(rows, who=OURS, d=10**6, dtype="float32")
        if row["rule"] in target.rules and row["n"] in target.counts
    ]
    if not chosen:
        return None
    worst = max(chosen, key=_x_read)
    counts = ", ".join(str(n) for n in _values(chosen, "n"))
    return Claim(
        statement=f"{', '.join(_values(chosen, 'rule'))} of {counts} rows: at most "
        f"{target.limit:g} x read",
        source="this project",
        measured=f"{_x_read(worst):.1f} x at most ({worst['rule']}, n = {worst['n']})",
        holds=_x_read(worst) <= target.limit,
    )


_EXACT = {"float64": 1e-12, "float32": 1e-6, "float16": 1e-3, "bfloat16": 1e-2}
"""Relative errors that rounding the result to the dtype accounts for."""


def _exactness(rows: Sequence[Row]) -> Iterator[Claim]:
    for dtype, limit in _EXACT.items():
        measured = [
            row for row in _select(rows, who=OURS, dtype=dtype) if row.get("error") is not None
        ]
        if measured:
            worst, most = max(measured, key=_error), max(_values(measured, "n"))
            yield Claim(
                statement=f"Every rule on at most {most} rows of {dtype} is within {limit:g} of "
                "float64",
                source="this project",
                measured=f"{_error(worst):.1e} at most ({worst['rule']}, n = {worst['n']})",
                holds=_error(worst) <= limit,
            )


def _error(row: Row) -> float:
    """NaN, which is above and below nothing, as Inf."""
    error = float(row["error"])
    return inf if isnan(error) else error


def _memory(rows: Sequence[Row]) -> Iterator[Claim]:
    extras = [
        (row["extra"], row["rule"])
        for row in _select(rows, who=OURS, n=32, d=10**7, dtype="float32")
        if row.get("extra") is not None
    ]
    if extras:
        extra, rule = max(extras)
        yield Claim(
            statement="No rule adds more than 10 % of the rows to memory (n = 32, d = 10⁷, "
            "float32)",
            source="this project",
            measured=f"{extra:.1%} at most ({rule}), the result itself being 3.1 %",
            holds=extra <= 0.1,
        )


def figures(rows: Sequence[Row]) -> Mapping[str, Figure]:
    """Times over n and over d, a panel a rule, with the time to read the rows as the limit."""
    found = {}
    for axis, fixed, label in (("n", "d", "rows n"), ("d", "n", "columns d")):
        chosen = [row for row in _timed(rows) if row["dtype"] == "float32"]
        of_ours = [row for row in chosen if row["who"] == OURS]
        if of_ours:
            group = _longest(of_ours, axis, (fixed,))
            value = group[0][fixed]
            shown = [row for row in chosen if row[fixed] == value]
            found[f"over_{axis}"] = _panels(shown, axis, f"{label}, {fixed} = {_short(value)}")
    return found


def _panels(rows: Sequence[Row], axis: str, label: str) -> Figure:
    rules = _values(rows, "rule")
    figure = new_figure(13, 2.6 * -(-len(rules) // 4) + 0.6)
    panels = figure.subplots(
        -(-len(rules) // 4), 4, sharex=True, sharey=True, squeeze=False
    ).flatten()
    for panel, rule in zip(panels, rules, strict=False):
        _panel(panel, [row for row in rows if row["rule"] == rule], axis)
        panel.set_title(rule, fontsize=9)
    for panel in panels[len(rules) :]:
        panel.set_visible(False)
    figure.supxlabel(label, fontsize=10)
    figure.supylabel("milliseconds", fontsize=10)
    drawn = {
        text: line
        for panel in panels[: len(rules)]
        for line, text in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(drawn.values(), drawn.keys(), loc="outside lower center", ncols=8, frameon=False)
    return figure


def _panel(axes: Axes, rows: Sequence[Row], axis: str) -> None:
    reads = sorted({row[axis]: row["read_ms"] for row in rows}.items())
    axes.plot(*zip(*reads, strict=True), color="black", linestyle=":", label="reading the rows")
    for who, look in LOOKS.items():
        times = sorted((r[axis], r["ms"]) for r in rows if r["who"] == who and r.get("ms"))
        if times:
            axes.plot(*zip(*times, strict=True), label=who, markersize=4, **look)
    axes.set(xscale="log", yscale="log")
    axes.grid(alpha=0.25)
