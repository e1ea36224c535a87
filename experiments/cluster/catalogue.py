"""The studies of ranks that are bad, by the name one calls them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from experiments.cluster.bitflip import BitFlip
from experiments.studies.study import Study

ClusterName = Literal["bitflip"]
STUDIES: Mapping[ClusterName, type[Study]] = {"bitflip": BitFlip}
