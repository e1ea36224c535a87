"""Compiled tasks on the very threads that torch's operators run on.

Those wait for the next operator in a loop, for a while: threads of our own would have to share the
processors with them, which costs as much as a pass over a few million numbers.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch

from robust_agg.kernels.blocks import Integers
from robust_agg.kernels.llvm import Kernel
from robust_agg.kernels.threads import map_ranges


def run(kernel: Kernel, tasks: int, given: Mapping[str, int | Sequence[int] | Integers]) -> None:
    """So many calls of the kernel, in parallel.

    An argument is an integer, the same for all tasks, or one for each. More may be given than the
    kernel takes.
    """
    queue = np.empty(2 + tasks * len(kernel.parameters), np.int64)
    queue[:2] = 0, tasks
    arguments = queue[2:].reshape(tasks, len(kernel.parameters))
    for place, name in enumerate(kernel.parameters):
        arguments[:, place] = given[name]
    threads = min(torch.get_num_threads(), tasks)
    fork_join = None if _is_forked else _fork_join()
    if threads > 1 and fork_join is not None:
        fork_join(kernel.worker, queue.ctypes.data, threads, 0)
    else:
        map_ranges(kernel.code, [tuple(task) for task in arguments.tolist()])


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
