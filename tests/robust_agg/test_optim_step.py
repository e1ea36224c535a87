"""What an attachment does around a step, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from optim_models import (
    D,
    Oracle,
    draw,
    estimates,
    flat,
    give,
    gradients,
    parameters,
)
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

import robust_agg as ra
from robust_agg.optim import OnlineEstimate

# --- around the step ------------------------------------------------------------------------------

OPTIMIZERS: dict[str, tuple[type[torch.optim.Optimizer], dict[str, Any]]] = {
    "SGD": (torch.optim.SGD, {}),
    "SGD momentum": (torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.1}),
    "SGD nesterov": (torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "SGD maximize": (torch.optim.SGD, {"weight_decay": 0.1, "maximize": True}),
    "SGD nesterov, maximize": (
        torch.optim.SGD,
        {"momentum": 0.9, "nesterov": True, "maximize": True},
    ),
    "Adam": (torch.optim.Adam, {"weight_decay": 0.1}),
    "Adam amsgrad": (torch.optim.Adam, {"amsgrad": True, "maximize": True, "weight_decay": 0.1}),
    "AdamW": (torch.optim.AdamW, {}),
    "NAdam": (torch.optim.NAdam, {"weight_decay": 0.1}),
    "RAdam": (torch.optim.RAdam, {}),
    "Adamax": (torch.optim.Adamax, {}),
    "Adagrad": (torch.optim.Adagrad, {}),
    "Adadelta": (torch.optim.Adadelta, {}),
    "RMSprop": (torch.optim.RMSprop, {"momentum": 0.9, "centered": True}),
    "Rprop": (torch.optim.Rprop, {}),
    "ASGD": (torch.optim.ASGD, {"weight_decay": 0.1}),
}


@pytest.mark.parametrize(
    "options", [{"foreach": True}, {"foreach": False}, {"fused": True}], ids=str
)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_any_optimizer_steps_as_if_the_estimate_were_the_gradient(
    name: str, options: dict[str, bool]
) -> None:
    kind, keywords = OPTIMIZERS[name]
    if "fused" in options and kind not in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):
        options = {}
    chosen, twins = parameters(), parameters()
    optimizer = kind(chosen, lr=0.1, **keywords, **options)  # type: ignore[call-arg]
    beside = kind(twins, lr=0.1, **keywords, **options)  # type: ignore[call-arg]
    estimate = OnlineEstimate(optimizer, ra.VClip(tau=2.0))
    oracle = Oracle(ra.VClip(tau=2.0), chosen)
    generator = draw()
    for _ in range(6):
        give(chosen, generator)
        given = [gradient.clone() for gradient in gradients(chosen)]
        owners = gradients(chosen)
        expected = oracle.step(flat(given))
        optimizer.step()
        for parameter, twin in zip(chosen, twins, strict=True):
            twin.grad = estimate.of(parameter)
        beside.step()
        torch.testing.assert_close(estimates(estimate, chosen), expected)
        for parameter, twin in zip(chosen, twins, strict=True):
            assert torch.equal(parameter, twin)
        # The gradients are where and what they were.
        for parameter, owner, gradient in zip(chosen, owners, given, strict=True):
            assert parameter.grad is owner
            assert torch.equal(owner, gradient)


class Doubling(torch.optim.SGD):
    """An optimizer of one's own, that works in place, and whose hooks torch calls twice."""

    def step(self, closure: Any = None) -> Any:
        for gradient in gradients(self.param_groups[0]["params"]):
            gradient.mul_(2)
        return super().step(closure)


def test_an_optimizer_may_write_to_the_gradient() -> None:
    chosen = parameters()
    estimate = OnlineEstimate(optimizer := Doubling(chosen, lr=0.5), ra.CClip(tau=0.1))
    oracle = Oracle(ra.CClip(tau=0.1), chosen)
    generator = draw()
    for _ in range(3):
        give(chosen, generator)
        before = flat(chosen)
        expected = oracle.step(flat(gradients(chosen)))
        optimizer.step()
        torch.testing.assert_close(estimates(estimate, chosen), expected)
        torch.testing.assert_close(flat(chosen), before - expected)


