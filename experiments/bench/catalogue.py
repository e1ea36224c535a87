"""The benchmarks by the name one calls them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from experiments.bench.aggregators import Aggregators
from experiments.bench.collectives import Collectives
from experiments.bench.optim import OptimizerSteps
from experiments.bench.train import Training
from experiments.bench.transport import Transports
from experiments.studies.study import Study

BenchName = Literal["aggregators", "train", "transport", "optim", "collectives"]
BENCHES: Mapping[BenchName, type[Study]] = {
    "aggregators": Aggregators,
    "train": Training,
    "transport": Transports,
    "optim": OptimizerSteps,
    "collectives": Collectives,
}
