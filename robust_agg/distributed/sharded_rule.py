"""A rule, or an estimator and its state, applied by every rank to its columns of all rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from robust_agg.aggregator import Aggregator, Explanation
from robust_agg.declared import check_declared
from robust_agg.distributed.ranks import Ranks
from robust_agg.distributed.shared import SharedColumns
from robust_agg.errors import check_rejected
from robust_agg.online.estimator import Estimator
from robust_agg.seeding import generator
from robust_agg.types import State


class ShardedRule:
    """What the ranks make of the columns they hold, a step at a time.

    Args:
        rule: an aggregator or an estimator; the same on every rank.
        ranks: who holds columns.
        f: declared number of bad ranks, or None to leave it to the rule.
        seed: of random draws, with the number of the step.
        distances: whether the explanation has distances.

    Attributes:
        state: of the estimator, its estimate in the columns that are here; empty before the first
            step and for an aggregator.
        explanation: of the last step; None before it.

    Raises:
        ConstraintError, ValueError: the rule cannot be sharded, or does not go with n and f.
    """

    def __init__(
        self,
        rule: Aggregator | Estimator,
        ranks: Ranks,
        *,
        f: int | None,
        seed: int,
        distances: bool,
    ) -> None:
        check_declared(rule, f=f or 0, n=ranks.size, who=ranks.who)
        if not rule.shardable:
            raise ValueError(
                f"{ranks.who}: rule must be one that each rank can apply to a slice of the "
                f"coordinates, found {rule.name}, which needs whole rows"
            )
        self.rule, self.ranks, self.f, self.seed = rule, ranks, f, seed
        # Only distances tell which rows of an estimator, or of a coordinate-wise rule, are no rows.
        self.distances = distances or f is not None
        self.state: State = {}
        self.explanation: Explanation | None = None

    def aggregate(self, rows: Tensor, counts: Sequence[int]) -> Tensor:
        """This rank's columns of the result; an error, alike on all ranks, changes nothing.

        Args:
            rows: ``(n, k)``, all rows in the columns that are here; k >= 1.
            counts: how many columns each rank has; one that has none holds a column of zeros.

        Raises:
            TooManyRejectedError, ValueError: as the rule's, and where more than f rows are
                non-finite.
        """
        n = self.ranks.size
        columns = SharedColumns(self.ranks, counts)
        draw = generator(self.seed, "robust all-reduce", self.ranks.step)
        state = self.state
        if isinstance(self.rule, Estimator):
            why, state = self.rule.explain(
                rows,
                state or self.rule.init(rows[0]),
                senders=range(n),
                generator=draw,
                distances=self.distances,
                shards=columns,
            )
        else:
            why = self.rule._explain(rows, draw, distances=self.distances, shards=columns)
        if self.f is not None:
            check_rejected(self.ranks.who, len(why.rejected), self.f, n)
        self.explanation, self.state = why, state
        return why.output