@pytest.mark.parametrize("nesterov", [False, True])
def test_zeroed_in_place_or_accumulated_gradients_leave_the_estimate_alone(nesterov: bool) -> None:
    chosen = parameters()
    options: dict[str, Any] = {"momentum": 0.9, "nesterov": True} if nesterov else {}
    optimizer = torch.optim.SGD(chosen, lr=0.1, **options)
    estimate = OnlineEstimate(optimizer, ra.VClip(tau=1.0))
    give(chosen, draw())
    first = [gradient.clone() for gradient in gradients(chosen)]
    optimizer.step()
    m = estimates(estimate, chosen)
    loss = torch.stack([parameter.sum() for parameter in chosen]).sum()
    loss.backward()  # without zero_grad it adds to the gradient, as it would without us
    for gradient, before in zip(gradients(chosen), first, strict=True):
        torch.testing.assert_close(gradient, before + 1)
    optimizer.zero_grad(set_to_none=False)
    assert not flat(gradients(chosen)).any()
    assert torch.equal(estimates(estimate, chosen), m)


def test_bfloat16_parameters_step_by_the_rounded_estimate() -> None:
    chosen = parameters(dtype=torch.bfloat16)
    optimizer = torch.optim.SGD(chosen, lr=1.0)
    estimate = OnlineEstimate(optimizer, ra.Momentum(beta=0.999))
    seen: list[Tensor] = []
    optimizer.register_step_pre_hook(lambda o, a, k: seen.extend(gradients(chosen)))
    generator = draw()
    for _ in range(300):
        give(chosen, generator)
        seen.clear()
        optimizer.step()
    for parameter, gradient in zip(chosen, seen, strict=True):
        assert gradient.dtype == torch.bfloat16
        assert torch.equal(gradient, estimate.of(parameter).bfloat16())
    # Steps of a thousandth add up, which in bfloat16 they would not.
    assert float(estimates(estimate, chosen).mean()) > 0.2


def test_a_half_precision_gradient_cannot_overflow_by_the_estimate() -> None:
    parameter = nn.Parameter(torch.zeros(4, dtype=torch.float16))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    OnlineEstimate(optimizer, ra.SignedIncrement(tau=60_000.0))
    seen: list[Tensor] = []
    optimizer.register_step_pre_hook(lambda o, a, k: seen.append(gradients([parameter])[0].clone()))
    for sign in (1, 1, -1):
        parameter.grad = torch.full((4,), sign * 65_504.0, dtype=torch.float16)
        optimizer.step()
    assert seen[1].tolist() == [65_504.0] * 4
    assert seen[2].tolist() == [60_000.0] * 4


def test_a_half_precision_gradient_is_measured_in_single_precision() -> None:
    for estimator in (ra.Momentum(beta=0.5), ra.VClip(tau=1e6)):
        parameter = nn.Parameter(torch.zeros(4, dtype=torch.float16))
        optimizer = torch.optim.SGD([parameter], lr=0.0)
        estimate = OnlineEstimate(optimizer, estimator)
        parameter.grad = torch.full((4,), 60_000.0, dtype=torch.float16)  # of length 120,000
        optimizer.step()
        assert int(estimate.rejected) == 0
        assert estimate.of(parameter).any()


@pytest.mark.parametrize("side", [5, 110])
def test_gradients_in_another_memory_order_are_read_in_theirs(side: int) -> None:
    chosen = [nn.Parameter(torch.zeros(2, 3, side, side)), nn.Parameter(torch.zeros(4, 6).t())]
    with torch.no_grad():
        chosen[0].data = chosen[0].to(memory_format=torch.channels_last)
    for estimator in (ra.VClip(tau=1.0), ra.CClip(tau=0.2), ra.Momentum(beta=0.5)):
        optimizer = torch.optim.SGD(chosen, lr=0.0)
        estimate = OnlineEstimate(optimizer, estimator)
        oracle = Oracle(estimator, chosen)
        generator = draw()
        for turn in range(3):
            give(chosen, generator)
            if turn != 1:
                chosen[0].grad = gradients(chosen)[0].to(memory_format=torch.channels_last)
            expected = oracle.step(flat(gradients(chosen)))
            optimizer.step()
            torch.testing.assert_close(estimates(estimate, chosen), expected)


@pytest.mark.parametrize(("before", "after"), [(True, False), (False, True), (True, True)])
def test_hooks_find_the_estimate_and_write_for_that_step_alone(before: bool, after: bool) -> None:
    chosen = parameters()
    optimizer = torch.optim.SGD(chosen, lr=1.0)

    def scale(factor: float) -> Any:
        def hook(*_: object) -> None:
            for gradient in gradients(chosen):
                gradient.mul_(factor)

        return hook

    if before:
        optimizer.register_step_pre_hook(scale(10.0))
    estimate = OnlineEstimate(optimizer, ra.CClip(tau=0.5))
    if after:
        optimizer.register_step_post_hook(scale(0.0))
    for parameter in chosen:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.testing.assert_close(estimates(estimate, chosen), torch.full((D,), 0.5))
    torch.testing.assert_close(flat(chosen), torch.full((D,), -5.0 if before else -0.5))
    torch.testing.assert_close(flat(gradients(chosen)), torch.ones(D))


