"""The estimate attached to an optimizer is the estimator's own, and does no harm around it."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from optim_models import SHAPES, TABLE, D, Oracle, flat, give, gradients, parameters
from torch import Tensor, nn

import robust_agg as ra
from robust_agg.optim import OnlineEstimate, passes, pieces
from robust_agg.optim.checks import Scope

every_estimator = pytest.mark.parametrize("name", TABLE)

TOLERANCE = {torch.float64: 1e-12, torch.float32: 3e-6, torch.bfloat16: 3e-6}


def draw(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def estimates(estimate: OnlineEstimate, chosen: list[nn.Parameter]) -> Tensor:
    return flat([estimate.of(parameter) for parameter in chosen])


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


@pytest.mark.parametrize("name", ["eq7", "vclip", "blocks", "huber"])
def test_a_gradient_too_long_to_measure_is_rejected_but_not_by_coordinates(name: str) -> None:
    chosen = parameters()
    optimizer = torch.optim.SGD(chosen, lr=0.0)
    distances, coordinates = (OnlineEstimate(optimizer, TABLE[n]()) for n in (name, "cclip"))
    coordinates.detach()
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
    """An optimizer of one's own, that works in place."""

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


def test_gradients_in_another_memory_order_are_read_in_theirs() -> None:
    chosen = [nn.Parameter(torch.zeros(2, 3, 5, 7)), nn.Parameter(torch.zeros(4, 6).t())]
    for estimator in (ra.VClip(tau=1.0), ra.CClip(tau=0.2), ra.Momentum(beta=0.5)):
        optimizer = torch.optim.SGD(chosen, lr=0.0)
        estimate = OnlineEstimate(optimizer, estimator)
        oracle = Oracle(estimator, chosen)
        generator = draw()
        for _ in range(3):
            give(chosen, generator)
            chosen[0].grad = gradients(chosen)[0].to(memory_format=torch.channels_last)
            expected = oracle.step(flat(gradients(chosen)))
            optimizer.step()
            torch.testing.assert_close(estimates(estimate, chosen), expected)


def test_hooks_before_act_on_the_gradient_and_hooks_after_on_the_estimate() -> None:
    chosen = parameters()
    optimizer = torch.optim.SGD(chosen, lr=1.0)

    def scale(factor: float) -> Any:
        def hook(*_: object) -> None:
            for gradient in gradients(chosen):
                gradient.mul_(factor)

        return hook

    optimizer.register_step_pre_hook(scale(0.5))
    estimate = OnlineEstimate(optimizer, ra.CClip(tau=1e9))
    optimizer.register_step_pre_hook(scale(10.0))
    for parameter in chosen:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.testing.assert_close(estimates(estimate, chosen), torch.full((D,), 0.5))
    torch.testing.assert_close(flat(chosen), torch.full((D,), -5.0))


def test_an_estimate_written_to_within_the_step_raises() -> None:
    chosen = parameters()
    optimizer = torch.optim.SGD(chosen, lr=1.0)
    optimizer.register_step_post_hook(lambda o, a, k: o.zero_grad(set_to_none=False))
    OnlineEstimate(optimizer, ra.VClip(tau=1.0))
    give(chosen, draw())
    with pytest.raises(RuntimeError, match=r"must only be read within a step, found one of shape"):
        optimizer.step()


def test_a_step_that_fails_leaves_gradients_to_the_next() -> None:
    chosen = parameters()
    optimizer = torch.optim.SGD(chosen, lr=0.1)
    estimate = OnlineEstimate(optimizer, ra.CClip(tau=1.0))
    give(chosen, draw())
    owners = gradients(chosen)
    optimizer.param_groups[0]["lr"] = "none"
    with pytest.raises(TypeError):
        optimizer.step()
    optimizer.param_groups[0]["lr"] = 0.1
    optimizer.step()
    assert all(g is owner for g, owner in zip(gradients(chosen), owners, strict=True))
    expected = ra.CClip(tau=1.0)
    oracle = Oracle(expected, chosen)
    oracle.step(flat(owners))
    torch.testing.assert_close(estimates(estimate, chosen), oracle.step(flat(owners)))


def test_groups_may_grow() -> None:
    chosen = parameters()
    for vector in ("model", "group"):
        optimizer = torch.optim.SGD(chosen[:2], lr=0.0)
        estimate = OnlineEstimate(optimizer, ra.VClip(tau=1.0), vector=vector)  # type: ignore[arg-type]
        generator = draw()
        give(chosen, generator)
        optimizer.step()
        assert not estimates(estimate, chosen[2:]).any()
        m = estimates(estimate, chosen)
        optimizer.add_param_group({"params": chosen[2:]})
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


# --- saving ---------------------------------------------------------------------------------------


