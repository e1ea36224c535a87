"""The state of an attachment as a flat mapping of tensors, and back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from robust_agg.errors import shown
from robust_agg.online.estimator import ESTIMATE
from robust_agg.optim.vector import Vector
from robust_agg.types import State

Estimates = dict[nn.Parameter, Tensor]


def zeros(parameter: nn.Parameter, *, flat: bool = False) -> Tensor:
    """m_0 of a parameter, in at least float32: laid out in memory alike, or in order if flat."""
    dtype = torch.promote_types(parameter.dtype, torch.float32)
    layout = torch.contiguous_format if flat else torch.preserve_format
    return torch.zeros_like(
        parameter, dtype=dtype, memory_format=layout, requires_grad=False
    ).detach()


def pack(
    parameters: Sequence[nn.Parameter], estimates: Estimates, vectors: Sequence[Vector]
) -> State:
    """``estimate.i`` of the i-th parameter and, of the k-th vector, ``steps.k`` and so on."""
    state = {
        f"{ESTIMATE}.{place}": estimates[parameter]
        for place, parameter in enumerate(parameters)
        if parameter in estimates
    }
    for place, vector in enumerate(vectors):
        state.update({f"{name}.{place}": value for name, value in vector.state.items()})
    return state


def check(state: State, parameters: Sequence[nn.Parameter], vectors: Sequence[Vector]) -> None:
    """Raise ``ValueError`` unless the state is of such parameters and vectors."""
    expected = {
        f"{ESTIMATE}.{place}": (
            parameter.shape,
            torch.promote_types(parameter.dtype, torch.float32),
        )
        for place, parameter in enumerate(parameters)
    }
    started: set[str] = set()
    for place, vector in enumerate(vectors):
        names = {f"{name}.{place}": v for name, v in vector.start(torch.device("cpu")).items()}
        expected.update({name: (value.shape, value.dtype) for name, value in names.items()})
        if names.keys() & state.keys():
            started |= names.keys()
    for name, value in state.items():
        given: object = value
        if name not in expected:
            raise ValueError(
                f"OnlineEstimate: state must be of {len(parameters)} parameters and "
                f"{len(vectors)} vectors with the same kind of τ, found {name!r}"
            )
        shape, dtype = expected[name]
        if not isinstance(given, Tensor) or given.shape != shape or given.dtype != dtype:
            found = shown(given)
            if isinstance(given, Tensor):
                found = f"{given.dtype} of shape {tuple(given.shape)}"
            raise ValueError(
                f"OnlineEstimate: {name} must be {dtype} of shape {tuple(shape)}, found {found}"
            )
    if missing := sorted(started - state.keys()):
        raise ValueError(f"OnlineEstimate: state must have {missing[0]}, found none")


def unpack(
    state: State,
    parameters: Sequence[nn.Parameter],
    estimates: Estimates,
    vectors: Sequence[tuple[Vector, torch.device]],
    zeros: Callable[[nn.Parameter], Tensor],
) -> None:
    """Set estimates, and vectors on their devices, to a checked state, in the memory they have."""
    for place, parameter in enumerate(parameters):
        given = state.get(f"{ESTIMATE}.{place}")
        if given is not None:
            if parameter not in estimates:
                estimates[parameter] = zeros(parameter)
            estimates[parameter].copy_(given)
        elif parameter in estimates:
            estimates[parameter].zero_()
    for place, (vector, device) in enumerate(vectors):
        for name, initial in vector.start(device).items():
            given = state.get(f"{name}.{place}")
            if given is not None or name in vector.state:
                vector.state.setdefault(name, initial).copy_(initial if given is None else given)
