"""The training scripts: the same by every way to start them, and through the loss of a rank."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cluster_samples import (
    RANKS,
    SMALL,
    agents,
    by_hand,
    losses,
    ranks_of,
    trained,
    training,
    until,
)

from experiments.cluster import checkpoint, ddp, on_ray, text
from experiments.cluster.command import launched
from experiments.cluster.model import TransformerLM, cross_entropy, mean_loss
from experiments.cluster.outcome import Outcome
from experiments.cluster.setting import Setting
from experiments.config import ConfigError
from experiments.data import DATA_VARIABLE
from experiments.language.corpus import batches, load
from experiments.processes import LocalError, on_ranks
from robust_agg import Ledger
from robust_agg.checkpoint import save_checkpoint

FAULT: dict[str, Any] = {"bad": (1,), "flips": 0.01}


@pytest.fixture(scope="module")
def clean(ptb: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """The losses with the mean and without faults."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATA_VARIABLE, str(ptb))
        return losses(tmp_path_factory.mktemp("clean"), defence="mean")


@pytest.mark.parametrize("script", ["ddp", "fsdp"])
@pytest.mark.parametrize("defence", ["CoordinateWiseMedian", "GeometricMedian"])
def test_a_rule_withstands_what_a_mean_does_not(
    script: str, defence: str, clean: list[Any], tmp_path: Path
) -> None:
    assert [step for step, _ in clean] == [0, 8, 16, 24]
    assert clean[-1][1] < clean[0][1] - 0.5
    found, suspects = training(tmp_path / "rule", script, defence=defence, **FAULT)
    assert found[-1][1] == pytest.approx(clean[-1][1], rel=0.02)
    assert [suspect.rank for suspect in suspects] == [1]


@pytest.mark.parametrize("script", ["ddp", "fsdp"])
def test_a_mean_does_not_withstand_it(script: str, clean: list[Any], tmp_path: Path) -> None:
    assert losses(tmp_path / "same", script, defence="mean") == [
        [step, pytest.approx(loss, rel=1e-5)] for step, loss in clean
    ]
    spoilt = losses(tmp_path / "spoilt", script, defence="mean", **FAULT)[-1][1]
    assert spoilt is None or spoilt > 1.1 * clean[-1][1]


@pytest.mark.parametrize("script", ["ddp", "fsdp"])
def test_clipping_and_adamw_learn(script: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"defence": "clip", "optimizer": "adamw", "lr": 0.01}
    found, suspects = training(tmp_path, script, **changes)
    assert found[-1][1] < found[0][1] - 0.5
    assert suspects == []


def evaluated(setting: Setting) -> tuple[float, float, int]:
    """On a rank: the loss by all of them, that of the whole text here, and how many words are."""
    words, _, validation = text.read(setting, torch.device("cpu"))
    torch.manual_seed(0)
    model = TransformerLM(words, setting.length).eval()
    tokens = load("ptb", words=setting.words).validation[: setting.validation_words + 64]
    whole = batches(tokens, 64, setting.length)
    with torch.no_grad():
        total = sum(float(cross_entropy(model, x, y)) * y.numel() for x, y in whole)
    count = sum(y.numel() for _, y in whole)
    return mean_loss(model, validation), total / count, sum(y.numel() for _, y in validation)


def test_each_rank_evaluates_a_part() -> None:
    """Or the others would wait for one, for as long as a collective may take."""
    found = on_ranks(RANKS, evaluated, replace(SMALL, validation_words=660))
    for loss, expected, _ in found:
        assert loss == pytest.approx(expected, rel=1e-6)
    assert [words for *_, words in found] == [220, 210, 210]


