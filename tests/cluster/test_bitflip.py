"""The study of bit flips: it runs, goes on after Ctrl-C, and judges by the numbers."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cluster_samples import until

from experiments.cluster import bitflip_report as report
from experiments.cluster.bitflip import BitFlip, Cell

COMMAND = [sys.executable, "-m", "experiments", "cluster", "bitflip", "--preset", "smoke"]


def test_it_goes_on_after_it_was_interrupted(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [*COMMAND, "--out", str(out)]
    begun = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        # What is still being written has a name with a dot, which `Path.glob` finds as well.
        until(lambda: list(out.glob("pieces/[!.]*.json")))
        begun.send_signal(signal.SIGINT)
        said, error = begun.communicate(timeout=60)
    finally:
        begun.kill()
    assert (begun.returncode, error) == (130, "")
    assert "interrupted; continue with: robust-agg cluster bitflip" in said
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "(kept from before)" in done.stdout
    with (out / "numbers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    trained = {(r["optimizer"], r["flips"], r["defence"], r["seed"]) for r in rows if r["loss"]}
    study = BitFlip.preset("smoke")
    assert len(trained) == len(study.cells) * study.seeds
    assert {r["defence"] for r in rows if r["ms"]} == set(study.defences)
    page = (out / "README.md").read_text()
    assert page.startswith("# One of four ranks flips bits\n")
    assert (out / "bitflip.png").exists()


def rows(**finals: list[float]) -> list[dict[str, Any]]:
    """Trainings of one step: the clean mean, and under flips what is given, by defence."""
    cells = {Cell("sgd", 0.0, "mean"): [5.0, 5.1, 5.2]}
    cells |= {Cell("sgd", 1e-4, defence): losses for defence, losses in finals.items()}
    return [
        {**cell._asdict(), "seed": seed, "step": step, "loss": loss if step else 7.6}
        for cell, losses in cells.items()
        for seed, loss in enumerate(losses)
        for step in (0, 1)
    ]


@pytest.mark.parametrize(
    ("defence", "losses", "holds"),
    [
        ("mean", [15.2, 15.2, 15.2], True),
        ("mean", [5.1, 5.2, 5.3], False),
        ("mean", [5.0, 5.1, 15.2], None),
        ("Rule", [5.02, 5.12, 5.22], True),
        ("Rule", [5.3, 5.4, 5.5], False),
        ("Rule", [5.0, 5.1, 5.9], None),
    ],
)
def test_verdicts_need_differences_that_seeds_agree_on(
    defence: str, losses: list[float], holds: bool | None
) -> None:
    (claim,) = report.claims(rows(**{defence: losses}), bad=[3])
    assert claim.holds is holds


@pytest.mark.parametrize(
    ("bad", "other", "holds"),
    [
        ([0.6, 0.7], [0.0, 0.0], True),
        ([0.6, 0.0], [0.0, 0.0], False),
        ([1.0, 1.0], [0, 0.1], False),
    ],
)
def test_the_bad_rank_must_be_found_with_every_seed_and_no_other(
    bad: list[float], other: list[float], holds: bool
) -> None:
    flags = [
        {"optimizer": "sgd", "flips": 1e-4, "defence": "Rule", "rank": rank, "flagged": share}
        for rank, shares in ((3, bad), (0, other))
        for share in shares
    ]
    found = report.claims(rows(Rule=[5.0, 5.1, 5.2]) + flags, bad=[3])
    assert [claim.holds for claim in found if "reported" in claim.statement] == [holds]
