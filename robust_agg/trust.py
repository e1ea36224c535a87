"""Rules that trust a row: whose row that is, where not all arrive."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral
from typing import Any, TypeVar

from robust_agg.aggregator import Aggregator
from robust_agg.chain import Chain
from robust_agg.errors import ConstraintError
from robust_agg.online.estimator import Estimator

Rule = TypeVar("Rule", bound=Aggregator | Estimator)


def trusted(rule: Aggregator | Estimator) -> int | None:
    """The position of the row that a rule, or a chain's last stage, trusts; None if it has none."""
    if isinstance(rule, Chain):
        return trusted(rule.rule)
    if isinstance(rule, Estimator) or rule.trusts is None:
        return None
    value = getattr(rule, rule.trusts)
    return int(value) if isinstance(value, Integral) else None


def for_senders(rule: Rule, senders: Sequence[int]) -> Rule:
    """``rule`` for rows of these senders, where the position that it has is a sender's number.

    Of the rows of senders 0 to n - 1 the two are the same. Where some do not arrive, another row
    moves up to the position, and would be trusted instead.

    Raises:
        ConstraintError: there is no row of that sender.
    """
    sender = trusted(rule)
    if sender is None:
        return rule
    if sender not in senders:
        raise ConstraintError(
            f"{rule.name}: a row of sender {sender}, whom it trusts, is required, found none"
        )
    made: Any = rule
    if isinstance(rule, Chain):
        made = replace(rule, rule=for_senders(rule.rule, senders))
    else:
        made = replace(made, **{made.trusts: senders.index(sender)})
    placed: Rule = made
    return placed
