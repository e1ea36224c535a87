"""The sampler against scipy's α-stable distributions, and against what defines them."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from experiments.stable import elliptical_stable, symmetric_stable
from robust_agg.seeding import generator

ALPHAS = [0.5, 2 / 3, 0.9, 1.0, 1.25, 1.7, 2.0]
MANY = 20_000
# Of the Kolmogorov–Smirnov statistic times √n, exceeded by chance once in 10⁵ seeds.
FAR = 2.47


@pytest.mark.parametrize("alpha", ALPHAS)
def test_coordinates_are_stable(alpha: float) -> None:
    drawn = symmetric_stable(alpha, MANY, generator=generator(0, "test", 1))
    assert drawn.dtype == torch.float64
    # scipy integrates numerically, slowly: compare on a grid of its quantiles.
    places = [0.02, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.98]
    for share, place in zip(places, stats.levy_stable.ppf(places, alpha, 0), strict=True):
        gap = abs(float((drawn <= place).double().mean()) - share)
        assert gap * math.sqrt(MANY) < FAR, (share, place)


@pytest.mark.parametrize("alpha", ALPHAS)
@pytest.mark.parametrize("direction", [(1.0, 0.0, 0.0), (0.6, 0.0, -0.8)])
def test_vectors_are_stable_in_every_direction(alpha: float, direction: tuple[float, ...]) -> None:
    drawn = elliptical_stable(alpha, MANY, 3, generator=generator(0, "test", 2))
    projected = drawn @ torch.tensor(direction, dtype=torch.float64)
    other = symmetric_stable(alpha, MANY, generator=generator(0, "test", 3))
    assert stats.ks_2samp(projected.numpy(), other.numpy()).pvalue > 1e-5


@pytest.mark.parametrize("alpha", ALPHAS)
def test_the_characteristic_function_is_the_definition(alpha: float) -> None:
    one = symmetric_stable(alpha, MANY, generator=generator(0, "test", 4))
    both = elliptical_stable(alpha, MANY, 2, generator=generator(0, "test", 5))
    for t in (0.1, 0.5, 1.0, 2.0):
        expected = math.exp(-(t**alpha))
        for values in (one, both[:, 0], both[:, 1]):
            # The standard deviation of a cosine is at most 1/√2.
            assert abs(float(torch.cos(t * values).mean()) - expected) < 5 / math.sqrt(2 * MANY)


def test_coordinates_of_elliptical_noise_are_large_together() -> None:
    alpha = 1.0
    apart = symmetric_stable(alpha, MANY, 2, generator=generator(0, "test", 6)).abs()
    together = elliptical_stable(alpha, MANY, 2, generator=generator(0, "test", 7)).abs()
    ranks = [stats.spearmanr(*values.T.numpy()).statistic for values in (apart, together)]
    assert abs(ranks[0]) < 0.03
    assert ranks[1] > 0.2


def test_two_is_gaussian_and_one_is_cauchy() -> None:
    gaussian = symmetric_stable(2.0, MANY, generator=generator(0, "test", 8))
    assert stats.kstest(gaussian.numpy() / math.sqrt(2), "norm").pvalue > 1e-5
    cauchy = symmetric_stable(1.0, MANY, generator=generator(0, "test", 9))
    assert stats.kstest(cauchy.numpy(), "cauchy").pvalue > 1e-5


@pytest.mark.parametrize("alpha", ALPHAS)
def test_nothing_is_nan_and_the_generator_is_all_there_is(alpha: float) -> None:
    for draw in (symmetric_stable, elliptical_stable):
        a, b = (draw(alpha, 1000, 5, generator=generator(0, "test", 10)) for _ in range(2))
        assert torch.equal(a, b)
        assert not bool(a.isnan().any())


@pytest.mark.parametrize("alpha", [0.0, -1.0, 2.1, float("nan")])
def test_alpha_is_checked(alpha: float) -> None:
    for draw in (symmetric_stable, elliptical_stable):
        with pytest.raises(ValueError, match=r"alpha must be in \(0, 2\], found"):
            draw(alpha, 3, 2, generator=generator(0, "test"))
