"""The studies of the rules by the name one calls them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from experiments.robustness.kappa import Kappa
from experiments.studies.study import Study

RobustnessName = Literal["kappa"]
STUDIES: Mapping[RobustnessName, type[Study]] = {"kappa": Kappa}
