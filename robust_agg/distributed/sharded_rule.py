"""A rule, or an estimator, that every rank applies to its columns of all rows."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from robust_agg.aggregator import Aggregator, Coordinatewise, Explanation
from robust_agg.declared import check_declared
from robust_agg.distributed.exchanges import Exchange, Replicated
from robust_agg.errors import check_rejected
from robust_agg.online.estimator import Estimator
from robust_agg.seeding import generator
from robust_agg.shards import Shards
from robust_agg.specification import specification
from robust_agg.types import State


class ShardedRule:
    """What the ranks make of the columns they hold; without memory but for the step's number.

    Args:
        rule: an aggregator or an estimator; the same on every rank.
        exchange: how rows meet.
        f: declared number of bad ranks, or None to leave it to the rule.
        seed: of random draws, with the number of the step.
        distances: whether explanations have distances.
        options: what else ranks must have alike, in words.

    Attributes:
        specification: of the rule and its parameters.
        asked: the same with all else that ranks must have alike, or their collectives or their
            draws would not be.

    Raises:
        ConstraintError, ValueError: the rule cannot be sharded, or does not go with n and f.
    """

    def __init__(
        self,
        rule: Aggregator | Estimator,
        exchange: Exchange,
        *,
        f: int | None,
        seed: int,
        distances: bool,
        options: str = "",
    ) -> None:
        who = exchange.ranks.who
        check_declared(rule, f=f or 0, n=exchange.n, who=who)
        if not (rule.shardable or isinstance(exchange, Replicated)):
            raise ValueError(
                f"{who}: rule must be one that each rank can apply to a slice of the "
                f"coordinates, found {rule.name}, which needs whole rows: "
                "trust='replicated' of RobustAllReduce or robust_hook gives it these"
            )
        self.rule, self.exchange, self.f, self.seed = rule, exchange, f, seed
        # Only distances tell which rows of these are no rows.
        unseen = isinstance(rule, Estimator | Coordinatewise)
        self.distances = distances or (f is not None and unseen)
        self.specification = specification(rule)
        met = f"{type(exchange).__name__} of {exchange.n}"
        self.asked = (
            f"{self.specification}, {met}, f={f}, seed={seed}, distances={distances}{options}"
        )

    def step(
        self, rows: Tensor, state: State, columns: Shards, *, distances: bool | None = None
    ) -> tuple[Explanation, State]:
        """This rank's columns of the result, with weights, and the estimator's new state.

        Args:
            rows: ``(n, k)``, all rows in the columns that are here, k >= 1; of a rank that has none
                a column of zeros.
            state: the estimator's, its estimate in these columns; empty before the first step.
            columns: who holds the others.
            distances: whether to measure them; as wanted of this rule if None.

        Raises:
            TooManyRejectedError, ValueError: as the rule's, on every rank alike.
        """
        measured = self.distances if distances is None else distances
        draw = generator(self.seed, "robust all-reduce", self.exchange.ranks.step)
        if not isinstance(self.rule, Estimator):
            return self.rule._explain(rows, draw, distances=measured, shards=columns), state
        return self.rule.explain(
            rows,
            state or self.rule.init(rows[0]),
            senders=range(len(rows)),
            generator=draw,
            distances=measured,
            shards=columns,
        )

    def check_rejected(self, rejected: Sequence[int]) -> None:
        """Raise :class:`~robust_agg.TooManyRejectedError` where more than f rows are rejected."""
        if self.f is not None:
            check_rejected(self.exchange.ranks.who, len(rejected), self.f, self.exchange.n)


def made_on_all(
    rule: Aggregator | Estimator,
    exchange: Exchange,
    *,
    f: int | None,
    seed: int,
    distances: bool,
    options: str = "",
    later: bool = False,
) -> ShardedRule:
    """The rule among ranks, which all make it together, and alike.

    Args:
        rule: see :class:`ShardedRule`, as for the others.
        exchange: how rows meet.
        f: declared number of bad ranks.
        seed: of random draws.
        distances: whether explanations have distances.
        options: what else must be alike, in words.
        later: whether the ranks compare what they have before they use it, and not here.

    Raises:
        ConstraintError, ValueError: as :class:`ShardedRule`, on this rank.
        DisagreementError: the rule, or an option, is another on some rank, or cannot be there.
    """
    with exchange.ranks.telling_refusals():
        made = ShardedRule(rule, exchange, f=f, seed=seed, distances=distances, options=options)
    if not later:
        exchange.ranks.agree(made.asked)
    return made
