"""What a finished run shows: the table's columns and numbers, the figure, the summary."""

from __future__ import annotations

import io
import json
import math
import os
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D
from rich.console import Console
from run_samples import tiny

from experiments import figure, report
from experiments.config import RunConfig
from experiments.metrics import Metrics

CONFIG = tiny(aggregator=("Mean", "CoordinateWiseMedian"), rounds=30)
TRAINED = Metrics(
    round=30,
    accuracy=0.875,
    loss=0.5,
    error=0.25,
    byzantine_weight=0.125,
    skipped=0,
    missing=0,
    seconds=0.002,
)
MANY = tiny(aggregator=("Mean",), estimator=tuple(f"CClip(tau={k})" for k in range(1, 20)))

Found = dict[tuple[str, bool], list[Metrics]]


def results(config: RunConfig = CONFIG, **attacked: Any) -> Found:
    """Three evaluations of each training: those under attack lose a quarter."""
    found: Found = {}
    for defence in config.defences:
        honest = [replace(TRAINED, round=10 * k, accuracy=0.275 * k + 0.05) for k in (1, 2, 3)]
        if defence == "CoordinateWiseMedian":
            honest = [replace(m, byzantine_weight=None) for m in honest]
        found[defence, False] = honest
        found[defence, True] = [replace(m, accuracy=m.accuracy - 0.25, **attacked) for m in honest]
    return found


def skip_all(metrics: list[Metrics]) -> list[Metrics]:
    return [
        replace(m, error=None, byzantine_weight=None, seconds=None, skipped=m.round)
        for m in metrics
    ]


def spread() -> Found:
    """Results in which every later defence has larger numbers, so that no line hides another."""
    return {
        (defence, attacked): [
            replace(
                m,
                accuracy=m.accuracy * (0.5 + 0.15 * place),
                error=10.0**place,
                byzantine_weight=None if m.byzantine_weight is None else 0.4 + 0.2 * place,
            )
            for m in metrics
        ]
        for (defence, attacked), metrics in results().items()
        for place in [CONFIG.defences.index(defence)]
    }


# --- the table ------------------------------------------------------------------------------------


def rows(found: report.Results) -> list[tuple[Any, ...]]:
    table = report.table(CONFIG, found, samples=300)
    return list(zip(*(column.cells for column in table.columns), strict=True))


def shown(found: report.Results, config: RunConfig = CONFIG) -> str:
    console = Console(file=io.StringIO(), width=120, markup=False)
    console.print(report.table(config, found, samples=300))
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


def test_the_table_has_a_line_a_defence_and_its_numbers() -> None:
    found = results()
    found["Mean", True][0] = replace(found["Mean", True][0], error=1.75, seconds=0.008)
    table = report.table(CONFIG, found, samples=300)
    assert [str(column.header) for column in table.columns] == [
        *("defence", "no attack", "attacked", "lost", "error", "Byzantine weight", "aggregation ms")
    ]
    assert rows(found) == [
        ("Mean", "87.5%", "62.5%", "+25.0 pts", "0.75", "12%", "4.0"),
        ("CoordinateWiseMedian", "87.5%", "62.5%", "+25.0 pts", "0.25", "-", "2.0"),
        ("VClip", "87.5%", "62.5%", "+25.0 pts", "0.25", "12%", "2.0"),
    ]


def test_the_table_says_what_its_numbers_are() -> None:
    text = shown(results())
    for part in (
        "2 of 7 workers: InnerProductManipulation(epsilon=10.0)",
        "on 300 test samples after 30 rounds at learning rate 1.0, seed 0",
        "error: ‖m - honest mean‖ / ‖honest mean‖, m: the estimate the model is stepped by",
        "error, Byzantine weight, aggregation ms: means over the evaluated rounds under attack",
    ):
        assert part in text
    assert "skipped" not in text
    assert "missing" not in text
    on = report.table(replace(CONFIG, split="validation"), results(), samples=200)
    assert "on 200 validation samples after 30 rounds" in str(on.caption)


def test_the_table_says_what_was_skipped_and_what_did_not_come() -> None:
    found = results(error=None, byzantine_weight=None, seconds=None, skipped=7)
    found["Mean", False] = [replace(m, missing=2 * m.round) for m in found["Mean", False]]
    text = shown(found)
    assert "│ Mean │ 87.5% │ 62.5% │ +25.0 pts │ - │ - │ - │" in text
    assert (
        "rounds skipped of 30 (see ledger.jsonl): "
        "Mean attacked 7, CoordinateWiseMedian attacked 7, VClip attacked 7" in text
    )
    assert text.endswith("rows missing of 210: Mean 60")


def test_the_table_is_brief_about_what_is_missing_everywhere() -> None:
    found = {key: [replace(m, missing=m.round) for m in ms] for key, ms in results().items()}
    assert "rows missing of 210: 30 in every training" in shown(found)


