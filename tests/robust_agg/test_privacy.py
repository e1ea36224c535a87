"""(ε, δ) of messages with noise: beside the definition, and beside what it may not fall below."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.codecs import divergence, gaussian_delta

from robust_agg.codecs import Clip21, ErrorFeedback
from robust_agg.codecs.privacy import epsilon


def spent(noise: float, messages: int, delta: float) -> float:
    return epsilon(Clip21(tau=3.0, noise=noise), messages, delta=delta)


@given(
    noise=st.floats(0.5, 100),
    messages=st.integers(1, 1000),
    exponent=st.floats(-9, -0.31),
)
def test_it_is_the_least_that_the_closed_form_allows(
    noise: float, messages: int, exponent: float
) -> None:
    delta, mu = 10**exponent, 2 * math.sqrt(messages) / noise
    found = spent(noise, messages, delta)
    if found > 500:  # e^ε is no number there that the oracle could use
        assert mu > 15
        return
    assert gaussian_delta(found, mu) <= delta * (1 + 1e-6)
    if found > 0:
        assert gaussian_delta(found * (1 - 1e-6), mu) >= delta * (1 - 1e-6)


@pytest.mark.parametrize(("noise", "messages"), [(4.0, 1), (4.0, 9), (20.0, 100), (2.0, 1)])
@pytest.mark.parametrize("delta", [1e-2, 1e-5])
def test_it_is_what_the_definition_says_of_worst_messages(
    noise: float, messages: int, delta: float
) -> None:
    """c = τ in all messages of one data set and -τ in all of the other, in one dimension."""
    found = spent(noise, messages, delta)
    assert divergence(found, noise, messages) == pytest.approx(delta, rel=1e-3)


def test_a_simulated_attacker_tells_no_more_of_the_data_than_that() -> None:
    """Of 400,000 conversations, the set that tells the two data sets apart best."""
    noise, messages, count = 6.0, 4, 400_000
    draws = np.random.default_rng(0)
    sent = draws.normal(scale=noise, size=(2, count, messages)).sum(axis=2)
    one, other = sent[0] + messages, sent[1] - messages
    for level in (0.1, 0.5, 1.0, 2.0):
        # Where the first is more than e^ε times as likely as the second.
        threshold = level * noise**2 / 2
        excess = float((one > threshold).mean() - math.exp(level) * (other > threshold).mean())
        mu = 2 * math.sqrt(messages) / noise
        assert excess == pytest.approx(gaussian_delta(level, mu), abs=6e-3)


def test_known_values() -> None:
    # Numbers for δ = 1e-5 of Gaussian mechanisms with σ/sensitivity 1 and 5 (10 of those), to which
    # privacy-random-variable accountants give upper bounds of 4.39 and 2.61.
    assert spent(2.0, 1, 1e-5) == pytest.approx(4.37717809, rel=1e-8)
    assert spent(10.0, 10, 1e-5) == pytest.approx(2.59438338, rel=1e-8)


def test_more_messages_and_less_noise_tell_more() -> None:
    counts = [spent(10.0, messages, 1e-5) for messages in range(6)]
    assert counts[0] == 0
    assert counts == sorted(counts)
    noises = [spent(noise, 10, 1e-5) for noise in (1e-3, 0.1, 1.0, 10.0, 100.0, 1e6)]
    assert noises == sorted(noises, reverse=True)
    assert noises[0] == pytest.approx((2 * math.sqrt(10) / 1e-3) ** 2 / 2, rel=0.01)
    assert noises[-1] == 0
    assert all(map(math.isfinite, noises))
    deltas = [spent(5.0, 10, delta) for delta in (1e-12, 1e-6, 1e-3, 0.5)]
    assert deltas == sorted(deltas, reverse=True)


def test_without_noise_nothing_is_private() -> None:
    assert epsilon(Clip21(tau=1.0), 1, delta=1e-5) == math.inf
    assert epsilon(ErrorFeedback(), 3, delta=1e-5) == math.inf
    assert epsilon(ErrorFeedback(), 0, delta=1e-5) == 0


@pytest.mark.parametrize("delta", [0, 1, -1e-5, math.nan])
def test_delta_is_a_share(delta: float) -> None:
    with pytest.raises(ValueError, match=r"^epsilon: delta must be in \(0, 1\), found"):
        spent(1.0, 1, delta)
    with pytest.raises(ValueError, match=r"^epsilon: messages must be an integer >= 0, found -1$"):
        spent(1.0, -1, 1e-5)


@pytest.mark.filterwarnings("ignore")  # of a grid of orders that ends before the best one
@pytest.mark.parametrize(
    ("noise", "messages"), [(2.0, 1), (10.0, 10), (20.0, 100), (40.0, 200), (3.0, 20), (200.0, 5)]
)
def test_accountants_of_opacus_give_upper_bounds_of_it(noise: float, messages: int) -> None:
    accountants = pytest.importorskip("opacus.accountants")
    found = spent(noise, messages, 1e-5)
    bounds = []
    for make in (accountants.PRVAccountant, accountants.RDPAccountant):
        accountant = make()
        # σ relative to the sensitivity, which is 2τ; every message, and no sampling.
        accountant.history = [(noise / 2, 1.0, messages)]
        bounds.append(accountant.get_epsilon(1e-5))
    prv, rdp = bounds
    assert found <= prv <= found + 0.03
    assert prv <= rdp + 0.03