def train(
    chosen: list[nn.Parameter], optimizer: torch.optim.Optimizer, rounds: range
) -> list[Tensor]:
    path = []
    for number in rounds:
        give(chosen, draw(number))
        if number == 2:
            gradients(chosen)[0][0, 0] = torch.nan
        optimizer.step()
        path.append(flat(chosen).clone())
    return path


@every_estimator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("own", [False, True])
def test_a_resumed_training_is_the_same_to_the_bit(
    name: str, dtype: torch.dtype, own: bool
) -> None:
    chosen = parameters(dtype=dtype)
    optimizer = torch.optim.Adam([{"params": chosen[:2]}, {"params": chosen[2:]}], lr=0.1)
    estimate = OnlineEstimate(optimizer, TABLE[name]())
    train(chosen, optimizer, range(5))
    file = io.BytesIO()
    saved: dict[str, Any] = {"optimizer": optimizer.state_dict()}
    if own:
        del saved["optimizer"]["online_estimate"]
        saved["estimate"] = dict(estimate.state_dict())
    torch.save(saved, file)
    places = [parameter.detach().clone() for parameter in chosen]
    expected = train(chosen, optimizer, range(5, 12))

    again = [nn.Parameter(place.clone()) for place in places]
    other = torch.optim.Adam([{"params": again[:2]}, {"params": again[2:]}], lr=0.7)
    resumed = OnlineEstimate(other, TABLE[name]())
    train(again, other, range(20, 23))  # so that there is state to be overwritten
    with torch.no_grad():
        for parameter, place in zip(again, places, strict=True):
            parameter.copy_(place)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    other.load_state_dict(loaded["optimizer"])
    if own:
        resumed.load_state_dict(loaded["estimate"])
    assert int(resumed.rejected) == 1
    for found, wanted in zip(train(again, other, range(5, 12)), expected, strict=True):
        assert torch.equal(found, wanted)


def test_a_loaded_state_is_a_copy_in_the_memory_there_was() -> None:
    chosen = parameters()
    optimizer = torch.optim.SGD(chosen, lr=0.1)
    estimate = OnlineEstimate(optimizer, ra.VClip())
    train(chosen, optimizer, range(3))
    saved = copy.deepcopy(dict(estimate.state_dict()))
    addresses = {key: value.data_ptr() for key, value in estimate.state_dict().items()}
    train(chosen, optimizer, range(3, 6))
    estimate.load_state_dict(saved)
    for key, value in estimate.state_dict().items():
        assert torch.equal(value.nan_to_num(), saved[key].nan_to_num())
        assert value.data_ptr() == addresses[key]
        assert value.data_ptr() != saved[key].data_ptr()
    estimate.load_state_dict({})
    assert not estimates(estimate, chosen).any()
    assert estimate.state_dict()["distances.0"].isnan().all()


def test_the_optimizers_state_is_for_optimizers_without_an_estimate_too() -> None:
    chosen = parameters()
    optimizer = torch.optim.Adam(chosen, lr=0.1)
    OnlineEstimate(optimizer, ra.VClip())
    train(chosen, optimizer, range(3))
    plain = torch.optim.Adam(parameters(), lr=0.1)
    plain.load_state_dict(optimizer.state_dict())
    attached = torch.optim.Adam(parameters(), lr=0.1)
    estimate = OnlineEstimate(attached, ra.VClip())
    attached.load_state_dict(plain.state_dict())
    assert estimate.state_dict() == {}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"estimate.4": torch.zeros(3)}, r"4 parameters and 1 vectors .* found 'estimate.4'"),
        ({"steps.1": torch.zeros(())}, r"4 parameters and 1 vectors .* found 'steps.1'"),
        ({"estimate.1": torch.zeros(4)}, r"estimate.1 must be .* shape \(5,\), found .*\(4,\)"),
        ({"estimate.1": torch.zeros(5).double()}, r"must be torch.float32 .* found torch.float64"),
        ({"estimate.1": 3}, r"estimate.1 must be torch.float32 of shape \(5,\), found 3"),
        ({"distances.0": torch.zeros(7)}, r"distances.0 must be .*\(100,\), found .*\(7,\)"),
        ({"rejected.0": None}, r"state must have rejected.0, found none"),
    ],
)
def test_a_state_of_something_else_is_refused(change: dict[str, Any], message: str) -> None:
    chosen = parameters()
    optimizer = torch.optim.SGD(chosen, lr=0.1)
    estimate = OnlineEstimate(optimizer, ra.VClip())
    train(chosen, optimizer, range(3))
    state = dict(estimate.state_dict()) | change
    if change == {"rejected.0": None}:
        del state["rejected.0"]
    before = estimates(estimate, chosen)
    with pytest.raises(ValueError, match=message):
        estimate.load_state_dict(state)
    assert torch.equal(estimates(estimate, chosen), before)


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
