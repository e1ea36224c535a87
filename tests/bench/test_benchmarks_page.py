"""BENCHMARKS.md says what the pages of the measurements say."""

from __future__ import annotations

import csv
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


def test_the_readme_says_the_same() -> None:
    with (overview.ROOT / "experiments/results/bench/aggregators/numbers.csv").open() as file:
        size = {"n": "32", "d": "1000000", "dtype": "float32"}
        rows = [row for row in csv.DictReader(file) if size.items() <= row.items()]
    ms = {(row["rule"], row["who"]): float(row["ms"] or "nan") for row in rows}
    read = {row["rule"]: float(row["read_ms"]) for row in rows}
    section = (overview.ROOT / "README.md").read_text(encoding="utf-8").split("## What it costs")[1]
    lines = re.findall(r"^\| `(.*)\|$", section, flags=re.M)
    assert len(lines) == 8
    for line in lines:
        name, *cells = (cell.strip() for cell in line.split("|"))
        rule = re.sub(r"[`,]|exact", "", name.replace("NearestNeighborMixing", "NNM")).strip()
        own = ms[rule, "robust-agg"]
        peers = [ms[rule, who] / own for who in ("ByzFL", "ByzPy") if (rule, who) in ms]
        shown = [f"{own:.1f}", f"{own / read[rule]:.1f}"]
        shown += [f"{ratio:.{0 if ratio >= 10 else 1}f} ×" for ratio in peers]
        assert [cell.split(" (")[0] for cell in cells if cell] == shown, rule


def test_the_peers_were_there() -> None:
    (header,) = re.findall(r"^\| rule \| n \| read ms \| ms \| x read \|.*", PAGE, flags=re.M)
    for peer in PEERS:
        assert peer in header
    assert "missing" not in PAGE
