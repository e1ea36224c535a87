"""The paper's figures at smoke size, from the command line to the page."""

from __future__ import annotations

import csv
import os
from pathlib import Path

import pytest
import torch

from experiments.cli import main
from experiments.paper.fig1 import ARRANGEMENTS, Outliers
from experiments.paper.fig2 import StableNoise


def smoke(figure: str, folder: Path) -> list[dict[str, str]]:
    with pytest.raises(SystemExit) as exited:
        main(["paper", figure, "--preset", "smoke", "--out", str(folder)])
    assert exited.value.code == 0
    with (folder / "numbers.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def need(text: str) -> None:
    if not (Path(os.environ.get("ROBUST_AGG_DATA", "")) / text).is_dir():
        pytest.skip(f"the text of {text} is needed: ROBUST_AGG_DATA is not set, or has none")


def verdicts(folder: Path) -> dict[str, str]:
    """By claim, what the page says of it."""
    lines = (folder / "README.md").read_text().splitlines()
    cells = [line.split(" | ") for line in lines if line.startswith("| ")]
    return {cell[0].removeprefix("| "): cell[-1].removesuffix(" |") for cell in cells[2:]}


def test_outliers_are_where_they_are_said_to_be() -> None:
    study = Outliers()
    for arrangement in ARRANGEMENTS:
        far = study.sample(arrangement, 5)[-20:]
        torch.testing.assert_close(far.norm(dim=1), torch.full((20,), 10.0, dtype=torch.float64))
    assert float(study.sample("symmetric", 5)[-20:].mean(dim=0).norm()) < 1e-12
    assert float(study.sample("clustered", 5)[-20:].mean(dim=0).norm()) > 9.9


@pytest.mark.parametrize(
    ("figure", "device", "message"),
    [
        ("fig1", "gpu", "device must be auto, cpu, cuda or cuda:N, found 'gpu'"),
        ("fig3", "cuda:4095", "device must exist, found 'cuda:4095' and "),
    ],
)
def test_a_device_that_is_not_there_is_an_error(
    figure: str, device: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exited:
        main(["paper", figure, "--device", device, "--out", str(tmp_path / "new")])
    assert exited.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_figure_1(tmp_path: Path) -> None:
    rows = smoke("fig1", tmp_path)
    assert len(rows) == 2 * 20 * 3
    assert all(0 <= float(row["error"]) < 10 for row in rows)
    claim = "Clustered outliers drag the mean far away, a median only a little"
    assert verdicts(tmp_path)[claim] == "yes"


@pytest.mark.parametrize(("figure", "text"), [("fig3", "ptb"), ("fig4", "wikitext-2")])
def test_figures_3_and_4(figure: str, text: str, tmp_path: Path) -> None:
    need(text)
    rows = smoke(figure, tmp_path)
    curves = {(row["method"], row["batch"], row["tau"]) for row in rows if row["method"] == "CClip"}
    assert len(curves) == 2 * 3
    starts = [row for row in rows if row["iteration"] == "0"]
    assert all(abs(float(row["error"]) - 1) < 1e-6 for row in starts)
    found = verdicts(tmp_path)
    assert "At iteration 1000 the order is momentum < VClip < CClip" not in found
    assert "At a common τ = 0.01 CClip is by far the fastest at iteration 10" in found
    assert set(found.values()) == {"not decided here"}
    assert found["Minibatch noise has no heavy tail at these batch sizes"] == "not decided here"


def test_training(tmp_path: Path) -> None:
    need("ptb")
    rows = smoke("training", tmp_path)
    trained = {(row["corruption"], row["method"], row["seed"]) for row in rows if row["seed"]}
    assert len(trained) == 2 * 7 * 2
    assert all(0 < float(row["loss"]) < 20 for row in rows if row["seed"])
    assert len([row for row in rows if row["trial"]]) == 2 * 7 * 3
    found = verdicts(tmp_path)
    assert "Clean: VClip trains as well as momentum (to 0.05 nats)" in found
    assert "With bit flips: CClip trains better than momentum, and than a guess" in found
    assert "| method | none | bit flips |" in (tmp_path / "README.md").read_text()


def test_figure_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = smoke("fig2", tmp_path)
    found = verdicts(tmp_path)
    # What does not depend on how many seeds and iterations a smoke test has.
    for claim in (
        "Momentum fails for heavy tails",
        "Adaptive momentum behaves like VClip",
        "The signed increment behaves like CClip",
        "The first sample as m₀ breaks the robustness of CClip",
    ):
        assert found[claim] == "yes"
    assert "‖ĝ‖ = " in (tmp_path / "README.md").read_text()
    for name in ("fig2.png", "fig2.pdf", "extensions.png"):
        assert (tmp_path / name).stat().st_size > 10_000
    plain = [row for row in rows if row["setting"] == "paper" and row["method"] == "momentum"]
    assert {row["iteration"] for row in plain} >= {"0", "1", "100"}
    assert all(float(row["least"]) <= float(row["error"]) <= float(row["largest"]) for row in plain)
    assert "‖ĝ‖ = " in capsys.readouterr().out
    # The same numbers again.
    study = StableNoise.preset("smoke")
    again = study.pieces(tmp_path)["decreasing tau"](lambda share: None)
    kept = [row for row in rows if row["setting"] == "decreasing tau"]
    assert [str(row["error"]) for row in again] == [row["error"] for row in kept]
