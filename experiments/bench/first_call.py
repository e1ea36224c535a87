"""What a process's first call of a rule costs: compiled, and taken from the cache."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from experiments.studies.study import Row, Tick

_PROGRAM = """
import sys, time, torch
from robust_agg import CoordinateWiseMedian, GeometricMedian
rows = torch.randn(int(sys.argv[1]), 1000)
for rule in (CoordinateWiseMedian(), GeometricMedian()):
    begun = time.perf_counter()
    rule(rows)
    first = time.perf_counter() - begun
    begun = time.perf_counter()
    rule(rows)
    print(type(rule).__name__, first - (time.perf_counter() - begun))
"""


def first_calls(n: int, tick: Tick) -> list[Row]:
    """Seconds that a first call adds, imports excluded, with an empty cache and with a filled one.

    The geometric median comes second in the process, and finds the network compiled.
    """
    found: list[Row] = []
    with tempfile.TemporaryDirectory() as cache:
        for number, start in enumerate(("first start", "second start")):
            ran = subprocess.run(
                [sys.executable, "-c", _PROGRAM, str(n)],
                env={**os.environ, "ROBUST_AGG_CACHE": cache},
                capture_output=True,
                text=True,
                check=True,
            )
            for line in ran.stdout.splitlines():
                rule, seconds = line.split()
                found.append({"rule": rule, "n": n, "start": start, "seconds": float(seconds)})
            tick((number + 1) / 2)
    return found
