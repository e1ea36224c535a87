"""Order statistics of linear combinations of rows, on every path, against float64."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_paths import (
    DTYPES,
    PATHS,
    draw,
    layouts,
    mean_around_oracle,
    on_path,
    sorted_mean_oracle,
)
from torch import Tensor

from robust_agg import kernels
from robust_agg.kernels import blocks, cpu, reference
from robust_agg.kernels.reference import OrderMean, compute_dtype


def oracle(
    rows: Tensor, coefficients: Tensor, start: int, stop: int, far: int | None
) -> np.ndarray:
    read = coefficients.ne(0).any(dim=0)
    mixed = coefficients[:, read] @ rows.double()[read]
    if far is None:
        return sorted_mean_oracle(mixed, start, stop)
    return mean_around_oracle(mixed, start, stop, far)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_shapes(path: str, dtype: torch.dtype, data: st.DataObject) -> None:
    n, m = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    d = data.draw(st.integers(1, 600))
    start = data.draw(st.integers(0, m - 1))
    stop = data.draw(st.integers(start + 1, m))
    # The mean around a centre jumps where two values are as far from it: not for rounded rows.
    far = data.draw(st.none() | st.just(0))
    rows = draw(n, d, dtype, seed=n)
    coefficients = draw(m, n, torch.float64, seed=d)
    before = rows.clone()
    with on_path(path):
        found = kernels.mixed_order_mean(rows, coefficients, start, stop, far)
    assert found.dtype == compute_dtype(dtype)
    assert found.shape == (d,)
    size = coefficients.abs().sum(dim=1).max().item() * rows.abs().max().item()
    error = np.abs(found.double().numpy() - oracle(rows, coefficients, start, stop, far)).max()
    assert error <= 8 * torch.finfo(found.dtype).eps * size
    assert torch.equal(rows, before)


@pytest.mark.parametrize("path", PATHS)
def test_the_mean_around_a_centre_of_whole_numbers(path: str) -> None:
    g = torch.Generator().manual_seed(0)
    rows = torch.randint(-9, 10, (9, 500), generator=g).float()
    coefficients = torch.randint(-2, 3, (13, 9), generator=g).double()
    with on_path(path):
        found = kernels.mixed_order_mean(rows, coefficients, 6, 7, 4)
    np.testing.assert_allclose(
        found.numpy(), oracle(rows, coefficients, 6, 7, 4), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("m", [5, 70, 150])
def test_it_is_what_the_two_give_one_after_the_other(path: str, m: int) -> None:
    """To the bit where both are compiled, so that it may depend on what is compiled already."""
    d = 301 if path == "triton" else 3001  # its interpreter is slow
    rows, coefficients = draw(40, d, torch.float32), draw(m, 40, torch.float64, seed=1)
    with on_path(path):
        found = kernels.mixed_order_mean(rows, coefficients, 1, m - 1)
        mixed = kernels.mix(rows, coefficients)
        expected = kernels.sorted_mean(mixed, 1, m - 1)
    if path == "reference":  # a matrix product of other columns may round otherwise
        torch.testing.assert_close(found, expected)
    else:
        assert torch.equal(found, expected)


def test_rounding_does_not_depend_on_what_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, coefficients = draw(12, 9001, torch.float32), draw(12, 12, torch.float64, seed=1)
    with on_path("compiled"):
        compiled = kernels.mixed_order_mean(rows, coefficients, 2, 10)
        monkeypatch.setattr(cpu.selection, "order_mean", lambda *arguments: None)
        assert torch.equal(kernels.mixed_order_mean(rows, coefficients, 2, 10), compiled)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", layouts())
def test_layouts_in_memory(path: str, layout: str) -> None:
    rows = draw(5, 700, torch.float32)
    coefficients = draw(6, 5, torch.float64, seed=1)
    with on_path(path):
        found = kernels.mixed_order_mean(layouts()[layout](rows), coefficients, 2, 4)
    np.testing.assert_allclose(found.numpy(), oracle(rows, coefficients, 2, 4, None), atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38])
def test_rows_that_nothing_is_made_of_are_not_read(path: str, value: float) -> None:
    rows = draw(7, 300, torch.float32)
    coefficients = draw(5, 7, torch.float64)
    coefficients[:, [0, 4]] = 0.0
    expected = oracle(rows, coefficients, 1, 4, None)
    rows[[0, 4]] = value
    with on_path(path):
        found = kernels.mixed_order_mean(rows, coefficients, 1, 4)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
def test_a_row_made_with_nan_is_ordered_as_infinity(path: str) -> None:
    rows, coefficients = draw(6, 500, torch.float32), draw(5, 6, torch.float64, seed=1)
    expected = oracle(rows, coefficients[1:], 0, 4, None)
    coefficients[0] = torch.nan
    with on_path(path):
        found = kernels.mixed_order_mean(rows, coefficients, 0, 4)
        largest = kernels.mixed_order_mean(rows, coefficients, 4, 5)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
    assert bool(largest.isposinf().all())


@pytest.mark.parametrize("cached", [1, 1 << 14])
def test_columns_of_many_caches_and_tasks(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "TASK_NUMBERS", 1 << 12)
    monkeypatch.setattr(cpu, "MIXED_NUMBERS", cached)
    rows, coefficients = draw(11, 7003, torch.float32), draw(10, 11, torch.float64, seed=1)
    with on_path("compiled"):
        found = kernels.mixed_order_mean(rows, coefficients, 3, 7)
    np.testing.assert_allclose(found.numpy(), oracle(rows, coefficients, 3, 7, None), atol=1e-5)


def test_no_more_than_a_chunk_of_mixed_rows_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, coefficients = draw(11, 7003, torch.float32), draw(10, 11, torch.float64, seed=1)
    sizes = []

    def watched(rows: Tensor, coefficients: Tensor) -> Tensor:
        mixed = reference.mix(rows, coefficients)
        sizes.append(mixed.numel())
        return mixed

    monkeypatch.setattr(reference, "CPU_CHUNK_NUMBERS", 1 << 12)
    reference.mixed_order_mean(rows, coefficients, OrderMean(2, 5), mix=watched)
    assert max(sizes) <= 1 << 12
    assert sum(sizes) == 10 * 7003


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("n", "d"), [(32, 400_000), (300, 60_000), (2000, 9000)])
def test_tasks_have_little_memory_of_their_own(
    dtype: torch.dtype, n: int, d: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = draw(n, d, dtype)
    taken, tasks = [], blocks.tasks

    def watched(together: Sequence[blocks.Block], unit: int, *, each: int = 0) -> blocks.Tasks:
        found = tasks(together, unit, each=each)
        taken.append(each * len(found))
        assert sum(found.widths) == sum(block.rows.shape[1] for block in together)
        return found

    monkeypatch.setattr(blocks, "tasks", watched)
    with on_path("compiled"):
        kernels.mixed_order_mean(rows, torch.eye(n, dtype=torch.float64), n // 4, n - n // 4)
        kernels.sorted_mean(rows, n // 4, n - n // 4)
        if n < cpu.LARGEST_GRAM:
            kernels.centred_gram(rows)
    assert max(taken) > 0
    assert max(taken) <= max(blocks.LEAST_SCRATCH, rows.numel() * rows.element_size() // 20)


@pytest.mark.parametrize(
    ("start", "stop", "far"), [(-1, 2, None), (2, 2, None), (0, 6, None), (2, 3, 5), (2, 3, -1)]
)
def test_what_cannot_be_is_refused(start: int, stop: int, far: int | None) -> None:
    rows, coefficients = draw(4, 10, torch.float32), draw(5, 4, torch.float64)
    with pytest.raises(ValueError, match=f"found start={start}, stop={stop}, far={far}, m=5"):
        kernels.mixed_order_mean(rows, coefficients, start, stop, far)
    with pytest.raises(ValueError, match=r"coefficients must be \(m, 4\), found \(4, 5\)"):
        kernels.mixed_order_mean(rows, coefficients.T, 0, 1)
