"""Steps towards rows: torch.lerp, and a bound on how long they are."""

from __future__ import annotations

import pytest
import torch
from kernel_paths import draw, on_path

from robust_agg.kernels import approaches, blocks

K = 3


@pytest.mark.parametrize("path", ["compiled", "baseline"])
@pytest.mark.parametrize("dtype", approaches.COMPILED, ids=str)
@pytest.mark.parametrize("share", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("d", [16, 37, 1000])
def test_steps_and_their_bounds(
    path: str, dtype: torch.dtype, share: float, d: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "TASK_NUMBERS", 100)
    rows, points = draw(K, d, dtype), draw(K, d, dtype, seed=1)
    rows[1, -1], points[2, 0] = torch.nan, -torch.inf
    out = torch.empty_like(rows)
    with on_path(path):
        assert approaches.takes(rows, list(points), out)
        moved, bounds = approaches.approach(rows, list(points), share, out)
    torch.testing.assert_close(out, torch.lerp(points, rows, share), equal_nan=True)
    torch.testing.assert_close(torch.stack(moved), out, rtol=0, atol=0, equal_nan=True)
    largest = rows.abs().amax(dim=1).double() + points.abs().amax(dim=1).double()
    torch.testing.assert_close(bounds, largest * d**0.5, equal_nan=True)


@pytest.mark.parametrize("d", [0, 7, 16])
def test_less_than_a_vector_is_not_taken(d: int) -> None:
    rows = draw(K, 16, torch.float32)[:, :d]
    with on_path("compiled"):
        assert approaches.takes(rows, list(rows), torch.empty_like(rows)) == (d == 16)
