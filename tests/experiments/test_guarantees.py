"""What the catalogue says of rules and attacks is what their classes do."""

from __future__ import annotations

import pytest

import attacks
import robust_agg as ra
from experiments.guarantees import needed_rows, shown_invariances, shown_kappa, shown_knowledge


class Cubic(ra.Mean):
    """Whose smallest n is on no line."""

    f = 1

    def check(self, n: int) -> None:
        if n < 20:
            raise ra.ConstraintError(f"n >= 20 is required, found {n}")

    def max_rejected(self, n: int) -> int:
        return 1 if n < 30 else n


@pytest.mark.parametrize(
    ("cls", "rows"),
    [
        (ra.CoordinateWiseMedian, "n >= 2f + 1"),
        (ra.Krum, "n >= 2f + 3"),
        (ra.NearestNeighborMixing, "n >= 2f + 1"),
        (ra.Bucketing, ""),
        (ra.VClip, ""),
        (Cubic, "n >= 20, 30, 30 for f = 1, 2, 3"),
    ],
)
def test_the_rows_that_a_rule_needs(cls: type, rows: str) -> None:
    assert needed_rows(cls) == rows


def test_kappa_is_that_of_a_rule_for_4_of_20() -> None:
    assert shown_kappa(ra.Krum) == f"{ra.Krum(f=4).kappa(20, 4):.2f}"
    assert shown_kappa(ra.Mean) == "–"
    assert shown_kappa(ra.Clip) == "–"


def test_what_a_rule_does_not_follow() -> None:
    assert shown_invariances(ra.GeometricMedian) == "–"
    assert shown_invariances(ra.TrimmedMean) == "rotation"
    assert shown_invariances(ra.Clip) == "translation, scaling"
    assert shown_invariances(attacks.SignFlip) == ""


def test_what_an_attack_reads() -> None:
    assert shown_knowledge(attacks.SignFlip) == "its own rows"
    assert shown_knowledge(attacks.ALittleIsEnough) == "honest rows"
    assert shown_knowledge(attacks.GaussianNoise) == "nothing"
    assert shown_knowledge(attacks.LabelFlip) == "its own data"
    assert shown_knowledge(attacks.ROP) == "honest rows, the last estimate"
    assert shown_knowledge(attacks.OptimalIPM) == "honest rows, the defence"
