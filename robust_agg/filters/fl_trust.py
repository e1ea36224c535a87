"""FLTrust: rows count by how far they agree with one that is trusted."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from robust_agg import kernels
from robust_agg.aggregator import Aggregator, Explanation, Invariance, explained
from robust_agg.errors import check_instance
from robust_agg.kernels.reference import chunks
from robust_agg.shards import WHOLE, Shards
from robust_agg.span import too_far


@dataclass(frozen=True, kw_only=True, eq=False)  # a tensor among the fields has no ==
class FLTrust(Aggregator):
    """``(1/Σ_j t_j) Σ_i t_i (‖g₀‖/‖x_i‖) x_i`` with the trust ``t_i = max(0, cos(x_i, g₀))``.

    Cao, Fang, Liu & Gong, "FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping",
    NDSS 2021, algorithm 2. g₀ is the server's own row, from a small data set that it trusts: make a
    rule with it each round. So any number of rows may be bad.

    Where no row is trusted the result is g₀ itself, on which the paper is silent. A rejected row is
    not trusted, nor one beside which g₀ is too long to be measured, such as 0: it has no direction.
    It is neither coordinate-wise nor in weight space, for g₀ is no row: three passes. There is no
    known κ.

    Attributes:
        reference: g₀, ``(d,)``.
    """

    reference: Tensor

    def __post_init__(self) -> None:
        check_instance(self.name, "reference", self.reference, Tensor)
        if self.reference.dim() != 1 or not bool(self.reference.isfinite().all()):
            raise ValueError(
                f"{self.name}: reference must be a finite (d,) tensor, found shape "
                f"{tuple(self.reference.shape)}"
            )

    @property
    def invariances(self) -> frozenset[Invariance]:
        # The reference stays where it is when the rows are moved.
        return frozenset({Invariance.PERMUTATION})

    @property
    def shardable(self) -> bool:
        """False: nobody knows which of the reference's columns are here."""
        return False

    def check(self, n: int) -> None:
        """Any n >= 1 will do; f does not enter."""

    def max_rejected(self, n: int) -> int:
        return n

    def _explain(
        self,
        rows: Tensor,
        generator: torch.Generator | None,
        *,
        distances: bool,
        shards: Shards = WHOLE,
    ) -> Explanation:
        if self.reference.shape != rows.shape[1:]:
            raise ValueError(
                f"{self.name}: reference must have shape {tuple(rows.shape[1:])}, "
                f"found {tuple(self.reference.shape)}"
            )
        wide = torch.promote_types(rows.dtype, torch.float32)
        limit = too_far(wide)
        reference = self.reference.detach().to(rows.device, wide)
        zero = torch.zeros_like(reference)
        length = kernels.row_distances(reference[None], zero)[0]
        if not length <= limit:
            raise ValueError(
                f"{self.name}: reference must be short enough to be measured, found a norm of "
                f"{float(length):.3g}"
            )
        norms = kernels.row_distances(rows, zero)
        accepted = norms <= limit
        factors = length / norms
        directed = accepted & (factors <= limit)
        trust = inner_products(rows, reference) / (norms * length)
        trust = torch.where(directed, trust, 0.0).nan_to_num(nan=0.0).clamp(min=0)
        total = trust.sum()
        if total > 0:
            weights = torch.where(trust > 0, trust / total * factors, 0.0)
            found = kernels.combine(rows, weights, dtype=wide)
        else:
            weights, found = torch.zeros_like(trust), reference
        # The reference may be longer than what 16 bits hold.
        end = torch.finfo(rows.dtype).max
        return explained(
            found.clamp(-end, end).to(rows.dtype),
            rows,
            distances=distances,
            weights=weights,
            rejected=~accepted,
            shards=shards,
        )


def inner_products(rows: Tensor, point: Tensor) -> Tensor:
    """``⟨x_i, p⟩`` of rows ``(n, d)`` in float64, but where the device has none.

    ``(n,)`` float64 on the CPU; not finite for a row that is not.
    """
    wide = torch.float32 if rows.device.type == "mps" else torch.float64
    out = torch.zeros(len(rows), dtype=torch.float64, device="cpu")
    for part in chunks(rows, per_column=2 * len(rows)):
        out += (rows[:, part].to(wide) @ point[part].to(wide)).cpu().double()
    return out
