"""Other libraries in tests: what is not installed is left out, and what is must work."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TypeVar

import pytest

Found = TypeVar("Found")


def is_installed(package: str) -> bool:
    """Whether there is a package of that name; none of its code is run."""
    return importlib.util.find_spec(package) is not None


def from_peer(package: str, load: Callable[[], Found]) -> Found:
    """What ``load`` makes of an installed package; where there is none, the test is skipped.

    An error of ``load`` is the test's: a peer that is there and cannot be imported is not missing.
    """
    if not is_installed(package):
        pytest.skip(f"{package} is not installed")
    return load()
