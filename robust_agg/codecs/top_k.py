"""Top-k: the largest coordinates alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust_agg.codecs import sparse
from robust_agg.codecs.compressor import Compressor, Expanded
from robust_agg.codecs.layout import Layout, Payload
from robust_agg.errors import check_share


@dataclass(frozen=True, kw_only=True)
class TopK(Compressor):
    """The k = ⌈share · d⌉ coordinates of largest magnitude; contractive with α = k/d.

    Of equal ones those of lowest index. Alistarh et al., "The convergence of sparsified gradient
    methods", 2018; as a compressor of EF21: Richtárik et al., 2021.

    Attributes:
        share: of the coordinates, in (0, 1].

    Raises:
        ValueError: a share that is none.
    """

    share: float

    def __post_init__(self) -> None:
        check_share(self.name, "share", self.share, one=True)

    def contraction(self, dim: int) -> float:
        return sparse.count(self.share, dim) / dim

    def layout(self, dim: int, dtype: torch.dtype) -> Layout:
        return sparse.layout(self.name, sparse.count(self.share, dim), dim, dtype)

    def compress(
        self, x: Tensor, dtype: torch.dtype, generator: torch.Generator | None = None
    ) -> Payload:
        k = sparse.count(self.share, x.numel())
        sizes = x.abs()
        # torch.topk leaves open which of equal numbers it takes.
        least = sizes.topk(k, sorted=False).values.min()
        chosen = sizes > least
        ties = (sizes == least).nonzero().flatten()
        chosen[ties[: k - int(chosen.sum())]] = True
        return sparse.gather(x, chosen.nonzero().flatten(), dtype)

    def expand(self, payload: Payload, like: Tensor) -> Expanded:
        return Expanded(sparse.scatter(payload, like))
