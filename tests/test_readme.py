"""Every code block of the README runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
# `make` builds its own environment and would start these tests again: its lines run small.
SMALL = {
    "make run": "--rounds 2 --evaluate-every 1 --hosts 1 --out {folder}/runs",
    "make test": "--collect-only -q",
    "make benchmark": "--preset smoke --out {folder}/bench",
}


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

    source = re.sub(rf"^({'|'.join(SMALL)})\b", small, source, flags=re.M)
    folder = str(Path(sys.executable).parent)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", source],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    if "make run" in source or "robust-agg run" in source:
        assert "Byzantine weight" in done.stdout
