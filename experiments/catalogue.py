"""What there is to choose from, as tables for a terminal."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator

from rich.table import Table

from experiments import specs


def tables() -> Iterator[Table]:
    """A table for each kind of object that a specification can name."""
    for kind, classes in specs.catalogue().items():
        shown = Table(title=kind, title_justify="left", show_header=False, box=None)
        for cls in classes:
            shown.add_row(_form(cls), _summary(cls))
        yield shown


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
