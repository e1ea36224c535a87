"""Source of kernels that are written as they are needed, and its compilation through Triton.

As in `llvm`, the kernels are straight-line code that depends on the number of rows. Triton is
optional and is imported at the first compilation; ``ROBUST_AGG_JIT=0`` does without it. With
``TRITON_INTERPRET=1`` its interpreter runs the same source on the CPU, in numpy.
"""

from __future__ import annotations

import linecache
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib import import_module
from typing import Any

import torch

from robust_agg.kernels import llvm

OLDEST_CAPABILITY = (8, 0)
"""The first NVIDIA cards that compute in bfloat16."""


class Source:
    """A function in Triton's Python, written from top to bottom."""

    def __init__(self, name: str, parameters: str) -> None:
        self.name = name
        self._lines = [f"def {name}({parameters}):"]
        self._depth = 1
        self._names = 0

    def let(self, expression: str) -> str:
        """Names the value of an expression."""
        self._names += 1
        name = f"v{self._names}"
        self.do(f"{name} = {expression}")
        return name

    def do(self, statement: str) -> None:
        """Appends a statement."""
        self._lines.append("    " * self._depth + statement)

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """What is written within is the body of a loop."""
        self.do(f"{head}:")
        self._depth += 1
        yield
        self._depth -= 1

    def __str__(self) -> str:
        return "\n".join([*self._lines, ""])


@dataclass(frozen=True, kw_only=True)
class Program:
    """A kernel to be compiled, and how it is launched.

    Attributes:
        name: of the function in the text.
        text: the function; `tl` is ``triton.language``.
        width: columns an instance takes at a time.
        warps: that an instance runs on, of 32 threads.
    """

    name: str
    text: str
    width: int
    warps: int

    @property
    def options(self) -> dict[str, int]:
        """What a launch is given beside the arguments."""
        # One stage: what is loaded ahead of a loop's turn would be before it is written.
        return {"num_warps": self.warps, "num_stages": 1}


def available(device: torch.device) -> bool:
    """Whether kernels can be compiled for a device: Triton is there and is not switched off."""
    return llvm.switched_on() and _reaches(device)


@cache
def _reaches(device: torch.device) -> bool:
    if torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        return False
    try:
        triton = import_module("triton")
        # Builds a small library, for which Triton needs a C compiler and the headers of Python.
        with torch.cuda.device(device):
            triton.runtime.driver.active.get_current_target()
    except ImportError:
        return False
    except Exception as problem:  # whatever keeps Triton from working
        warnings.warn(
            f"Triton does not work here, kernels for {device} are plain torch: {problem}",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


_lock = threading.RLock()


def kernel(program: Program) -> Any:
    """The function as Triton takes it: ``kernel(program)[grid](*arguments)`` compiles and runs."""
    with _lock:  # of several threads that want it, one makes it
        return _kernel(program)


@cache
def _kernel(program: Program) -> Any:
    triton = import_module("triton")
    # Triton asks for the source of the function's file: where there is none, this one is found.
    digest = sha256(program.text.encode()).hexdigest()
    file = f"<robust_agg {program.name} {digest}>"
    linecache.cache[file] = (
        len(program.text),
        None,
        program.text.splitlines(keepends=True),
        file,
    )
    names: dict[str, Any] = {"tl": import_module("triton.language"), "__name__": __name__}
    exec(compile(program.text, file, "exec"), names)
    return triton.jit(names[program.name])
