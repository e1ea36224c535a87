"""Time and memory of a call, on the CPU or a GPU."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from experiments.memory import give_back

ENOUGH = 1.0
"""Seconds of repeats after which no further one is begun, …"""
FEWEST = 5
"""… but not before there are so many …"""
SLOW = 2.0
"""… unless one takes so many seconds, which is then measured once."""
MOST = 50


FLUSHED = 1 << 27
"""Bytes that are read before every timed call: more than the caches hold."""


class Timing(NamedTuple):
    """The median of some repeats, in milliseconds, after a call that does not count."""

    ms: float
    repeats: int


def timings(calls: Sequence[Callable[[], object]], device: str = "cpu") -> list[Timing]:
    """The median time of each call; results are freed within it, as a caller would.

    The calls take turns, so that a disturbance meets all of them, and each finds its input in
    memory and not in a cache where the call before left it: in training, a forward and a backward
    pass lie between two calls.
    """
    other = torch.zeros(FLUSHED // 4, device=device)
    seconds: list[list[float]] = [[] for _ in calls]
    fewest = [1 if _seconds(call, device, other) > SLOW else FEWEST for call in calls]

    def unsure(i: int) -> bool:
        taken = seconds[i]
        return len(taken) < MOST and (len(taken) < fewest[i] or sum(taken) < ENOUGH)

    while any(turn := [unsure(i) for i in range(len(calls))]):
        for i, call in enumerate(calls):
            if turn[i]:
                seconds[i].append(_seconds(call, device, other))
    return [Timing(1e3 * median(taken), len(taken)) for taken in seconds]


def timing(call: Callable[[], object], device: str = "cpu") -> Timing:
    """The median time of one call."""
    return timings([call], device)[0]


def _seconds(call: Callable[[], object], device: str, other: Tensor) -> float:
    other.sum()
    _synchronise(device)
    begun = time.perf_counter()
    call()
    _synchronise(device)
    return time.perf_counter() - begun


COPIED = 1 << 29
"""Bytes that are copied to find a device's bandwidth: more than its caches hold."""


@lru_cache
def copy_bandwidth(device: str) -> float | None:
    """Bytes a second that a device reads and writes while it copies; None for the CPU."""
    if device == "cpu":
        return None
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / (1e-3 * timing(lambda: target.copy_(source), device).ms)


def _synchronise(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def peak_extra(call: Callable[[], object], device: str = "cpu") -> int | None:
    """Bytes by which memory grew at most during a call; None where the system does not tell.

    On the CPU the growth of the resident set, of all libraries together, on a GPU of what torch has
    allocated. The result counts.
    """
    if device != "cpu":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        return torch.cuda.max_memory_allocated(device) - before
    give_back()  # what malloc keeps would hide growth
    try:
        # Makes the peak what is resident now; Linux only.
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _resident("VmHWM")
        call()
        return _resident("VmHWM") - before
    except OSError:
        return None


def memory(device: str = "cpu") -> int:
    """Bytes that the machine or the GPU has, whoever uses them."""
    if device != "cpu":
        return torch.cuda.mem_get_info(device)[1]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise OSError(f"/proc/self/status has no {field}")
