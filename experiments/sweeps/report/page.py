"""The report as one page: no script, nothing from elsewhere, everything escaped."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup

from experiments.sweeps.report import charts, tables, words
from experiments.sweeps.report.colours import STYLED, cividis
from experiments.sweeps.report.content import Content
from experiments.sweeps.report.groups import Group
from experiments.sweeps.report.leaderboard import percent, where
from experiments.sweeps.report.markdown import points_table
from experiments.sweeps.report.names import pieces
from experiments.sweeps.report.svg import inline

REFRESH = 60
"""Seconds after which the page of an unfinished sweep loads itself again."""


def html(content: Content) -> str:
    """The whole page."""
    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": breakable, "percent": percent, "share": tables.share_text}
    template = environment.get_template("page.html.j2")
    return template.render(
        content=content,
        words=words,
        style=Markup(_template("style.css")),
        refresh=REFRESH,
        styled=STYLED,
        ramp=", ".join(cividis(step / 10) for step in range(11)),
        charts=_charts(content),
        points=points_table(content),
        behind=tables.behind,
        where=where,
        common=common,
        own=own,
    )


def _template(name: str) -> str:
    return files(__package__).joinpath("templates", name).read_text(encoding="utf-8")


def _charts(content: Content) -> dict[str, Any]:
    """The figures that are drawn for the page."""
    found: dict[str, Any] = {
        "curves": {
            label: [
                Markup(inline(charts.curve_panel(panel, content.styles), f"curve-{i}-{j}"))
                for j, panel in enumerate(panels)
            ]
            for i, (label, panels) in enumerate(content.panels.items())
        }
    }
    if content.falls:
        found["breakdown"] = Markup(inline(charts.breakdown_chart(content.falls), "breakdown"))
    if content.points:
        found["tradeoff"] = Markup(inline(charts.tradeoff_chart(content.points), "tradeoff"))
    return found


def breakable(text: str) -> Markup:
    """A long name that a narrow column may break: after punctuation and between its words."""
    return Markup("<wbr>").join(pieces(text))


def common(group: Group) -> dict[str, Any]:
    """The parameters that are the same in all cells of a group."""
    first = group.cells[0].config
    return {
        name: value
        for name, value in first.items()
        if value is not None and all(cell.config.get(name) == value for cell in group.cells)
    }


def own(group: Group) -> list[str]:
    """The names of those that are not."""
    names = dict.fromkeys(name for cell in group.cells for name in cell.config)
    return [name for name in names if len({str(c.config.get(name)) for c in group.cells}) > 1]
