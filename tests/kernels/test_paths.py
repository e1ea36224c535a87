"""Which path is chosen for which tensors."""

from __future__ import annotations

import sys

import pytest
import torch

from robust_agg import kernels
from robust_agg.kernels import cpu, cuda, reference, triton_source

DEVICE = torch.device("cuda", 0)


class Sub(torch.Tensor):
    """Whose numbers need not be in memory."""


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As if there were a card on which Triton works."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(triton_source, "_reaches", triton_source._reaches.__wrapped__)
    return monkeypatch


def as_on_a_card(monkeypatch: pytest.MonkeyPatch, *, works: bool) -> None:
    """Tensors say that they are on a card."""
    monkeypatch.setattr(torch.Tensor, "is_cpu", property(lambda self: False))
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    monkeypatch.setattr(triton_source, "_reaches", lambda device: works)


def test_plain_tensors_on_the_cpu() -> None:
    rows = torch.zeros(3, 4)
    assert kernels._path(rows) is cpu
    assert kernels._path(rows, None, torch.nn.Parameter(rows[0])) is cpu


def test_what_has_no_path_of_its_own() -> None:
    rows = torch.zeros(3, 4)
    assert kernels._path(rows.as_subclass(Sub)) is reference
    assert kernels._path(rows, rows[0].as_subclass(Sub)) is reference
    assert kernels._path(rows.to("meta")) is reference
    assert kernels._path(rows, rows[0].to("meta")) is reference


def test_tensors_on_a_card(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.zeros(3, 4)
    as_on_a_card(monkeypatch, works=True)
    assert kernels._path(rows, None, rows[0]) is cuda
    assert kernels._path(rows.as_subclass(Sub)) is reference
    monkeypatch.setenv("ROBUST_AGG_JIT", "0")
    assert kernels._path(rows) is reference


def test_tensors_on_a_card_that_triton_does_not_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    as_on_a_card(monkeypatch, works=False)
    assert kernels._path(torch.zeros(3, 4)) is reference


def test_without_triton_nothing_is_compiled(card: pytest.MonkeyPatch) -> None:
    card.setitem(sys.modules, "triton", None)
    assert not cuda.available(DEVICE)


def test_an_older_card_is_not_compiled_for(card: pytest.MonkeyPatch) -> None:
    card.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert not cuda.available(DEVICE)


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton may work here")
def test_a_triton_that_does_not_work_is_told_of(card: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    with pytest.warns(RuntimeWarning, match="kernels for cuda:0 are plain torch"):
        assert not cuda.available(DEVICE)


def test_the_memory_of_parts_is_a_share_of_the_rows() -> None:
    for d in (1, 200, 5000, 100_000, 3_000_000):
        for most in (0, 1, 7, cuda.PARTS):
            parts, span = cuda._parts(d, 256, most)
            assert 1 <= parts <= max(1, most)
            assert span % 256 == 0
            assert (parts - 1) * span < d <= parts * span
