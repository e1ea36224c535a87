"""Columns as they are divided among tasks."""

from __future__ import annotations

import pytest
import torch

from robust_agg.kernels import blocks


@pytest.mark.parametrize(("width", "each"), [(1, 8), (7, 8), (8, 8), (9, 8), (24, 8), (31, 16)])
def test_tasks_cover_a_block(width: int, each: int) -> None:
    first = 2
    block = torch.empty(3, first + width)
    parts = blocks.Tasks(width, each)
    begins = [
        (address - block.data_ptr()) // block.element_size()
        for address in parts.columns(block, first)
    ]
    assert len(parts) == len(begins) == len(parts.widths)
    assert all(1 <= own <= each for own in parts.widths)
    covered = [
        column
        for begin, own in zip(begins, parts.widths, strict=True)
        for column in range(begin, begin + own)
    ]
    assert covered == list(range(first, first + width))
