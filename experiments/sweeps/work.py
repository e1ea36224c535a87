"""One cell in a process: from its checkpoint, or its beginning, to its final parameters."""

from __future__ import annotations

import json
import os
import platform
import time
from pathlib import Path

import torch
from filelock import FileLock
from torch import nn

from experiments import assembly
from experiments.config import RunConfig
from experiments.data import Dataset, loaded
from experiments.files import replacing
from experiments.run_folder import CONFIG, LOCK
from experiments.simulation import CHECKPOINT, Simulation, clean
from experiments.sweeps.cells import plain
from experiments.sweeps.outcome import TIME, Outcome, outcome_of, read_seconds
from robust_agg.checkpoint import load_checkpoint, save_checkpoint
from workers.transport import HostError

MODEL = "model.safetensors"
"""The final parameters; its presence says that the training is finished."""
STARTED = "started.json"
"""Who works on the cell, written when it begins to."""


def train(folder: Path, config: RunConfig) -> Outcome:
    """Do what is left of a cell; its model is evaluated on validation data only.

    A process of a sweep that was killed may live a moment longer than that: it is waited for.

    Raises:
        ConfigError, AttackError, HostError, CheckpointError, ValueError: as a run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # A process that is new imports what reads them, which takes long on a machine that is busy.
    data = loaded(config.dataset)
    with FileLock(folder / LOCK):
        _write_json(folder / STARTED, {"host": platform.node(), "pid": os.getpid()})
        if not (folder / MODEL).exists():
            _write_json(folder / CONFIG, plain(config))
            _train(folder, config, data)
        # A process may have died before it could.
        clean(folder)
        (folder / CHECKPOINT).unlink(missing_ok=True)
        return outcome_of(folder)


def _train(folder: Path, config: RunConfig, data: Dataset) -> None:
    torch.set_num_threads(config.threads)
    (defence,) = config.defences
    spent = read_seconds(folder) if (folder / CHECKPOINT).exists() else 0.0
    begun = time.perf_counter() - spent
    with (
        assembly.cluster(config),
        assembly.transport(config, data, attacked=True) as workers,
        assembly.training(config, defence, data, workers, folder) as simulation,
    ):
        simulation.restore()
        for _ in simulation.run(config.rounds, evaluate_every=config.evaluate_every):
            done = simulation.server.round
            if done % config.checkpoint_every == 0 or done == config.rounds:
                _save(simulation, time.perf_counter() - begun)
        # What is read of a cell from here on outlives the machine, as its model does.
        save_checkpoint(folder / MODEL, {"parameters": simulation.server.parameters()})


def _save(simulation: Simulation, seconds: float) -> None:
    """A checkpoint; where a host keeps its workers' states back, the last one stays."""
    try:
        simulation.save()
    except HostError:
        return
    _write_json(simulation.folder / TIME, seconds)


def tested(folder: Path, config: RunConfig) -> float:
    """The accuracy of a finished cell's final parameters on the test data.

    Raises:
        CheckpointError: the parameters are not there, or damaged.
    """
    data = loaded(config.dataset)
    model = assembly.ModelFactory.of(config, data)()
    parameters = load_checkpoint(folder / MODEL)["parameters"]
    nn.utils.vector_to_parameters(parameters, model.parameters())
    threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    try:
        with torch.inference_mode():
            found = model.eval()(data.test.inputs).argmax(dim=1) == data.test.targets
    finally:
        torch.set_num_threads(threads)
    return float(found.double().mean())


def _write_json(path: Path, content: object) -> None:
    with replacing(path) as file:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
