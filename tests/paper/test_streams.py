"""Streams side by side are the paper's updates, written out, on each stream alone."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from experiments.paper.streams import UPDATES, follow, log_spaced
from robust_agg.online.radial import Radial

B, D, T, TAU = 4, 3, 30, 0.05

# Each update of one stream as the paper's table 1 has it, sharing nothing with the library.
PAPER: dict[str, Callable[[Tensor, Tensor, float], Tensor]] = {
    "momentum": lambda m, g, tau: (1 - tau) * m + tau * g,
    "momentum (prox)": lambda m, g, tau: (m + tau * g) / (1 + tau),
    "VClip": lambda m, g, tau: m + (g - m) * min(1.0, tau / float((g - m).norm())),
    "adaptive momentum": lambda m, g, tau: m + tau * (g - m) / float((g - m).norm()),
    "CClip": lambda m, g, tau: m + (g - m).clip(-tau, tau),
    "signed increment": lambda m, g, tau: m + tau * (g - m).sign(),
}


def samples() -> Tensor:
    draw = torch.Generator().manual_seed(3)
    return torch.randn(T, B, D, generator=draw, dtype=torch.float64).tan()


def largest_gap(method: str) -> float:
    """Between the library's streams and the update written out, over all iterations."""
    start = torch.full((B, D), 0.5, dtype=torch.float64)
    rules = {method: UPDATES[method].rule(tau=TAU, streams=B, d=D)}
    found = follow(rules, iter(samples()[:, None]), start=start, at=range(T + 1))
    gap, expected = 0.0, start.clone()
    for t, name, estimate in found:
        assert name == method
        if t > 0:
            expected = torch.stack(
                [PAPER[method](m, g, TAU) for m, g in zip(expected, samples()[t - 1], strict=True)]
            )
        gap = max(gap, float((estimate - expected).abs().max()))
    return gap


@pytest.mark.parametrize("method", UPDATES)
def test_streams_are_the_updates_written_out(method: str) -> None:
    assert largest_gap(method) < 1e-12


def test_a_wrong_prox_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above fails where the library clips at twice τ."""
    factors = Radial.averaged
    doubled = lambda self, rows, m, tau, *rest: factors(self, rows, m, 2 * tau, *rest)  # noqa: E731 - said in one line
    monkeypatch.setattr(Radial, "averaged", doubled)
    monkeypatch.setattr("robust_agg.online.block._SMALL", 0)
    assert largest_gap("VClip") > 0.01


def test_tau_may_change_with_the_iteration() -> None:
    rules = {"momentum": UPDATES["momentum"].rule(tau=0.9, streams=B, d=D)}
    start = torch.zeros(B, D, dtype=torch.float64)
    given = iter(samples()[:, None])
    ((_, _, found),) = follow(rules, given, start=start, at=[T], tau=lambda t: 1 / (t + 1))
    torch.testing.assert_close(found, samples().mean(dim=0))


def test_iterations_are_spaced_evenly_on_a_logarithmic_axis() -> None:
    places = log_spaced(1000, 20)
    assert (places[0], places[-1]) == (0, 1000)
    assert {1, 10, 100, 1000} <= set(places)
    assert list(places) == sorted(set(places))
    assert max(b / a for a, b in pairwise(places[8:])) < 1.6
    assert log_spaced(150, 3) == (0, 1, 10, 12, 100, 150)
