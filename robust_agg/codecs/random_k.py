"""Random-k: some coordinates, drawn anew for every message."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust_agg.codecs import sparse
from robust_agg.codecs.compressor import Compressor, Expanded
from robust_agg.codecs.layout import Layout, Payload
from robust_agg.codecs.top_k import TopK
from robust_agg.errors import check_share


@dataclass(frozen=True, kw_only=True)
class RandomK(Compressor):
    """k = ⌈share · d⌉ coordinates, drawn uniformly without replacement.

    As they are, C is contractive with α = k/d. With ``unbiased`` they are multiplied by d/k: then
    E[C(x)] = x and E‖C(x) - x‖² = (d/k - 1)‖x‖², which is not contractive and needs no memory
    (Wangni et al., "Gradient sparsification", 2018); EF21 and error feedback want the former
    (Stich, Cordonnier, Jaggi, "Sparsified SGD with memory", 2018).

    The places are sent: a server that drew them itself would have to know the worker's seed.

    Attributes:
        share: of the coordinates, in (0, 1].
        unbiased: whether values are scaled by d/k.

    Raises:
        ValueError: a share that is none.
    """

    share: float
    unbiased: bool = False

    def __post_init__(self) -> None:
        check_share(self.name, "share", self.share, one=True)

    def contraction(self, dim: int) -> float | None:
        k = sparse.count(self.share, dim)
        return None if self.unbiased and k < dim else k / dim

    def layout(self, dim: int, dtype: torch.dtype) -> Layout:
        return sparse.layout(self.name, sparse.count(self.share, dim), dim, dtype)

    def compress(
        self, x: Tensor, dtype: torch.dtype, generator: torch.Generator | None = None
    ) -> Payload:
        if generator is None:
            raise ValueError(f"{self.name}: generator is required, found None")
        dim = x.numel()
        k = sparse.count(self.share, dim)
        drawn = torch.randperm(dim, generator=generator, device="cpu")[:k].sort().values
        factor = dim / k if self.unbiased else 1.0
        return sparse.gather(x, drawn.to(x.device), dtype, factor)

    def expand(self, payload: Payload, like: Tensor) -> Expanded:
        return Expanded(sparse.scatter(payload, like))

    def forge(
        self, x: Tensor, dtype: torch.dtype, generator: torch.Generator | None = None
    ) -> Payload:
        """The k largest, as they are: whoever says the places may choose them."""
        return TopK(share=self.share).compress(x, dtype)
