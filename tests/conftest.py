"""Settings shared by all tests."""

from __future__ import annotations

import os
import re
import signal

import pytest
import torch
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

# Their processes wait for each other and stop at deadlines: beside one another they would be late.
_ONE_AT_A_TIME = re.compile(r"tests/(cluster|hosts|sweeps|workers|test_readme)\b")

# Two threads whatever the machine: results to rounding must not depend on its cores.
torch.set_num_threads(2)

# Where there is no device its kernels are interpreted, which Triton must know before its import.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Ray makes its workers nice: they would give way to the tests of the other process until too late.
os.environ.setdefault("RAY_worker_niceness", "0")

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


class _ByFile(LoadScopeScheduling):
    """A file's tests share what they have built; those of one kind are all one process's."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::", 1)[0]
        return "one at a time" if _ONE_AT_A_TIME.match(file) else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> LoadScopeScheduling:
    """In the order of the files, for what takes longest to begin early."""
    config.option.loadscopereorder = False
    return _ByFile(config, log)
