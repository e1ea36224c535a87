"""A study: pieces of work that are kept as they finish, figures, claims with verdicts, a page."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeAlias

import torch

from experiments.config import ConfigError, check_device
from experiments.run_folder import locked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Row: TypeAlias = dict[str, Any]
"""One line of the numbers: names to texts and numbers."""
Tick: TypeAlias = Callable[[float], None]
"""Told the share of a piece that is done."""
Piece: TypeAlias = Callable[[Tick], list[Row]]
Preset = Literal["smoke", "default", "full"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A statement, what was measured about it, and whether it holds by that.

    Attributes:
        statement: in one sentence that a number can contradict.
        source: who says so: a section of the paper, or this project.
        measured: the numbers.
        holds: None where this preset does not measure it.
    """

    statement: str
    source: str
    measured: str
    holds: bool | None


@dataclass(frozen=True, kw_only=True)
class Study(ABC):
    """One figure of the paper; its fields are the configuration that a folder is bound to."""

    title: ClassVar[str]

    @classmethod
    @abstractmethod
    def preset(cls, name: Preset) -> Self:
        """smoke takes seconds, default minutes on two cores; full is the paper's own size."""

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
        """The figures by file name, the paper's own first."""

    @abstractmethod
    def claims(self, rows: Sequence[Row]) -> list[Claim]:
        """What the paper, and this project, say about it, against the numbers."""

    def table(self, rows: Sequence[Row]) -> Sequence[Sequence[str]]:
        """A table for the page, the headings first; none by default."""
        return ()

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
        return dataclasses.replace(self, device=device)


@dataclass(frozen=True)
class Outcome:
    """What :func:`carry_out` leaves: the page's file, the claims, and the seconds of the pieces."""

    page: Path
    claims: list[Claim]
    seconds: float


def carry_out(
    study: Study,
    folder: Path,
    *,
    command: str,
    where: str,
    on_piece: Callable[[str, int, int], Tick],
) -> Outcome:
    """Do what is left of ``study`` in ``folder``, then write numbers, figures and page.

    Args:
        study: what to do.
        folder: made if it is not there; it may hold an earlier part of the same study.
        command: how to do it again, for the page.
        where: machine and commit, for the page.
        on_piece: told the name, place and number of each piece that begins; returns its tick.

    Raises:
        ConfigError: the folder is another study's, cannot be written, or another process is in it.
    """
    _claim_folder(study, folder)
    with locked(folder):
        pieces = study.pieces(folder)
        done = [
            _piece(folder / "pieces" / f"{name}.json", piece, on_piece(name, place, len(pieces)))
            for place, (name, piece) in enumerate(pieces.items())
        ]
        rows = [row for piece in done for row in piece["rows"]]
        seconds = sum(piece["seconds"] for piece in done)
        _write_csv(folder / "numbers.csv", rows)
        figures = study.figures(rows)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=110)
            figure.savefig(folder / f"{name}.pdf")
        claims = study.claims(rows)
        notes = [*study.notes(rows), f"{seconds:.0f} s of computing", where, f"`{command}`"]
        with _replacing(folder / "README.md") as file:
            text = page(study, rows, list(figures), claims, notes)
            file.write_text(text, encoding="utf-8")
    return Outcome(folder / "README.md", claims, seconds)


def _claim_folder(study: Study, folder: Path) -> None:
    """Write the configuration, or check that it is the one that is there."""
    content = {"study": type(study).__name__, **dataclasses.asdict(study)}
    text = json.dumps(content, indent=2) + "\n"
    path = folder / "config.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "pieces").mkdir(exist_ok=True)
        if not path.exists():
            path.write_text(text, encoding="utf-8")
        found = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"out: a folder that can be written is required, found {error}") from None
    if found != text:
        raise ConfigError(
            f"out: {folder} holds another study, found configuration {_digest(found)} "
            f"instead of {_digest(text)}; choose another folder"
        )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _piece(path: Path, piece: Piece, tick: Tick) -> dict[str, Any]:
    if not path.exists():
        begun = time.perf_counter()
        rows = piece(tick)
        content = {"seconds": time.perf_counter() - begun, "rows": rows}
        with _replacing(path) as file:
            file.write_text(json.dumps(content), encoding="utf-8")
    tick(1.0)
    # Read back in any case: what is drawn is what is kept.
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A file that takes its name when it is whole."""
    temporary = path.with_name(f".{path.name}")
    yield temporary
    os.replace(temporary, path)


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with _replacing(path) as file, file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, names)
        writer.writeheader()
        writer.writerows(rows)


def page(
    study: Study,
    rows: Sequence[Row],
    figures: Sequence[str],
    claims: Sequence[Claim],
    notes: Sequence[str],
) -> str:
    """The study as Markdown: figures, then claims with verdicts, then what was run."""
    verdict = {True: "yes", False: "**no**", None: "not measured here"}
    lines = [f"# {study.title}", "", " ".join((study.__doc__ or "").split()), ""]
    for name in figures:
        lines += [f"![{name}]({name}.png)", ""]
    verdicts = [(c.statement, c.source, c.measured, verdict[c.holds]) for c in claims]
    lines += _markdown([("claim", "by", "measured", "holds"), *verdicts])
    lines += _markdown(study.table(rows))
    lines += [*(f"- {note}" for note in notes), ""]
    return "\n".join(lines)


def _markdown(cells: Sequence[Sequence[str]]) -> list[str]:
    if not cells:
        return []
    lines = [f"| {' | '.join(cell.replace('|', _BAR) for cell in line)} |" for line in cells]
    return [lines[0], f"|{' --- |' * len(cells[0])}", *lines[1:], ""]


_BAR = "\\|"
