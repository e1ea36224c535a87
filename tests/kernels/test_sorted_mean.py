"""`sorted_mean` against a float64 oracle, on every path, and bit for bit between the paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_paths import DTYPES, PATHS, draw, layouts, on_path, paths_and, same, sorted_mean_oracle
from torch import Tensor

from robust_agg import kernels
from robust_agg.kernels import reference, selection

SPECIAL = [float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 0.0, -0.0, 1e-41, -1e-41]
NEAR_LARGEST = {torch.float64: 1e308, torch.float16: 6e4}  # 3e38 for the rest


def assert_close(found: Tensor, rows: Tensor, start: int, stop: int) -> None:
    expected = sorted_mean_oracle(rows, start, stop)
    assert found.dtype == rows.dtype
    assert found.shape == rows.shape[1:]
    finite = np.isfinite(rows.double().numpy()).all(axis=0)
    # Every addition may round by half a unit of what is summed, the result by one of its own.
    size = np.abs(np.where(finite, rows.double().numpy(), 0.0)).max(axis=0)
    sums = torch.finfo(reference.compute_dtype(rows.dtype)).eps * (stop - start)
    slack = size * sums + np.abs(expected) * torch.finfo(rows.dtype).eps + 1e-45
    slack += float(torch.finfo(rows.dtype).smallest_normal) * torch.finfo(rows.dtype).eps
    wrong = ~np.isclose(found.double().numpy(), expected, rtol=0, atol=0, equal_nan=True)
    with np.errstate(invalid="ignore"):
        wrong &= ~(np.abs(found.double().numpy() - expected) <= slack)
    assert not wrong.any(), (found[wrong], expected[wrong])


def ranges(n: int) -> set[tuple[int, int]]:
    """The median, a trimmed mean, the extremes and the mean of n values."""
    return {((n - 1) // 2, n // 2 + 1), (n // 4, n - n // 4), (0, 1), (n - 1, n), (0, n)}


@pytest.mark.parametrize(
    ("path", "n"), paths_and([*range(1, 41), 63, 64, 65, 130, 330, 520, 2048, 2049])
)
def test_every_number_of_rows(path: str, n: int) -> None:
    rows = draw(n, 131, torch.float32, seed=n)
    with on_path(path):
        for start, stop in sorted(ranges(n))[:: 1 if n < 12 else 2]:
            assert_close(kernels.sorted_mean(rows, start, stop), rows, start, stop)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 2, 15, 16, 17, 333])
def test_every_dtype_and_odd_numbers_of_columns(path: str, dtype: torch.dtype, d: int) -> None:
    rows = draw(11, d, dtype, seed=d)
    with on_path(path):
        for start, stop in ranges(11):
            assert_close(kernels.sorted_mean(rows, start, stop), rows, start, stop)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", layouts())
def test_layouts_of_the_rows_in_memory(path: str, layout: str) -> None:
    rows = draw(9, 77, torch.float32)
    held = layouts()[layout](rows)
    before = held.clone()
    with on_path(path):
        found = kernels.sorted_mean(held, 2, 7)
        assert same(found, kernels.sorted_mean(rows, 2, 7))
    assert_close(found, rows, 2, 7)
    assert torch.equal(held, before)
    assert found.is_contiguous()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_constants_and_small_integers_are_exact(path: str, dtype: torch.dtype) -> None:
    integers = draw(12, 200, torch.float32).mul(3).round().to(dtype)
    constant = torch.full((12, 50), 0.1).to(dtype)
    with on_path(path):
        for start, stop in [(5, 7), (4, 8), (2, 10)]:
            expected = torch.from_numpy(sorted_mean_oracle(integers, start, stop))
            assert torch.equal(kernels.sorted_mean(integers, start, stop), expected.to(dtype))
        assert torch.equal(kernels.sorted_mean(constant, 5, 7), constant[0])
        assert torch.equal(kernels.sorted_mean(constant, 2, 10), constant[0])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_at_most_f_arbitrary_rows_leave_the_kept_range_finite(
    path: str, dtype: torch.dtype
) -> None:
    honest = draw(9, 100, dtype)
    f = 4
    for value in SPECIAL[:5]:
        rows = torch.cat([honest, torch.full((f, 100), value).to(dtype)])
        with on_path(path):
            for start, stop in [(f, 13 - f), (6, 7)]:
                found = kernels.sorted_mean(rows, start, stop)
                assert found.isfinite().all()
                assert (found >= honest.min(dim=0).values).all()
                assert (found <= honest.max(dim=0).values).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_of_finite_numbers_does_not_overflow(path: str, dtype: torch.dtype) -> None:
    large = NEAR_LARGEST.get(dtype, 3e38)
    signs = [[1.0, -1.0, 1.0]] * 5 + [[1.0, -1.0, -1.0]] * 3
    rows = torch.tensor(signs, dtype=dtype) * large
    with on_path(path):
        for start, stop in [(0, 8), (3, 5), (2, 7)]:
            found = kernels.sorted_mean(rows, start, stop)
            assert found.isfinite().all()
            assert_close(found, rows, start, stop)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_mean_of_the_largest_number_is_itself(path: str, dtype: torch.dtype) -> None:
    rows = torch.full((11, 40), torch.finfo(dtype).max, dtype=dtype)
    rows[:, ::2] *= -1
    with on_path(path):
        for start, stop in [(0, 11), (2, 9), (3, 6), (5, 6), (4, 6)]:
            assert torch.equal(kernels.sorted_mean(rows, start, stop), rows[0])


@pytest.mark.parametrize("path", PATHS)
def test_nan_is_ordered_as_plus_infinity(path: str) -> None:
    nan, inf = float("nan"), float("inf")
    rows = torch.tensor([[nan, nan, -inf, nan], [1.0, inf, nan, nan], [2.0, 3.0, inf, nan]])
    with on_path(path):
        assert kernels.sorted_mean(rows, 0, 1).tolist() == [1.0, 3.0, -inf, inf]
        assert kernels.sorted_mean(rows, 1, 2).tolist() == [2.0, inf, inf, inf]
        assert kernels.sorted_mean(rows, 2, 3).tolist() == [inf, inf, inf, inf]
        assert kernels.sorted_mean(rows, 0, 2)[:2].tolist() == [1.5, inf]
        assert kernels.sorted_mean(rows, 0, 2)[2].isnan()  # -Inf and +Inf both kept


@pytest.mark.parametrize("path", PATHS)
def test_zeros_are_positive(path: str) -> None:
    rows = torch.tensor([[-0.0, -0.0, 0.0], [0.0, -0.0, -0.0], [-0.0, -0.0, -0.0]])
    with on_path(path):
        for start, stop in ranges(3):
            assert not kernels.sorted_mean(rows, start, stop).signbit().any()


@st.composite
def special_rows(draw_: st.DrawFn) -> tuple[Tensor, int, int]:
    n = draw_(st.integers(1, 12))
    d = draw_(st.integers(1, 40))
    dtype = draw_(st.sampled_from(DTYPES))
    rows = draw(n, d, torch.float32, seed=draw_(st.integers(0, 1000)))
    if draw_(st.booleans()):
        rows = rows.round()
    for _ in range(draw_(st.integers(0, 8))):
        i, j = draw_(st.integers(0, n - 1)), draw_(st.integers(0, d - 1))
        rows[i, j] = draw_(st.sampled_from(SPECIAL))
    start = draw_(st.integers(0, n - 1))
    return rows.to(dtype), start, draw_(st.integers(start + 1, n))


@settings(max_examples=60)
@given(case=special_rows())
def test_all_paths_agree_bit_for_bit(case: tuple[Tensor, int, int]) -> None:
    rows, start, stop = case
    before = rows.clone()
    with on_path("reference"):
        expected = kernels.sorted_mean(rows, start, stop)
    for path in PATHS[1:]:
        with on_path(path):
            found = kernels.sorted_mean(rows, start, stop)
        assert same(found, expected), path
        assert torch.equal(found.signbit() & ~found.isnan(), expected.signbit() & ~found.isnan())
    assert same(rows, before)


def test_compiling_after_some_calls_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = draw(7, 1000, torch.float32)
    monkeypatch.setattr(selection, "COMPILE_AFTER", 3 * rows.numel() / len(rows) ** 2)
    monkeypatch.setattr(selection, "_seen", type(selection._seen)())
    found = [kernels.sorted_mean(rows, 1, 6) for _ in range(5)]
    assert all(same(one, found[0]) for one in found)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (2, 2), (3, 2), (0, 6), (5, 6)], ids=str)
def test_ranges_outside_the_rows_are_refused(start: int, stop: int) -> None:
    message = rf"sorted_mean: 0 <= start < stop <= n is required, found start={start}, stop={stop}"
    with pytest.raises(ValueError, match=message):
        kernels.sorted_mean(torch.zeros(5, 3), start, stop)


@pytest.mark.parametrize(
    "rows",
    [torch.zeros(3), torch.zeros(0, 3), torch.zeros(3, 0), torch.zeros(2, 3, dtype=torch.int64)],
    ids=["a vector", "no rows", "no columns", "integers"],
)
def test_rows_that_are_no_float_matrix_are_refused(rows: Tensor) -> None:
    with pytest.raises(ValueError, match=r"sorted_mean: rows must be a dense float matrix"):
        kernels.sorted_mean(rows, 0, 1)
