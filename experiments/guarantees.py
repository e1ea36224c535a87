"""What rules guarantee and attacks must know, read off the classes."""

from __future__ import annotations

import dataclasses

from attacks import Attack, DataAttack, Knowledge
from robust_agg import Aggregator, ConstraintError, Invariance, Mixing

N, F = 20, 4
"""Where κ is shown."""

_LARGEST = 60
# n up to which a smallest one is looked for: more than any rule asks of f = 3.
_SHORT = {
    Invariance.PERMUTATION: "permutation",
    Invariance.TRANSLATION: "translation",
    Invariance.SCALING: "scaling",
    Invariance.ROTATION: "rotation",
}


def with_f(cls: type, f: int) -> object | None:
    """An instance for f bad rows whose other parameters have their defaults, or else are 2.

    None where there is none such.
    """
    given = {}
    for field in dataclasses.fields(cls) if dataclasses.is_dataclass(cls) else ():
        if field.name == "f":
            given["f"] = f
        elif field.init and field.default is field.default_factory is dataclasses.MISSING:
            given[field.name] = 2
    try:
        made: object = cls(**given)
    except (TypeError, ValueError):
        return None
    return made


def needed_rows(cls: type) -> str:
    """``n >= 2f + 3``: from how many rows on the rule bears f bad ones, as it says for f = 1, 2, 3.

    Of a mixing, how many it takes; empty where there is no constraint, or where the parameters that
    must be given decide.
    """
    least = []
    for f in (1, 2, 3):
        made = with_f(cls, f)
        if not isinstance(made, Aggregator | Mixing):
            return ""
        accepted = (n for n in range(1, _LARGEST) if _accepts(made, n, f))
        least.append(next(accepted, 0))
    slope, start = least[1] - least[0], 2 * least[0] - least[1]
    if least[2] != 3 * slope + start:
        return f"n >= {', '.join(map(str, least))} for f = 1, 2, 3"
    if slope == 0:
        return "" if start == 1 else f"n >= {start}"
    return f"n >= {'' if slope == 1 else slope}f" + (f" + {start}" if start else "")


def _accepts(rule: Aggregator | Mixing, n: int, f: int) -> bool:
    try:
        rule.check(n)
    except ConstraintError:
        return False
    return isinstance(rule, Mixing) or (n > 2 * f and rule.max_rejected(n) >= f)


def shown_kappa(cls: type) -> str:
    """The κ of (f, κ)-robustness for n = 20, f = 4, or a dash where none is known."""
    made = with_f(cls, F)
    found = made.kappa(N, F) if isinstance(made, Aggregator) else None
    return "–" if found is None else f"{found:.2f}"


def shown_invariances(cls: type) -> str:
    """What the result does not follow, with the parameters' defaults."""
    kept = getattr(with_f(cls, F), "invariances", None)
    if kept is None:
        return ""
    return ", ".join(name for kind, name in _SHORT.items() if kind not in kept) or "–"


def shown_knowledge(cls: type) -> str:
    """What an attack reads of a round, with the parameters' defaults."""
    if issubclass(cls, DataAttack):
        return "its own data"
    made = with_f(cls, F)
    if not isinstance(made, Attack):
        return ""
    words = {
        Knowledge.OWN: "its own rows",
        Knowledge.HONEST: "honest rows",
        Knowledge.DEFENCE: "the defence",
        Knowledge.ESTIMATE: "the last estimate",
    }
    return ", ".join(text for kind, text in words.items() if kind in made.knows) or "nothing"
