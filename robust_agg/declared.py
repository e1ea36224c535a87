"""Whether a rule withstands the number of Byzantine rows that is declared to its server."""

from __future__ import annotations

from numbers import Integral

from robust_agg.aggregator import Aggregator
from robust_agg.chain import Chain
from robust_agg.errors import ConstraintError, check_count, check_honest_majority, shown
from robust_agg.mixings.mixing import Mixing
from robust_agg.online.estimator import Estimator
from robust_agg.online.tau import Adaptive
from robust_agg.trust import trusted


def check_declared(
    rule: Aggregator | Estimator, *, f: int, n: int | None = None, who: str = "Server"
) -> None:
    """Raise unless ``rule`` withstands f bad rows, of n where n is known.

    Whatever n: no part of a chain that knows an f knows a smaller number than that of the bad
    points it may receive, which is f until a mixing says otherwise, and a row that is trusted is
    still in its place there. With n: ``n >= 2f + 1``, the quantile of an adaptive τ is at most
    (n - f)/n, so that no f rows choose it, the rule's own :meth:`~robust_agg.Aggregator.check`
    accepts n rows, and every stage bears so many of the points it receives.

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
    parts = _parts(rule)
    bad = f
    for part in parts:
        own = getattr(part, "f", None)
        if isinstance(own, Integral) and int(own) < bad:
            found = f"{type(part).__name__}(f={own})"
            spoiled = "" if bad == f else f", of which {bad} points may be bad"
            raise ConstraintError(f"{who}: rule must withstand f={f}{spoiled}, found {found}")
        if isinstance(part, Mixing):
            bad = part.spoiled(bad)
            if not part.in_place and trusted(rule) is not None:
                raise ConstraintError(
                    f"{who}: the row that {parts[-1].name} trusts must be in its place, "
                    f"found {part.name} before it"
                )
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
        _check_bearing(rule, n, f, who)


def _check_bearing(rule: Aggregator, n: int, f: int, who: str) -> None:
    points, bad = n, f
    for stage in _parts(rule):
        assert not isinstance(stage, Estimator)
        bearable = stage.max_rejected(points)
        if bearable < bad:
            found = f"found {stage.name}, which withstands {bearable}"
            declared = f"f={f} of n={n} rows"
            if (points, bad) != (n, f):
                declared = f"{bad} of {points} points, which {declared} may spoil"
            raise ConstraintError(f"{who}: rule must withstand {declared}, {found}")
        if isinstance(stage, Mixing):
            points = stage.check(points)
            bad = min(stage.spoiled(bad), points)


def _parts(rule: Aggregator | Estimator) -> list[Mixing | Aggregator | Estimator]:
    if isinstance(rule, Chain):
        return [*rule.mixings, *_parts(rule.rule)]
    return [rule]
