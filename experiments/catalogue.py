"""What there is to choose from, as tables for a terminal."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping

from rich.table import Table

from experiments import specs
from experiments.guarantees import (
    F,
    N,
    needed_rows,
    shown_invariances,
    shown_kappa,
    shown_knowledge,
)

WIDTH = 170
"""Characters that the tables need for no word to be cut."""


def tables() -> Iterator[Table]:
    """A table for each kind of object that a specification can name."""
    for kind, classes in specs.catalogue().items():
        columns = _COLUMNS.get(kind, {})
        shown = Table(title=kind, title_justify="left", show_header=bool(columns), box=None)
        # Rich cuts a word that is longer than its column.
        longest = max((len(word) for cls in classes for word in _form(cls).split()), default=0)
        shown.add_column("", min_width=longest)
        for heading in (*columns, ""):
            shown.add_column(heading)
        for cls in classes:
            shown.add_row(_form(cls), *(tell(cls) for tell in columns.values()), _summary(cls))
        yield shown


_COLUMNS: Mapping[str, Mapping[str, Callable[[type], str]]] = {
    "aggregators": {
        "rows": needed_rows,
        f"κ, {N} rows, f = {F}": shown_kappa,
        "does not follow": shown_invariances,
    },
    "mixings, before an aggregator": {"rows": needed_rows, "does not follow": shown_invariances},
    "estimators": {"does not follow": shown_invariances},
    "attacks": {"reads": shown_knowledge},
}
"""What is said of each kind beside its form and its first sentence."""


def _form(cls: type) -> str:
    """``Name(required, other=default)``."""
    if not dataclasses.is_dataclass(cls):
        return f"{cls.__name__}{inspect.signature(cls)}"
    given = [_parameter(field) for field in dataclasses.fields(cls) if field.init]
    return f"{cls.__name__}({', '.join(given)})"


def _parameter(field: dataclasses.Field[object]) -> str:
    if field.default is not dataclasses.MISSING:
        return f"{field.name}={field.default!r}"
    if field.default_factory is not dataclasses.MISSING:
        return f"{field.name}={field.default_factory()!r}"
    return field.name


def _summary(cls: type) -> str:
    return (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " ").replace("``", "")
