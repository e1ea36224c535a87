"""Machine code kept on disk, so that what takes long to compile is compiled once.

In ``ROBUST_AGG_CACHE``, or ``robust-agg`` in the user's folder for caches; ``ROBUST_AGG_CACHE=0``
keeps nothing. Losing a file costs a compilation, and so does a damaged one.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

VARIABLE = "ROBUST_AGG_CACHE"


def folder() -> Path | None:
    """Where code is kept; None if it is not."""
    given = os.environ.get(VARIABLE, "")
    if given == "0":
        return None
    if given:
        return Path(given)
    caches = os.environ.get("XDG_CACHE_HOME", "")
    with suppress(RuntimeError):  # a user without a home
        return Path(caches or Path.home() / ".cache") / "robust-agg"
    return None


def read(key: str) -> bytes | None:
    """The code that was kept under a key."""
    kept = folder()
    if kept is None:
        return None
    try:
        content = (kept / f"{key}.o").read_bytes()
    except OSError:
        return None
    digest, code = content[:32], content[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def write(key: str, code: bytes) -> None:
    """Keep code under a key, whole or not at all; a folder that cannot be written is no error."""
    kept = folder()
    if kept is None:
        return
    with suppress(OSError):
        kept.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=kept, delete=False) as file:
            file.write(hashlib.sha256(code).digest() + code)
        os.replace(file.name, kept / f"{key}.o")
