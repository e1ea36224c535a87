"""Sweeps that come with the project: tables of a paper and of a library, and one of our own.

``byzfl`` is the benchmark of ByzFL's documentation, ``bucketing`` a table of Karimireddy, He and
Jaggi (ICLR 2022), ``online`` puts the online estimators beside one-shot rules.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

NAMES = ("bucketing", "byzfl", "online")


def located(name: str) -> Path:
    """The file of the recipe that ``name`` is the name of; else ``name`` as a path."""
    if name not in NAMES or Path(name).exists():
        return Path(name)
    with as_file(files(__name__) / f"{name}.toml") as path:
        return path
