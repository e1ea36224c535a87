"""What malloc does with memory that was freed; nothing where the C library is not glibc."""

from __future__ import annotations

import ctypes
from contextlib import suppress

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGEST_MMAP_THRESHOLD = 32 << 20
_KEPT = 1 << 30


def keep_freed() -> None:
    """Keep up to 1 GiB of freed memory for what is allocated next, in blocks of up to 32 MiB.

    Otherwise the rows of a round go back to the system, which must clear the memory of those of the
    next: that takes longer than to aggregate them.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)


def give_back() -> None:
    """Return what is kept to the system."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
