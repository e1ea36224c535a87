"""SignGuard: rows of a usual length whose signs are shared out as those of most."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from robust_agg import kernels
from robust_agg.aggregator import Aggregator, Explanation, Invariance, explained
from robust_agg.errors import check_positive, check_rejected, shown
from robust_agg.filters.clusters import mean_shift, neighbour_bandwidth
from robust_agg.kernels.reference import chunks
from robust_agg.shards import WHOLE, Shards
from robust_agg.span import too_far


@dataclass(frozen=True, kw_only=True)
class SignGuard(Aggregator):
    """``(1/|S|) Σ_{i∈S} min(1, M/‖x_i‖₂) x_i`` over the rows S that pass two filters.

    Xu, Huang, Song & Lan, "Byzantine-Robust Federated Learning through Collaborative Malicious
    Gradient Filtering", ICDCS 2022, algorithm 2. M is the median of the norms, the lower of two.

    - By length: ``L·M <= ‖x_i‖₂ <= R·M``.
    - By signs: in coordinates that are drawn, the shares of a row's positive, zero and negative
      numbers are its three features. These are clustered by mean shift, and the rows of the largest
      cluster pass: that with the most rows that also pass by length (of all rows, some far too long
      could leave S empty: a choice of this library), of two such the denser one.

    It is neither coordinate-wise nor in weight space, for signs are no geometry: two passes, and
    one over the drawn coordinates. There is no known κ; the result is no longer than the longest
    honest row while fewer than n/2 are bad. Variants of the paper, SignGuard-Sim and -Dist, have a
    fourth feature; this is the plain one.

    The authors' code has the same defaults, and otherwise: it draws a window of neighbouring
    coordinates rather than each alone, divides a feature by the largest of it among the rows, takes
    the midpoint of an even n for M in the bounds, leaves rows far from every peak in no cluster,
    and takes the largest cluster by all its rows.

    Attributes:
        lower: L in (0, 1].
        upper: R >= 1.
        share: of the coordinates that are drawn, in (0, 1]; at least one is.
        bandwidth: h > 0 of mean shift, in units of the features; if None, the mean distance from a
            row to the ⌊n/2⌋-th nearest, itself the first: what scikit-learn estimates for a
            quantile of 0.5, as the authors' code does.
    """

    lower: float = 0.1
    upper: float = 3.0
    share: float = 0.1
    bandwidth: float | None = None

    def __post_init__(self) -> None:
        for name, value in (("lower", self.lower), ("share", self.share)):
            check_positive(self.name, name, value)
            if value > 1:
                raise ValueError(f"{self.name}: {name} must be in (0, 1], found {shown(value)}")
        check_positive(self.name, "upper", self.upper)
        if self.upper < 1:
            raise ValueError(f"{self.name}: upper must be at least 1, found {shown(self.upper)}")
        if self.bandwidth is not None:
            check_positive(self.name, "bandwidth", self.bandwidth)

    @property
    def invariances(self) -> frozenset[Invariance]:
        return frozenset({Invariance.PERMUTATION, Invariance.SCALING})

    @property
    def shardable(self) -> bool:
        return True

    def check(self, n: int) -> None:
        """Any n >= 1 will do; f does not enter."""

    def max_rejected(self, n: int) -> int:
        return (n - 1) // 2

    def _explain(
        self,
        rows: Tensor,
        generator: torch.Generator | None,
        *,
        distances: bool,
        shards: Shards = WHOLE,
    ) -> Explanation:
        if generator is None:
            raise ValueError(f"{self.name}: generator is required, found None")
        n, d = len(rows), rows.shape[1]
        norms = shards.distances(rows, rows.new_zeros(d))
        accepted = norms <= too_far(torch.promote_types(rows.dtype, torch.float32))
        check_rejected(self.name, int((~accepted).sum()), self.max_rejected(n), n)
        # 0.1 · 30 is a little more than 3 in floating point.
        count = ceil(self.share * shards.columns(d) * (1 - 1e-12))
        signs = shards.sum(count_signs(rows, shards.drawn(d, count, generator)))

        lengths = torch.where(accepted, norms, torch.inf)
        middle = lengths.sort().values[(n - 1) // 2]
        usual = (lengths >= self.lower * middle) & (lengths <= self.upper * middle)
        passed = usual & self._alike(signs, accepted, usual)
        factors = torch.where(lengths > middle, middle / lengths, 1.0)
        weights = torch.where(passed, factors, 0.0) / passed.sum()
        return explained(
            kernels.combine(rows, weights),
            rows,
            distances=distances,
            weights=weights,
            rejected=~accepted,
            shards=shards,
        )

    def _alike(self, signs: Tensor, accepted: Tensor, usual: Tensor) -> Tensor:
        """``(n,)`` bool: the rows of the cluster with the most ``usual`` ones."""
        # Numbers of signs rather than shares of them: whole numbers have no rounding.
        points: NDArray[np.float64] = signs[accepted].numpy()
        if self.bandwidth is None:
            bandwidth = neighbour_bandwidth(points)
        else:
            bandwidth = self.bandwidth * float(points[0].sum())
        labels = mean_shift(points, bandwidth)
        largest = np.bincount(labels[usual[accepted].numpy()]).argmax()
        alike = accepted.clone()
        alike[accepted] = torch.from_numpy(labels == largest)
        return alike


def count_signs(rows: Tensor, columns: Tensor | slice) -> Tensor:
    """How many numbers of each row are positive, zero and negative: ``(n, 3)`` float64, on the CPU.

    In ``columns`` of the rows alone, of which there may be none.
    """
    counts = torch.zeros(len(rows), 3, dtype=torch.float64, device="cpu")
    for signs in _blocks(rows, columns):
        each = [(signs > 0).sum(dim=1), (signs == 0).sum(dim=1), (signs < 0).sum(dim=1)]
        counts += torch.stack(each, dim=1).cpu().double()
    return counts


def _blocks(rows: Tensor, columns: Tensor | slice) -> Iterator[Tensor]:
    """Some of the columns at a time, so that no copy is as large as the rows."""
    for part in chunks(rows, per_column=2 * len(rows)):
        if isinstance(columns, slice):
            yield rows[:, part]
        else:
            yield rows[:, columns[part].to(rows.device)]
