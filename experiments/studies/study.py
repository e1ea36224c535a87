"""A study: pieces of work that are kept as they finish, figures, claims with verdicts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

import torch

from experiments.config import ConfigError, check_device

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row: TypeAlias = dict[str, Any]
"""One line of the numbers: names to texts and numbers."""
Tick: TypeAlias = Callable[[float], None]
"""Told the share of a piece that is done."""
Piece: TypeAlias = Callable[[Tick], list[Row]]
Table: TypeAlias = Sequence[Sequence[str]]
"""Lines of cells, the headings first."""
Preset = Literal["smoke", "default", "full"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement, what was measured about it, and whether it holds by that.

    Attributes:
        statement: in one sentence that a number can contradict.
        source: who says so: a section of the paper, or this project.
        measured: the numbers.
        holds: None where the numbers at hand do not decide it.
    """

    statement: str
    source: str
    measured: str
    holds: bool | None


@dataclass(frozen=True, kw_only=True)
class Study(ABC):
    """A question put to numbers; its fields are the configuration that a folder is bound to."""

    title: ClassVar[str]
    decides: bool = True
    """Whether it is large enough for its verdicts to mean something."""

    @classmethod
    @abstractmethod
    def preset(cls, name: Preset) -> Self:
        """smoke takes seconds, default minutes on two cores; full is as large as is of use."""

    @property
    def fingerprint(self) -> str:
        """Of the data it is made from; empty if there is none."""
        return ""

    def on(self, device: str) -> Self:
        """The study with its tensors on ``device``, or ``auto``: CUDA, if it gains from it.

        Raises:
            ConfigError: there is no such device, or no use for it.
        """
        check_device(device)
        if device.startswith("cuda"):
            raise ConfigError(
                f"device must be cpu for {type(self).__name__}, which a GPU would not speed up, "
                f"found {device}"
            )
        return self

    @abstractmethod
    def pieces(self, folder: Path) -> Mapping[str, Piece]:
        """The work, in an order; each piece is done once in a folder, however often it is run."""

    @abstractmethod
    def figures(self, rows: Sequence[Row]) -> Mapping[str, Figure]:
        """The figures by file name, the main one first."""

    @abstractmethod
    def claims(self, rows: Sequence[Row]) -> list[Claim]:
        """What is said about it, against the numbers."""

    def tables(self, rows: Sequence[Row]) -> Mapping[str, Table]:
        """Tables for the page by their titles; none by default."""
        return {}

    @abstractmethod
    def notes(self, rows: Sequence[Row]) -> list[str]:
        """What a reader must know to believe the figure: data, sizes, deviations."""


@dataclass(frozen=True, kw_only=True)
class ModelStudy(Study):
    """A study with a model that computes gradients.

    Attributes:
        device: of the model.
    """

    device: str = "cpu"

    def on(self, device: str) -> Self:
        check_device(device)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        return replace(self, device=device)
