"""Writing the report of a sweep into its folder."""

from __future__ import annotations

import os
from pathlib import Path

from filelock import FileLock

from experiments.config import ConfigError
from experiments.sweeps.folder import PAGE
from experiments.sweeps.report.cells import check, read
from experiments.sweeps.report.content import Content, compose
from experiments.sweeps.report.markdown import FIGURES, markdown
from experiments.sweeps.report.page import html

TEXT = "report.md"
_LOCK = ".lock"
# Beside the figures.


def write(folder: Path) -> Content:
    """Write ``report.html``, ``report.md`` and ``figures/``, whatever the sweep has got to.

    Each file takes its name when it is whole, so that a page that loads itself again is never half
    of one. Figures that the sweep no longer has are removed. Several processes may write: one after
    another, each what the sweep has got to when it begins, so that no page is followed by an older
    one.

    Args:
        folder: the sweep's.

    Returns:
        What was written.

    Raises:
        ConfigError: there is no sweep in it, one of its files is damaged, or it cannot be written.
    """
    check(folder)
    try:
        images = folder / FIGURES
        images.mkdir(exist_ok=True)
        with FileLock(images / _LOCK):
            content = compose(read(folder))
            _write(content, folder)
    except OSError as error:
        found = f"{error.strerror} at {error.filename}"
        raise ConfigError(f"folder must be one that can be written, found {found}") from None
    return content


def _write(content: Content, folder: Path) -> None:
    images = folder / FIGURES
    drawn = content.figures()
    for name, figure in drawn.items():
        temporary = images / f".{name}.png"
        figure.savefig(temporary, dpi=150, format="png")
        os.replace(temporary, images / f"{name}.png")
    # Of earlier reports, and of one that was killed.
    for path in images.glob("*.png"):
        if path.stem not in drawn:
            path.unlink()
    _replace(folder / TEXT, markdown(content, drawn))
    _replace(folder / PAGE, html(content))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
