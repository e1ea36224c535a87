"""The geometry of the rows: what weight-space rules see instead of the rows themselves.

One pass over memory gives a centre c and the Gram matrix of ``[c, x_1 - c, …, x_n - c]``. Whatever
mixings and weightings then ask for (norms, distances, inner products of mixed rows) follows from
that small matrix, and their answer is a vector of coefficients over the rows. Deviations from a
robust centre keep distances accurate: from an uncentred float32 Gram they can come out negative.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import isfinite

import numpy as np
import torch
from torch import Tensor

from robust_agg import kernels
from robust_agg.shards import WHOLE, Shards


@dataclass(frozen=True)
class Geometry:
    """The m points a weighting or mixing decides about, as float64 CPU tensors.

    Point i is ``a_i c + Σ_j A_ij (x_j - c)`` with ``a = A·1``. Where ``a_i = a_k`` the centre
    cancels between two points; clipping towards the origin makes ``a_i`` differ from 1.

    Attributes:
        mixing: A, ``(m, n)``, zero in the columns of rejected rows; None for the rows themselves.
        accepted: ``(m,)`` bool; False for a point that cannot be measured. It has no coefficients,
            infinite norm and distances, and must be given weight 0.
        centre_norm: ‖c‖².
        centre_products: ``(n,)``, <c, x_j - c>.
        deviations: ``(n, n)`` Gram matrix of the x_j - c, zero for rejected rows.
        precision: largest error of an inner product, relative to the product of the norms.
    """

    mixing: Tensor | None
    accepted: Tensor
    centre_norm: Tensor
    centre_products: Tensor
    deviations: Tensor
    precision: float

    def __len__(self) -> int:
        return len(self.accepted)

    @cached_property
    def coefficients(self) -> Tensor:
        """A, ``(m, n)``."""
        return torch.diag(self.accepted.double()) if self.mixing is None else self.mixing

    @property
    def rejected_count(self) -> int:
        return int((~self.accepted).sum())

    @cached_property
    def _mass(self) -> Tensor:
        if self.mixing is None:
            return self.accepted.double()
        mass = self.mixing.sum(dim=1)
        # Sums that are 1 but for rounding: times a far centre, the rounding would be all there is.
        return torch.where((mass - 1).abs() < 1e-12, 1.0, mass)

    @cached_property
    def _cross(self) -> Tensor:
        return self.centre_products if self.mixing is None else self.mixing @ self.centre_products

    @cached_property
    def _deviation_gram(self) -> Tensor:
        if self.mixing is None:
            return self.deviations
        return self.coefficients @ self.deviations @ self.coefficients.T

    @cached_property
    def squared_norms(self) -> Tensor:
        """``(m,)`` of ‖p_i‖²; Inf for a rejected point."""
        a = self._mass
        norms = (
            a.square() * self.centre_norm + 2 * a * self._cross + self._deviation_gram.diagonal()
        )
        return torch.where(self.accepted, norms.clamp(min=0), torch.inf)

    @cached_property
    def rounding(self) -> Tensor:
        """``(m,)``: the largest error of ``squared_norms``, from terms that may cancel."""
        lengths = self.deviations.diagonal().clamp(min=0).sqrt()
        reach = self._mass.abs() * self.centre_norm.sqrt() + self.coefficients.abs() @ lengths
        return self.precision * reach.square()

    def loses_norms(self, accuracy: float, *, least: float = 0.0) -> bool:
        """Whether an accepted point's norm may be off by that much of it, or of ``least``."""
        relevant = self.squared_norms.sqrt().clamp(min=least).square()
        doubtful = self.rounding > 2 * accuracy * relevant  # the squares' error is twice that
        return bool((doubtful & self.accepted).any())

    @cached_property
    def squared_distances(self) -> Tensor:
        """``(m, m)`` of ‖p_i - p_k‖²; 0 on the diagonal, Inf where either point is rejected."""
        spread = self._deviation_gram.diagonal()
        squares = spread[:, None] + spread[None, :] - 2 * self._deviation_gram
        # Of the rows themselves, those that are accepted have a mass of 1 each.
        mass = self._mass[:, None] - self._mass[None, :] if self.mixing is not None else None
        if mass is not None and bool(mass.any()):
            cross = self._cross[:, None] - self._cross[None, :]
            squares = squares + mass.square() * self.centre_norm + 2 * mass * cross
        both = self.accepted[:, None] & self.accepted[None, :]
        return torch.where(both, squares.clamp(min=0), torch.inf).fill_diagonal_(0)

    @cached_property
    def gram(self) -> Tensor:
        """``(m, m)`` of <p_i - o, p_k - o>; rows and columns of rejected points have no meaning.

        The origin o is ``ā c`` with ā the median of the masses, near which most points lie: entries
        are as accurate as their distances, however far c is from 0 and other points are from c.
        """
        if self.mixing is None:
            return self.deviations
        excess = self._mass - self._mass[self.accepted].median()
        if not bool((excess * self.accepted).any()):
            return self._deviation_gram
        cross = excess[:, None] * self._cross
        own = excess[:, None] * excess * self.centre_norm
        return self._deviation_gram + own + cross + cross.T

    def accepted_gram(self) -> tuple[Tensor, Tensor]:
        """The places (k,) of the points that are not rejected, and :attr:`gram` of these alone."""
        places = self.accepted.nonzero().flatten()
        gram = self.gram if len(places) == len(self) else self.gram[places][:, places]
        return places, gram

    def mixed(self, mixing: Tensor, accepted: Tensor) -> Geometry:
        """The geometry of the points ``mixing @ points``, ``mixing`` of shape ``(m', m)``.

        A point of far rows that cancel is nowhere to be found among their roundings: it is
        rejected.
        """
        together = mixing * self.accepted if self.mixing is None else mixing @ self.mixing
        accepted = accepted & ~self._lost(together)
        return Geometry(
            mixing=together * accepted[:, None],
            accepted=accepted,
            centre_norm=self.centre_norm,
            centre_products=self.centre_products,
            deviations=self.deviations,
            precision=self.precision,
        )

    def _lost(self, together: Tensor) -> Tensor:
        """``(m',)`` bool: points whose error is more than their spread, and than that of a row.

        Of the rows that are not where the centre is: points may well be there, with no spread.
        """
        spread = ((together @ self.deviations) * together).sum(dim=1).clamp(min=0)
        squares = self.deviations.diagonal().clamp(min=0)
        lengths = squares.sqrt()
        error = self.precision * (together.abs() @ lengths).square()
        if not bool((error > spread).any()):
            return torch.zeros_like(error, dtype=torch.bool)
        return (error > spread) & (error > squares[squares > 0].median())

    def about_origin(self, rows: Tensor, accepted: Tensor, *, shards: Shards = WHOLE) -> Geometry:
        """The same points measured anew, about the origin and in float64.

        Norms are then as accurate as they can be. Distances between points have an error of 1e-16
        of their squared norms, which is little beside the digits of float32 rows.

        Args:
            rows: ``(n, d)``, those that were measured.
            accepted: ``(n,)`` bool, which of them are accepted.
            shards: who holds the columns.
        """
        gram = shards.sum(kernels.gram(rows))
        return replace(
            self,
            centre_norm=torch.zeros_like(self.centre_norm),
            centre_products=torch.zeros_like(self.centre_products),
            deviations=torch.where(accepted[:, None] & accepted, gram, 0.0),
            precision=_precision(torch.float64),
        )


