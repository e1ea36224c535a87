"""`pulled_median` against a float64 oracle, and bit for bit between the paths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_paths import DTYPES, PATHS, draw, layouts, on_path, paths_and, same
from torch import Tensor

from robust_agg import kernels
from robust_agg.kernels.reference import compute_dtype

SPECIAL = [float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 0.0, -0.0, 1e-41]


def oracle(rows: Tensor, point: Tensor, tau: float) -> np.ndarray:
    n = len(rows)
    pulled = [point.double().numpy() + tau * (n - 2 * k) / n for k in range(n + 1)]
    values = rows.double().numpy()
    values = np.concatenate([np.where(np.isnan(values), np.inf, values), pulled])
    return np.asarray(np.sort(values, axis=0)[n])


@pytest.mark.parametrize(("path", "n"), paths_and([*range(1, 20), 31, 32, 33, 64, 65, 330]))
def test_every_number_of_rows(path: str, n: int) -> None:
    rows, point = draw(n, 131, torch.float32, seed=n), draw(1, 131, torch.float32)[0]
    with on_path(path):
        for tau in (0.01, 0.7, 100.0):
            found = kernels.pulled_median(rows, point, tau)
            np.testing.assert_allclose(found.numpy(), oracle(rows, point, tau), atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 2, 15, 16, 17, 333])
def test_every_dtype_and_odd_numbers_of_columns(path: str, dtype: torch.dtype, d: int) -> None:
    rows = draw(7, d, dtype, seed=d)
    for wide in (compute_dtype(dtype), torch.float64):
        point = draw(1, d, wide, seed=1)[0]
        with on_path(path):
            found = kernels.pulled_median(rows, point, 0.5)
        assert found.dtype == wide
        assert found.shape == (d,)
        np.testing.assert_allclose(found.double().numpy(), oracle(rows, point, 0.5), atol=1e-6)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", layouts())
def test_layouts_in_memory(path: str, layout: str) -> None:
    rows, points = draw(9, 77, torch.float32), draw(3, 77, torch.float32, seed=1)
    held, point = layouts()[layout](rows), layouts()[layout](points)[1]
    before = held.clone(), point.clone()
    with on_path(path):
        found = kernels.pulled_median(held, point, 0.3)
        assert same(found, kernels.pulled_median(rows, points[1], 0.3))
    assert torch.equal(held, before[0])
    assert torch.equal(point, before[1])


@pytest.mark.parametrize("path", PATHS[1:])
@settings(max_examples=60)
@given(data=st.data(), n=st.integers(1, 20), d=st.integers(1, 40))
def test_every_path_finds_the_same_number(path: str, data: st.DataObject, n: int, d: int) -> None:
    seed = data.draw(st.integers(0, 2**31))
    drawn = draw(n + 1, d, torch.float32, seed=seed).mul(data.draw(st.sampled_from([1, 3])))
    rows, point = drawn[:-1], drawn[-1]
    for _ in range(data.draw(st.integers(0, 12))):
        i, j = data.draw(st.integers(0, n)), data.draw(st.integers(0, d - 1))
        drawn[i, j] = data.draw(st.sampled_from(SPECIAL))
    tau = data.draw(st.sampled_from([1e-3, 0.5, 2.0, 1e6]))
    with on_path("reference"):
        expected = kernels.pulled_median(rows, point, tau)
    with on_path(path):
        assert same(kernels.pulled_median(rows, point, tau), expected)


@pytest.mark.parametrize("tau", [0.0, -1.0, float("nan")])
def test_tau_is_checked(tau: float) -> None:
    with pytest.raises(
        ValueError, match=rf"pulled_median: tau must be positive and finite, found {tau}"
    ):
        kernels.pulled_median(torch.zeros(5, 3), torch.zeros(3), tau)
