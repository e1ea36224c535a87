"""The estimate attached to an optimizer is the estimator's own, of the flattened gradient."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optim_models import (
    SHAPES,
    TABLE,
    Oracle,
    draw,
    estimates,
    flat,
    give,
    gradients,
    parameters,
)
from torch import nn

import robust_agg as ra
from robust_agg.optim import OnlineEstimate, passes, pieces
from robust_agg.optim.checks import Scope

every_estimator = pytest.mark.parametrize("name", TABLE)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 3e-6}


# --- the estimate ---------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "vector"),
    [(name, "model") for name in TABLE]
    # Blocks of the model are none of a group; the next test has them.
    + [(name, "group") for name in TABLE if not name.startswith("blocks")],
)
def test_the_estimate_is_the_estimators_step_on_the_flattened_gradient(
    name: str, dtype: torch.dtype, vector: Scope
) -> None:
    chosen = parameters(dtype=dtype)
    groups = [chosen[:1], chosen[1:]]
    optimizer = torch.optim.SGD([{"params": group} for group in groups], lr=0.0)
    estimate = OnlineEstimate(optimizer, TABLE[name](), vector=vector)
    spans = [chosen] if vector == "model" else groups
    oracles = [Oracle(TABLE[name](), span) for span in spans]
    generator = draw()
    for _ in range(12):
        give(chosen, generator)
        expected = [
            oracle.step(flat(gradients(span))) for oracle, span in zip(oracles, spans, strict=True)
        ]
        optimizer.step()
        found = estimates(estimate, chosen)
        assert found.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(found, torch.cat(expected), rtol=TOLERANCE[dtype], atol=1e-6)
    assert int(estimate.rejected) == 0


def test_blocks_of_a_group() -> None:
    chosen = parameters()
    optimizer = torch.optim.SGD(chosen, lr=0.0)
    estimate = OnlineEstimate(optimizer, TABLE["blocks across"](), vector="group")
    oracle = Oracle(TABLE["blocks across"](), chosen)
    generator = draw()
    for _ in range(5):
        give(chosen, generator)
        expected = oracle.step(flat(gradients(chosen)))
        optimizer.step()
        torch.testing.assert_close(estimates(estimate, chosen), expected)


PATHS = ("compiled", "pieces", "lists", "ordinary")


def take(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes compiled for this CPU, torch's in pieces, as on other devices, and none fused."""
    monkeypatch.setenv("ROBUST_AGG_JIT", "1" if path == "compiled" else "0")
    if path == "lists":
        monkeypatch.setattr(pieces, "on_cpu", lambda tensor: False)
        monkeypatch.setattr(pieces, "BUFFER_NUMBERS", 50_000)
    if path == "ordinary":
        monkeypatch.setattr(passes, "FUSED", {})