def _precision(dtype: torch.dtype) -> float:
    """What the kernels' tests hold them to, for products that are summed in ``dtype``."""
    # In the longest sum of equal products, roundings all go the same way: 512 of float64.
    return (512 if dtype == torch.float64 else 32) * float(torch.finfo(dtype).eps)


def too_far(dtype: torch.dtype) -> float:
    """The distance from which a row of ``dtype`` is rejected: its square is no number any more.

    About 1.8e19 for rows of at most 32 bits, and 4.7e153 for float64, where it leaves room for the
    sums and differences of a few squares.
    """
    if dtype == torch.float64:
        return float((torch.finfo(torch.float64).max / 8) ** 0.5)
    return float(torch.finfo(torch.float32).max ** 0.5)


def measure(
    rows: Tensor, point: Tensor | None = None, *, shards: Shards = WHOLE
) -> tuple[Geometry, Tensor]:
    """The geometry of the rows themselves, and their centre.

    A row with NaN, Inf, or a deviation from the centre beyond :func:`too_far` is rejected.

    Args:
        rows: ``(n, d)``.
        point: ``(d,)``, measured as one more row, the last; the centre remains that of the rows.
        shards: who holds the columns; rows, point and centre are the columns here.

    Returns:
        The geometry and the coordinate-wise median c, ``(d,)`` in at least float32, on the rows'
        device. Who needs no centre takes ``[0]``: a name for it would keep it in memory.
    """
    extra = None if point is None else point[None]
    centre, gram = kernels.centred_gram(rows, extra)
    gram = shards.sum(gram)
    spread = gram.diagonal()[1:]
    precision = _precision(centre.dtype)
    lost = rows.dtype != torch.float64 and _lost_digits(
        rows, centre, float(gram[0, 0]), spread[: len(rows)], shards
    )
    if lost:
        gram = shards.sum(_exact_gram(rows, extra))
        spread = gram.diagonal()[1:]
        precision = _precision(torch.float64)
    finite = spread <= too_far(torch.promote_types(rows.dtype, torch.float32)) ** 2
    if not bool(finite.all()):
        keep = torch.cat([finite.new_ones(1), finite])
        gram = torch.where(keep[:, None] & keep[None, :], gram, 0.0)
    geometry = Geometry(
        mixing=None,
        accepted=finite,
        centre_norm=gram[0, 0],
        centre_products=gram[0, 1:],
        deviations=gram[1:, 1:],
        precision=precision,
    )
    return geometry, centre


