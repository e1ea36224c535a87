"""The kernels among threads, processes, torch's modes, and without what is optional."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from kernel_paths import PATHS, draw, on_path
from torch import Tensor

from robust_agg import kernels
from robust_agg.kernels import blocks, llvm

Results = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def everything(rows: Tensor, point: Tensor) -> Results:
    weights = torch.linspace(-1, 1, len(rows), dtype=torch.float64, device="cpu")
    return (
        kernels.sorted_mean(rows, 2, len(rows) - 2),
        *kernels.centred_gram(rows, point[None]),
        kernels.row_distances(rows, point),
        kernels.combine(rows, weights, point),
    )


def equal(left: Results, right: Results) -> bool:
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("path", ["compiled", "baseline"])
def test_results_do_not_depend_on_the_number_of_threads(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "TASK_NUMBERS", 1 << 13)
    rows, point = draw(11, 5003, torch.float32), draw(1, 5003, torch.float32, seed=1)[0]
    before = torch.get_num_threads()
    found = []
    with on_path(path):
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            try:
                found.append(everything(rows, point))
            finally:
                torch.set_num_threads(before)
    assert equal(found[0], found[1])
    assert equal(found[0], found[2])


def test_calls_from_several_threads(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "TASK_NUMBERS", 1 << 13)
    cases = [
        (draw(9, 3001, torch.float32, seed=k), draw(1, 3001, torch.float32)[0]) for k in range(8)
    ]
    with on_path(path):
        expected = [everything(*case) for case in cases]
        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(lambda k: everything(*cases[k % 8]), range(64)))
    assert all(equal(one, expected[k % 8]) for k, one in enumerate(found))


def test_inference_mode_and_rows_with_a_gradient(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "TASK_NUMBERS", 1 << 13)
    rows, point = draw(9, 3001, torch.float32), draw(1, 3001, torch.float32, seed=1)[0]
    with on_path(path):
        expected = everything(rows, point)
        found = everything(torch.nn.Parameter(rows.clone()), point.clone().requires_grad_())
        assert not any(one.requires_grad for one in found)
        assert equal(found, expected)
        with torch.inference_mode():
            strided = torch.stack([rows.clone(), rows.clone()], dim=2)[..., 0]
            assert equal(everything(rows.clone(), point.clone()), expected)
            assert equal(everything(strided, point), expected)


def test_another_default_device(path: str) -> None:
    rows, point = draw(9, 301, torch.float32), draw(1, 301, torch.float32, seed=1)[0]
    with on_path(path):
        expected = everything(rows, point)
        with torch.device("meta"):
            found = everything(rows, point)
    assert equal(found, expected)


def run(script: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_needs_nothing_optional() -> None:
    script = (
        "import sys, robust_agg.kernels\n"
        "print(sorted({'numba', 'llvmlite', 'ray'} & set(sys.modules)))"
    )
    assert run(script) == "[]"


SAME_NUMBERS = (
    "import sys\n"
    "{before}\n"
    "import torch\n"
    "from robust_agg import kernels\n"
    "from robust_agg.kernels import cpu, llvm\n"
    "rows = torch.arange(7 * 30011.).mul(0.7).cos().view(7, -1)\n"
    "cpu.COMPILE_AFTER = 0\n"
    "print(llvm.available(), kernels.sorted_mean(rows, 2, 5).double().sum().item())\n"
    "print('llvmlite' in sys.modules and sys.modules['llvmlite'] is not None)"
)


def test_without_llvmlite_and_switched_off() -> None:
    missing = run(SAME_NUMBERS.format(before="sys.modules['llvmlite'] = None")).split()
    off = run(SAME_NUMBERS.format(before=""), ROBUST_AGG_JIT="0").split()
    on = run(SAME_NUMBERS.format(before="")).split()
    assert missing[0] == off[0] == "False"
    assert missing[2] == off[2] == "False"
    assert missing[1] == off[1] == on[1]
    assert on[0] == str(llvm.available())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
def test_a_forked_process_gets_threads_of_its_own() -> None:
    script = (
        "import os, torch\n"
        "from robust_agg import kernels\n"
        "from robust_agg.kernels import blocks, cpu\n"
        "torch.set_num_threads(2)\n"
        "blocks.TASK_NUMBERS, cpu.COMPILE_AFTER = 1 << 10, 0\n"
        "rows = torch.arange(700.).view(7, 100).sin()\n"
        "rows = rows.repeat(1, 20)\n"
        "expected = kernels.sorted_mean(rows, 3, 4)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if torch.equal(kernels.sorted_mean(rows, 3, 4), expected) else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert run(script) == "0"
