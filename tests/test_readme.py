"""Every code block of the README, and of the guide to clusters, runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from made_up_text import write_ptb

ROOT = Path(__file__).parent.parent


def blocks(page: str) -> list[tuple[str, str]]:
    """Languages and contents."""
    return re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / page).read_text(), re.M | re.S)


BLOCKS = blocks("README.md")
GUIDE = blocks("experiments/cluster/README.md")
# `make` builds its own environment and would start these tests again: its lines run small.
SMALL = {
    "make run": "--rounds 2 --evaluate-every 1 --hosts 1 --out {folder}/runs",
    "make test": "--collect-only -q",
    "make benchmark": "--preset smoke --out {folder}/bench",
}
TRAINING = "--words 200 --columns 4 --length 10 --steps 4 --validation-words 128"


def test_blocks_are_found_and_of_known_languages() -> None:
    assert len(BLOCKS) >= 7
    # "text" is what a command printed.
    assert {language for language, _ in BLOCKS} == {"bash", "python", "text"}


@pytest.mark.parametrize("source", [s for language, s in BLOCKS if language == "python"])
def test_python_block_runs(source: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("source", [s for language, s in BLOCKS if language == "bash"])
def test_shell_block_runs(source: str, tmp_path: Path) -> None:
    folders = (tmp_path / str(number) for number in count())

    def small(found: re.Match[str]) -> str:
        command = found.group()
        arguments = SMALL[command].format(folder=next(folders))
        return f"make -C {ROOT} {command[5:]} ARGS='{arguments}'"

    said = shell(re.sub(rf"^({'|'.join(SMALL)})\b", small, source, flags=re.M), tmp_path)
    if "make run" in source or "robust-agg run" in source:
        assert "Byzantine weight" in said


@pytest.mark.parametrize("source", [s for language, s in GUIDE if language == "bash"])
def test_the_guides_commands_run(source: str, tmp_path: Path) -> None:
    assert "validation loss" in shell(source, tmp_path).lower()


def test_the_guides_python_is_a_script_of_four_ranks(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text("\n".join(source for language, source in GUIDE if language == "python"))
    said = shell(
        f"python -m torch.distributed.run --standalone --nproc-per-node 4 {script}", tmp_path
    )
    assert re.search(r"rank 3 \(.+\): flagged in 10 of the last 10 steps", said)


def shell(source: str, folder: Path) -> str:
    """What commands print in a folder; trainings on ranks are small, and read a small text."""
    source = re.sub(r"experiments\.cluster\.(ddp|fsdp|on_ray \w+)", rf"\g<0> {TRAINING}", source)
    source = re.sub(r"robust-agg cluster \w+", r"\g<0> --preset smoke", source)
    own = {"PYTHONPATH": str(ROOT)}
    if "cluster" in source:
        write_ptb(folder)
        own["ROBUST_AGG_DATA"] = str(folder)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", source],
        cwd=folder,
        env={**os.environ, **own, "PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
