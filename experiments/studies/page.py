"""The page of a study, in Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from experiments.studies.study import Claim, Study, Table


def page(
    study: Study,
    figures: Sequence[str],
    tables: Mapping[str, Table],
    claims: Sequence[Claim],
    notes: Sequence[str],
) -> str:
    """The study as Markdown: figures, then claims with verdicts, tables, and what was run."""
    verdict = {True: "yes", False: "**no**", None: "not decided here"}
    lines = [f"# {study.title}", "", " ".join((study.__doc__ or "").split()), ""]
    for name in figures:
        lines += [f"![{name}]({name}.png)", ""]
    verdicts = [(c.statement, c.source, c.measured, verdict[c.holds]) for c in claims]
    if verdicts:
        lines += _markdown([("claim", "by", "measured", "holds"), *verdicts])
    for title, table in tables.items():
        lines += [f"## {title}", "", *_markdown(table)]
    lines += ["## What was run", ""] if tables else []
    lines += [*(f"- {note}" for note in notes), ""]
    return "\n".join(lines)


def _markdown(table: Table) -> list[str]:
    lines = [f"| {' | '.join(cell.replace('|', _BAR) for cell in line)} |" for line in table]
    return [lines[0], f"|{' --- |' * len(table[0])}", *lines[1:], ""]


_BAR = "\\|"
