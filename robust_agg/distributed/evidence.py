"""Which ranks stand out: step by step in a ledger, and over many steps by name and device."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from robust_agg.admission import Rejection
from robust_agg.aggregator import Explanation
from robust_agg.distributed.ranks import Ranks
from robust_agg.errors import check_count, check_positive, check_share
from robust_agg.ledger import Ledger, Record, finite_or_none


class Explained(Protocol):
    """What has an explanation of its last step: ``RobustAllReduce``, ``RobustHook``, …"""

    ranks: Ranks

    @property
    def explanation(self) -> Explanation | None: ...


@dataclass(frozen=True)
class Suspect:
    """A rank that was flagged in many steps.

    Attributes:
        rank: of the group.
        place: its host, process and device.
        flagged: in how many of the last ``steps`` it was.
        steps: how many were looked at.
    """

    rank: int
    place: str
    flagged: int
    steps: int

    def __str__(self) -> str:
        return f"{self.place}: flagged in {self.flagged} of the last {self.steps} steps"


class Evidence:
    """Flags, in each step, the rows that were rejected or lie far from the result.

    Far is more than ``factor`` times the median distance, which no minority can move. One step says
    little, heavy tails being what they are; a machine that is broken stands out in most.

    Args:
        reducer: whose steps; made with ``distances=True``, and with a row a rank.
        factor: see above.
        share: of the last ``window`` steps in which a rank must be flagged to be a suspect.
        window: how many steps are remembered.
        ledger: where each step gets a line, on rank 0 alone.

    Raises:
        ValueError: a number out of range.
    """

    def __init__(
        self,
        reducer: Explained,
        *,
        factor: float = 3.0,
        share: float = 0.5,
        window: int = 100,
        ledger: Ledger | None = None,
    ) -> None:
        check_positive("Evidence", "factor", factor)
        check_share("Evidence", "share", share)
        check_count("Evidence", "window", window, minimum=1)
        self._reducer, self._ledger = reducer, ledger
        self._factor, self._share = factor, share
        self._flags: deque[frozenset[int]] = deque(maxlen=window)

    def update(self) -> frozenset[int]:
        """Take the last step into account; the ranks that were flagged in it.

        Of a step in which the rule itself has failed nothing is known, and nobody is flagged.

        Raises:
            ValueError: there was no step yet, or its distances were not measured.
        """
        why = self._reducer.explanation
        if why is None and self._reducer.ranks.step > 0:
            self._flags.append(frozenset())
            self._note(Record(**self._of_step(), skipped="the rule has failed"))
            return frozenset()
        if why is None or len(why.distances) != self._reducer.ranks.size:
            found = "no step" if why is None else f"{len(why.distances)} distances"
            raise ValueError(
                "Evidence: reducer must have made a step with distances=True and a row a rank, "
                f"found {found}"
            )
        gaps = why.distances.nan_to_num(nan=torch.inf, posinf=torch.inf)
        far = gaps > self._factor * gaps.median()
        flagged = frozenset(far.nonzero().flatten().tolist()) | frozenset(why.rejected)
        self._flags.append(flagged)
        self._note(self._record(why))
        return flagged

    def _note(self, record: Record) -> None:
        if self._ledger is not None and self._reducer.ranks.rank == 0:
            self._ledger.append(record)

    def _of_step(self) -> dict[str, Any]:
        ranks = self._reducer.ranks
        return {"round": ranks.step - 1, "senders": tuple(range(ranks.size))}

    def _record(self, why: Explanation) -> Record:
        return Record(
            **self._of_step(),
            weights=None if why.weights is None else tuple(why.weights.tolist()),
            distances=finite_or_none(why.distances.tolist()),
            rejected=tuple(
                Rejection(rank, "non-finite or too far to measure", True) for rank in why.rejected
            ),
        )

    @property
    def suspects(self) -> list[Suspect]:
        """Ranks flagged in at least ``share`` of the last steps, most often flagged first."""
        steps = len(self._flags)
        found = []
        for rank in range(self._reducer.ranks.size):
            flagged = sum(rank in flags for flags in self._flags)
            if steps and flagged >= self._share * steps:
                found.append(Suspect(rank, self._reducer.ranks.place(rank), flagged, steps))
        return sorted(found, key=lambda suspect: -suspect.flagged)
