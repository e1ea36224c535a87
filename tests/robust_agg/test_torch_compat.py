"""Smoke tests of what torch does not promise to keep."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from robust_agg import torch_compat
from robust_agg.kernels import llvm
from robust_agg.optim import compiled


def lists() -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    return [torch.tensor([3.0, -4.0]), torch.ones(1)], [torch.tensor([1.0, 1.0]), torch.zeros(1)]


def test_operators_on_lists() -> None:
    a, b = lists()
    assert torch.stack(list(torch_compat.foreach_norm(a, 2))).tolist() == [5.0, 1.0]
    assert [x.tolist() for x in torch_compat.foreach_sub(a, b)] == [[2.0, -5.0], [1.0]]
    torch_compat.foreach_sub_(a, b)
    assert a[0].tolist() == [2.0, -5.0]
    torch_compat.foreach_clamp_max_(a, 1.0)
    torch_compat.foreach_clamp_min_(a, -2.0)
    assert a[0].tolist() == [1.0, -2.0]
    torch_compat.foreach_sign_(a)
    assert a[0].tolist() == [1.0, -1.0]
    torch_compat.foreach_copy_(a, b)
    assert [x.tolist() for x in a] == [[1.0, 1.0], [0.0]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("towards", "called_off", "expected"), [(False, 0, 3.5), (True, 0, 2.0), (True, 1, 3.0)]
)
def test_the_fused_step(
    dtype: torch.dtype, towards: bool, called_off: int, expected: float
) -> None:
    value, step = torch.full((3,), 3.0, dtype=dtype), torch.full((3,), 1.0, dtype=dtype)
    half = torch.tensor(0.5, dtype=dtype)
    torch_compat.fused_step_(
        [value], [step], half, torch.tensor(float(called_off)), towards=towards
    )
    assert value.tolist() == [expected] * 3


def test_versions_count_writes() -> None:
    tensor = torch.zeros(2)
    before = torch_compat.version(tensor)
    tensor.add_(1)
    assert torch_compat.version(tensor) > before


def test_step_hooks_are_seen() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    assert not torch_compat.has_step_hooks(optimizer)
    handle = optimizer.register_step_post_hook(lambda *_: None)
    assert torch_compat.has_step_hooks(optimizer)
    handle.remove()
    assert not torch_compat.has_step_hooks(optimizer)


def test_what_lies_in_memory() -> None:
    class Sub(torch.Tensor):
        pass

    numbers = torch.ones(3)
    assert torch_compat.in_memory(numbers)
    assert torch_compat.in_memory(numbers[1:])
    for held in (
        numbers.as_subclass(Sub),
        torch.complex(numbers, numbers).conj().imag,
        torch._efficientzerotensor((3,)),
    ):
        assert not torch_compat.in_memory(held)


def test_compiled_passes_take_what_lies_in_memory() -> None:
    estimate = torch.zeros(compiled.SMALLEST)
    assert compiled.takes(torch.ones_like(estimate), estimate) == llvm.available()
    assert not compiled.takes(torch._efficientzerotensor((len(estimate),)), estimate)


def test_a_dispatch_mode_sees_plain_operations_below_vmap_and_grad() -> None:
    seen: list[tuple[str, list[type]]] = []

    class Watch(torch_compat.DispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            leaves: list[type] = []
            torch_compat.map_aggregate(args, lambda each: leaves.append(type(each)))
            seen.append((str(func), leaves))
            return func(*args, **(kwargs or {}))

    x = torch.ones(3, 2)
    with Watch():
        torch.func.vmap(torch.func.grad(lambda row: row.exp().sum()))(x)
    assert ("aten.exp.default", [torch.Tensor]) in seen
