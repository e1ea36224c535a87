"""Evidence that outlives a restart."""

from __future__ import annotations

from collections.abc import Iterable

from robust_agg.distributed import Evidence


class KeptEvidence(Evidence):
    """Evidence that goes on after those steps that a checkpoint has kept."""

    def state_dict(self) -> list[list[int]]:
        """The ranks that were flagged, for each step that is remembered."""
        return [sorted(flags) for flags in self._flags]

    def load_state_dict(self, flags: Iterable[Iterable[int]]) -> None:
        """Remember what :meth:`state_dict` gave, and nothing else."""
        self._flags.clear()
        self._flags.extend(map(frozenset, flags))