def test_rows_are_asked_of_the_sampled_workers_alone() -> None:
    config = tiny(aggregator=("Mean",), rounds=30, sample=6)
    found = {key: [replace(m, missing=1) for m in ms] for key, ms in results(config).items()}
    assert "rows missing of 180: " in shown(found, config)


def test_a_training_that_skipped_every_round_has_no_accuracy() -> None:
    found = results()
    found["Mean", True] = skip_all(found["Mean", True])
    found["VClip", False] = skip_all(found["VClip", False])
    assert rows(found) == [
        ("Mean", "87.5%", "-", "-", "-", "-", "-"),
        ("CoordinateWiseMedian", "87.5%", "62.5%", "+25.0 pts", "0.25", "-", "2.0"),
        ("VClip", "-", "62.5%", "-", "0.25", "12%", "2.0"),
    ]
    assert "rounds skipped of 30 (see ledger.jsonl): VClip all, Mean attacked all" in " ".join(
        shown({key: found[key] for key in sorted(found, key=lambda key: key[1])}).split()
    )


@pytest.mark.parametrize(
    ("error", "cell"),
    [
        *((0.0, "0.00"), (6.8e-8, "7e-08"), (0.0099, "1e-02"), (0.014, "0.01")),
        *((999.0, "999.00"), (1234.0, "1e+03"), (1.7e308, "2e+308")),
    ],
)
def test_errors_of_any_size_are_short(error: float, cell: str) -> None:
    assert rows(results(error=error))[0][4] == cell


# --- the figure -----------------------------------------------------------------------------------


def png_size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert content[12:16] == b"IHDR"
    assert content[-8:-4] == b"IEND"
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_the_figure_is_a_png_that_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    figure.draw(path, CONFIG, spread())
    width, height = png_size(path)
    assert 1000 <= width <= 3000
    assert 400 <= height <= 1500
    pixels = np.asarray(imread(path))[..., :3]
    assert pixels.shape == (height, width, 3)
    # Three panels side by side above the legend; a defence has its colour in each of them.
    panels = np.array_split(pixels[: int(0.8 * height)], 3, axis=1)
    middles: list[list[float]] = [[], [], []]
    for defence, colour in zip(CONFIG.defences, figure._COLOURS, strict=False):
        wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        drawn = [(np.abs(panel - wanted) < 0.02).all(axis=-1).nonzero() for panel in panels]
        has_weights = defence != "CoordinateWiseMedian"
        assert [len(rows) > 100 for rows, _ in drawn] == [True, True, has_weights]
        assert np.corrcoef(*drawn[0])[0, 1] < -0.5, "accuracy rises from left to right"
        for middle, (rows, _) in zip(middles, drawn, strict=True):
            middle += [float(rows.mean())] if len(rows) else []
    # Every later defence of these results has more accuracy, error and weight: it stands higher.
    assert all(middle == sorted(middle, reverse=True) for middle in middles)


