"""Columns as they are divided among tasks."""

from __future__ import annotations

import pytest
import torch

from robust_agg.kernels import blocks


@pytest.mark.parametrize(("width", "each"), [(1, 8), (7, 8), (8, 8), (9, 8), (24, 8), (31, 16)])
@pytest.mark.parametrize("rest", [0, 8])
def test_tasks_cover_blocks(width: int, each: int, rest: int) -> None:
    first = 2
    whole = torch.empty(3, first + width + rest)
    block, other = whole[:, first : first + width], torch.empty(3, rest)
    together = [blocks.Block(first, block)]
    if rest:
        together.append(blocks.Block(first + width, other))
    parts = blocks.Tasks(together, each)
    begins = [(a - whole.data_ptr()) // whole.element_size() for a in parts.columns(whole)]
    assert len(parts) == len(begins) == len(parts.widths)
    assert all(1 <= own <= each for own in parts.widths)
    covered = [
        column
        for begin, own in zip(begins, parts.widths, strict=True)
        for column in range(begin, begin + own)
    ]
    assert covered == list(range(first, first + width + rest))
    # The last task is the one of the second block, whose memory is its own.
    of_first = len(parts) - bool(rest)
    assert parts.rows[:of_first] == parts.columns(whole)[:of_first]
    assert parts.rows[of_first:] == [other.data_ptr()] * bool(rest)
    assert parts.strides == [whole.stride(0)] * of_first + [other.stride(0)] * bool(rest)


@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize("d", [1, 7, 8, 30, 1000])
def test_blocks_are_the_rows_and_then_zeros(
    d: int, strided: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "COPIED_NUMBERS", 64)
    rows = torch.randn(d, 3).T if strided else torch.randn(3, d)
    point = torch.randn(d)
    seen, points = torch.full((3, d + 8), torch.nan), torch.full((d + 8,), torch.nan)
    for together in blocks.contiguous(rows, 8):
        assert len(together) == 1 or not strided
        others = blocks.beside(together, point, 8)
        for (first, block), other in zip(together, others, strict=True):
            assert block.stride(-1) == 1
            assert block.shape[1] % 8 == 0
            seen[:, first : first + block.shape[1]] = block
            points[first : first + block.shape[1]] = other
    assert torch.equal(seen[:, :d], rows)
    assert torch.equal(points[:d], point)
    padding = -(-d // 8) * 8
    assert not seen[:, d:padding].any()
    assert not points[d:padding].any()
    assert seen[:, padding:].isnan().all()