def measure_norms(rows: Tensor, *, shards: Shards = WHOLE) -> Geometry:
    """The geometry of the rows about the origin, of which their norms alone are known.

    Inner products of different rows stand as 0: for mixings and rules that see no distances. The
    norms are those of float64. A row with NaN, Inf, or a norm that is no float32 (of float64 rows,
    one beyond :func:`too_far`) is rejected.
    """
    norms = shards.distances(rows, rows.new_zeros(rows.shape[1]))
    wide = rows.dtype == torch.float64
    finite = norms <= (too_far(rows.dtype) if wide else torch.finfo(torch.float32).max)
    return Geometry(
        mixing=None,
        accepted=finite,
        centre_norm=norms.new_zeros(()),
        centre_products=norms.new_zeros(len(norms)),
        deviations=torch.diag(torch.where(finite, norms, 0.0).square()),
        precision=_precision(torch.float64),
    )


def _lost_digits(
    rows: Tensor, centre: Tensor, centre_square: float, spread: Tensor, shards: Shards
) -> bool:
    """Whether float32 squares under- or overflowed where float64 ones would not: a rare case.

    Judged by the median of the spreads, which one far row cannot move.
    """
    if not isfinite(centre_square):
        return True
    # In numpy, which takes a fraction of torch's time to begin an operation on so few numbers.
    finite = np.sort(spread.numpy()[np.isfinite(spread.numpy())])
    if len(finite) == 0 or finite[(len(finite) - 1) // 2] >= _UNDERFLOW:
        return False
    # Rows that are equal, such as gradients of what is not in use, have no digits to lose.
    distances = shards.distances(rows, centre)
    return bool((distances[spread < _UNDERFLOW] > 0).any())


def _exact_gram(rows: Tensor, extra: Tensor | None) -> Tensor:
    """The centred Gram matrix in float64, some columns at a time: all would be twice the rows."""
    width = max(64, _EXACT_NUMBERS // len(rows))
    grams = []
    for start in range(0, rows.shape[1], width):
        part = slice(start, start + width)
        others = None if extra is None else extra[:, part].double()
        grams.append(kernels.centred_gram(rows[:, part].double(), others)[1])
    return torch.stack(grams).sum(dim=0)


_EXACT_NUMBERS = 1 << 20
_UNDERFLOW = float(torch.finfo(torch.float32).tiny / torch.finfo(torch.float32).eps)