def test_a_job_goes_on_over_machines_after_a_rank_was_killed(tmp_path: Path) -> None:
    """VClip has memory: the hook's state is in the checkpoint too."""
    stateful: dict[str, Any] = {"defence": "VClip", "steps": 120, "checkpoint_every": 20}
    undisturbed = losses(tmp_path / "undisturbed", **stateful, **FAULT)
    out = tmp_path / "disturbed"
    setting = replace(SMALL, out=out, **stateful, **FAULT)
    job = [
        subprocess.Popen(
            command,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )
        for command in agents("ddp", setting, 1, 2, restarts=1)
    ]  # fmt: skip
    try:
        until(
            lambda: (out / checkpoint.NAME).exists() or any(a.poll() is not None for a in job),
            seconds=120,
        )
        # The agent of the first starts its rank again as an attempt that the other never counts.
        os.kill(*ranks_of(job[0].pid).values(), signal.SIGKILL)
        said = "".join([agent.communicate(timeout=120)[0] for agent in job])
    finally:
        for agent in job:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
    assert [agent.returncode for agent in job] == [0, 0], said
    found = [float(x) for x in re.findall(r"step 120: validation loss (\S+)", said)]
    assert found == [pytest.approx(undisturbed[-1][1], abs=1e-4)]
    # It did not begin anew.
    assert said.count("step 0:") == 1
    ledger = Ledger(out / "ledger.jsonl")
    assert [line["round"] for line in ledger] == list(range(120))
    # Host, process and device of the bad rank.
    assert re.search(r"rank 1 \(.+\): flagged in \d+ of the last 100 steps", said)


def test_a_folder_is_one_trainings(tmp_path: Path) -> None:
    found = losses(tmp_path, checkpoint_every=24, **FAULT)
    longer, suspects = training(tmp_path, checkpoint_every=24, steps=32, **FAULT)
    assert longer[: len(found)] == found
    assert [step for step, _ in longer] == [0, 8, 16, 24, 32]
    # What was seen before the checkpoint is not forgotten.
    assert [(suspect.rank, suspect.steps) for suspect in suspects] == [(1, 32)]
    changes: list[tuple[dict[str, Any], str]] = [
        ({"lr": 0.2}, r"holds a training with lr=0\.1, found 0\.2"),
        ({"ranks": 4}, "holds a training with ranks=3, found 4"),
        ({"steps": 16}, "steps must be at least the checkpoint's 24, found 16"),
        ({"script": "fsdp"}, "holds a training of ddp, found that of fsdp"),
    ]
    for change, message in changes:
        with pytest.raises(LocalError, match=f"ConfigError: .*{message}"):
            losses(tmp_path, **{**FAULT, **change})
    save_checkpoint(tmp_path / checkpoint.NAME, {"step": 3})
    with pytest.raises(LocalError, match=r"CheckpointError: out: .* found one without 'setting'"):
        losses(tmp_path, **FAULT)


def apart(settings: Sequence[Setting]) -> None:
    """On a rank: a training that it alone understands so."""
    trained("ddp", settings[dist.get_rank()])


def test_ranks_begin_together_or_not_at_all(tmp_path: Path) -> None:
    losses(tmp_path / "here", checkpoint_every=8, steps=8, defence="mean")
    here, there = (replace(SMALL, out=tmp_path / name, defence="mean") for name in ("here", "away"))
    shared = "out must be a folder that all machines share, found one that holds step 8 on rank 0"
    with pytest.raises(LocalError, match=f"{shared} and one that holds step 0 on rank 2"):
        on_ranks(RANKS, apart, [here, here, there])
    other = replace(there, steps=25)
    with pytest.raises(LocalError, match="all ranks must have the options of rank 0, found others"):
        on_ranks(RANKS, apart, [there, other, there])


def test_a_ledger_is_one_trainings(tmp_path: Path) -> None:
    for _ in range(2):
        losses(tmp_path, "fsdp", steps=2)
    assert [line["round"] for line in Ledger(tmp_path / "ledger.jsonl")] == [0, 1]


def test_a_rank_that_stalls_ends_the_others_with_one_line(tmp_path: Path) -> None:
    setting = replace(SMALL, out=tmp_path, steps=10_000, timeout=1.0)
    with by_hand("ddp", setting, RANKS) as ranks:
        # There is an empty one before all have made a step.
        until(lambda: len(list(Ledger(tmp_path / "ledger.jsonl"))) > 1)
        ranks[2].send_signal(signal.SIGSTOP)
        for rank in ranks[:2]:
            _, error = rank.communicate(timeout=60)
            assert rank.returncode == 1, error
            (line,) = [line for line in error.splitlines() if "robust_hook" in line]
            assert f"did not end within 1 s: rank 2 ({socket.gethostname()}, pid" in line
            assert "Traceback" not in error


