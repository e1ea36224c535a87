"""The training scripts: the same by every way to start them, and through the loss of a rank."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cluster_samples import RANKS, SMALL, losses, options, ranks_of, torchrun, until

from experiments.cluster.local import LocalError
from experiments.cluster.setting import Setting
from experiments.config import ConfigError
from experiments.data import DATA_VARIABLE
from robust_agg import Ledger

FAULT: dict[str, Any] = {"bad": (1,), "flips": 0.01}


@pytest.fixture(scope="module")
def clean(ptb: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The losses with the mean and without faults."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATA_VARIABLE, str(ptb))
        return losses(tmp_path_factory.mktemp("clean"), defence="mean")[0]


@pytest.mark.parametrize("script", ["ddp", "fsdp"])
@pytest.mark.parametrize("defence", ["CoordinateWiseMedian", "GeometricMedian"])
def test_a_rule_withstands_what_a_mean_does_not(
    script: str, defence: str, clean: list[Any], tmp_path: Path
) -> None:
    assert [step for step, _ in clean] == [0, 8, 16, 24]
    assert clean[-1][1] < clean[0][1] - 0.5
    found, suspects = losses(tmp_path / "rule", script, defence=defence, **FAULT)
    assert found[-1][1] == pytest.approx(clean[-1][1], rel=0.02)
    assert suspects == [1]


@pytest.mark.parametrize("script", ["ddp", "fsdp"])
def test_a_mean_does_not_withstand_it(script: str, clean: list[Any], tmp_path: Path) -> None:
    assert losses(tmp_path / "same", script, defence="mean")[0] == [
        [step, pytest.approx(loss, rel=1e-5)] for step, loss in clean
    ]
    spoilt = losses(tmp_path / "spoilt", script, defence="mean", **FAULT)[0][-1][1]
    assert spoilt is None or spoilt > 1.1 * clean[-1][1]


@pytest.mark.parametrize("script", ["ddp", "fsdp"])
def test_clipping_and_adamw_learn(script: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"defence": "clip", "optimizer": "adamw", "lr": 0.01}
    found, suspects = losses(tmp_path, script, **changes)
    assert found[-1][1] < found[0][1] - 0.5
    assert suspects == []


def test_a_job_goes_on_after_a_rank_was_killed(tmp_path: Path) -> None:
    """VClip has memory: the hook's state is in the checkpoint too."""
    stateful: dict[str, Any] = {"defence": "VClip", "steps": 120, "checkpoint_every": 20}
    undisturbed = losses(tmp_path / "undisturbed", **stateful, **FAULT)[0]
    out = tmp_path / "disturbed"
    setting = replace(SMALL, out=out, **stateful, **FAULT)
    job = subprocess.Popen(
        torchrun("ddp", setting, restarts=1),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        until(lambda: (out / "checkpoint.safetensors").exists() or job.poll() is not None)
        os.kill(ranks_of(job.pid)[2], signal.SIGKILL)
        said = job.communicate(timeout=120)[0]
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    assert job.returncode == 0, said
    found = [float(x) for x in re.findall(r"step 120: validation loss (\S+)", said)]
    assert found == [pytest.approx(undisturbed[-1][1], abs=1e-4)]
    # It did not begin anew.
    assert said.count("step 0:") == 1
    ledger = Ledger(out / "ledger.jsonl")
    assert [line["round"] for line in ledger] == list(range(120))
    # Host, process and device of the bad rank.
    assert re.search(r"rank 1 \(.+, pid \d+, cpu\): flagged in \d+ of the last 100 steps", said)


def test_a_folder_is_one_trainings(tmp_path: Path) -> None:
    found = losses(tmp_path, checkpoint_every=24)[0]
    longer = losses(tmp_path, checkpoint_every=24, steps=32)[0]
    assert longer[: len(found)] == found
    assert [step for step, _ in longer] == [0, 8, 16, 24, 32]
    with pytest.raises(LocalError, match=r"holds a training with lr=0\.1, found 0\.2"):
        losses(tmp_path, lr=0.2)


def test_a_rank_that_stalls_ends_the_others_with_one_line(tmp_path: Path) -> None:
    setting = replace(SMALL, out=tmp_path, steps=10_000, timeout=1.0)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    world |= {"WORLD_SIZE": str(RANKS), "LOCAL_WORLD_SIZE": str(RANKS)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "experiments.cluster.ddp", *options(setting)],
            env={**os.environ, **world, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(RANKS)
    ]  # fmt: skip
    try:
        until((tmp_path / "ledger.jsonl").exists)  # all have made a step
        ranks[2].send_signal(signal.SIGSTOP)
        for rank in ranks[:2]:
            _, error = rank.communicate(timeout=60)
            assert rank.returncode == 1, error
            (line,) = [line for line in error.splitlines() if "robust_hook" in line]
            assert f"did not end within 1 s: rank 2 ({socket.gethostname()}, pid" in line
            assert "Traceback" not in error
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, found 0"),
        ({"lr": float("inf")}, "lr must be a positive number, found inf"),
        ({"flips": 1.0}, r"flips must be in \[0, 1\), found 1.0"),
        ({"optimizer": "lamb"}, "optimizer must be one of 'sgd', 'adamw', found 'lamb'"),
        ({"defence": "CoordinateWiseMedain"}, "did you mean 'CoordinateWiseMedian'"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(Setting(), **changes)
    assert issubclass(ConfigError, ValueError)
