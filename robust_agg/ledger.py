"""The ledger: one JSON line a round, saying what was decided and why."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from robust_agg.admission import Rejection


@dataclass(frozen=True, kw_only=True)
class Record:
    """What happened in one round.

    Attributes:
        round: from 0.
        senders: who has a place in n, ascending.
        weights: one per sender, where the rule has weights; 0 for a rejected row.
        distances: ‖x_i - estimate‖₂ per sender; None where it cannot be measured.
        rejected: messages that do not count, and why.
        clipped: senders whose message was longer than the codec allows, and counts as clipped.
        bytes: of the messages that arrived, in their byte format, whether they count or not; None
            where there are no messages, as in a collective.
        estimate_norm: ‖estimate‖₂; None in a skipped round.
        skipped: why the model did not step, or None.
        solver: iterations, residual and reason, where the rule has a solver.
        seconds: times by stage.
    """

    round: int
    senders: tuple[int, ...]
    weights: tuple[float, ...] | None = None
    distances: tuple[float | None, ...] = ()
    rejected: tuple[Rejection, ...] = ()
    clipped: tuple[int, ...] = ()
    bytes: int | None = None
    estimate_norm: float | None = None
    skipped: str | None = None
    solver: Mapping[str, Any] | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    def line(self) -> str:
        """The record as one line of strict JSON (no NaN, no Infinity)."""
        return json.dumps(asdict(self), allow_nan=False, separators=(",", ":"))


class Ledger:
    """An append-only file of JSON lines.

    Opening an existing ledger continues it; :meth:`truncate` drops the rounds that a resumed run
    will do again, and a last line that a crash cut short.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def append(self, record: Record) -> None:
        """Add the record's line; the file is closed again, so the line outlives the process."""
        line = record.line() + "\n"
        with self.path.open("a+b") as file:
            if file.tell() > 0:
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    line = "\n" + line  # after a line that a crash has cut short
            file.write(line.encode())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The lines, as dictionaries; one that a crash has cut short is left out."""
        if not self.path.exists():
            return
        with self.path.open(encoding="utf-8") as file:
            for line in file:
                # One may end in the brace of an inner object.
                with suppress(ValueError):
                    if line.endswith("}\n"):
                        yield json.loads(line)

    def truncate(self, before: int) -> None:
        """Keep the rounds below ``before``."""
        kept = [json.dumps(r, separators=(",", ":")) + "\n" for r in self if r["round"] < before]
        temporary = self.path.with_suffix(self.path.suffix + ".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self.path)


def finite_or_none(values: list[float]) -> tuple[float | None, ...]:
    """Numbers as strict JSON can hold them."""
    return tuple(v if math.isfinite(v) else None for v in values)