@pytest.mark.parametrize(
    ("config", "attacked"),
    [
        (tiny(byzantine=0), {"error": None, "byzantine_weight": 0.0}),
        (tiny(byzantine=0), {"error": 0.0, "byzantine_weight": 0.0}),
        (tiny(aggregator=("CoordinateWiseMedian",), estimator=("none",)), {"skipped": 1}),
        (tiny(aggregator=tuple(f"CClip(tau={k})" for k in range(1, 40))), {"skipped": 3}),
        (tiny(attack="GaussianNoise(scale=1.0)  # $a_{b $ [c] " + 900 * "x"), {"error": 1.7e308}),
        (tiny(byzantine=5, f=2), {"error": 5e-324, "byzantine_weight": 1.0}),
        (CONFIG, {"skipped": 30, "error": None, "byzantine_weight": None}),
    ],
    ids=[
        *("nobody Byzantine", "no error", "no weights", "more defences than styles"),
        *("odd text, huge numbers", "tiny numbers", "nothing trained"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_a_figure_of_anything_can_be_drawn(
    config: RunConfig, attacked: dict[str, Any], tmp_path: Path
) -> None:
    figure.draw(tmp_path / "figure.png", config, results(config, **attacked))
    assert png_size(tmp_path / "figure.png")[0] > 1000


def panels(config: RunConfig, found: report.Results) -> tuple[Axes, Axes, Axes]:
    accuracy, error, weight = figure.compose(config, found).axes
    return accuracy, error, weight


def xs(line: Line2D) -> list[float]:
    return list(np.asarray(line.get_xdata(), dtype=float).tolist())


def ys(line: Line2D) -> list[float]:
    return list(np.asarray(line.get_ydata(), dtype=float).tolist())


def labels(axes: Axes) -> list[str]:
    return [tick.get_text() for tick in axes.get_yticklabels()]


def notes(axes: Axes) -> str:
    return " ".join(" ".join(text.get_text() for text in axes.texts).split())


def dashes(line: Line2D) -> tuple[float, list[float] | None]:
    """Offset and pattern, which have no public getter."""
    found: tuple[float, list[float] | None] = line._dash_pattern  # type: ignore[attr-defined]
    return found


def test_twenty_defences_look_different() -> None:
    found = results(MANY)
    accuracy, error, _ = panels(MANY, found)
    styles = {(line.get_color(), str(dashes(line))) for line in error.lines}
    assert len(styles) == len(error.lines) == len(MANY.defences) == 20
    dotted, lines = accuracy.lines[:20], accuracy.lines[20:]
    for honest, attacked in zip(dotted, lines, strict=True):
        assert honest.get_color() == attacked.get_color()
        assert honest.get_linewidth() < attacked.get_linewidth()
        assert ys(honest) == pytest.approx([0.325, 0.6, 0.875])
    # Coinciding dots are not all in the same place.
    assert len({dashes(line)[0] for line in dotted}) > 5


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        MANY,
        tiny(estimator=tuple(f"CClip(tau=1.{'0' * 100}{k})" for k in range(12))),
        tiny(estimator=(f"CClip(tau=1.{'0' * 900})",)),
        tiny(attack=f"GaussianNoise(scale=1.{'0' * 900})"),
    ],
    ids=["three", "twenty", "twelve long ones", "an endless one", "an endless attack"],
)
def test_no_text_runs_out_of_the_figure_or_into_the_panels(config: RunConfig) -> None:
    drawn = figure.compose(config, results(config))
    drawn.draw_without_rendering()
    (legend,) = drawn.legends
    title = next(text for text in drawn.texts if "Byzantine: " in text.get_text())
    inside = drawn.bbox
    for part in (legend, title, *legend.get_texts()):
        box = part.get_window_extent()
        assert inside.x0 <= box.x0 < box.x1 <= inside.x1
        assert inside.y0 <= box.y0 < box.y1 <= inside.y1
    assert len(legend.get_texts()) == len(config.defences)
    for axes in drawn.axes:
        panel = axes.get_window_extent()
        assert legend.get_window_extent().y1 < panel.y0 < panel.y1 < title.get_window_extent().y0
        assert 3.0 < panel.height / drawn.dpi < 4.0


@pytest.mark.parametrize(
    ("errors", "bottom", "top", "expected"),
    [
        ((0.55, 2.2), 0.5, 5, ["0.5", "1", "2", "5"]),
        ((1.0, 1.0), 0.5, 2, ["0.5", "1", "2"]),
        ((0.05, 30.0), 0.01, 100, ["0.01", "0.1", "1", "10", "100"]),
        ((7e-8, 2.2), 0.01, 10, ["≤ 0.01", "0.1", "1", "10"]),
        ((0.0, 0.3), 0.01, 0.5, ["≤ 0.01", "0.02", "0.05", "0.1", "0.2", "0.5"]),
        ((0.4, 1e300), 0.1, 1e4, ["0.1", "1", "10", "100", "1000", "≥ 10000"]),
        ((1e300, 1e301), 5e3, 1e4, ["5000", "≥ 10000"]),
        ((0.002, 0.003), 0.001, 0.005, ["0.001", "0.002", "0.005"]),
        ((1e-17, 2e-16), 1e-12, 2e-12, ["≤ 1e-12", "2e-12"]),
        ((0.0, 0.0), 1e-12, 2e-12, ["≤ 1e-12", "2e-12"]),
    ],
)
def test_the_scale_of_the_error_is_in_plain_numbers(
    errors: tuple[float, float], bottom: float, top: float, expected: list[str]
) -> None:
    found = results()
    for metrics, value in zip(found["Mean", True], (errors[0], *errors), strict=True):
        place = found["Mean", True].index(metrics)
        found["Mean", True][place] = replace(metrics, error=value)
    _, error, _ = panels(tiny(aggregator=("Mean",), estimator=("none",)), found)
    assert error.get_yscale() == "log"
    assert error.get_ylim() == pytest.approx((bottom, top))
    assert labels(error) == expected
    assert list(error.yaxis.get_minorticklocs()) == []
    (line,) = error.lines
    wanted = [min(max(v, bottom), top) for v in (errors[0], *errors)]
    assert ys(line) == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("byzantine", "weight", "top"),
    [(2, 0.1, 4 / 7), (1, 0.5, 0.55), (5, 0.9, 1.0), (0, 0.0, 0.05), (1, None, 2 / 7)],
)
def test_the_scale_of_the_weights_fits_them(
    byzantine: int, weight: float | None, top: float
) -> None:
    config = tiny(byzantine=byzantine)
    *_, axes = panels(config, results(config, byzantine_weight=weight))
    assert axes.get_ylim() == pytest.approx((0, top))
    assert ("no weights: VClip" in notes(axes)) == (weight is None)
    assert "their share of the workers" in notes(axes)
    assert ys(axes.lines[0])[0] == pytest.approx(byzantine / 7)
    for text in axes.texts:
        patch = text.get_bbox_patch()
        assert patch is not None
        assert patch.get_facecolor()[:3] == (1.0, 1.0, 1.0)


