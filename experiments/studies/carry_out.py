"""Carrying out a study in a folder, where every piece is kept as it finishes."""

from __future__ import annotations

import csv
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from experiments.config import ConfigError
from experiments.files import replacing
from experiments.run_folder import LOCK, locked
from experiments.studies.page import page
from experiments.studies.study import Claim, Piece, Row, Study, Table, Tick

CONFIG = "config.json"


@dataclass(frozen=True)
class Outcome:
    """What :func:`carry_out` leaves: the page's file, and what is on it."""

    page: Path
    tables: Mapping[str, Table]
    claims: list[Claim]
    notes: list[str]


def carry_out(
    study: Study,
    folder: Path,
    *,
    command: str,
    where: str,
    on_piece: Callable[[str, int, int, bool], Tick],
) -> Outcome:
    """Do what is left of ``study`` in ``folder``, then write numbers, figures and page.

    Args:
        study: what to do.
        folder: made if it is not there; empty, or with an earlier part of the same study.
        command: how to do it again, for the page.
        where: machine and commit; the page has those that its pieces were done with.
        on_piece: told the name, place and number of each piece, and whether it is kept from
            before; returns its tick. To draw the figures is the last.

    Raises:
        ConfigError: the folder is another's, cannot be written, or another process is in it.
    """
    configuration = {
        "study": type(study).__name__,
        **dataclasses.asdict(study),
        "data": study.fingerprint,
    }
    try:
        _check_free(folder)
        (folder / "pieces").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        found = f"{error.strerror} at {error.filename}"
        raise ConfigError(f"out: a folder that can be written is required, found {found}") from None
    with locked(folder):
        _bind(folder, json.loads(json.dumps(configuration)))
        pieces = study.pieces(folder)
        count = len(pieces) + 1
        done = [
            _done(folder, name, piece, partial(on_piece, name, place, count), where=where)
            for place, (name, piece) in enumerate(pieces.items())
        ]
        tick = on_piece("figures and page", len(pieces), count, False)
        rows = [row for piece in done for row in piece["rows"]]
        seconds = sum(piece["seconds"] for piece in done)
        _write_csv(folder / "numbers.csv", rows)
        _write_parquet(folder / "numbers.parquet", rows)
        figures = study.figures(rows)
        for name, figure in figures.items():
            figure.savefig(folder / f"{name}.png", dpi=110)
            figure.savefig(folder / f"{name}.pdf")
        tables = study.tables(rows)
        claims = study.claims(rows)
        if not study.decides:
            claims = [dataclasses.replace(claim, holds=None) for claim in claims]
        places = dict.fromkeys(piece["where"] for piece in done)
        notes = [
            *study.notes(rows),
            *(() if study.decides else ("so small a study only shows that everything runs",)),
            "numbers.csv, numbers.parquet: a row a measurement, cells that do not apply are empty",
            f"{seconds:.0f} s of computing",
            *places,
            f"`{command}`",
        ]
        with replacing(folder / "README.md") as file:
            file.write_text(page(study, list(figures), tables, claims, notes), encoding="utf-8")
        tick(1.0)
    return Outcome(folder / "README.md", tables, claims, notes)


def _check_free(folder: Path) -> None:
    """Refuse a folder that holds something else, before anything is written to it."""
    if not folder.exists() or (folder / CONFIG).exists():
        return
    found = sorted({each.name for each in folder.iterdir()} - {"pieces", LOCK})
    if found:
        raise ConfigError(
            f"out: {folder} must be empty, or hold {CONFIG} of such a study, found {found[0]}"
        )


def _bind(folder: Path, configuration: dict[str, Any]) -> None:
    """Write the configuration, or check that it is the one that is there."""
    path = folder / CONFIG
    if not path.exists():
        found = sorted({each.name for each in folder.iterdir()} - {"pieces", LOCK})
        if found:
            raise ConfigError(
                f"out: {folder} must be empty, or hold such a study, found {found[0]}"
            )
        with replacing(path) as file:
            file.write_text(json.dumps(configuration, indent=2) + "\n", encoding="utf-8")
    kept = _read(path)
    if kept is None:
        raise ConfigError(f"out: {path} must be a configuration, found a damaged file")
    before, now = dict(_flat(kept)), dict(_flat(configuration))
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            raise ConfigError(
                f"out: {folder} holds another study, found {name}={before.get(name)!r} instead of "
                f"{now.get(name)!r}; choose another folder"
            )


def _flat(configuration: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Names with dots and values, of tables within tables."""
    for name, value in configuration.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def _done(
    folder: Path, name: str, piece: Piece, begin: Callable[[bool], Tick], *, where: str
) -> dict[str, Any]:
    """What is kept of a piece; done now if nothing is, or if it was damaged."""
    path = folder / "pieces" / f"{name}.json"
    found = _read(path)
    whole = found is not None and found.keys() == {"piece", "seconds", "where", "rows"}
    if found is not None and whole and found["piece"] == name:
        begin(True)(1.0)
        return found
    tick = begin(False)
    begun = time.perf_counter()
    rows = piece(tick)
    seconds = time.perf_counter() - begun
    content = json.dumps({"piece": name, "seconds": seconds, "where": where, "rows": rows})
    with replacing(path) as file:
        file.write_text(content, encoding="utf-8")
    tick(1.0)
    # What is drawn is what is kept, now as after another start.
    kept: dict[str, Any] = json.loads(content)
    return kept


def _read(path: Path) -> dict[str, Any] | None:
    with suppress(FileNotFoundError, ValueError):
        content = json.loads(path.read_text(encoding="utf-8"))
        return content if isinstance(content, dict) else None
    return None


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _write_csv(path: Path, rows: Sequence[Row]) -> None:
    with replacing(path) as file, file.open("w", newline="", encoding="utf-8") as out:
        writer = csv.DictWriter(out, _names(rows))
        writer.writeheader()
        writer.writerows(rows)


def _write_parquet(path: Path, rows: Sequence[Row]) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.table({name: [row.get(name) for row in rows] for name in _names(rows)})
    with replacing(path) as file:
        parquet.write_table(table, file)
