"""The geometric median by passes over the rows: for so many rows that their Gram costs more."""

from __future__ import annotations

import torch
from torch import Tensor

from robust_agg import kernels
from robust_agg.shards import WHOLE, Shards
from robust_agg.solvers import SolverReport
from robust_agg.span import too_far

_SAMPLED = 31
# Rows whose coordinate-wise median is the start: a good guess, on which nothing depends but time.


def weiszfeld_over_rows(
    rows: Tensor, *, tolerance: float, max_passes: int, shards: Shards = WHOLE
) -> tuple[Tensor, Tensor, SolverReport]:
    """Weiszfeld's iteration ``y ← Σ_i (x_i/r_i) / Σ_i (1/r_i)``, r_i = ‖x_i - y‖, over the rows.

    Each step reads the rows twice, 2nd multiply-adds, where the Gram matrix takes n²d once. A row
    that cannot be measured is left out. Stops unconverged where y meets a row: whether that row is
    optimal is for the solver in weight space to decide.

    Args:
        rows: ``(n, d)``.
        tolerance: of ‖∇F‖/n, F being the sum of the distances; what the rows' dtype can tell apart
            if that is larger.
        max_passes: steps after which it gives up.
        shards: who holds the columns.

    Returns:
        Weights ``(n,)`` float64 that sum to 1, the accepted rows ``(n,)`` bool, and the report.
    """
    n = len(rows)
    work = torch.promote_types(rows.dtype, torch.float32)
    floor = max(tolerance, 2 * torch.finfo(work).eps)
    places = torch.linspace(0, n - 1, min(n, _SAMPLED), device="cpu").long()
    y = kernels.sorted_mean(
        rows[places.to(rows.device)].to(work), len(places) // 2, len(places) // 2 + 1
    )
    y = y.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    residual, reason = float("inf"), "passes"
    for passes in range(1, max_passes + 1):
        r = shards.distances(rows, y)
        accepted = r <= too_far(work)
        if not bool(accepted.any()) or bool((r == 0).any()):
            reason = "met a row"
            break
        pulls = torch.where(accepted, 1 / r, 0.0)
        weights = pulls / pulls.sum()
        following = kernels.combine(rows, weights, dtype=work)
        step = float(shards.distances(following[None], y))
        residual = step * float(pulls.sum()) / int(accepted.sum())
        y = following
        if residual <= floor:
            return weights, accepted, SolverReport(passes, residual, True, "tolerance")
    return (
        torch.zeros(n, dtype=torch.float64, device="cpu"),
        accepted,
        SolverReport(passes, residual, False, reason),
    )
