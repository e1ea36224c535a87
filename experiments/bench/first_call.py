"""What a process's first call of a rule costs: nothing is kept from an earlier process."""

from __future__ import annotations

import subprocess
import sys

from experiments.studies.study import Row, Tick

_PROGRAM = """
import sys, time, torch
from robust_agg import CoordinateWiseMedian, GeometricMedian
n = int(sys.argv[1])
rows = torch.randn(n, min(4096 * n, 1 << 18))
for rule in (CoordinateWiseMedian(), GeometricMedian()):
    begun = time.perf_counter()
    rule(rows)
    first = time.perf_counter() - begun
    begun = time.perf_counter()
    rule(rows)
    print(type(rule).__name__, max(0.0, first - (time.perf_counter() - begun)))
"""


def first_calls(n: int, tick: Tick) -> list[Row]:
    """Seconds by which a first call is longer than the second, imports excluded.

    On so many columns that the selection network is compiled at once, and not after some sorting.
    The geometric median comes second in the process and finds it compiled.
    """
    ran = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(n)], stdout=subprocess.PIPE, text=True, check=True
    )
    tick(1.0)
    lines = (line.split() for line in ran.stdout.splitlines())
    return [{"rule": rule, "n": n, "first": float(seconds)} for rule, seconds in lines]
