"""What mixings that shorten rows have in common."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from robust_agg.mixings.mixing import Mixed, Mixing
from robust_agg.span import Geometry

_ACCURACY = 1e-5
"""Relative error of a norm up to which it is clipped by."""


class Clipping(Mixing):
    """``x_i · min(1, C/‖x_i‖₂)`` with a length C of the rows' own, or a given one."""

    sees_distances = False
    in_place = True

    @abstractmethod
    def limit(self, geometry: Geometry) -> Tensor:
        """C, ``()`` float64, finite."""

    def loses_digits(self, geometry: Geometry) -> bool:
        # Of shorter points only what is left of others beside them matters, which is C long.
        return geometry.loses_norms(_ACCURACY, least=float(self.limit(geometry)))

    def mix(self, geometry: Geometry, generator: torch.Generator | None) -> Mixed:
        norms, limit = geometry.squared_norms.sqrt(), self.limit(geometry)
        factors = torch.where(norms > limit, limit / norms, 1.0)
        factors = torch.where(geometry.accepted, factors, 0.0)
        return Mixed(torch.diag(factors), geometry.accepted)
