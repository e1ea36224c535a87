"""A sweep's folder: it is bound to one sweep, whose own attacks it holds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import provenance, specs
from experiments.config import ConfigError, RunConfig
from experiments.data import loaded
from experiments.files import replacing
from experiments.run_folder import LOCK
from experiments.sweeps.config import SweepConfig, Value, own_files
from robust_agg import __version__

SWEEP = "sweep.json"
CELLS = "cells"
ATTACKS = "attacks"
PAGE = "report.html"

_FREE = ("title", "notes", "published", "preset", "version", "command", "where")
# What may differ when a sweep goes on: no number depends on it but by the version, which is kept of
# every cell.


def check_free(folder: Path) -> None:
    """Refuse a folder that holds something else, before anything is written to it.

    Raises:
        ConfigError: it does, or it is none.
    """
    if not folder.exists() or (folder / SWEEP).is_file():
        return
    try:
        found = sorted(
            {each.name for each in folder.iterdir()} - {ATTACKS, CELLS, LOCK, f".{SWEEP}"}
        )
    except OSError as error:
        raise ConfigError(f"out: a folder is required, found {error.strerror}") from None
    if found:
        raise ConfigError(
            f"out: {folder} must be empty, or hold {SWEEP} of such a sweep, found {found[0]}"
        )


def bind(sweep: SweepConfig, folder: Path, *, preset: str, command: str) -> SweepConfig:
    """Write the sweep into its folder, or check that it is the one that is there.

    Returns:
        The sweep with own attacks as files of the folder: one that is changed elsewhere later
        changes no cell. In the folder's file they are relative to it, so that it can be moved.

    Raises:
        ConfigError: the folder is bound to another sweep, or to other data.
        DataError: the data is not there.
    """
    own = {text: _adopted(text, folder) for text in sorted(own_files(sweep))}
    names = [str(name) for name in sweep.values_of("dataset") or (RunConfig.dataset,)]
    data = {name: loaded(name) for name in names}
    content = {
        **dataclasses.asdict(sweep),
        **_with_attacks(sweep, own),
        "data": {n: {"fingerprint": d.fingerprint, "note": d.note} for n, d in data.items()},
        "preset": preset,
        "version": __version__,
        "command": command,
        "where": [],
    }
    _bind(folder, json.loads(json.dumps(content)))
    here = {text: f"{folder / place}" for text, place in own.items()}
    return dataclasses.replace(sweep, **_with_attacks(sweep, here))


def _bind(folder: Path, content: dict[str, Any]) -> None:
    path = folder / SWEEP
    kept = None
    if path.exists():
        kept = _read(path)
        for name in {**kept, **content}:
            if name not in _FREE and kept.get(name) != content.get(name):
                raise ConfigError(
                    f"out: {folder} holds another sweep, found {name}={kept.get(name)!r} instead "
                    f"of {content.get(name)!r}; choose another folder"
                )
        content["where"] = kept.get("where", [])
    if kept != content:
        _write(path, content)


def sign(folder: Path) -> None:
    """Note the machine and the commit that carry the sweep out from now on."""
    content = _read(folder / SWEEP)
    here = provenance.where()
    if here not in content["where"]:
        _write(folder / SWEEP, {**content, "where": [*content["where"], here]})


def _write(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as file:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"out: {path} must be a sweep's JSON, found {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"out: {path} must be a sweep's JSON, found {type(content).__name__}")
    return content


def _with_attacks(sweep: SweepConfig, own: Mapping[str, str]) -> dict[str, Any]:
    """Base and grid with other texts for own attacks."""

    def other(value: Value) -> Value:
        return own.get(value, value) if isinstance(value, str) else value

    base, grid = dict(sweep.base), dict(sweep.grid)
    if "attack" in base:
        base["attack"] = other(base["attack"])
    if "attack" in grid:
        grid["attack"] = tuple(map(other, grid["attack"]))
    return {"base": base, "grid": grid}


def _adopted(text: str, folder: Path) -> str:
    """An own attack as a file of the folder, relative to it and known by its content."""
    file, rest = specs.own_file(text)
    assert file is not None, "an own attack"
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    place = Path(ATTACKS) / digest / file.name
    if not (folder / place).exists():
        (folder / place.parent).mkdir(parents=True, exist_ok=True)
        with replacing(folder / place) as copy:
            shutil.copyfile(file, copy)
    return f"{place}:{rest}"
