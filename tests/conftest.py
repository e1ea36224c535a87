"""Settings shared by all tests."""

from __future__ import annotations

import os
import signal

import torch
from hypothesis import HealthCheck, settings

# Two threads whatever the machine: results to rounding must not depend on its cores.
torch.set_num_threads(2)

# Where there is no device its kernels are interpreted, which Triton must know before its import.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# A shell's `&` has SIGINT ignored, by children too: tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile(
    "default",
    deadline=None,  # no timed assertions: the first call compiles
    derandomize=True,  # the same examples on every run
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("default")
