"""The README's table of rules under attack is that of the study's page."""

from __future__ import annotations

import re
from pathlib import Path

from experiments.robustness.matrix import Matrix

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "experiments" / "results" / "study" / "attacks" / "README.md"
MARK = "<!-- rules under attack -->\n\n"


def test_the_readme_has_the_table_of_the_page() -> None:
    (table,) = re.findall(r"(?:^\|.*\|\n)+", PAGE.read_text(encoding="utf-8"), flags=re.M)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert MARK + table in readme


def test_the_page_is_of_the_study_as_it_is() -> None:
    study = Matrix.preset("default")
    text = PAGE.read_text(encoding="utf-8")
    for defence in (*study.aggregators, *study.estimators):
        assert f"| {defence} |" in text
    for attack in study.attacks:
        assert f"| {attack} |" in text
    assert f"{study.rounds} rounds, means of {study.seeds} seeds" in text
