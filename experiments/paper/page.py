"""The page of a study, in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from experiments.paper.study import Claim, Row, Study


def page(
    study: Study,
    rows: Sequence[Row],
    figures: Sequence[str],
    claims: Sequence[Claim],
    notes: Sequence[str],
) -> str:
    """The study as Markdown: figures, then claims with verdicts, then what was run."""
    verdict = {True: "yes", False: "**no**", None: "not decided here"}
    lines = [f"# {study.title}", "", " ".join((study.__doc__ or "").split()), ""]
    for name in figures:
        lines += [f"![{name}]({name}.png)", ""]
    verdicts = [(c.statement, c.source, c.measured, verdict[c.holds]) for c in claims]
    lines += _markdown([("claim", "by", "measured", "holds"), *verdicts])
    lines += _markdown(study.table(rows))
    lines += [*(f"- {note}" for note in notes), ""]
    return "\n".join(lines)


def _markdown(cells: Sequence[Sequence[str]]) -> list[str]:
    if not cells:
        return []
    lines = [f"| {' | '.join(cell.replace('|', _BAR) for cell in line)} |" for line in cells]
    return [lines[0], f"|{' --- |' * len(cells[0])}", *lines[1:], ""]


_BAR = "\\|"
