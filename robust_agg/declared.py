"""Whether a rule withstands the number of Byzantine rows that is declared to its server."""

from __future__ import annotations

from numbers import Integral

from robust_agg.aggregator import Aggregator
from robust_agg.chain import Chain
from robust_agg.errors import ConstraintError, check_count, check_honest_majority, shown
from robust_agg.online.estimator import Estimator
from robust_agg.online.tau import Adaptive


def check_declared(
    rule: Aggregator | Estimator, *, f: int, n: int | None = None, who: str = "Server"
) -> None:
    """Raise unless ``rule`` withstands f bad rows, of n where n is known.

    Whatever n: no part of the rule that knows an f knows a smaller one. With n: ``n >= 2f + 1``,
    the quantile of an adaptive τ is at most (n - f)/n, so that no f rows choose it, and the rule's
    own :meth:`~robust_agg.Aggregator.check` accepts n rows, of which it bears f bad ones.

    Args:
        rule: an aggregator, such as a chain, or an estimator.
        f: declared number of Byzantine rows.
        n: rows of a round; None where that is not known yet.
        who: whose declaration it is, to begin the message with.

    Raises:
        ConstraintError: the rule, f and n do not go together.
        ValueError: f or n is no count, or ``rule`` neither an aggregator nor an estimator.
    """
    given: object = rule
    if not isinstance(given, Aggregator | Estimator):
        raise ValueError(f"{who}: rule must be an aggregator or an estimator, found {shown(given)}")
    check_count(who, "f", f, minimum=0)
    for part in _parts(rule):
        own = getattr(part, "f", None)
        if isinstance(own, Integral) and int(own) < f:
            found = f"{type(part).__name__}(f={own})"
            raise ConstraintError(f"{who}: rule must withstand f={f}, found {found}")
    if n is None:
        return
    check_count(who, "n", n, minimum=0)
    check_honest_majority(who, n, f)
    adaptive = getattr(rule, "adaptive", None)
    # A single row has its own history for a scale.
    if isinstance(adaptive, Adaptive) and n > 1 and adaptive.rank(n) > n - f:
        raise ConstraintError(
            f"{who}: the rule's quantile must be at most (n - f)/n, "
            f"found {adaptive.quantile} with n={n}, f={f}"
        )
    if isinstance(rule, Aggregator):
        rule.check(n)
        if rule.max_rejected(n) < f:
            raise ConstraintError(
                f"{who}: rule must withstand f={f} of n={n} rows, "
                f"found {rule.name}, which withstands {rule.max_rejected(n)}"
            )


def _parts(rule: Aggregator | Estimator) -> list[object]:
    if isinstance(rule, Chain):
        return [*rule.mixings, *_parts(rule.rule)]
    return [rule]
