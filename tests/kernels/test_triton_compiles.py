"""The Triton programs compiled to machine code of a CUDA device, for which none is needed.

It finds what the interpreter lets pass: types, operations a device has not, values that do not fit
in its registers, and precision that only its instructions lose.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

CAPABILITY = "90"
"""Of an H100."""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What became of each program, by the call that launches it."""
    environment = {
        **os.environ,
        "TRITON_INTERPRET": "0",
        "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")),
        "PYTHONPATH": os.pathsep.join(["", *sys.path]),
    }
    script = Path(__file__).with_name("compile_programs.py")
    done = subprocess.run(
        [sys.executable, str(script), CAPABILITY],
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answers: dict[str, dict[str, Any]] = json.loads(done.stdout)
    return answers


def test_all_compile(compiled: dict[str, dict[str, Any]]) -> None:
    assert len(compiled) == 84
    assert all(each["registers"] > 0 for each in compiled.values())


def test_values_stay_in_registers(compiled: dict[str, dict[str, Any]]) -> None:
    assert {name: each["stack"] for name, each in compiled.items() if each["stack"]} == {}


def test_nothing_is_rounded_more_than_it_must(compiled: dict[str, dict[str, Any]]) -> None:
    """Neither denormals to zero, nor factors to TF32, nor quotients to a unit beside."""
    for name, each in compiled.items():
        for loses in (".ftz", "tf32", "div.full", "div.approx", "rcp.approx"):
            assert loses not in each["ptx"], (name, loses)
    assert "div.rn.f32" in compiled["median: 8 float32"]["ptx"]
    assert "fma.rn.f32" in compiled["gram: 8 float32"]["ptx"]
