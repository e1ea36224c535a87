"""What an exact search may cost before it is an error."""

from __future__ import annotations

from robust_agg.errors import SearchLimitError


class Budget:
    """Counts the steps of a search, each of which takes about as long as any.

    Args:
        who: whose search it is, to begin an error message with.
        limit: steps in all.

    Attributes:
        spent: steps so far.
    """

    def __init__(self, who: str, limit: int) -> None:
        self.who, self.limit, self.spent = who, limit, 0

    def spend(self, steps: int) -> None:
        """Raise :class:`~robust_agg.errors.SearchLimitError` where so many more are too many."""
        self.spent += steps
        if self.spent > self.limit:
            raise SearchLimitError(
                f"{self.who}: at most {self.limit} search steps are allowed, found more"
            )
