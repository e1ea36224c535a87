"""The studies of the rules by the name one calls them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from experiments.robustness.kappa import Kappa
from experiments.robustness.matrix import Matrix
from experiments.studies.study import Study

RobustnessName = Literal["kappa", "attacks"]
STUDIES: Mapping[RobustnessName, type[Study]] = {"kappa": Kappa, "attacks": Matrix}
