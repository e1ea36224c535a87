"""Functions of tensors whose operations are written down, and then done without the function."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from robust_agg.torch_compat import DispatchMode, map_aggregate

Function: TypeAlias = Callable[..., Tensor]
Form: TypeAlias = tuple[tuple[object, ...], ...]

MOST = 16
"""Forms of arguments that are recorded for: a host whose workers are drawn sees many."""

_UNSAID = frozenset(
    {
        torch.Tag.nondeterministic_seeded,
        torch.Tag.dynamic_output_shape,
        torch.Tag.data_dependent_output,
    }
)
"""Of operations that draw at random, or tell Python of contents, which it may have branched on."""


class Recorded:
    """``function``, with the same results to the last bit and little of its Python.

    Layers, ``vmap`` and ``grad`` are many calls around few operations: of a small model's gradients
    they are half the time. The first call with tensors of one form (shape, strides, dtype, device)
    is therefore written down as operations; the next whose result is another is done both ways; and
    where the results are equal all later ones repeat the operations, in their order. Otherwise,
    under autocast, and where its operations do not say all that the function does, every call is
    one of the function. What a first call computes in between is kept until its end.

    Args:
        function: of tensors alone. What else it reads must stay as it is, but for the contents of
            tensors, a model's buffers for example.
    """

    def __init__(self, function: Function) -> None:
        self._function = function
        self._untried: dict[Form, tuple[Function, Tensor]] = {}
        self._trusted: dict[Form, Function] = {}

    def __call__(self, *tensors: Tensor) -> Tensor:
        form = _form(tensors)
        if form in self._trusted:
            return self._trusted[form](*tensors)
        if form in self._untried:
            result, (trial, first) = self._function(*tensors), self._untried[form]
            # Of the same contents the same result says nothing: what was read from them may be
            # among what is taken for constant.
            if not _equal(result, first):
                del self._untried[form]
                self._trusted[form] = trial if _equal(trial(*tensors), result) else self._function
            return result
        if form is None or len(self._untried) + len(self._trusted) == MOST:
            return self._function(*tensors)
        result, repeat = record(self._function, *tensors)
        if repeat is None:
            self._trusted[form] = self._function
        else:
            self._untried[form] = repeat, result.clone()
        return result


def record(function: Function, *tensors: Tensor) -> tuple[Tensor, Function | None]:
    """The function's result, and what repeats its operations on other tensors of the same form.

    None where the operations do not say all that the function does.
    """
    with _Recorder(tensors) as recorder:
        result = function(*tensors)
    return result, recorder.repeat(result)


def _form(tensors: Sequence[Tensor]) -> Form | None:
    """What operations may depend on, beside the contents; None where there is more than this."""
    for tensor in tensors:
        if type(tensor) is not Tensor or torch.is_autocast_enabled(tensor.device.type):
            return None
    if len(set(map(id, tensors))) < len(tensors):
        return None
    return tuple((t.shape, t.stride(), t.dtype, t.device) for t in tensors)


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(
        one, other, rtol=0.0, atol=0.0, equal_nan=True
    )


class _Recorder(DispatchMode):
    """Writes down every operation on tensors as it is done, below ``vmap`` and ``grad``."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's, without annotations
        self._graph = fx.Graph()
        self._outside: dict[str, Tensor] = {}
        self._complete = True
        # By identity, which is a tensor's own for as long as it is kept.
        self._known = {
            id(tensor): (tensor, self._graph.placeholder(f"given_{place}"))
            for place, tensor in enumerate(tensors)
        }

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self._complete &= _UNSAID.isdisjoint(func.tags)
        if self._complete:
            given = map_aggregate((tuple(args), dict(kwargs or {})), self._node)
            self._keep(result, self._graph.call_function(func, *given))
            # One that was made in the function, and is not made anew, would be written to again.
            self._complete &= not (func._schema.is_mutable and self._is_outside(args, kwargs))
        return result

    def _is_outside(self, *given: Any) -> bool:
        """Whether one of the tensors lies where one does that neither was given nor is computed."""
        outside = {tensor.untyped_storage().data_ptr() for tensor in self._outside.values()} - {0}
        found: list[bool] = []
        map_aggregate(
            given,
            lambda each: found.append(
                isinstance(each, Tensor) and each.untyped_storage().data_ptr() in outside
            ),
        )
        return any(found)

    def repeat(self, result: Tensor) -> Function | None:
        """What :func:`record` returns with the result."""
        if not self._complete or id(result) not in self._known:
            return None
        self._graph.output(self._node(result))
        again = fx.GraphModule(self._outside, self._graph).forward
        repeat: Function = torch.no_grad()(again)
        return repeat

    def _node(self, value: Any) -> Any:
        """A tensor's node; whatever else an operation is given stays as it is."""
        if not isinstance(value, Tensor):
            return value
        if id(value) not in self._known:
            name = f"outside_{len(self._outside)}"
            self._outside[name] = value
            self._known[id(value)] = value, self._graph.get_attr(name)
        return self._known[id(value)][1]

    def _keep(self, result: Any, node: fx.Node) -> None:
        if isinstance(result, Tensor):
            self._known[id(result)] = result, node
        elif isinstance(result, (tuple, list)):
            for place, each in enumerate(result):
                self._keep(each, self._graph.call_function(operator.getitem, (node, place)))
        elif result is not None:
            self._complete = False
