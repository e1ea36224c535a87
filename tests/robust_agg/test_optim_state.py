"""The state of an attachment, saved and loaded."""

from __future__ import annotations

import copy
import io
import pickle
from typing import Any

import pytest
import torch
from optim_models import (
    TABLE,
    draw,
    estimates,
    flat,
    give,
    gradients,
    parameters,
)
from torch import Tensor, nn

import robust_agg as ra
from robust_agg.optim import OnlineEstimate
from robust_agg.optim.attachment import MARK

every_estimator = pytest.mark.parametrize("name", TABLE)

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
        ({"estimate.1": torch.full((5,), torch.nan)}, r"estimate.1 must be finite"),
        (
            {"kind": torch.zeros(0)},
            r"must be of kind 'L2 prox with adaptive τ of each model', foun",
        ),
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


def test_a_state_that_the_optimizer_refuses_changes_nothing() -> None:
    chosen = parameters()
    optimizer = torch.optim.SGD(chosen, lr=0.1)
    estimate = OnlineEstimate(optimizer, ra.VClip())
    train(chosen, optimizer, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    train(chosen, optimizer, range(3, 5))
    m = estimates(estimate, chosen)
    state["param_groups"].append(state["param_groups"][0])
    with pytest.raises(ValueError, match="parameter groups"):
        optimizer.load_state_dict(state)
    assert torch.equal(estimates(estimate, chosen), m)


def test_a_state_without_an_estimate_begins_anew() -> None:
    chosen = parameters()
    optimizer = torch.optim.SGD(chosen, lr=0.1)
    estimate = OnlineEstimate(optimizer, ra.VClip())
    train(chosen, optimizer, range(3))
    optimizer.load_state_dict(torch.optim.SGD(parameters(), lr=0.1).state_dict())
    assert not estimates(estimate, chosen).any()
    assert int(estimate.rejected) == 0


def test_the_state_of_a_vector_is_on_its_own_device() -> None:
    """As the meta device shows, a group's counters do not move to that of another."""
    near, far = parameters(), [nn.Parameter(torch.zeros(3, device="meta"))]
    optimizer = torch.optim.SGD([{"params": near}, {"params": far}], lr=0.1)
    estimate = OnlineEstimate(optimizer, ra.VClip(), vector="group")
    estimate.load_state_dict({})
    for chosen in (near, far):
        for parameter in chosen:
            parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    saved = dict(estimate.state_dict())
    resumed = OnlineEstimate(
        torch.optim.SGD([{"params": near}, {"params": far}], lr=0.1), ra.VClip(), vector="group"
    )
    resumed.load_state_dict(saved)
    found = {name: value.device.type for name, value in resumed.state_dict().items()}
    assert found == {name: value.device.type for name, value in saved.items()}
    assert found["steps.1"] == "meta"


@pytest.mark.parametrize(
    ("make", "scope", "corrected"),
    [
        (ra.CClip, "model", False),
        (lambda: ra.VClip(tau=0.1), "model", False),
        (ra.AdaptiveMomentum, "model", False),
        (ra.VClip, "group", False),
        (lambda: ra.Momentum(tau=0.1), "model", False),
        (lambda: ra.Momentum(tau=0.1), "model", True),
    ],
)
def test_a_state_of_another_kind_is_refused(make: Any, scope: Any, corrected: bool) -> None:
    chosen = parameters()
    estimate = OnlineEstimate(optimizer := torch.optim.SGD(chosen, lr=0.1), ra.VClip())
    train(chosen, optimizer, range(3))
    other = OnlineEstimate(
        torch.optim.SGD(parameters(), lr=0.1), make(), vector=scope, bias_correction=corrected
    )
    with pytest.raises(ValueError, match=r"must be of kind '.*', found 'L2 prox with adaptive τ"):
        other.load_state_dict(estimate.state_dict())
    with pytest.raises(ValueError, match=r"state must be .* Mapping, found None"):
        other.load_state_dict(None)  # type: ignore[arg-type]


def test_a_copy_is_refused_rather_than_dead() -> None:
    optimizer = torch.optim.SGD(parameters(), lr=0.1)
    estimate = OnlineEstimate(optimizer, ra.VClip())
    for copied in (copy.deepcopy, pickle.dumps):
        with pytest.raises(TypeError, match=r"must not be copied or pickled: attach a new one"):
            copied((optimizer, estimate))
    assert not hasattr(copy.deepcopy(optimizer), MARK)
