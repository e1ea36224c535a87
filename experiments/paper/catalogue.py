"""The figures of the paper by the name one calls them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from experiments.paper.fig1 import Outliers
from experiments.paper.fig2 import StableNoise
from experiments.paper.fig34 import PTB, WikiText
from experiments.paper.training import Training
from experiments.studies.study import Study

FigureName = Literal["fig1", "fig2", "fig3", "fig4", "training"]
STUDIES: Mapping[FigureName, type[Study]] = {
    "fig1": Outliers,
    "fig2": StableNoise,
    "fig3": PTB,
    "fig4": WikiText,
    "training": Training,
}
