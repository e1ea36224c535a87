"""A run's folder: what it was started with, who works in it, and where each training is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from experiments import specs
from experiments.config import ConfigError, RunConfig
from experiments.data import Dataset, load
from experiments.simulation import LEDGER
from robust_agg import __version__

CONFIG = "config.json"
SUMMARY = "summary.json"
FIGURE = "figure.png"
DONE = "done"
LOCK = ".lock"

_DIGEST = "digest"
_DATA = "data"
_VERSION = "version"


@dataclass(frozen=True)
class Training:
    """One cell of the comparison."""

    defence: str
    attacked: bool

    @property
    def folder(self) -> str:
        name = re.sub(r"[^A-Za-z0-9]+", "-", self.defence).strip("-").lower()[:60]
        if name != self.defence.lower():
            # Or CClip(tau=1e-1) and CClip(tau=1e+1) would share a folder.
            name += f"-{hashlib.sha256(self.defence.encode()).hexdigest()[:6]}"
        return f"{name}--{'attacked' if self.attacked else 'honest'}"


@dataclass(frozen=True)
class Run:
    """A folder, the configuration in it, and the data it is about."""

    folder: Path
    config: RunConfig
    data: Dataset

    @property
    def trainings(self) -> list[Training]:
        """All cells: the honest ones first, so that what is lost can be shown as it is lost."""
        defences = self.config.defences
        return [Training(d, attacked) for attacked in (False, True) for d in defences]

    def path(self, training: Training) -> Path:
        return self.folder / training.folder

    def is_done(self, training: Training) -> bool:
        return (self.path(training) / DONE).exists()

    def has_begun(self) -> bool:
        """Whether a round was done."""
        return any(self.folder.glob(f"*/{LEDGER}"))


def create(config: RunConfig, out: Path) -> Run:
    """A new folder ``out/<time>-<digest>`` with the configuration and an own attack's file.

    Raises:
        DataError: there is no such data; nothing is written then.
        ConfigError: the folder cannot be written.
    """
    data = load(config.dataset)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    try:
        out.mkdir(parents=True, exist_ok=True)
        for attempt in range(1000):
            suffix = f"-{attempt}" if attempt else ""
            folder = out / f"{stamp}-{config.digest}{suffix}"
            try:
                folder.mkdir()
            except FileExistsError:
                continue
            try:
                return Run(folder, _write(config, data, folder), data)
            except BaseException:
                shutil.rmtree(folder, ignore_errors=True)
                raise
    except OSError as error:
        raise ConfigError(f"out: a folder that can be written is required, found {error}") from None
    raise ConfigError(f"out: no free name for a run in {out}")


def _write(config: RunConfig, data: Dataset, folder: Path) -> RunConfig:
    """The configuration as the folder holds it: with its own copy of an own attack."""
    file, rest = specs.own_file(config.attack)
    values = dataclasses.asdict(config)
    if file is not None:
        shutil.copyfile(file, folder / file.name)
        values["attack"] = f"{file.name}:{rest}"
        config = dataclasses.replace(config, attack=f"{folder / file.name}:{rest}")
    content = {
        **values,
        _DIGEST: config.digest,
        _DATA: data.fingerprint,
        _VERSION: __version__,
    }
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return config


def reopen(folder: Path) -> Run:
    """The run in ``folder``, on the data it was started on.

    Raises:
        ConfigError: it is no run's folder, or the parameters, the own attack's code or the data
            are not those the run was started with.
        DataError: the data is not there.
    """
    path = folder / CONFIG
    content = _read(path)
    known = {_DIGEST, _DATA, _VERSION, *(field.name for field in dataclasses.fields(RunConfig))}
    for kind, names in (("unknown", content.keys() - known), ("missing", known - content.keys())):
        if names:
            raise ConfigError(f"{path}: {kind} parameters {', '.join(sorted(names))}")
    digest, fingerprint, _ = (content.pop(name) for name in (_DIGEST, _DATA, _VERSION))
    values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in content.items()}
    if isinstance(values["attack"], str):
        file, rest = specs.own_file(values["attack"])
        if file is not None:
            values["attack"] = f"{folder / file}:{rest}"
    try:
        config = RunConfig(**values)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    if config.digest != digest:
        raise ConfigError(
            f"{path}: the parameters of a run, and an attack's file beside them, cannot be "
            f"changed, found digest {config.digest} instead of {digest}"
        )
    data = load(config.dataset)
    if data.fingerprint != fingerprint:
        raise ConfigError(
            f"{path}: the data of a run cannot be changed, found {data.note}, "
            f"of fingerprint {data.fingerprint} instead of {fingerprint}"
        )
    return Run(folder, config, data)


def _read(path: Path) -> dict[str, Any]:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{path}: a configuration that 'robust-agg run' wrote is required, "
            f"found {error.strerror}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: JSON is required, found {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: a JSON object is required, found {type(content).__name__}")
    return content


def discard(run: Run) -> None:
    """Remove the folder of a run of which no round was done."""
    if not run.has_begun():
        shutil.rmtree(run.folder, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of ``folder``.

    Raises:
        ConfigError: another one is in it.
    """
    lock = FileLock(folder / LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigError(f"{folder}: another process is working in it") from None
    try:
        yield
    finally:
        lock.release()
