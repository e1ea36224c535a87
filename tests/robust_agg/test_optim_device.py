"""What an attached step asks of a device: nothing is read back, and nothing moves in memory."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.distributed as dist
from optim_models import SHAPES, TABLE, draw, give, gradients, parameters
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, distribute_tensor

import robust_agg as ra
from robust_agg import kernels
from robust_agg.optim import OnlineEstimate, passes

every_estimator = pytest.mark.parametrize("name", TABLE)


def without_numbers(device: str, dtype: torch.dtype) -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(shape, device=device, dtype=dtype)) for shape in SHAPES]


def steps(optimizer: torch.optim.Optimizer, chosen: list[nn.Parameter]) -> None:
    for _ in range(3):
        for parameter in chosen:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()


# --- tensors without numbers, of which none can be read -------------------------------------------


@every_estimator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vector", ["model", "group"])
def test_a_step_on_another_device_reads_no_number_back(
    name: str, dtype: torch.dtype, vector: Any
) -> None:
    """On the meta device, which takes the way of every device that is not the CPU."""
    chosen = without_numbers("meta", dtype)
    optimizer = torch.optim.SGD(chosen, lr=0.1, foreach=True)
    estimate = OnlineEstimate(optimizer, TABLE[name](), vector=vector)
    steps(optimizer, chosen)
    kept = {name: v for name, v in estimate.state_dict().items() if name != "kind"}
    assert {value.device.type for value in kept.values()} == {"meta"}
    assert estimate.rejected.device.type == "meta"


@every_estimator
def test_nor_does_one_on_the_cpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of fake tensors; the fused operator, which has no such form, is left out."""
    monkeypatch.setattr(passes, "FUSED", {})
    with FakeTensorMode(allow_fallback_kernels=False):
        chosen = without_numbers("cpu", torch.float32)
        optimizer = torch.optim.SGD(chosen, lr=0.1, foreach=True)
        OnlineEstimate(optimizer, TABLE[name]())
        steps(optimizer, chosen)


def test_nor_does_one_with_bias_correction_copies_and_scaled_gradients() -> None:
    chosen = without_numbers("meta", torch.float32)
    optimizer = torch.optim.RMSprop(chosen, lr=0.1, foreach=True)
    OnlineEstimate(optimizer, ra.Momentum(beta=0.9), bias_correction=True)
    optimizer.grad_scale = torch.ones((), device="meta")  # type: ignore[attr-defined]
    steps(optimizer, chosen)


def test_a_step_that_does_read_one_is_caught() -> None:
    """That of the estimator itself, which has its τ and its weights on the host."""
    estimator = ra.VClip()
    with FakeTensorMode():
        row = torch.ones(5)
        with pytest.raises(DataDependentOutputException):
            estimator.step(row[None], estimator.init(row))
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        kernels.is_finite(torch.ones(5, device="meta"))


def test_the_fused_operator_takes_its_factor_and_its_flag_as_tensors() -> None:
    schema = torch.ops.aten._fused_sgd_.tensor_lr._schema
    kinds = {argument.name: str(argument.type) for argument in schema.arguments}
    assert kinds["lr"] == "Tensor"
    assert kinds["found_inf"] == "Optional[Tensor]"


# --- memory ---------------------------------------------------------------------------------------


@every_estimator
def test_state_stays_at_its_place_as_a_captured_graph_needs_it(name: str) -> None:
    chosen = parameters()
    optimizer = torch.optim.SGD(chosen, lr=0.1)
    estimate = OnlineEstimate(optimizer, TABLE[name]())
    generator = draw()
    places = []
    for _ in range(4):
        give(chosen, generator)
        optimizer.step()
        places.append({key: value.data_ptr() for key, value in estimate.state_dict().items()})
    assert len(places[0]) >= 6
    assert all(place == places[0] for place in places)


@pytest.mark.parametrize(
    ("options", "lent"),
    [({}, True), ({"weight_decay": 0.1}, True), ({"momentum": 0.9, "nesterov": True}, False)],
)
def test_the_estimate_is_lent_to_an_optimizer_that_only_reads(
    options: dict[str, Any], lent: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = parameters()
    optimizer = torch.optim.SGD(chosen, lr=0.1, foreach=False, **options)
    estimate = OnlineEstimate(optimizer, ra.VClip(tau=1.0))
    seen: list[list[int]] = []
    module = import_module("torch.optim.sgd")
    inner = module.sgd  # which SGD hands its gradients to

    def spy(params: Any, grads: Any, *arguments: Any, **keywords: Any) -> None:
        seen.append([gradient.data_ptr() for gradient in grads])
        inner(params, grads, *arguments, **keywords)

    monkeypatch.setattr(module, "sgd", spy)
    generator = draw()
    for _ in range(3):
        give(chosen, generator)
        optimizer.step()
    state = estimate.state_dict()
    own = [state[f"estimate.{place}"].data_ptr() for place in range(len(chosen))]
    assert (seen[1] == own) == lent
    assert seen[1] == seen[2]  # copies are kept, too


# --- shards ---------------------------------------------------------------------------------------


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_distributed_tensors_are_refused() -> None:
    mesh = init_device_mesh("cpu", (1,))
    parameter = nn.Parameter(distribute_tensor(torch.zeros(4), mesh, [Replicate()]))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    OnlineEstimate(optimizer, ra.VClip(tau=1.0))
    (parameter * 2).sum().backward()
    assert type(gradients([parameter])[0]).__name__ == "DTensor"
    with pytest.raises(ValueError, match=r"must be whole on every rank, found a shard, DTensor"):
        optimizer.step()