@pytest.mark.parametrize(("script", "number"), [("fsdp", signal.SIGSTOP), ("ddp", signal.SIGKILL)])
def test_torchs_own_collectives_end_too(script: str, number: int, tmp_path: Path) -> None:
    setting = replace(SMALL, out=tmp_path, steps=10_000, timeout=1.0, defence="mean")
    with by_hand(script, setting, RANKS) as ranks:
        until((tmp_path / "losses.json").exists)
        ranks[2].send_signal(number)
        for rank in ranks[:2]:
            _, error = rank.communicate(timeout=60)
            assert rank.returncode == 1, error
            assert len(re.findall("^a rank is lost: .", error, flags=re.MULTILINE)) == 1
            assert "Traceback" not in error


def test_what_cannot_be_is_a_line(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / checkpoint.NAME, {"step": 3})
    with by_hand("ddp", replace(SMALL, out=tmp_path, defence="mean"), 1) as (rank,):
        said = rank.communicate(timeout=60)
        found = f"out: {tmp_path / checkpoint.NAME} must be a checkpoint of ddp, found one without"
        assert (rank.returncode, said) == (2, ("", f"{found} 'setting'\n"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, found 0"),
        ({"validation_words": 63}, "validation_words must be at least 64, found 63"),
        ({"lr": float("inf")}, "lr must be a positive number, found inf"),
        ({"flips": 1.0}, r"flips must be in \[0, 1\), found 1.0"),
        ({"share": 2}, r"share must be in \(0, 1\), found 2"),
        ({"bad": (1, 1)}, r"bad must be different ranks, found \(1, 1\)"),
        ({"optimizer": "lamb"}, "optimizer must be one of 'sgd', 'adamw', found 'lamb'"),
        ({"defence": "CoordinateWiseMedain"}, "did you mean 'CoordinateWiseMedian'"),
    ],
)
def test_a_setting_that_cannot_be_is_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        replace(Setting(), **changes)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("main", "arguments"), [(partial(launched, ddp.train), []), (on_ray.main, ["ddp"])]
)
def test_an_option_that_cannot_be_is_a_line(
    main: Callable[[], None],
    arguments: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["script", *arguments, "--share", "2"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = "share must be in (0, 1), found 2.0\n"
    assert (ended.value.code, tuple(capsys.readouterr())) == (2, ("", said))


@pytest.mark.parametrize("program", ["experiments.cluster.ddp", "experiments.torchrun"])
def test_without_torchrun_it_is_a_line(program: str) -> None:
    told = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    done = subprocess.run(
        [sys.executable, "-m", program],
        env={name: value for name, value in os.environ.items() if name not in told},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r".*, found no RANK: start this with torchrun\n", done.stderr)


def test_help_says_what_becomes_of_rare_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["script", "--help"])
    with pytest.raises(SystemExit):
        launched(ddp.train)
    words = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert "less frequent words are one unknown word." in words


def test_losses_are_printed_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = Outcome(tmp_path / "losses.json")
    for step, loss in enumerate([5.3589168936014175, float("inf")]):
        outcome.add(step, loss)
    said = capsys.readouterr().out
    assert said == "step 0: validation loss 5.3589\nstep 1: validation loss nan\n"
    assert str(on_ray.Report(outcome.losses, ["rank 1 (…)"], 0)) == f"{said}rank 1 (…)"


@pytest.mark.parametrize("bad", [(4,), (-1,), (3, 0, 5)])
def test_bad_ranks_are_ranks(bad: tuple[int, ...]) -> None:
    with pytest.raises(
        ConfigError, match=rf"bad must be ranks in \[0, 4\), found {re.escape(str(bad))}"
    ):
        Setting(bad=bad).check_ranks(4)
    Setting(bad=(3, 0)).check_ranks(4)
