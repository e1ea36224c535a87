"""BENCHMARKS.md says what the pages of the measurements say."""

from __future__ import annotations

import re

from experiments.bench import overview
from experiments.bench.catalogue import BENCHES

PAGE = overview.FILE.read_text(encoding="utf-8")
PEERS = ("ByzFL", "ByzPy", "geom-median", "TorchJD")


def test_it_is_what_the_pages_make_of_it() -> None:
    assert overview.overview(overview.introduction(PAGE)) == PAGE
    assert overview.SECTIONS.keys() == BENCHES.keys()


def test_its_figures_are_there() -> None:
    figures = re.findall(r"^!\[.*\]\((.*)\)$", PAGE, flags=re.M)
    assert len(figures) > len(overview.SECTIONS)
    for figure in figures:
        assert (overview.ROOT / figure).is_file()


def test_the_peers_were_there() -> None:
    (header,) = re.findall(r"^\| rule \| n \| read ms \| ms \| x read \|.*", PAGE, flags=re.M)
    for peer in PEERS:
        assert peer in header
    assert "missing" not in PAGE
