"""What a training has to show: validation losses, and ranks that stand out."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from robust_agg.distributed import Suspect


def in_a_line(step: float | None, loss: float | None) -> str:
    """A loss of :attr:`Outcome.losses`, as every way to start a script prints it."""
    return f"step {step}: validation loss {math.nan if loss is None else loss:.4f}"


class Outcome:
    """Grows while the training goes on; on rank 0 alone.

    Args:
        path: of a file with the losses, for whoever watches.

    Attributes:
        losses: ``[[step, loss], …]``, None for a loss that is not finite.
        suspects: the ranks that stood out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.losses: list[list[float | None]] = []
        self.suspects: list[Suspect] = []

    def load(self, losses: list[list[float | None]]) -> None:
        """Go on after these."""
        self.losses = losses

    def add(self, step: int, loss: float) -> None:
        """One more loss: printed, and written to the file."""
        kept = loss if math.isfinite(loss) else None
        print(in_a_line(step, kept), flush=True)
        self.losses.append([step, kept])
        temporary = self._path.with_name(f".{self._path.name}")
        temporary.write_text(json.dumps(self.losses), encoding="utf-8")
        os.replace(temporary, self._path)

    def suspect(self, suspects: Sequence[Suspect]) -> None:
        """The ranks that stood out, printed."""
        self.suspects = list(suspects)
        for suspect in suspects:
            print(suspect, flush=True)
