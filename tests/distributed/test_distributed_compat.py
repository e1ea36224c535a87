"""A smoke test of everything that is used of torch.distributed and may change."""

from __future__ import annotations

import pydoc
import re
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

import robust_agg.distributed
from robust_agg.distributed import torch_compat


def test_help_speaks_of_what_is_exported() -> None:
    told = pydoc.render_doc(robust_agg.distributed, renderer=pydoc.plaintext)
    names = set(re.findall(r":(?:class|func|data):`~?([\w.]+)`", told))
    assert {"RankError", "robust_all_reduce"} <= names
    assert {name.removeprefix("robust_agg.distributed.") for name in names} <= set(
        robust_agg.distributed.__all__
    )
    methods = set(re.findall(r":meth:`~?([\w.]+)`", told))
    assert methods <= {"state_dict"}


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


@pytest.mark.usefixtures("group_of_one")
def test_the_backend_of_a_kind_of_device() -> None:
    group = torch_compat.default_group()
    assert torch_compat.backend_of(group, "cpu") == "gloo"
    assert torch_compat.backend_of(group, "abacus") is None


def test_a_group_may_have_a_backend_for_each_kind_of_device() -> None:
    dist.init_process_group("cpu:gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert torch_compat.backend_of(torch_compat.default_group(), "cpu") == "gloo"
        assert torch_compat.backend_of(torch_compat.default_group(), "cuda") is None
    finally:
        dist.destroy_process_group()


def test_ddp_s_hooks_are_given_buckets_of_this_type() -> None:
    assert torch_compat.GradBucket is dist.GradBucket


def test_a_group_of_ones_own_is_no_default_one() -> None:
    store = dist.HashStore()
    group = torch_compat.gloo_group(store, 0, 1, timeout=10.0, host="127.0.0.1")
    assert (group.rank(), group.size(), dist.is_initialized()) == (0, 1, False)
    assert torch_compat.carries_cpu_tensors(group)
    assert not torch_compat.carries_cpu_tensors(dist.ProcessGroup(dist.HashStore(), 0, 1))
