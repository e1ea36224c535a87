"""A cable with delay and loss, as a process: ``wire.py NEAR FAR DELAY_MS LOSS``.

Makes two TAP interfaces and carries every frame that one sends to the other, after ``DELAY_MS``,
or, with probability ``LOSS``, never; says ``ready`` and goes on until it is killed. What ``tc
netem`` does in the kernel, for kernels without it. Frames are never reordered.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import sys
import time
from collections import deque

_TUNSETIFF, _TAP, _NO_PACKET_INFO = 0x400454CA, 0x0002, 0x1000
_FRAME = 1 << 16


def tap(name: str) -> int:
    """A TAP interface; it is there as long as the descriptor is open."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(
        descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _TAP | _NO_PACKET_INFO)
    )
    return descriptor


def main(near: str, far: str, delay_ms: float, loss: float) -> None:
    ends = tap(near), tap(far)
    other = dict(zip(ends, reversed(ends), strict=True))
    draw = random.Random(f"{near} {far}")
    queue: deque[tuple[float, int, bytes]] = deque()
    print("ready", flush=True)
    while True:
        wait = None if not queue else max(0.0, queue[0][0] - time.monotonic())
        for end in select.select(ends, [], [], wait)[0]:
            try:
                frame = os.read(end, _FRAME)
            except OSError:  # an interface that is down
                continue
            if draw.random() >= loss:
                queue.append((time.monotonic() + delay_ms / 1000, other[end], frame))
        while queue and queue[0][0] <= time.monotonic():
            _, end, frame = queue.popleft()
            try:
                os.write(end, frame)
            except OSError:
                continue  # as a switched-off port: the frame is lost


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
