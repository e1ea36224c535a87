"""The entry point of ``robust-agg``, which needs nothing but Python to say what is missing."""

from __future__ import annotations

import os
import sys
import threading
from typing import NoReturn

_OURS = ("robust_agg", "attacks", "workers", "experiments")


def main() -> NoReturn:
    """Run the command line; exit code 2 where it is not installed, 130 after an early Ctrl-C."""
    try:
        from experiments.cli import main as command
        from experiments.memory import keep_freed
    except KeyboardInterrupt:
        sys.exit(130)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in _OURS:
            raise
        missing = f"the command line needs {error.name}: pip install 'robust-agg[experiments]'"
        print(f"robust-agg: error: {missing}", file=sys.stderr)
        sys.exit(2)
    keep_freed()
    try:
        command()
    except SystemExit as ended:
        _exit(ended)


def _exit(ended: SystemExit) -> NoReturn:
    from workers.inline import HostThread

    if any(isinstance(thread, HostThread) for thread in threading.enumerate()):
        # A hung host was given up; it must not abort what is done.
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(ended.code if isinstance(ended.code, int) else 1)
    raise ended


if __name__ == "__main__":
    main()