def test_rounds_begin_at_zero_and_lines_where_something_was_measured() -> None:
    for axes in panels(CONFIG, results()):
        assert axes.get_xlim() == (0, 30)
        lines = [line for line in axes.lines if line.get_linestyle() != "--"]
        assert all(xs(line) == [10, 20, 30] for line in lines)
        assert all(line.get_marker() == "None" for line in lines)


def test_what_was_measured_once_is_a_point() -> None:
    found = {key: metrics[:1] for key, metrics in results().items()}
    accuracy, error, _ = panels(tiny(aggregator=("Mean",), estimator=("none",), rounds=10), found)
    assert [line.get_marker() for line in (*accuracy.lines, *error.lines)] == ["o"] * 3


def test_a_round_that_was_not_measured_is_a_gap() -> None:
    found = results()
    found["Mean", True][1] = replace(found["Mean", True][1], error=None)
    _, error, _ = panels(CONFIG, found)
    first, second, third = ys(error.lines[0])
    assert (first, third) == (0.25, 0.25)
    assert math.isnan(second)
    assert (error.lines[0].get_marker(), error.lines[0].get_markevery()) == ("o", [0, 2])
    assert error.lines[1].get_marker() == "None"


def test_what_was_not_trained_is_not_drawn_but_said() -> None:
    found = results()
    found["Mean", True] = skip_all(found["Mean", True])
    found["VClip", False] = skip_all(found["VClip", False])
    accuracy, _, weight = panels(CONFIG, found)
    assert len(accuracy.lines) == 4
    assert "every round skipped: Mean, VClip (no attack)" in notes(accuracy)
    assert "no weights: CoordinateWiseMedian" in notes(weight)


def test_the_figure_says_what_is_in_it() -> None:
    drawn = figure.compose(CONFIG, results())
    accuracy, error, weight = drawn.axes
    assert isinstance(drawn, Figure)
    assert "dotted: no attack" in accuracy.get_title()
    assert error.get_title() == "Error of m, the estimate the model is stepped by"
    assert error.get_ylabel() == "‖m − honest mean‖ / ‖honest mean‖"
    assert "Byzantine" in weight.get_ylabel()
    (legend,) = drawn.legends
    assert tuple(text.get_text() for text in legend.get_texts()) == CONFIG.defences


# --- the summary ----------------------------------------------------------------------------------


def test_the_summary_is_json_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    found = results(skipped=2, missing=5)
    report.write_summary(path, CONFIG, found, "the note", samples=300)
    content = json.loads(path.read_text())
    assert list(content["defences"]) == list(CONFIG.defences)
    mean = content["defences"]["Mean"]
    del content["defences"]
    assert content == {
        "attack": CONFIG.attack,
        "data": "the note",
        "privacy": None,
        "seed": CONFIG.seed,
        "rounds": 30,
        "test_samples": 300,
    }
    assert mean == {
        "accuracy": pytest.approx(0.875),
        "skipped": 0,
        "missing": 0,
        "accuracy_under_attack": pytest.approx(0.625),
        "skipped_under_attack": 2,
        "missing_under_attack": 5,
        "bytes": 0,
        "bytes_under_attack": 0,
        "last_evaluation": {
            **vars(TRAINED),
            "accuracy": pytest.approx(0.625),
            "skipped": 2,
            "missing": 5,
        },
    }
    assert os.listdir(tmp_path) == ["summary.json"]


def test_the_summary_has_no_accuracy_of_what_was_not_trained(tmp_path: Path) -> None:
    found = results()
    found["Mean", True] = skip_all(found["Mean", True])
    report.write_summary(tmp_path / "summary.json", CONFIG, found, "the note", samples=300)
    mean = json.loads((tmp_path / "summary.json").read_text())["defences"]["Mean"]
    assert mean["accuracy_under_attack"] is None
    assert (mean["accuracy"], mean["skipped_under_attack"]) == (pytest.approx(0.875), 30)


def test_a_summary_that_is_no_json_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        report.write_summary(
            *(tmp_path / "summary.json", CONFIG, results(loss=math.nan), "the note"), samples=300
        )
    assert os.listdir(tmp_path) == []
