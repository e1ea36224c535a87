"""``robust-agg report``."""

from __future__ import annotations

from pathlib import Path

from experiments.sweeps.folder import PAGE


def report(folder: Path) -> int:
    """Write a sweep's report: one page that needs nothing but itself, Markdown and figures.

    Works at any time; the page of a sweep that has not finished says so.

    Parameters
    ----------
    folder
        The sweep's folder.
    """
    # What draws takes longer to import than the other commands should wait.
    from experiments.sweeps.report.write import write

    write(folder)
    print(f"report: {folder / PAGE}")
    return 0
