"""All kernels but `sorted_mean` against float64 oracles, on every path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kernel_paths import (
    DTYPES,
    PATHS,
    centred_gram_oracle,
    combine_oracle,
    draw,
    layouts,
    on_path,
)
from torch import Tensor

from robust_agg import kernels, span
from robust_agg.kernels.reference import compute_dtype

BAD = [float("nan"), float("inf"), -float("inf"), 3e38, -3e38]


def assert_gram(rows: Tensor, extra: Tensor | None = None) -> None:
    centre, gram = kernels.centred_gram(rows, extra)
    expected_centre, expected = centred_gram_oracle(rows, extra)
    dtype = compute_dtype(rows.dtype)
    eps = torch.finfo(dtype).eps
    assert centre.dtype == dtype
    assert centre.shape == rows.shape[1:]
    assert gram.dtype == torch.float64
    assert gram.shape == expected.shape
    assert torch.equal(gram, gram.T)
    np.testing.assert_allclose(centre.double().numpy(), expected_centre, rtol=2 * eps, atol=1e-45)
    norms = np.sqrt(np.diag(expected))
    error = np.abs(gram.numpy() - expected) / (norms[:, None] * norms + 1e-300)
    assert error.max() <= span._precision(dtype)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("n", [*range(1, 41, 3), 8, 32, 63, 64, 65, 130, 260, 1023, 1024])
def test_gram_of_every_number_of_rows(path: str, n: int) -> None:
    with on_path(path):
        assert_gram(draw(n, 301, torch.float32, seed=n))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 7, 16, 1023, 1041, 2500])
def test_gram_of_every_dtype_and_odd_numbers_of_columns(
    path: str, dtype: torch.dtype, d: int
) -> None:
    with on_path(path):
        assert_gram(draw(6, d, dtype, seed=d), draw(2, d, dtype, seed=d + 1))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [0.1, 3e4])
def test_gram_of_constant_rows(path: str, dtype: torch.dtype, value: float) -> None:
    """Sums of equal numbers, whose roundings all go the same way."""
    rows = torch.full((9, 3300), value, dtype=dtype)
    rows[0] += rows[0, 0] / 3
    with on_path(path):
        assert_gram(rows, rows[:2] / 7)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", layouts())
def test_gram_of_layouts_in_memory(path: str, layout: str) -> None:
    held, extra = (layouts()[layout](draw(n, 1100, torch.float32, seed=n)) for n in (5, 3))
    before = held.clone()
    with on_path(path):
        assert_gram(held, extra)
    assert torch.equal(held, before)


@pytest.mark.parametrize("path", PATHS)
def test_gram_of_extra_rows_in_another_precision(path: str) -> None:
    with on_path(path):
        assert_gram(draw(5, 400, torch.bfloat16), draw(1, 400, torch.float32, seed=1))
        assert_gram(draw(5, 400, torch.float32), draw(0, 400, torch.float32))


@pytest.mark.parametrize("path", PATHS)
def test_distances_between_rows_far_from_the_origin(path: str) -> None:
    rows = 1e4 + draw(9, 3000, torch.float32)
    with on_path(path):
        _, gram = kernels.centred_gram(rows)
    norms = gram.diag()[1:]
    squares = norms[:, None] + norms - 2 * gram[1:, 1:]
    exact = torch.cdist(rows.double(), rows.double()).square()
    off = ~torch.eye(9, dtype=torch.bool)
    torch.testing.assert_close(squares[off], exact[off], rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("spread", ["one number", "a whole row"])
def test_a_row_that_cannot_be_measured_touches_no_other(
    path: str, value: float, spread: str
) -> None:
    rows = draw(9, 1500, torch.float32)
    bad = [2, 7]
    good = [i for i in range(9) if i not in bad]
    with on_path(path):
        for i in bad:
            rows[i, 1234 if spread == "one number" else slice(None)] = value
        centre, gram = kernels.centred_gram(rows)
        assert centre.isfinite().all()
        assert not gram.diag()[[1 + i for i in bad]].isfinite().any()
        expected = (rows[good] - centre).double() @ (rows[good] - centre).double().T
        keep = [1 + i for i in good]
        found = gram[keep][:, keep]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-3)
        assert gram[0, keep].isfinite().all()


@pytest.mark.parametrize("path", PATHS)
def test_a_median_that_is_not_finite_becomes_zero(path: str) -> None:
    rows = draw(4, 40, torch.float32)
    rows[:3, 17] = torch.tensor([float("nan"), float("inf"), float("inf")])
    rows[:3, 18] = -float("inf")
    with on_path(path):
        centre, gram = kernels.centred_gram(rows)
    assert centre[17:19].tolist() == [0.0, 0.0]
    assert centre.isfinite().all()
    assert gram[[0, 4]][:, [0, 4]].isfinite().all()


@pytest.mark.parametrize("path", PATHS)
def test_settings_that_round_products_reach_no_product_of_matrices(path: str) -> None:
    before = torch.get_float32_matmul_precision()
    rows = draw(33, 4096, torch.float32)
    coefficients = torch.full((20, 33), 1 / 33, dtype=torch.float64)
    try:
        torch.set_float32_matmul_precision("medium")
        with on_path(path):
            assert_gram(rows)
            mixed = kernels.mix(rows, coefficients)
            fused = kernels.combine(rows, coefficients[0])
        expected = rows.double().mean(dim=0).float().expand(20, -1)
        torch.testing.assert_close(mixed, expected, rtol=0.0, atol=1e-6)
        torch.testing.assert_close(fused, expected[0], rtol=0.0, atol=1e-6)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("d", [1, 16, 2047, 4100])
def test_row_distances(path: str, dtype: torch.dtype, d: int) -> None:
    rows = draw(7, d, dtype, seed=d)
    for point_dtype in (torch.float32, torch.float64, dtype):
        point = draw(1, d, point_dtype, seed=d + 1)[0]
        expected = (rows.double() - point.double()).norm(dim=1)
        with on_path(path):
            found = kernels.row_distances(rows, point)
        assert found.dtype == torch.float64
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", layouts())
def test_row_distances_of_layouts_in_memory(path: str, layout: str) -> None:
    held = layouts()[layout](draw(5, 333, torch.float32))
    point = layouts()[layout](draw(2, 333, torch.float32, seed=1))[1]
    expected = (held.double() - point.double()).norm(dim=1)
    with on_path(path):
        torch.testing.assert_close(kernels.row_distances(held, point), expected)


@pytest.mark.parametrize("path", PATHS)
def test_row_distances_of_extreme_rows(path: str) -> None:
    rows = torch.zeros(6, 50)
    rows[:5, 33] = torch.tensor(BAD)
    with on_path(path):
        found = kernels.row_distances(rows, torch.zeros(50))
    assert found[0].isnan()
    assert found[1:3].tolist() == [float("inf")] * 2
    torch.testing.assert_close(found[3:5], torch.tensor([3e38, 3e38]).double())
    assert found[5] == 0.0


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 9, 40])
@pytest.mark.parametrize("d", [1, 64, 1000])
def test_combine(path: str, dtype: torch.dtype, n: int, d: int) -> None:
    rows = draw(n, d, dtype, seed=n)
    weights = draw(1, n, torch.float64, seed=d)[0]
    with on_path(path):
        for base in (None, draw(1, d, torch.float32, seed=3)[0]):
            for out_dtype in (None, torch.float32, torch.float64):
                found = kernels.combine(rows, weights, base, dtype=out_dtype)
                assert found.dtype == (out_dtype or dtype)
                assert found.shape == (d,)
                expected = combine_oracle(rows, weights, base)
                eps = max(torch.finfo(found.dtype).eps, torch.finfo(compute_dtype(rows.dtype)).eps)
                size = weights.abs().sum().item() * rows.abs().max().item() + 4 * (
                    1 + weights.abs().sum().item()
                )
                assert np.abs(found.double().numpy() - expected).max() <= 2 * eps * size


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_combine_does_not_read_rows_of_weight_zero(path: str, dtype: torch.dtype) -> None:
    rows = draw(7, 300, dtype)
    weights = torch.tensor([0.5, 0.0, 0.25, 0.0, 0.0, 0.25, 0.0], dtype=torch.float64)
    expected = combine_oracle(rows, weights, None)
    for value in BAD[:3]:
        rows[weights == 0] = value
        with on_path(path):
            found = kernels.combine(rows, weights)
        np.testing.assert_allclose(
            found.double().numpy(), expected, rtol=0, atol=4 * torch.finfo(dtype).eps
        )


@pytest.mark.parametrize("path", PATHS)
def test_combine_without_any_row(path: str) -> None:
    rows = torch.full((3, 70), float("nan"))
    base = draw(1, 70, torch.float32)[0]
    weights = torch.zeros(3, dtype=torch.float64)
    with on_path(path):
        assert torch.equal(kernels.combine(rows, weights), torch.zeros(70))
        assert torch.equal(kernels.combine(rows, weights, base), base)


@pytest.mark.parametrize("path", PATHS)
def test_a_small_step_from_the_base_is_not_rounded_away(path: str) -> None:
    base = draw(1, 500, torch.float32)[0]
    weights = torch.full((4,), 1e-8, dtype=torch.float64)
    with on_path(path):
        assert torch.equal(kernels.combine(base.repeat(4, 1), weights, base), base)


@pytest.mark.parametrize("path", PATHS)
def test_a_base_of_weight_zero_is_not_read(path: str) -> None:
    rows = draw(3, 100, torch.float32)
    weights = torch.tensor([0.3, 0.3, 0.4], dtype=torch.float64)
    base = torch.full((100,), float("nan"))
    with on_path(path):
        assert torch.equal(
            kernels.combine(rows, weights, base), kernels.combine(rows, weights, None)
        )


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", layouts())
def test_combine_of_layouts_in_memory(path: str, layout: str) -> None:
    rows = draw(5, 700, torch.float32)
    held = layouts()[layout](rows)
    weights = torch.tensor([0.1, 0.0, 0.5, 0.2, 0.4], dtype=torch.float64)
    before = held.clone()
    with on_path(path):
        found = kernels.combine(held, weights)
    np.testing.assert_allclose(found.numpy(), combine_oracle(rows, weights, None), atol=1e-6)
    assert torch.equal(held, before)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("dtype", "layout"),
    # Torch has no complex numbers of bfloat16.
    [(t, k) for t in DTYPES for k in layouts() if (t, k) != (torch.bfloat16, "negated on reading")],
)
@pytest.mark.parametrize(("n", "d"), [(1, 1), (2, 64), (9, 1000), (40, 333)])
def test_mean(path: str, dtype: torch.dtype, layout: str, n: int, d: int) -> None:
    rows = draw(n, d, dtype, seed=n)
    held = layouts()[layout](rows)
    with on_path(path):
        found, largest = kernels.mean(held)
        weights = torch.full((n,), 1 / n, dtype=torch.float64)
        assert torch.equal(found, kernels.combine(held, weights))
    assert found.dtype == dtype
    assert largest == float(rows.abs().max())


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
def test_mean_sees_what_is_not_finite(path: str, dtype: torch.dtype, value: float) -> None:
    rows = draw(7, 300, dtype)
    with on_path(path):
        assert kernels.mean(rows)[1] < 10
        for place in ((0, 0), (6, 299), (3, 150)):
            bad = rows.clone()
            bad[place] = value
            assert kernels.mean(bad)[1] == torch.inf


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("n", [1, 5])
def test_mean_of_the_smallest_and_the_largest(path: str, n: int) -> None:
    for value in (0.0, -0.0, 1e-45, -1e-45, 3.4e38, -3.4e38):
        with on_path(path):
            largest = kernels.mean(torch.full((n, 200), value))[1]
        assert largest == abs(float(torch.tensor(value)))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 9, 40])
@pytest.mark.parametrize("m", [1, 4, 7])
@pytest.mark.parametrize("d", [1, 64, 1000])
def test_mix(path: str, dtype: torch.dtype, n: int, m: int, d: int) -> None:
    rows = draw(n, d, dtype, seed=n)
    coefficients = draw(m, n, torch.float64, seed=d)
    coefficients[:, ::3] = 0.0
    before = rows.clone()
    with on_path(path):
        found = kernels.mix(rows, coefficients)
    assert found.dtype == compute_dtype(dtype)
    assert found.shape == (m, d)
    expected = coefficients.numpy() @ rows.double().numpy()
    size = coefficients.abs().sum(dim=1).max().item() * rows.abs().max().item()
    assert (
        np.abs(found.double().numpy() - expected).max() <= 2 * torch.finfo(found.dtype).eps * size
    )
    assert torch.equal(rows, before)


@pytest.mark.parametrize("path", PATHS)
def test_coefficients_that_are_negated_on_reading(path: str) -> None:
    rows = draw(5, 700, torch.float32)
    plain = draw(3, 5, torch.float64, seed=1)
    negated = torch.complex(plain, -plain).conj().imag
    assert negated.is_neg()
    with on_path(path):
        for found, expected in (
            (kernels.combine(rows, negated[0]), kernels.combine(rows, plain[0])),
            (kernels.mix(rows, negated), kernels.mix(rows, plain)),
            (
                kernels.mixed_order_mean(rows, negated, 1, 2),
                kernels.mixed_order_mean(rows, plain, 1, 2),
            ),
        ):
            assert torch.equal(found, expected)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("layout", layouts())
def test_mix_of_layouts_in_memory(path: str, layout: str) -> None:
    rows = draw(5, 700, torch.float32)
    coefficients = draw(3, 5, torch.float64, seed=1)
    with on_path(path):
        found = kernels.mix(layouts()[layout](rows), coefficients)
    np.testing.assert_allclose(found.numpy(), coefficients.numpy() @ rows.numpy(), atol=1e-5)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("value", BAD)
def test_mix_does_not_read_rows_that_nothing_is_made_of(path: str, value: float) -> None:
    rows = draw(7, 300, torch.float32)
    coefficients = draw(4, 7, torch.float64)
    coefficients[:, [0, 4]] = 0.0
    expected = coefficients.numpy() @ rows.double().numpy()
    rows[[0, 4]] = value
    with on_path(path):
        np.testing.assert_allclose(kernels.mix(rows, coefficients).numpy(), expected, atol=1e-5)
        assert torch.equal(kernels.mix(rows, torch.zeros(2, 7)), torch.zeros(2, 300))


@pytest.mark.parametrize("path", PATHS)
def test_a_row_too_large_to_add_hurts_only_what_is_made_of_it(path: str) -> None:
    rows = draw(6, 900, torch.float32)
    rows[5] = 3e38
    coefficients = torch.eye(6, dtype=torch.float64)
    coefficients[0, 1] = 1.0
    with on_path(path):
        found = kernels.mix(rows, coefficients)
    expected = coefficients[:5, :5].float() @ rows[:5]
    torch.testing.assert_close(found[:5], expected)
    assert torch.equal(found[5], rows[5])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_gram_about_the_origin_is_in_float64(path: str, dtype: torch.dtype) -> None:
    rows = draw(7, 3000, dtype)
    rows[3] *= 1e-4
    rows[:, 17] *= 1e4
    bad = draw(1, 3000, dtype)
    bad[0, 5] = float("nan")
    with on_path(path):
        found = kernels.gram(torch.cat([rows, bad]))
    wide = rows.double().numpy()
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found[:7, :7].numpy(), wide @ wide.T, rtol=1e-12, atol=1e-12)
    assert not found[7].isfinite().any()
    assert not found[:, 7].isfinite().any()


def test_shapes_and_devices_that_do_not_fit_are_refused() -> None:
    rows, weights = torch.zeros(4, 3), torch.ones(4, dtype=torch.float64)
    elsewhere = torch.zeros(3, device="meta")
    with pytest.raises(ValueError, match=r"centred_gram: extra must be \(e, 3\), found \(2, 4\)"):
        kernels.centred_gram(rows, torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"centred_gram: extra must be \(e, 3\), found \(3,\)"):
        kernels.centred_gram(rows, torch.zeros(3))
    with pytest.raises(ValueError, match=r"row_distances: point must have shape \(3,\)"):
        kernels.row_distances(rows, torch.zeros(4))
    with pytest.raises(ValueError, match=r"combine: weights must have shape \(4,\)"):
        kernels.combine(rows, weights[:3])
    with pytest.raises(ValueError, match=r"combine: base must have shape \(3,\)"):
        kernels.combine(rows, weights, torch.zeros(4))
    with pytest.raises(ValueError, match=r"mix: coefficients must be \(m, 4\), found \(4, 3\)"):
        kernels.mix(rows, torch.ones(4, 3))
    with pytest.raises(ValueError, match=r"mix: coefficients must be \(m, 4\), found \(4,\)"):
        kernels.mix(rows, weights)
    with pytest.raises(ValueError, match=r"gram: rows must be a dense float matrix \(n, d\)"):
        kernels.gram(weights)
    with pytest.raises(ValueError, match=r"on the device of rows, cpu, found meta"):
        kernels.row_distances(rows, elsewhere)
    with pytest.raises(ValueError, match=r"on the device of rows, cpu, found meta"):
        kernels.combine(rows, weights, elsewhere)
    with pytest.raises(ValueError, match=r"on the device of rows, cpu, found meta"):
        kernels.centred_gram(rows, elsewhere[None])
