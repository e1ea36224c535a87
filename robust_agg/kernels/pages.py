"""Large pages for large results.

Memory that is new is cleared and handed out by the system a page at a time as it is first written:
for a result of 10⁷ numbers that takes as long as half a pass over 32 rows. By pages of 2 MiB, of
which there are 512 times fewer, it takes much less.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Callable
from functools import cache

from torch import Tensor

LARGE = 1 << 21
"""Bytes of a large page on x86-64, and on ARM with pages of 4 KiB."""


def advised(tensor: Tensor) -> Tensor:
    """The tensor, whose memory on the CPU is to come in large pages where these fit into it."""
    begin = tensor.data_ptr()
    end = (begin + tensor.nbytes) // LARGE * LARGE
    begin = (begin + LARGE - 1) // LARGE * LARGE
    advise = _advise()
    if begin < end and advise is not None:
        advise(begin, end - begin, mmap.MADV_HUGEPAGE)
    return tensor


@cache
def _advise() -> Callable[[int, int, int], int] | None:
    """`madvise`, whose advice the system may take or not; None where it has none about pages."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    function.restype = ctypes.c_int
    return function
