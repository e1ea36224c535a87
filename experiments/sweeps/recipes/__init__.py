"""Sweeps that come with the project: tables of a paper and of a library, and one of our own.

``byzfl`` is the benchmark of ByzFL's documentation, ``bucketing`` a table of Karimireddy, He and
Jaggi (ICLR 2022), ``online`` puts the online estimators beside one-shot rules.
"""

from __future__ import annotations

from importlib.resources import as_file, files
from pathlib import Path

from experiments.config import ConfigError
from experiments.specs import nearest

NAMES = ("bucketing", "byzfl", "online")


def located(name: str) -> Path:
    """The file of the recipe that ``name`` is the name of; else ``name`` as a path.

    Raises:
        ConfigError: a plain word that is neither a file nor a recipe.
    """
    path = Path(name)
    if path.suffix or path.name != name or path.exists():
        return path
    if name not in NAMES:
        near = nearest(name, dict.fromkeys(NAMES, str))
        raise ConfigError(f"file: a file or a recipe is required, found {name!r}{near}")
    with as_file(files(__name__) / f"{name}.toml") as path:
        return path
