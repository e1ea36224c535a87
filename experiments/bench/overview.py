"""BENCHMARKS.md: the pages of all benchmarks that are kept, one after another.

    python -m experiments.bench.overview

writes it anew below its introduction; a test holds it to the pages.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = ROOT / "BENCHMARKS.md"
RESULTS = Path("experiments", "results", "bench")
SECTIONS = {
    "aggregators": "Aggregation",
    "train": "Training",
    "transport": "Rounds of many workers",
    "collectives": "Collectives",
    "optim": "Optimizer steps",
}


def overview(introduction: str) -> str:
    """The whole file, of which the introduction is written by hand."""
    sections = [_section(name, title) for name, title in SECTIONS.items()]
    return "\n".join([introduction.rstrip() + "\n", *sections])


def _section(name: str, title: str) -> str:
    _, _, page = (ROOT / RESULTS / name / "README.md").read_text(encoding="utf-8").partition("\n")
    page = page.replace("\n## ", "\n### ")
    images = re.sub(r"(!\[.*?\]\()", rf"\g<1>{(RESULTS / name).as_posix()}/", page)
    return f"## {title}\n{images}"


def introduction(text: str) -> str:
    """What stands before the first section."""
    return text.partition("\n## ")[0]


if __name__ == "__main__":
    FILE.write_text(overview(introduction(FILE.read_text(encoding="utf-8"))), encoding="utf-8")
