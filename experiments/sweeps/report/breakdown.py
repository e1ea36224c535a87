"""The smallest f at which each defence falls, per attack: a heat map, and bars to the worst."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from experiments.sweeps.report.cells import Row
from experiments.sweeps.report.heat import HeatCell, HeatMap

_OWN = frozenset(
    {"defence", "attack", "group", "breakdown_f", "finished", "most", "accuracy", "config.defence"}
)


@dataclass(frozen=True)
class Fall:
    """How many Byzantine workers bring a defence down.

    Attributes:
        defence: which, with its scenario where there are several.
        per_attack: attacks and the smallest f at which it fell; None where none up to ``most``.
        most: the largest f that was tried.
    """

    defence: str
    per_attack: tuple[tuple[str, int | None], ...]
    most: int

    @property
    def first(self) -> int | None:
        """The smallest over attacks."""
        return min((f for _, f in self.per_attack if f is not None), default=None)


def falls(rows: Sequence[Row]) -> list[Fall]:
    """The defences, the last to fall first; without the searches that have not finished."""
    found: dict[str, list[tuple[str, int | None]]] = {}
    for row in rows:
        if row.get("finished") is False:
            continue
        f = row.get("breakdown_f")
        found.setdefault(_name(row), []).append((str(row["attack"]), None if f is None else int(f)))
    most = max((int(row["most"]) for row in rows), default=0)
    lines = [Fall(name, tuple(each), most) for name, each in found.items()]
    return sorted(lines, key=lambda fall: -_height(fall.first, most))


def _name(row: Row) -> str:
    """The defence, and what of its scenario the row tells."""
    rest = [
        f"{name.removeprefix('config.')}={value}"
        for name, value in row.items()
        if name not in _OWN and value is not None
    ]
    return f"{row['defence']} ({', '.join(rest)})" if rest else str(row["defence"])


def _height(f: int | None, most: int) -> int:
    return most + 1 if f is None else f


def breakdown_map(found: Sequence[Fall]) -> HeatMap | None:
    """Defence × attack; the lighter, the more Byzantine workers it takes."""
    if not found:
        return None
    attacks = tuple(dict.fromkeys(attack for fall in found for attack, _ in fall.per_attack))
    most = found[0].most
    rows = []
    for fall in found:
        known: dict[str, Any] = dict(fall.per_attack)
        cells = [_cell(fall, a, known[a]) if a in known else None for a in attacks]
        rows.append((fall.defence, (_cell(fall, "any attack", fall.first), *cells)))
    return HeatMap(
        "breakdown-table",
        "Smallest f at which a defence falls",
        "attack",
        "defence",
        ("any", *attacks),
        tuple(rows),
        ("f = 1", f"none up to {most}"),
    )


def _cell(fall: Fall, attack: str, f: int | None) -> HeatCell:
    text = f"> {fall.most}" if f is None else str(f)
    fallen = f"none up to {fall.most} brings it down" if f is None else f"it falls at f = {f}"
    share = (_height(f, fall.most) - 1) / fall.most
    return HeatCell(text, share, f"{fall.defence} under {attack}: {fallen}")
