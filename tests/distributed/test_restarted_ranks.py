"""What ranks leave in the store says nothing to those that torchrun starts after them."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from robust_agg.distributed import roll_call
from robust_agg.distributed.roll_call import RollCall


def test_a_failure_is_that_of_one_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    monkeypatch.setattr(
        roll_call, "store_of_the_world", lambda prefix: dist.PrefixStore(prefix, store)
    )
    before = RollCall("group/hook", 0, 1, "cpu")
    assert before.absent(5) == ()
    assert before.failed(5)
    assert RollCall("group/hook", 0, 1, "cpu").failed(5)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not RollCall("group/hook", 0, 1, "cpu").failed(5)