def test_a_gradient_that_a_hook_replaces_is_back_after_the_step() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    OnlineEstimate(optimizer, ra.CClip(tau=0.5))

    def sign(*_: object) -> None:
        assert parameter.grad is not None
        parameter.grad = parameter.grad.sign()

    optimizer.register_step_pre_hook(sign)
    parameter.grad = gradient = torch.tensor([5.0, -5.0])
    optimizer.step()
    assert parameter.tolist() == [-1.0, 1.0]
    assert parameter.grad is gradient
    # One that clears it means it.
    optimizer.register_step_post_hook(lambda *_: optimizer.zero_grad())
    optimizer.step()
    assert parameter.grad is None


@pytest.mark.parametrize("other", [nn.Parameter(torch.zeros(2)), "weight"])
def test_the_estimate_of_another_parameter_is_refused(other: Any) -> None:
    estimate = OnlineEstimate(sgd(), ra.VClip())
    with pytest.raises(ValueError, match=r"of takes a parameter of the optimizer, found"):
        estimate.of(other)


def test_an_estimate_written_to_within_the_step_raises() -> None:
    chosen = parameters()
    optimizer = torch.optim.SGD(chosen, lr=1.0)
    OnlineEstimate(optimizer, ra.VClip(tau=1.0))
    give(chosen, draw())
    owners = gradients(chosen)
    # A hook on all optimizers, of which this one knows nothing.
    handle = register_optimizer_step_post_hook(lambda o, a, k: o.zero_grad(set_to_none=False))
    try:
        with pytest.raises(RuntimeError, match=r"must only be read within a step, found one of"):
            optimizer.step()
    finally:
        handle.remove()
    assert all(g is owner for g, owner in zip(gradients(chosen), owners, strict=True))


def test_a_step_that_fails_gives_the_gradients_back() -> None:
    chosen = parameters()
    optimizer = torch.optim.SGD(chosen, lr=0.1)
    estimate = OnlineEstimate(optimizer, ra.CClip(tau=1.0))
    give(chosen, draw())
    owners = gradients(chosen)
    optimizer.param_groups[0]["lr"] = "none"
    with pytest.raises(TypeError):
        optimizer.step()
    assert all(g is owner for g, owner in zip(gradients(chosen), owners, strict=True))
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.zero_grad(set_to_none=False)
    m = estimates(estimate, chosen)
    assert m.any()
    optimizer.step()
    torch.testing.assert_close(estimates(estimate, chosen), m - m.clamp(-1, 1))


def test_groups_may_grow() -> None:
    chosen = parameters()
    for vector in ("model", "group"):
        optimizer = torch.optim.SGD(chosen[:2], lr=0.0)
        estimate = OnlineEstimate(optimizer, ra.VClip(tau=1.0), vector=vector)  # type: ignore[arg-type]
        generator = draw()
        give(chosen, generator)
        optimizer.step()
        optimizer.add_param_group({"params": chosen[2:]})
        assert not estimates(estimate, chosen[2:]).any()
        m = estimates(estimate, chosen)
        give(chosen, generator)
        optimizer.step()
        row = flat(gradients(chosen))
        starts = [0] if vector == "model" else [0, 17]
        for start, stop in zip(starts, [*starts[1:], D], strict=True):
            state = ra.VClip(tau=1.0).init(row[start:stop], start=m[start:stop])
            expected, _ = ra.VClip(tau=1.0).step(row[None, start:stop], state)
            torch.testing.assert_close(estimates(estimate, chosen)[start:stop], expected)


def test_detached_the_optimizer_steps_by_its_gradients() -> None:
    chosen = parameters()
    optimizer = torch.optim.SGD(chosen, lr=1.0)
    estimate = OnlineEstimate(optimizer, ra.VClip(tau=1e-3))
    with pytest.raises(ValueError, match=r"must have no online estimate yet, found one by VClip"):
        OnlineEstimate(optimizer, ra.CClip(tau=1.0))
    estimate.detach()
    estimate.detach()
    give(chosen, draw())
    optimizer.step()
    torch.testing.assert_close(flat(chosen), -flat(gradients(chosen)))
    assert "online_estimate" not in optimizer.state_dict()


# --- closures -------------------------------------------------------------------------------------


