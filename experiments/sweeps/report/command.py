"""``robust-agg report``."""

from __future__ import annotations

from pathlib import Path


def report(folder: Path) -> int:
    """Write a sweep's report: one page that needs nothing but itself, Markdown and figures.

    Works at any time; the page of a sweep that has not finished says so.

    Parameters
    ----------
    folder
        The sweep's folder.
    """
    # What draws takes longer to import than the other commands should wait.
    from experiments.sweeps.report.cells import read
    from experiments.sweeps.report.content import compose
    from experiments.sweeps.report.write import write

    print(f"report: {write(compose(read(folder)), folder)}")
    return 0
