"""The state of an attachment as a flat mapping of tensors, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from robust_agg.errors import check_instance, shown
from robust_agg.online.estimator import ESTIMATE, OnlineMedian
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


KIND = "kind"
"""The text, as bytes, of what has to be alike for a state to make sense."""


def kind_of(estimator: OnlineMedian, scope: str, bias_correction: bool) -> Tensor:
    """``(k,)`` uint8: divergence, method, kind of τ and vector."""
    words = (
        type(estimator.divergence).__name__,
        estimator.method,
        "with fixed τ" if estimator.adaptive is None else "with adaptive τ",
        f"of each {scope}",
        *(["bias-corrected"] if bias_correction else []),
    )
    return torch.tensor(list(" ".join(words).encode()), dtype=torch.uint8, device="cpu")


def _text(kind: object) -> str:
    if isinstance(kind, Tensor) and kind.dtype == torch.uint8:
        return bytes(kind.flatten().tolist()).decode(errors="replace")
    return shown(kind)


def pack(
    parameters: Sequence[nn.Parameter],
    estimates: Estimates,
    vectors: Sequence[Vector],
    kind: Tensor,
) -> State:
    """``estimate.i`` of the i-th parameter and, of the k-th vector, ``steps.k`` and so on.

    Empty before the first step.
    """
    state = {
        f"{ESTIMATE}.{place}": estimates[parameter]
        for place, parameter in enumerate(parameters)
        if parameter in estimates
    }
    for place, vector in enumerate(vectors):
        state.update({f"{name}.{place}": value for name, value in vector.state.items()})
    return {KIND: kind, **state} if state else state


def check(
    state: Mapping[str, Tensor],
    parameters: Sequence[nn.Parameter],
    vectors: Sequence[Vector],
    kind: Tensor,
) -> None:
    """Raise ``ValueError`` unless the state is of such parameters, vectors and kind, and finite."""
    check_instance("OnlineEstimate", "state", state, Mapping)
    if state and _text(state.get(KIND)) != _text(kind):
        raise ValueError(
            f"OnlineEstimate: state must be of kind {_text(kind)!r}, "
            f"found {_text(state.get(KIND))!r}"
        )
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
        if name == KIND:
            continue
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
        # A distance of NaN is one that was not measured.
        if name.startswith(ESTIMATE) and not given.is_meta and not bool(given.isfinite().all()):
            raise ValueError(f"OnlineEstimate: {name} must be finite, found a number that is not")
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