@every_estimator
@pytest.mark.parametrize(
    ("path", "dtype"),
    [(path, torch.float32) for path in PATHS]
    + [("compiled", torch.float64), ("compiled", torch.bfloat16), ("pieces", torch.bfloat16)],
)
def test_so_it_is_on_every_path_for_parameters_of_more_than_a_piece(
    name: str, dtype: torch.dtype, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(path, monkeypatch)
    shapes = ((2, 33_001), (17,), (66_000,))
    chosen = parameters(shapes, dtype)
    sizes = (66_002, 17, 66_000) if name != "blocks across" else (50_000, 82_000, 19)
    estimator = TABLE[name]()
    if isinstance(estimator.divergence, ra.BlockL2):
        estimator = ra.OnlineMedian(divergence=ra.BlockL2(sizes), tau=estimator.tau)
    optimizer = torch.optim.SGD(chosen, lr=0.0)
    estimate = OnlineEstimate(optimizer, estimator)
    oracle = Oracle(estimator, chosen)
    generator = draw(1)
    scale = torch.zeros_like(oracle.m)
    for _ in range(2):
        give(chosen, generator)
        row = flat(gradients(chosen))
        expected = oracle.step(row)
        optimizer.step()
        scale = torch.maximum(scale, row.abs()).maximum(expected.abs())
        error = (estimates(estimate, chosen) - expected).abs()
        # Each coordinate to the rounding of the numbers it came from.
        assert float((error / scale).max()) < 16 * torch.finfo(expected.dtype).eps


@every_estimator
def test_mixed_dtypes_are_one_vector(name: str) -> None:
    chosen = parameters(SHAPES[:2], torch.bfloat16) + parameters(SHAPES[2:])
    optimizer = torch.optim.SGD(chosen, lr=0.0)
    estimate = OnlineEstimate(optimizer, TABLE[name]())
    oracle = Oracle(TABLE[name](), chosen)
    generator = draw()
    for _ in range(6):
        give(chosen, generator)
        expected = oracle.step(flat(gradients(chosen)))
        optimizer.step()
        torch.testing.assert_close(
            estimates(estimate, chosen), expected, rtol=TOLERANCE[torch.float32], atol=1e-6
        )


@every_estimator
def test_a_parameter_without_gradient_keeps_its_estimate(name: str) -> None:
    """It is as if its gradient were m: nothing moves it, and it adds nothing to a distance."""
    chosen = parameters()
    optimizer = torch.optim.SGD(chosen, lr=0.0)
    estimate = OnlineEstimate(optimizer, TABLE[name]())
    oracle = Oracle(TABLE[name](), chosen)
    generator = draw()
    for turn in range(8):
        give(chosen, generator)
        absent = chosen[turn % 4]
        before = estimate.of(absent)
        row = flat(gradients(chosen))
        start = sum(parameter.numel() for parameter in chosen[: turn % 4])
        row[start : start + absent.numel()] = oracle.m[start : start + absent.numel()]
        absent.grad = None
        expected = oracle.step(row)
        optimizer.step()
        assert absent.grad is None
        assert torch.equal(estimate.of(absent), before)
        torch.testing.assert_close(estimates(estimate, chosen), expected, rtol=3e-6, atol=1e-6)


@pytest.mark.parametrize("method", ["prox", "subgradient"])
def test_bias_correction_divides_by_what_momentum_has_forgotten(method: Any) -> None:
    chosen = parameters(dtype=torch.float64)
    optimizer = torch.optim.SGD(chosen, lr=0.0)
    estimator = ra.Momentum(beta=0.9, method=method)
    estimate = OnlineEstimate(optimizer, estimator, bias_correction=True)
    oracle = Oracle(estimator, chosen)
    generator = draw()
    accepted = 0
    for turn in range(10):
        give(chosen, generator)
        if turn == 4:
            gradients(chosen)[1][2] = torch.nan
        else:
            accepted += 1
            oracle.step(flat(gradients(chosen)))
        optimizer.step()
        expected = oracle.m / (1 - 0.9**accepted)
        torch.testing.assert_close(estimates(estimate, chosen), expected)
    assert int(estimate.rejected) == 1


# --- gradients that are none ----------------------------------------------------------------------


@every_estimator
@pytest.mark.parametrize(
    ("bad", "path", "size", "dtype"),
    [(torch.nan, path, 70_000, torch.float32) for path in ("compiled", "pieces")]
    + [(torch.nan, path, 18, torch.float32) for path in ("lists", "ordinary")]
    + [(torch.nan, "compiled", 70_000, torch.bfloat16), (torch.nan, "pieces", 18, torch.bfloat16)]
    + [(bad, "pieces", 18, torch.float32) for bad in (torch.inf, -torch.inf)],
)
def test_a_gradient_that_is_not_finite_changes_nothing_and_is_counted(
    name: str,
    bad: float,
    path: str,
    size: int,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    take(path, monkeypatch)
    chosen = parameters(((3, 4), (size,)), dtype)
    d = sum(parameter.numel() for parameter in chosen)
    estimator = TABLE[name]()
    if isinstance(estimator.divergence, ra.BlockL2):
        estimator = ra.OnlineMedian(divergence=ra.BlockL2((12, d - 12)), tau=estimator.tau)
    optimizer = torch.optim.SGD(chosen, lr=0.5)
    estimate = OnlineEstimate(optimizer, estimator)
    generator = draw()
    for _ in range(3):
        give(chosen, generator)
        optimizer.step()
    before = {key: value.clone() for key, value in estimate.state_dict().items()}
    places = [parameter.detach().clone() for parameter in chosen]
    give(chosen, generator)
    gradients(chosen)[1][size // 2] = bad
    optimizer.step()
    after = estimate.state_dict()
    assert int(after["steps.0"]) == 4
    assert int(estimate.rejected) == 1
    for key, value in before.items():
        if not key.startswith(("steps", "rejected")):
            torch.testing.assert_close(after[key], value, rtol=0, atol=0, equal_nan=True)
    # The step is the one by the estimate there was.
    for parameter, place in zip(chosen, places, strict=True):
        step = estimate.of(parameter).to(dtype)
        torch.testing.assert_close(parameter.detach(), place - 0.5 * step)
    give(chosen, generator)
    optimizer.step()
    assert int(estimate.rejected) == 1
    assert estimates(estimate, chosen).isfinite().all()


@pytest.mark.parametrize("estimator", [ra.CClip(tau=0.1), ra.VClip(tau=0.1), ra.Momentum(tau=0.1)])
@pytest.mark.parametrize("path", PATHS)
def test_one_number_that_is_not_finite_is_found_wherever_it_is(
    estimator: ra.OnlineMedian, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    take(path, monkeypatch)
    chosen = parameters(((70_001,),))
    optimizer = torch.optim.SGD(chosen, lr=0.0)
    estimate = OnlineEstimate(optimizer, estimator)
    give(chosen, draw())
    places = (0, 1, 35_000, 65_535, 65_536, 69_990, 70_000)
    for count, place in enumerate(places):
        before = float(gradients(chosen)[0][place])
        gradients(chosen)[0][place] = torch.inf if count % 2 else torch.nan
        optimizer.step()
        assert int(estimate.rejected) == count + 1
        gradients(chosen)[0][place] = before
    optimizer.step()
    assert int(estimate.rejected) == len(places)


@pytest.mark.parametrize("name", ["eq7", "vclip", "blocks", "huber"])
def test_a_gradient_too_long_to_measure_is_rejected_but_not_by_coordinates(name: str) -> None:
    chosen = parameters()
    optimizer = torch.optim.SGD(chosen, lr=0.0)
    distances = OnlineEstimate(optimizer, TABLE[name]())
    give(chosen, draw())
    gradients(chosen)[0][0, 0] = 1e30
    optimizer.step()
    assert int(distances.rejected) == 1
    assert not estimates(distances, chosen).any()
    distances.detach()
    again = OnlineEstimate(optimizer, TABLE["cclip"]())
    optimizer.step()
    assert int(again.rejected) == 0
    assert float(again.of(chosen[0])[0, 0]) == pytest.approx(0.4)


def test_in_groups_a_group_is_rejected_alone() -> None:
    chosen = parameters()
    optimizer = torch.optim.SGD([{"params": chosen[:2]}, {"params": chosen[2:]}], lr=0.0)
    estimate = OnlineEstimate(optimizer, ra.VClip(tau=1.0), vector="group")
    give(chosen, draw())
    gradients(chosen)[0][0] = torch.nan
    optimizer.step()
    assert int(estimate.rejected) == 1
    assert not estimates(estimate, chosen[:2]).any()
    assert estimates(estimate, chosen[2:]).any()


def test_an_adaptive_threshold_looks_at_what_is_present() -> None:
    """Between parameters that are frozen, where the sampled coordinates would mostly be."""
    sizes = (500_000, 10, 500_000)
    chosen = [nn.Parameter(torch.zeros(size)) for size in sizes]
    estimate = OnlineEstimate(optimizer := torch.optim.SGD(chosen, lr=0.0), ra.CClip())
    for _ in range(30):
        chosen[1].grad = torch.ones(10)
        optimizer.step()
    assert float(estimate.of(chosen[1]).min()) > 0.5