@pytest.mark.parametrize("positional", [True, False])
def test_with_a_closure_gradients_are_replaced_after_it(positional: bool) -> None:
    chosen = parameters()
    optimizer = torch.optim.SGD(chosen, lr=1.0)
    estimate = OnlineEstimate(optimizer, ra.CClip(tau=0.25))

    def closure() -> float:
        optimizer.zero_grad()
        loss = torch.stack([parameter.sum() for parameter in chosen]).sum()
        loss.backward()
        return 17.0

    loss = optimizer.step(closure) if positional else optimizer.step(closure=closure)
    assert loss == 17.0
    torch.testing.assert_close(estimates(estimate, chosen), torch.full((D,), 0.25))
    torch.testing.assert_close(flat(chosen), torch.full((D,), -0.25))
    torch.testing.assert_close(flat(gradients(chosen)), torch.ones(D))


class Twice(torch.optim.SGD):
    def step(self, closure: Any = None) -> Any:
        closure()
        return super().step(closure)


def test_a_closure_called_twice_raises() -> None:
    optimizer = Twice(parameters(), lr=1.0)
    OnlineEstimate(optimizer, ra.VClip(tau=1.0))
    with pytest.raises(RuntimeError, match=r"once a step, found a second call: Twice compares"):
        optimizer.step(lambda: 0.0)


# --- what is refused ------------------------------------------------------------------------------


def sgd() -> torch.optim.SGD:
    return torch.optim.SGD(parameters(), lr=0.1)


class LogCosh(ra.Divergence):
    invariances = frozenset({ra.Invariance.PERMUTATION})

    def prox(self, row: Tensor, m: Tensor, tau: float) -> Tensor:
        return row

    def subgradient(self, row: Tensor, m: Tensor) -> Tensor:
        return torch.tanh(m - row)


class Wrapper(torch.optim.Optimizer):
    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner = inner
        self.param_groups = inner.param_groups


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: OnlineEstimate("sgd", ra.VClip()), TypeError, "torch one, found 'sgd'"),  # type: ignore[arg-type]
        (lambda: OnlineEstimate(Wrapper(sgd()), ra.VClip()), TypeError, "a wrapper, Wrapper"),
        (
            lambda: OnlineEstimate(torch.optim.LBFGS(parameters()), ra.VClip()),
            ValueError,
            "must take one gradient a step, found LBFGS",
        ),
        (
            lambda: OnlineEstimate(sgd(), ra.GeometricMedian()),  # type: ignore[arg-type]
            ValueError,
            "estimator must be an instance of OnlineMedian, found GeometricMedian",
        ),
        (
            lambda: OnlineEstimate(sgd(), ra.OnlineMedian(divergence=LogCosh(), tau=1.0)),
            ValueError,
            "must be L1, BlockL2 or a Radial one, found LogCosh",
        ),
        (
            lambda: OnlineEstimate(sgd(), ra.VClip(), vector="layer"),  # type: ignore[arg-type]
            ValueError,
            "vector must be 'model' or 'group', found 'layer'",
        ),
        (
            lambda: OnlineEstimate(sgd(), ra.VClip(tau=1.0, iterations=2)),
            ValueError,
            "iterations must be 1, found 2",
        ),
        (
            lambda: OnlineEstimate(sgd(), ra.VClip(tau=1.0), bias_correction=True),
            ValueError,
            "bias_correction must be False unless the estimator is a Momentum, found VClip",
        ),
        (
            lambda: OnlineEstimate(sgd(), ra.OnlineMedian(divergence=ra.BlockL2((3, 4)))),
            ValueError,
            "sizes must sum to the d=30 coordinates of the model, found 7",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(
    make: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        make()


def test_a_refused_attachment_leaves_the_optimizer_alone() -> None:
    optimizer = sgd()
    with pytest.raises(ValueError, match="must sum to"):
        OnlineEstimate(optimizer, ra.OnlineMedian(divergence=ra.BlockL2((3, 4))))
    give(optimizer.param_groups[0]["params"], draw())
    optimizer.step()
    assert "online_estimate" not in optimizer.state_dict()


def test_sparse_and_complex_gradients_are_refused_before_anything_moves() -> None:
    table = nn.Embedding(5, 2, sparse=True)
    dense = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([dense, *table.parameters()], lr=0.1)
    estimate = OnlineEstimate(optimizer, ra.VClip(tau=1.0), vector="group")
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    dense.grad = torch.ones(3)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"must be dense, found one of layout torch.sparse_coo"):
        optimizer.step()
    assert estimate.state_dict() == {}
    number = nn.Parameter(torch.zeros(3, dtype=torch.complex64))
    optimizer = torch.optim.SGD([number], lr=0.1)
    OnlineEstimate(optimizer, ra.VClip(tau=1.0))
    number.grad = torch.ones(3, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"floating dtype of 16 bits or more, found .*complex64"):
        optimizer.step()
