"""Signals that ask a long work to stop: it ends in order, and says how it goes on."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


class InterruptedRun(Exception):  # noqa: N818 - the user's wish, no error
    """The work was asked to stop, by signal ``number``; what was done is kept.

    Of a run a checkpoint is on disk, this round's unless a host was dead or hung; of a sweep the
    last checkpoint of every cell that was in progress.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


_STOPPING = b"stopping in order; once more: at once\n"


class Stop:
    """Which signal has asked to stop; 0 if none has."""

    signal = 0


@contextmanager
def stop_on_signals() -> Iterator[Stop]:
    """In the main thread, note the first SIGINT (Ctrl-C), SIGTERM or SIGHUP; obey the second.

    Raises:
        InterruptedRun: at the second one.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Signals are the main thread's.
        return

    def ask(number: int, _frame: FrameType | None) -> None:
        stop.signal = number
        for each in before:
            signal.signal(each, signal.default_int_handler)
        with suppress(OSError):
            os.write(2, _STOPPING)  # print must not be called where it may be printing

    every = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    # One that is ignored, as in a script's background jobs or under nohup, stays so.
    before = {
        number: handler
        for number in every
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN
    }
    for number in before:
        signal.signal(number, ask)
    try:
        yield stop
    except KeyboardInterrupt:
        raise InterruptedRun(stop.signal or signal.SIGINT) from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends what Ctrl-C ends."""


@contextmanager
def interrupted_by_sigterm() -> Iterator[None]:
    """In the main thread, SIGTERM is raised as Ctrl-C is, unless it is ignored.

    Raises:
        Terminated: at a SIGTERM.
    """

    def end(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
