"""What robust collectives of very many ranks come to on paper, from constants that are stated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, log2

from experiments.studies.study import Table

PARAMETERS = 7 * 10**9
ITEMSIZE = 2
"""Bytes of a number that is sent: bfloat16."""
COUNTS = (64, 256, 1024, 4096, 16_384)
LIMIT = 2**30
"""Bytes of the Gram matrix from which it is no small tensor any more."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a rank does in a second.

    Attributes:
        name: of it.
        bandwidth: bytes that it sends.
        multiply_adds: of a Gram matrix.
        comparisons: minimum and maximum of two numbers, as one.
        source: where these come from.
    """

    name: str
    bandwidth: float
    multiply_adds: float
    comparisons: float
    source: str


H100 = Machine(
    name="an H100",
    bandwidth=50e9,
    multiply_adds=33.5e12,
    comparisons=8.4e12,
    source="NVIDIA's data sheets of the H100 SXM (67 TFLOPS of float32) and of the DGX H100 (a "
    "port of 400 Gb/s a GPU), and the CUDA programming guide (half as many minima or maxima in a "
    "clock as multiply-adds, and a comparison is one of each); peaks, which nothing reaches",
)


def sent(n: int, d: int = PARAMETERS) -> float:
    """Bytes that a rank sends for its rows and its slice of the result: an all-reduce's."""
    return 2 * ITEMSIZE * d * (n - 1) / n


def gathered(n: int, d: int = PARAMETERS) -> float:
    """Bytes that a rank sends where all ranks get all rows."""
    return ITEMSIZE * d * (n - 1.0)


def multiply_adds(n: int, d: int = PARAMETERS) -> float:
    """Of a rank's slice of the Gram matrix: n² for each of d/n coordinates."""
    return float(n) * d


def comparisons(n: int, d: int = PARAMETERS) -> float:
    """Of a rank that sorts d/n coordinates by Batcher's odd-even merges; selecting takes fewer."""
    p = ceil(log2(n))
    return ((p * p - p + 4) * 2.0 ** (p - 2) - 1) * d / n


def rows_bytes(d: int = PARAMETERS) -> float:
    """Memory of all rows in a slice of the coordinates: n rows of d/n numbers, whatever n."""
    return float(ITEMSIZE * d)


def gram_bytes(n: int) -> float:
    """Memory of the Gram matrix of the rows and their centre, which every rank has."""
    return 8.0 * (n + 1) ** 2


def groups_from(machine: Machine, d: int = PARAMETERS) -> dict[str, int]:
    """The n from which ranks had better aggregate in groups, by what then costs too much."""
    counts = range(2, 10**6)
    return {
        "its arithmetic takes longer than the communication": next(
            n
            for n in counts
            if multiply_adds(n, d) / machine.multiply_adds > sent(n, d) / machine.bandwidth
        ),
        "it takes more than 1 GiB on every rank": next(n for n in counts if gram_bytes(n) > LIMIT),
        "its sum over the ranks sends a tenth of what the rows do": next(
            n for n in counts if 2 * gram_bytes(n) * (n - 1) / n > 0.1 * sent(n, d)
        ),
    }


def table(machine: Machine) -> Table:
    """A line for each number of ranks."""
    headings = (
        *("ranks", "all_reduce, robust: GB sent", "s", "all_gather: GB sent"),
        *("Gram multiply-adds", "s", "sorting comparisons", "s"),
        *("rows in a slice GB", "Gram matrix GB"),
    )
    return [headings, *(_line(n, machine) for n in COUNTS)]


def _line(n: int, machine: Machine) -> Sequence[str]:
    products, pairs = multiply_adds(n), comparisons(n)
    return (
        f"{n:,}",
        f"{sent(n) / 1e9:.1f}",
        f"{sent(n) / machine.bandwidth:.2f}",
        f"{gathered(n) / 1e9:,.0f}",
        f"{products:.1e}",
        f"{products / machine.multiply_adds:.2f}",
        f"{pairs:.1e}",
        f"{pairs / machine.comparisons:.3f}",
        f"{rows_bytes() / 1e9:.0f}",
        f"{gram_bytes(n) / 1e9:.4f}",
    )
