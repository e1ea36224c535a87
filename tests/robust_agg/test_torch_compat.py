"""Smoke tests of what torch does not promise to keep."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn

from robust_agg import torch_compat


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


@pytest.fixture
def group_of_one() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group_of_one")
def test_the_default_group_is_the_one_of_all_processes() -> None:
    group = torch_compat.default_group()
    assert dist.get_world_size(group) == 1
    assert dist.get_process_group_ranks(group) == [0]
    assert isinstance(group.group_name, str)


@pytest.mark.usefixtures("group_of_one")
def test_a_corner_of_the_store_is_apart_from_the_others() -> None:
    store = torch_compat.store_of_the_world("here")
    store.set("key", "value")
    assert store.check(["key"])
    assert store.get("key") == b"value"
    assert torch_compat.store_of_the_world("here").check(["key"])
    assert not torch_compat.store_of_the_world("elsewhere").check(["key"])


@pytest.mark.usefixtures("group_of_one")
def test_all_gather_fills_one_tensor() -> None:
    found = torch.zeros(3)
    work = torch_compat.all_gather_single(found, torch.arange(3.0), async_op=True)
    work.wait()
    assert found.tolist() == [0.0, 1.0, 2.0]


def test_without_a_group_there_is_none() -> None:
    with pytest.raises(ValueError, match="has not been initialized"):
        torch_compat.default_group()
    with pytest.raises(ValueError, match="has not been initialized"):
        torch_compat.store_of_the_world("here")
