"""BENCHMARKS.md says what the pages of the measurements say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "BENCHMARKS.md").read_text(encoding="utf-8")
RESULTS = ROOT / "experiments" / "results" / "bench"
PEERS = ("ByzFL", "ByzPy", "geom-median", "TorchJD")


def tables(text: str) -> list[str]:
    return re.findall(r"(?:^\|.*\|\n)+", text, flags=re.M)


@pytest.mark.parametrize("name", ["aggregators", "train", "transport", "optim"])
def test_every_table_of_a_measurement_is_there(name: str) -> None:
    found = (RESULTS / name / "README.md").read_text(encoding="utf-8")
    assert tables(found)
    for table in tables(found):
        assert table in PAGE
    machine = next(line for line in found.splitlines() if ", commit " in line)
    assert machine in PAGE


def test_there_is_no_other_table() -> None:
    measured = [
        table
        for page in RESULTS.glob("*/README.md")
        for table in tables(page.read_text(encoding="utf-8"))
    ]
    assert set(tables(PAGE)) <= set(measured)


def test_the_peers_were_there() -> None:
    (header,) = re.findall(r"^\| rule \| n \| read ms \| ms \| x read \|.*", PAGE, flags=re.M)
    for peer in PEERS:
        assert peer in header
    assert "missing" not in PAGE
