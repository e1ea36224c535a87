"""What a rule needs beside its rows: little memory, no device of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from rule_table import ESTIMATORS, RULES, Row, describe
from torch import Tensor

import robust_agg as ra
from robust_agg import kernels, span
from robust_agg.aggregator import Coordinatewise, Weighted
from robust_agg.chain import Chain


def drawn(n: int, d: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize("row", RULES, ids=str)
def test_torch_s_default_device_does_not_matter(row: Row) -> None:
    rule, rows = row.make(), drawn(11, 300)
    expected = rule.explain(rows, generator=generator())
    with torch.device("meta"):
        found = rule.explain(rows, generator=torch.Generator("cpu").manual_seed(0))
    assert torch.equal(found.output, expected.output)
    assert torch.equal(found.distances, expected.distances)


@pytest.mark.parametrize("make", ESTIMATORS, ids=lambda make: describe(make))
def test_torch_s_default_device_does_not_matter_to_estimators(
    make: Callable[[], ra.OnlineMedian],
) -> None:
    rows = drawn(11, 6)
    results = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            estimator = make()
            state = estimator.init(rows[0])
            for _ in range(3):
                draw = torch.Generator("cpu").manual_seed(0)
                estimate, state = estimator.step(rows, state, generator=draw)
            results.append(estimate)
    assert torch.equal(*results)


def test_rows_that_are_equal_are_not_measured_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients of what is not in use: no digits are lost among zeros."""
    calls: list[torch.dtype] = []
    measure = kernels.centred_gram

    def counting(rows: Tensor, extra: Tensor | None = None) -> tuple[Tensor, Tensor]:
        calls.append(rows.dtype)
        return measure(rows, extra)

    monkeypatch.setattr(kernels, "centred_gram", counting)
    rows = drawn(9, 100)
    rows[:6] = rows[0]
    span.measure(rows)
    assert calls == [torch.float32]
    rows[:6] = rows[0] + 1e-30 * drawn(6, 100)
    rows[:, :50] = 1e-25 * drawn(9, 50)
    rows[:, 50:] = 0
    calls.clear()
    span.measure(rows)
    assert calls == [torch.float32, torch.float64]


def test_float64_is_used_for_some_columns_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = 1e-25 * drawn(7, 1000)
    whole, _ = span.measure(rows)
    monkeypatch.setattr(span, "_EXACT_NUMBERS", 700)
    parts, _ = span.measure(rows)
    torch.testing.assert_close(parts.deviations, whole.deviations, rtol=1e-12, atol=0)
    exact = rows.double() - rows.double().median(dim=0).values
    torch.testing.assert_close(parts.deviations, exact @ exact.T, rtol=1e-6, atol=0)


STATUS = Path("/proc/self/status")


@pytest.mark.skipif(not STATUS.exists(), reason="only Linux tells what a process holds")
@pytest.mark.parametrize("row", RULES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory(row: Row, dtype: torch.dtype) -> None:
    """The rest is the result, which is float32 inside, and buffers of a fixed size."""
    rule, rows = row.make(), long_rows(dtype)
    rule(rows, generator=generator())
    with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
        file.write("5")
    before = peak()
    rule(rows, generator=generator())
    share = (peak() - before) / (rows.numel() * rows.element_size())
    wide = 4 / rows.element_size()
    assert share <= 0.1 * wide + 0.04 + wide * needs_mixed_rows(rule)  # of 128 or 64 MB


@cache
def long_rows(dtype: torch.dtype) -> Tensor:
    return drawn(32, 1_000_000).to(dtype)


def needs_mixed_rows(rule: ra.Aggregator) -> bool:
    """Whether it is a chain that ends in a rule with a start of its own among the mixed rows."""
    return isinstance(rule, Chain) and not isinstance(rule.rule, Weighted | Coordinatewise)


def peak() -> int:
    lines = STATUS.read_text(encoding="ascii").splitlines()
    (line,) = (line for line in lines if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])
