"""Compiled tasks on the very threads that torch's operators run on.

Those wait for the next operator in a loop, for a while: threads of our own would have to share the
processors with them, which costs as much as a pass over a few million numbers.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import chain, repeat
from pathlib import Path
from typing import TypeAlias

import torch

from robust_agg.kernels.llvm import Kernel
from robust_agg.kernels.threads import map_ranges

Argument: TypeAlias = int | Sequence[int]
"""An argument that is the same for all tasks, or one for each."""


def run(kernel: Kernel, tasks: int, given: Mapping[str, Argument]) -> None:
    """So many calls of the kernel, in parallel. More may be given than the kernel takes."""
    own = [given[name] for name in kernel.parameters]
    each = zip(*(repeat(v, tasks) if isinstance(v, int) else v for v in own), strict=True)
    threads = min(torch.get_num_threads(), tasks)
    fork_join = None if _is_forked else _fork_join()
    if threads > 1 and fork_join is not None:
        queue = array("q", [0, tasks, *chain.from_iterable(each)])
        fork_join(kernel.worker, queue.buffer_info()[0], threads, 0)
    else:
        map_ranges(kernel.code, list(each))


_is_forked = False


def _forked() -> None:
    # A forked child has libgomp but not its threads, and would wait for them forever.
    global _is_forked  # noqa: PLW0603 - the state of a process
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)


@cache
def _fork_join() -> Callable[[int, int, int, int], None] | None:
    """``GOMP_parallel(function, argument, threads, flags)`` of the libgomp that torch has loaded.

    What a compiler emits for ``#pragma omp parallel``. None with another torch, as on macOS.
    """
    for path in sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*")):
        try:
            loaded = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD)
        except OSError:  # it lies there, but torch runs on another
            continue
        function = loaded.GOMP_parallel
        function.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        function.restype = None
        return function
    return None
