"""Many small blocks at once and large ones one by one: the same steps, block for block."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from robust_agg import L2, BlockL2, OnlineMedian
from robust_agg.online import block


@pytest.mark.parametrize("method", ["prox", "subgradient"])
@pytest.mark.parametrize("tau", [1e-3, 0.5, 1e30])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_small_blocks_move_as_they_would_alone(
    method: str, tau: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = (3, 1, 4, 1, 5, 9)
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(6, sum(sizes), generator=draw).to(dtype)
    rows[1, 2], rows[2, 4], rows[3, 0] = float("nan"), float("inf"), 3e38
    rows[4] = 0.0
    m = torch.randn(sum(sizes), generator=draw)
    m[4:8] = rows[5, 4:8].float()  # a row that is where m is, in its third block
    together = OnlineMedian(divergence=BlockL2(sizes), method=method, tau=tau)
    alone = OnlineMedian(divergence=L2(), method=method, tau=tau)

    def step(rule: OnlineMedian, rows: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return rule.step(rows, rule.init(rows[0], start=m))[0]

    found = step(together, rows, m)
    starts = [sum(sizes[:b]) for b in range(len(sizes) + 1)]
    parts = [slice(start, stop) for start, stop in pairwise(starts)]
    expected = torch.cat([step(alone, rows[:, part], m[part]) for part in parts])
    assert bool(found.isfinite().all())
    torch.testing.assert_close(found, expected)
    monkeypatch.setattr(block, "_SMALL", 0)
    torch.testing.assert_close(step(together, rows, m), expected, rtol=0, atol=0)
