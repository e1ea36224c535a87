"""Long names: where they may break, and into which lines."""

from __future__ import annotations

import re

_BREAKS = re.compile(r"(?<=[ (,+_/])|(?<=[a-z])(?=[A-Z])")


def pieces(text: str) -> list[str]:
    """A text cut after punctuation and between the words of a name."""
    return _BREAKS.split(text)


def wrapped(text: str, width: int, *, lines: int = 4) -> str:
    """A text in lines of at most ``width`` characters, where its pieces allow that.

    What does not fit into so many lines is left out, and an ellipsis says so.
    """
    rows = [""]
    for piece in pieces(" ".join(text.split())):
        # Longer than a line: cut anywhere.
        for part in (piece[i : i + width] for i in range(0, len(piece), width)):
            if rows[-1] and len(rows[-1]) + len(part.rstrip()) > width:
                rows.append("")
            rows[-1] += part
    if len(rows) > lines:
        rows = [*rows[: lines - 1], f"{rows[lines - 1][: width - 2].rstrip()} …"]
    return "\n".join(row.rstrip() for row in rows)
