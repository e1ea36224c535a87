"""Large pages are advised where they fit, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from robust_agg.kernels import pages


def advice(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What is advised from now on: where, and of how many bytes."""
    given: list[tuple[int, int]] = []

    def advise(begin: int, size: int, kind: int) -> int:
        given.append((begin, size))
        return 0

    monkeypatch.setattr(pages, "_advise", lambda: advise)
    return given


def test_whole_pages_within_the_tensor_are_advised(monkeypatch: pytest.MonkeyPatch) -> None:
    given = advice(monkeypatch)
    tensor = torch.empty(5 * pages.LARGE, dtype=torch.uint8)
    assert pages.advised(tensor) is tensor
    ((begin, size),) = given
    assert begin % pages.LARGE == size % pages.LARGE == 0
    assert size >= 4 * pages.LARGE
    assert tensor.data_ptr() <= begin
    assert begin + size <= tensor.data_ptr() + tensor.nbytes


@pytest.mark.parametrize("made", [torch.empty(0), torch.empty(pages.LARGE // 4 - 1)], ids=len)
def test_where_no_page_fits_there_is_no_advice(
    made: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = advice(monkeypatch)
    pages.advised(made)
    assert not given


def test_the_system_takes_it() -> None:
    if pages._advise() is None or not Path("/sys/kernel/mm/transparent_hugepage").exists():
        pytest.skip("this system has no such pages")
    tensor = pages.advised(torch.empty(64 * pages.LARGE, dtype=torch.uint8))
    flags = _flags(tensor.data_ptr() + tensor.nbytes // 2)
    assert "hg" in flags
    kept = torch.full_like(tensor, 3)
    pages.advised(kept)
    assert bool((kept == 3).all())


def _flags(address: int) -> list[str]:
    """The flags of the mapping that an address is in."""
    inside = False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii").splitlines():
        first = line.split()[0]
        if "-" in first and not first.endswith(":"):
            begin, _, end = first.partition("-")
            inside = int(begin, 16) <= address < int(end, 16)
        elif inside and first == "VmFlags:":
            return line.split()[1:]
    return []
