"""The report as a page and as Markdown: whole, escaped, from nowhere else, and honest."""

from __future__ import annotations

import re
import struct
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from report_samples import (
    ALIE,
    CWM,
    FLIP,
    GM,
    MEAN,
    Row,
    breakdowns,
    curves_of,
    realistic,
    row,
    small,
    write,
)

from experiments.cli import main
from experiments.config import ConfigError
from experiments.sweeps.folder import PAGE
from experiments.sweeps.report.charts import curve_panel
from experiments.sweeps.report.colours import style
from experiments.sweeps.report.curves import Line, Panel
from experiments.sweeps.report.write import write as write_report

PUBLISHED = {"source": "A paper, table 1", "rows": [{"where": {"f": 2}, "value": 0.87}]}
VOID = {"meta", "link", "br", "wbr", "img", "input", "hr"}
DRAWN = {"path", "line", "circle", "use", "rect"}


class Page(HTMLParser):
    """Elements, identities, links and the text of a page; its tags are checked to match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.sources: list[str] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.unlabelled: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        for name, value in attrs:
            if name == "id":
                self.ids.append(value or "")
            elif name in ("href", "xlink:href"):
                self.links.append(value or "")
            elif name in ("src", "srcset", "action", "data", "poster"):
                self.sources.append(value or "")
            assert not name.startswith("on"), f"{name} is a script"
        if tag == "th" and not given.get("scope"):
            self.unlabelled.append("th")
        if given.get("role") in ("img", "region") and not given.get("aria-label"):
            self.unlabelled.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> without a start"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.words).split())


def report(folder: Path, rows: list[Row], **given: Any) -> tuple[Page, str, str]:
    """The page, its source, and the Markdown."""
    write_report(write(folder, rows, **given))
    page = folder / PAGE
    source = page.read_text(encoding="utf-8")
    return Page(source), source, (folder / "report.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page, str, str]:
    """The report of a sweep that has all there can be."""
    folder = tmp_path_factory.mktemp("sweep")
    rows = realistic(fs=(1, 2), gammas=(0.0, 1.0), seeds=2, defences=8, attacks=4)
    about = {"target": 0.8, "published": {"source": "A paper", "rows": PUBLISHED["rows"]}}
    grid = {"f": [1, 2], "partition": [0, 1]}
    made = report(
        folder, rows, curve_rows=curves_of(rows), breakdown_rows=breakdowns(), grid=grid, **about
    )
    return folder, *made


SECTIONS = [
    *("run", "leaderboard", "attacks", "scenarios", "partitions", "curves", "breakdown"),
    *("tradeoff", "published", "measures", "configurations"),
]


def test_the_page_has_all_sections(everything: tuple[Path, Page, str, str]) -> None:
    _, page, _, _ = everything
    assert [each for each in page.ids if each in SECTIONS] == SECTIONS
    assert len(page.ids) == len(set(page.ids))


def test_every_link_leads_to_a_place_on_the_page(everything: tuple[Path, Page, str, str]) -> None:
    _, page, _, _ = everything
    assert len(page.links) > 8 * 4 * 5 + 8 * 4 + 8 * 4
    assert {link for link in page.links if link[:1] != "#" or link[1:] not in page.ids} == set()


def test_the_page_takes_nothing_from_elsewhere(everything: tuple[Path, Page, str, str]) -> None:
    _, page, source, _ = everything
    assert page.sources == []
    assert not {"script", "link", "img", "iframe", "object", "embed", "form"} & set(page.tags)
    assert not re.search(r"https?:|[\"'(]//|@import|url\((?!#)", source)
    assert "default-src 'none'" in source


def test_every_table_and_picture_is_labelled(everything: tuple[Path, Page, str, str]) -> None:
    _, page, _, _ = everything
    assert page.unlabelled == []
    assert page.tags.count("svg") > 20


def test_every_cell_of_the_first_map_is_a_link_to_its_trainings(
    everything: tuple[Path, Page, str, str],
) -> None:
    _, _, source, _ = everything
    attacks = source[source.index('id="attacks"') : source.index('id="scenarios"')]
    numbers = re.findall(r'<td style="[^"]*" title="([^"]*)"><a href="#(g\d+)"', attacks)
    assert len(numbers) == 8 * 4 * 5
    for hint, anchor in numbers:
        section = source[source.index(f'id="{anchor}"') :]
        section = section[: section.index("</article>")]
        said = re.sub(r"<[^>]+>", "", section)
        attack = hint.split(" under ")[1].split(" (f=")[0]
        assert f"under {attack} " in " ".join(said.split())
        assert said.count("robust-agg run") == 2


def test_text_on_colours_can_be_read(everything: tuple[Path, Page, str, str]) -> None:
    _, _, source, _ = everything

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return sum(w * p for w, p in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    found = set(re.findall(r"background:(#\w{6});color:(#\w{6})", source))
    assert len(found) > 20
    for behind, ink in found:
        dark, light = sorted((luminance(behind), luminance(ink)))
        assert (light + 0.05) / (dark + 0.05) >= 4.5


def test_figures_are_images_and_the_text_has_them_all(
    everything: tuple[Path, Page, str, str],
) -> None:
    folder, _, _, text = everything
    images = {path.stem for path in (folder / "figures").glob("*.png")}
    assert {"leaderboard", "heatmap", "scenarios", "breakdown", "tradeoff", "curves-1"} <= images
    for path in (folder / "figures").glob("*.png"):
        content = path.read_bytes()
        assert content[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", content[16:24])
        assert 300 <= width <= 6000
        assert 100 <= height <= 6000
    linked = set(re.findall(r"\]\(figures/([\w-]+)\.png\)", text))
    assert linked == images - {"breakdown-table"}


def test_the_text_says_what_the_page_says(tmp_path: Path) -> None:
    page, _, text = report(tmp_path, small())
    said = " ".join(text.replace("\\", "").split())
    for part in ("GeometricMedian keeps most in its worst case: 82.0 ± 6.6 %", "ten thousand"):
        assert part in page.text
        assert part in said
    assert "| 1 | GeometricMedian | 82.0 ± 6.6 | ALittleIsEnough(z=1.5) | – | 89.0 | 95.0 |" in text
    assert f"| {CWM} | 93.0 | 87.0 | 74.0 |" in text


# --- hostile text ---------------------------------------------------------------------------------

HOSTILE = "</style></title><script>alert('x')</script><img src=x onerror=alert(1)>|`*&amp;"


@pytest.mark.parametrize(
    "field",
    ["defence", "attack", "command", "failure", "tuned", "cell", "config.partition", "title"],
)
def test_hostile_text_is_text(tmp_path: Path, field: str) -> None:
    about: dict[str, Any] = {"grid": {"partition": [1, 2]}, "notes": [HOSTILE]}
    rows = small()
    if field == "title":
        about["title"] = HOSTILE
    else:
        own = [each for each in rows if each["defence"] == MEAN]
        for place, each in enumerate(own):
            each[field] = f"{HOSTILE}{place if field == 'cell' else ''}"
        if field == "failure":
            own[0] |= {"state": "failed", "test_accuracy": None}
    breakdown = [
        {"defence": HOSTILE, "attack": HOSTILE, "breakdown_f": 1, "most": 2, "accuracy": 0.5}
    ]
    published = {"source": HOSTILE, "rows": [{"where": {"attack": HOSTILE}, "value": 0.5}]}
    page, source, text = report(
        tmp_path,
        rows,
        curve_rows=curves_of(rows),
        breakdown_rows=breakdown,
        published=published,
        **about,
    )
    assert "script" not in page.tags
    assert "img" not in page.tags
    assert page.sources == []
    assert HOSTILE in page.text
    assert source.count("<script") == 0
    assert not re.search(r"(?<!\\)<script", text)
    lines = [line for line in text.splitlines() if line.startswith("|")]
    bars = [len(re.findall(r"(?<!\\)\|", line)) for line in lines]
    assert all(count > 2 for count in bars)


# --- sweeps that have not finished, or not well ---------------------------------------------------


def refreshes(source: str) -> bool:
    return 'http-equiv="refresh"' in source


def test_a_finished_sweep_stays_as_it_is(tmp_path: Path) -> None:
    page, source, _ = report(tmp_path, small())
    assert not refreshes(source)
    assert "27 cells: 27 done" in page.text
    assert "not finished" not in page.text


@pytest.mark.parametrize("state", ["pending", "running"])
def test_an_unfinished_sweep_says_so_and_loads_itself_again(tmp_path: Path, state: str) -> None:
    rows = small()
    for each in rows[:4]:
        each |= {"state": state, "test_accuracy": None, "accuracy": None, "chosen": False}
    page, source, text = report(tmp_path, rows)
    assert refreshes(source)
    assert "The sweep has not finished" in page.text
    assert f"27 cells: 23 done, 4 {state}" in page.text
    assert "The sweep has not finished" in text
    assert "Not ranked" in page.text


def test_before_the_test_split_is_used_there_are_validation_accuracies_called_so(
    tmp_path: Path,
) -> None:
    rows = [{**each, "test_accuracy": None, "chosen": False} for each in small()]
    rows[0] |= {"state": "running", "accuracy": None}
    page, source, _ = report(tmp_path, rows, curve_rows=curves_of(rows))
    assert refreshes(source)
    assert "leaderboard" not in page.ids
    assert "Validation accuracy so far" in page.text
    assert "curves" in page.ids
    assert "No defence has all of its test accuracies" in page.text


def test_a_sweep_that_has_not_begun_says_so(tmp_path: Path) -> None:
    page, source, text = report(tmp_path, [])
    assert refreshes(source)
    assert "no cell has been run yet" in page.text
    assert "no cell has been run yet" in text
    assert not list((tmp_path / "figures").glob("*.png"))


def test_a_sweep_in_which_all_failed_says_why(tmp_path: Path) -> None:
    gone = {"state": "failed", "failure": "ValueError: n too small", "chosen": True}
    rows = [{**each, **gone, "test_accuracy": None, "accuracy": None} for each in small()]
    page, source, text = report(tmp_path, rows)
    assert not refreshes(source)
    assert "27 of 27 cells failed" in page.text
    assert page.text.count("ValueError: n too small") == 27
    assert "robust-agg run --aggregator 'Mean'" in page.text
    assert "ValueError: n too small" in text


def test_it_says_where_the_sweep_was_carried_out(tmp_path: Path) -> None:
    page, _, text = report(tmp_path, small(), command="robust-agg sweep x", where=["A <B>", "C"])
    for said in ("A <B>", "C"):
        assert said in page.text
    assert "on: A \\<B\\>; then C" in text


def test_a_sweep_of_several_versions_says_so(tmp_path: Path) -> None:
    rows = small(version="0.1.0")
    rows[-1]["version"] = "0.2.0"
    page, _, text = report(tmp_path, rows)
    for said in (page.text, text):
        assert "same version of robust-agg: 0.1.0, 0.2.0" in said


def test_failed_cells_are_told_with_their_reason_and_command(tmp_path: Path) -> None:
    rows = small()
    rows[0] |= {"state": "failed", "failure": "no round in 300 s", "test_accuracy": None}
    rows[0] |= {"config.f": 3}
    page, source, text = report(tmp_path, rows)
    failed = source[source.index('id="failed"') :]
    assert "no round in 300 s" in failed
    assert "f 3, seed" in failed
    assert "1 of 27 cells failed" in page.text
    assert "no round in 300 s" in text
    assert "*" in page.text


def test_a_curve_of_one_evaluation_is_a_point() -> None:
    lines = (
        Line("Krum", (100,), (0.9,), (0.8,), (1.0,)),
        Line("Mean", (50, 100), (0.5, 0.6), (0.5, 0.6), (0.5, 0.6)),
    )
    styles = {"Krum": style(0), "Mean": style(1)}
    (axes,) = curve_panel(Panel("SignFlip", lines), styles).axes
    drawn = {line.get_color(): line.get_marker() for line in axes.get_lines()}
    assert drawn == {styles["Krum"].colour: "o", styles["Mean"].colour: "None"}


OPTIONAL = [
    *("failure", "command", "tuned", "chosen", "accuracy", "loss", "error", "kappa", "accepted"),
    *("byzantine_weight", "rounds_to_target", "skipped", "missing", "bytes", "success"),
    *("seconds", "seconds_per_round", "aggregate_seconds", "config.partition", "config.workers"),
]


@pytest.mark.parametrize("gone", [*([name] for name in OPTIONAL), OPTIONAL], ids=lambda g: g[0])
def test_columns_may_be_missing(tmp_path: Path, gone: list[str]) -> None:
    rows = [{key: value for key, value in r.items() if key not in gone} for r in small()]
    page, _, _ = report(tmp_path, rows)
    assert "GeometricMedian keeps most in its worst case" in page.text


def test_a_test_accuracy_of_a_setting_that_was_not_chosen_is_shown_nowhere(tmp_path: Path) -> None:
    rows = [
        row(GM, FLIP, 0, 0.8123, tuned="lr=0.1"),
        row(GM, FLIP, 0, 0.9876, tuned="lr=1.0", chosen=False, accuracy=0.7),
    ]
    page, source, text = report(tmp_path, rows, tune={"lr": [0.1, 1.0]})
    assert "81.2" in page.text
    assert "98.8" not in source
    assert "98.8" not in text


def test_a_report_is_written_over_an_older_one(tmp_path: Path) -> None:
    report(tmp_path, small(), breakdown_rows=breakdowns())
    assert (tmp_path / "figures" / "breakdown.png").exists()
    (tmp_path / "breakdown.parquet").unlink()
    report(tmp_path, [row(GM, ALIE, 0, 0.5)])
    assert not (tmp_path / "figures" / "breakdown.png").exists()
    assert [path.name for path in tmp_path.rglob(".*")] == [".lock"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    write(tmp_path, small())
    (tmp_path / "figures").touch()
    with pytest.raises(ConfigError, match="folder must be one that can be written, found "):
        write_report(tmp_path)


def test_two_may_write_at_once(tmp_path: Path) -> None:
    """As one that somebody asks for does, and the one that follows a sweep."""
    write(tmp_path, small())
    command = [sys.executable, "-m", "experiments", "report", str(tmp_path)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[1] for process in both] == ["", ""]
    assert [process.returncode for process in both] == [0, 0]
    assert (tmp_path / PAGE).read_text().endswith("</html>")


def test_the_command_line_writes_the_report(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, small())
    with pytest.raises(SystemExit) as left:
        main(["report", str(tmp_path)])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"report: {tmp_path / 'report.html'}\n"
    assert (tmp_path / "report.html").exists()


def test_the_command_line_names_a_folder_that_is_no_sweep(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["report", str(tmp_path)])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("robust-agg: error: folder must hold a sweep")
    assert error.count("\n") == 1
