"""Writing the report of a sweep into its folder."""

from __future__ import annotations

import os
from pathlib import Path

from experiments.config import ConfigError
from experiments.sweeps.folder import PAGE
from experiments.sweeps.report.content import Content
from experiments.sweeps.report.markdown import FIGURES, markdown
from experiments.sweeps.report.page import html

TEXT = "report.md"


def write(content: Content, folder: Path) -> Path:
    """Write ``report.html``, ``report.md`` and ``figures/``, whatever the sweep has got to.

    Each file takes its name when it is whole, so that a page that loads itself again is never half
    of one. Figures that the sweep no longer has are removed.

    Args:
        content: what to say.
        folder: where.

    Returns:
        The page's file.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        images = folder / FIGURES
        images.mkdir(exist_ok=True)
        drawn = content.figures()
        for name, figure in drawn.items():
            temporary = images / f".{name}.png"
            figure.savefig(temporary, dpi=150, format="png")
            os.replace(temporary, images / f"{name}.png")
        for path in images.glob("*.png"):
            if path.stem not in drawn:
                path.unlink()
        _replace(folder / TEXT, markdown(content, drawn))
        _replace(folder / PAGE, html(content))
    except OSError as error:
        found = f"{error.strerror} at {error.filename}"
        raise ConfigError(f"folder must be one that can be written, found {found}") from None
    return folder / PAGE


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
