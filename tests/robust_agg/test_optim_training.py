"""The attachment in trainings: schedules, loss scaling, compiled models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from optim_models import LR, ROUNDS, batches, by_hand, flat, gradients, loss_of, model

import robust_agg as ra
from robust_agg.optim import OnlineEstimate


@pytest.mark.filterwarnings("error:.*lr_scheduler")
@pytest.mark.parametrize("attached_first", [True, False])
def test_a_schedule_moves_the_learning_rate_alone(attached_first: bool) -> None:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=LR)
    if attached_first:
        OnlineEstimate(optimizer, ra.VClip(tau=1.0))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda turn: 1 / (1 + turn))
    if not attached_first:
        OnlineEstimate(optimizer, ra.VClip(tau=1.0))
    expected = by_hand(ra.VClip(tau=1.0), [LR / (1 + turn) for turn in range(ROUNDS)])
    for batch, wanted in zip(batches(), expected, strict=True):
        optimizer.zero_grad()
        loss_of(network, batch).backward()
        optimizer.step()
        schedule.step()
        torch.testing.assert_close(flat(list(network.parameters())), wanted)


@pytest.mark.parametrize("compiled", ["model", "model and step"])
def test_compiled_the_training_is_the_same(compiled: str) -> None:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=LR)
    OnlineEstimate(optimizer, ra.CClip(tau=0.3))
    fast = torch.compile(network, backend="aot_eager")
    step: Callable[[], Any] = optimizer.step
    if compiled == "model and step":
        step = torch.compile(optimizer.step, backend="aot_eager")
    expected = by_hand(ra.CClip(tau=0.3), [LR] * ROUNDS)
    for batch, wanted in zip(batches(), expected, strict=True):
        optimizer.zero_grad()
        loss_of(fast, batch).backward()
        step()
        torch.testing.assert_close(flat(list(network.parameters())), wanted)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscaled_first", [False, True])
def test_scaled_losses_make_the_same_estimate(fused: bool, unscaled_first: bool) -> None:
    """A power of 2 is no rounding: the same to the bit."""
    paths = []
    for scaled in (False, True):
        network = model()
        optimizer = torch.optim.SGD(network.parameters(), lr=LR, momentum=0.5, fused=fused)
        estimate = OnlineEstimate(optimizer, ra.VClip(tau=1.0))
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12, enabled=scaled)
        path = []
        for batch in batches():
            optimizer.zero_grad()
            scaler.scale(loss_of(network, batch)).backward()
            if unscaled_first:
                scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            path.append(flat(list(network.parameters())).clone())
        assert int(estimate.rejected) == 0
        paths.append(path)
    for plain, scaled_ in zip(*paths, strict=True):
        assert torch.equal(plain, scaled_)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_leaves_the_estimate(fused: bool) -> None:
    network = model()
    optimizer = torch.optim.SGD(network.parameters(), lr=LR, fused=fused)
    estimate = OnlineEstimate(optimizer, ra.VClip(tau=1.0))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    chosen = list(network.parameters())
    for turn, batch in enumerate(batches()):
        before = flat([*chosen, *map(estimate.of, chosen)]).clone()
        optimizer.zero_grad()
        scaler.scale(loss_of(network, batch)).backward()
        if turn == 2:
            gradients(chosen)[0][0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
        moved = not torch.equal(flat([*chosen, *map(estimate.of, chosen)]), before)
        assert moved == (turn != 2)
    assert scaler.get_scale() == 2.0**11
    # A fused optimizer finds out on the device, and only then are estimates asked.
    assert int(estimate.rejected) == int(fused)


def test_what_a_fused_optimizer_skips_leaves_every_group_s_estimate() -> None:
    network = model()
    first, *others = network.parameters()
    groups = [{"params": [first]}, {"params": others}]
    optimizer = torch.optim.SGD(groups, lr=LR, fused=True)
    estimate = OnlineEstimate(optimizer, ra.VClip(tau=1.0), vector="group")
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**12)
    scaler.scale(loss_of(network, next(iter(batches())))).backward()
    assert first.grad is not None
    first.grad[0, 0] = torch.inf
    scaler.step(optimizer)
    assert not any(estimate.of(parameter).any() for parameter in network.parameters())
    assert int(estimate.rejected) == 2
