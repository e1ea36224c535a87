"""``robust-agg bench aggregators``: every rule beside the peers and the time to read the rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import torch
from torch import Tensor

from experiments.bench import aggregators_report as report
from experiments.bench import bandwidth, plain
from experiments.bench.clock import SLOW, Timing, copy_bandwidth, memory, peak_extra, timings
from experiments.bench.first_call import first_calls
from experiments.bench.peers import PEERS, MissingPeerError
from experiments.bench.rules import RULES, Form, ours
from experiments.studies.study import Claim, ModelStudy, Piece, Preset, Row, Table, Tick
from robust_agg.seeding import generator

if TYPE_CHECKING:
    from matplotlib.figure import Figure

OURS = "robust-agg"
MEASURABLE = 10**8
"""Rows of more numbers are not computed in float64 to compare with."""

BEARABLE = 10.0
"""Seconds up to which a call is made once more, for its memory."""


class Attempt:
    """A peer's rule, which may fail on such rows: the benchmark is to go on.

    Once it has failed it is not called again; a row that nobody looks at stands for its result.

    Attributes:
        why: it failed; None so far.
    """

    def __init__(self, form: Form) -> None:
        self._form = form
        self.why: str | None = None

    def __call__(self, rows: Tensor) -> Tensor:
        if self.why is None:
            try:
                return self._form(rows)
            except Exception as error:
                lines = str(error).strip().splitlines() or [""]
                self.why = f"fails: {type(error).__name__}: {lines[0]}"
        return rows[0]


class Case(NamedTuple):
    """Rows that rules are timed on; peers too, if asked."""

    n: int
    d: int
    dtype: str = "float32"
    peers: bool = False

    @property
    def bytes(self) -> int:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return self.n * self.d * dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class Aggregators(ModelStudy):
    """Every rule on Gaussian rows, a quarter of which are far off. Times are medians of repeats
    after a warm-up, as multiples of the time in which `sum()` reads the same bytes as float32; all
    take turns in one process, and every call finds the rows in memory, not in a cache; errors are
    relative, in the norm, to the rule's definition in float64; memory is the most that a call adds
    to the process, the result included, as a share of the rows."""

    title: ClassVar[str] = "Aggregation beside the peers and the memory limit"

    cases: tuple[Case, ...]
    rules: tuple[str, ...] = RULES
    fresh: tuple[int, ...] = ()
    """Numbers of rows for which a process's first call is timed, on the CPU."""

    @classmethod
    def preset(cls, name: Preset) -> Self:
        if name == "smoke":
            return cls(
                cases=(Case(8, 1000, peers=True), Case(9, 1001, "bfloat16")),
                fresh=(9,),
                decides=False,
            )
        peers = [Case(n, 10**6, peers=True) for n in (8, 16, 32, 64)]
        many = [Case(n, 10**6) for n in (128, 256, 512)]
        long = [Case(32, 10**4), Case(32, 10**5), Case(32, 10**7, peers=name == "full")]
        long.append(Case(32, 10**8))
        dtypes = [Case(32, 10**6, dtype) for dtype in ("float64", "bfloat16", "float16")]
        return cls(cases=(*peers, *many, *dtypes, *long), fresh=(32, 64, 128, 256, 512))

    def pieces(self, folder: Path) -> Mapping[str, Piece]:
        pieces: dict[str, Piece] = {
            f"{rule}, {case.n} x {case.d} {case.dtype}": partial(self._measure, rule, case)
            for case in self.cases
            if self._fits(case)
            for rule in self.rules
        }
        if self.device == "cpu":
            pieces.update({f"first call, n = {n}": partial(first_calls, n) for n in self.fresh})
        return pieces

    def _fits(self, case: Case) -> bool:
        """Whether the rows leave memory for what a rule and its peak need beside them."""
        return 1.5 * case.bytes <= memory(self.device)

    def _measure(self, rule: str, case: Case, tick: Tick) -> list[Row]:
        rows, f = _rows(case, self.device), case.n // 4
        exact = None
        if rows.numel() <= MEASURABLE:
            exact = plain.EXACT[rule](rows.double(), f)
        common: dict[str, Any] = {
            "rule": rule,
            "n": case.n,
            "f": f,
            "d": case.d,
            "dtype": case.dtype,
            "device": self.device,
        }
        if copied := copy_bandwidth(self.device):
            common["copy_gbs"] = copied / 1e9
        forms = list(self._forms(rule, case, rows, f))
        calls = [partial(form, rows) for _, form in forms if not isinstance(form, str)]
        read, *times = timings([partial(_read, rows), *calls], self.device)
        common["read_ms"] = read.ms
        left = iter(times)
        measured: list[Row] = []
        for place, (who, form) in enumerate(forms):
            if isinstance(form, str):
                found: dict[str, Any] = {"note": form}
            else:
                found = self._numbers(form, next(left), rows, exact)
                if isinstance(form, Attempt) and form.why is not None:
                    found = {"note": form.why}
            measured.append({**common, "who": who, **found})
            tick((place + 1) / len(forms))
        return measured

    def _forms(
        self, rule: str, case: Case, rows: Tensor, f: int
    ) -> Iterator[tuple[str, Form | str]]:
        """Whoever has the rule, with its form, or why there is none."""
        yield OURS, ours(rule, rows, f)
        for peer, load in PEERS.items() if case.peers else ():
            try:
                catalogue = load()
            except MissingPeerError as error:
                yield peer, str(error)
                continue
            if rule in catalogue and not (peer == "plain numpy" and self.device != "cpu"):
                yield peer, Attempt(catalogue[rule](rows, f))

    def _numbers(
        self, form: Form, time: Timing, rows: Tensor, exact: Tensor | None
    ) -> dict[str, Any]:
        call = partial(form, rows)
        extra = peak_extra(call, self.device) if time.ms < 1e3 * BEARABLE else None
        numbers: dict[str, Any] = {"ms": time.ms, "repeats": time.repeats}
        if extra is not None:
            numbers["extra"] = extra / (rows.numel() * rows.element_size())
        if exact is not None:
            got = form(rows).to(exact)
            numbers["error"] = float((got - exact).norm() / exact.norm())
        return numbers

    def figures(self, rows: Sequence[Row]) -> Mapping[str, Figure]:
        return report.figures(rows)

    def tables(self, rows: Sequence[Row]) -> Mapping[str, Table]:
        return {**report.tables(rows), **bandwidth.tables(rows)}

    def claims(self, rows: Sequence[Row]) -> list[Claim]:
        return [*report.claims(rows), *bandwidth.claims(rows)]

    def notes(self, rows: Sequence[Row]) -> list[str]:
        missing = {row["who"]: row["note"] for row in rows if row.get("note")}
        return [
            "rows: f = ⌊n/4⌋ of them at -10 times the others' common mean, which is standard "
            "normal, with standard normal noise on all; beyond 10⁷ columns the same again",
            "peers are called as their documentation says, with their own defaults: ByzFL's "
            "geometric median is 3 smoothed steps, its centered clipping starts from zero, ByzPy's "
            "from the mean, and Krum of both counts n - f - 1 neighbours; of an even n, ByzPy's "
            "median is the lower middle value; ByzPy is called without its pool of processes",
            "geom-median's own tolerance, 1e-20, lets it go on for as long as anything changes: "
            "with 1e-6 it stands beside itself",
            f"what took more than {SLOW:g} s was measured once after its warm-up",
            *(
                f"{case.n} x {case.d} {case.dtype}: its rows, {case.bytes / 1e9:.0f} GB, do not fit"
                for case in self.cases
                if not self._fits(case)
            ),
            *(f"{who}: {why}" for who, why in missing.items()),
        ]


def _read(rows: Tensor) -> Tensor:
    """The sum of the same bytes as float32: torch sums 16-bit numbers at the price of widening."""
    numbers = rows.flatten()
    return numbers[: numbers.numel() // 2 * 2].view(torch.float32).sum()


_PERIOD = 10**7


@lru_cache(maxsize=1)
def _rows(case: Case, device: str) -> Tensor:
    """The rows of a case, kept for all rules."""
    draw = generator(0, "bench aggregators", case.n, case.d)
    width = min(case.d, _PERIOD)
    centre = torch.randn(width, generator=draw)
    rows = torch.empty(case.n, case.d, dtype=getattr(torch, case.dtype), device=device)
    for i in range(case.n):
        noise = torch.randn(width, generator=draw)
        row = (-10 * centre if i < case.n // 4 else centre) + noise
        for start in range(0, case.d, width):
            rows[i, start : start + width] = row[: case.d - start]
    return rows
