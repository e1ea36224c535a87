"""Methods that ``torch.compile`` calls as they are."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch

Given = ParamSpec("Given")
Result = TypeVar("Result")


def eager(method: Callable[Given, Result]) -> Callable[Given, Result]:
    """The method, around which a graph breaks: there is nothing in it to trace.

    Its kernels read addresses, its solvers are numpy's, and what comes next depends on the numbers.
    To say so at once, by ``torch.compiler.disable``, would import the compiler with this library.
    """

    @wraps(method)
    def called(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        if torch.compiler.is_compiling():
            left: Callable[Given, Result] = torch.compiler.disable(method)
            return left(*args, **kwargs)
        return method(*args, **kwargs)

    return called
