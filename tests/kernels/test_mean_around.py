"""`mean_around` against a float64 oracle, on every path, and bit for bit between the paths."""

from __future__ import annotations

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
    paths_and,
    same,
)

from robust_agg import kernels

BAD = [float("nan"), float("inf"), -float("inf"), 3e38, -3e38]
SPECIAL = [*BAD, 0.0, -0.0, 1e-41, -1e-41, 1.0, 2.0]


def centres(n: int, far: int) -> set[tuple[int, int]]:
    """The median and the trimmed mean."""
    median = ((n - 1) // 2, n // 2 + 1)
    return {median, (far, n - far)} if 2 * far < n else {median}


@pytest.mark.parametrize(("path", "n"), paths_and([*range(1, 34), 63, 64, 65, 100, 321]))
def test_every_number_of_rows(path: str, n: int) -> None:
    rows = draw(n, 131, torch.float32, seed=n)
    with on_path(path):
        # Not one of an even number, whose middle two are as near to their midpoint.
        for far in {0, n // 4, (n - 1) // 2, n // 2, 2 * n // 3, n - 2, n - 1}:
            if far < 0 or (far == n - 1 and n % 2 == 0):
                continue
            for start, stop in centres(n, far):
                found = kernels.mean_around(rows, start, stop, far)
                expected = mean_around_oracle(rows, start, stop, far)
                np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=4e-7 * n)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 2, 15, 16, 17, 333])
def test_every_dtype_and_odd_numbers_of_columns(path: str, dtype: torch.dtype, d: int) -> None:
    """Small integers, in which centres, distances and ties are exact."""
    rows = draw(12, d, torch.float32, seed=d).mul(3).round().to(dtype)
    with on_path(path):
        for far in (0, 2, 4, 5, 6, 9, 11):
            expected = mean_around_oracle(rows, 5, 7, far)
            found = kernels.mean_around(rows, 5, 7, far)
            assert found.dtype == dtype
            error = np.abs(found.double().numpy() - expected)
            assert (error <= np.abs(expected) * 2 * torch.finfo(dtype).eps).all()


@pytest.mark.parametrize("path", PATHS)
def test_of_two_as_far_the_lower_is_kept(path: str) -> None:
    rows = torch.tensor([[-2.0], [0.0], [0.0], [2.0], [1.0]])
    with on_path(path):
        assert kernels.mean_around(rows, 2, 3, 1).tolist() == [-0.25]
        assert kernels.mean_around(-rows, 2, 3, 1).tolist() == [-0.75]
        # Of six as far, half of them below.
        three = torch.tensor([[-1.0], [-1.0], [-1.0], [1.0], [1.0], [1.0]])
        for far, mean in enumerate([0.0, -0.2, -0.5, -1.0, -1.0, -1.0]):
            assert kernels.mean_around(three, 2, 4, far).item() == pytest.approx(mean)


@pytest.mark.parametrize("path", PATHS)
def test_distances_of_denormals_are_exact(path: str) -> None:
    """Half of an odd one would be rounded."""
    least = 2.0**-149
    rows = torch.tensor([[1.0], [3.0], [6.0]]).mul(least)
    with on_path(path):
        assert kernels.mean_around(rows, 1, 2, 1).tolist() == [2 * least]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", layouts())
def test_layouts_of_the_rows_in_memory(path: str, layout: str) -> None:
    rows = draw(9, 77, torch.float32)
    held = layouts()[layout](rows)
    before = held.clone()
    with on_path(path):
        assert same(kernels.mean_around(held, 4, 5, 3), kernels.mean_around(rows, 4, 5, 3))
    assert torch.equal(held, before)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", BAD)
def test_at_most_f_arbitrary_rows_are_left_out(path: str, dtype: torch.dtype, value: float) -> None:
    honest, f = draw(9, 100, dtype), 4
    for opposite in (value, -value):
        bad = torch.full((f, 100), value).to(dtype)
        bad[: f // 2] = opposite
        rows = torch.cat([honest, bad])
        with on_path(path):
            for start, stop in centres(13, f):
                found = kernels.mean_around(rows, start, stop, f)
                assert (found >= honest.min(dim=0).values).all()
                assert (found <= honest.max(dim=0).values).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_constants_and_the_largest_numbers_are_themselves(path: str, dtype: torch.dtype) -> None:
    largest = torch.finfo(dtype).max
    with on_path(path):
        for value in (0.1, largest, -largest):
            rows = torch.full((11, 40), value, dtype=dtype)
            assert torch.equal(kernels.mean_around(rows, 5, 6, 3), rows[0])
            rows[:3] = -value
            assert torch.equal(kernels.mean_around(rows, 5, 6, 3), rows[-1])


@pytest.mark.parametrize("path", PATHS[1:])
@settings(max_examples=60)
@given(data=st.data(), n=st.integers(1, 20), d=st.integers(1, 40))
def test_every_path_rounds_alike(path: str, data: st.DataObject, n: int, d: int) -> None:
    numbers = st.one_of(st.sampled_from(SPECIAL), st.floats(-10, 10, width=32))
    seed = data.draw(st.integers(0, 2**31))
    rows = draw(n, d, torch.float32, seed=seed)
    for _ in range(data.draw(st.integers(0, 12))):
        i, j = data.draw(st.integers(0, n - 1)), data.draw(st.integers(0, d - 1))
        rows[i, j] = data.draw(numbers)
    far = data.draw(st.integers(0, n - 1))
    for start, stop in centres(n, far):
        with on_path("reference"):
            expected = kernels.mean_around(rows, start, stop, far)
        with on_path(path):
            assert same(kernels.mean_around(rows, start, stop, far), expected)


@pytest.mark.parametrize(
    ("start", "stop", "far"), [(0, 0, 0), (2, 1, 0), (-1, 2, 0), (0, 6, 0), (2, 3, -1), (2, 3, 5)]
)
def test_ranges_are_checked(start: int, stop: int, far: int) -> None:
    message = rf"0 <= far < n are required, found start={start}, stop={stop}, far={far}, n=5"
    with pytest.raises(ValueError, match=message):
        kernels.mean_around(torch.zeros(5, 3), start, stop, far)
