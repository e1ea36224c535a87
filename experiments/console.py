"""Where the commands write."""

from __future__ import annotations

import sys

from rich.console import Console


def new_console() -> Console:
    """Standard output, for text as it is."""
    # A log file has no width to fold tables to; brackets in names are no markup.
    width = None if sys.stdout.isatty() else 120
    return Console(width=width, markup=False, emoji=False, highlight=False)
