"""The kernels among threads, processes, torch's modes, and without what is optional."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from kernel_paths import PATHS, draw, on_path
from torch import Tensor

from robust_agg import kernels
from robust_agg.kernels import blocks, llvm

Results = tuple[Tensor, ...]


def everything(rows: Tensor, point: Tensor) -> Results:
    weights = torch.linspace(-1, 1, len(rows), dtype=torch.float64, device="cpu")
    return (
        kernels.sorted_mean(rows, 2, len(rows) - 2),
        *kernels.centred_gram(rows, point[None]),
        kernels.row_distances(rows, point),
        kernels.combine(rows, weights, point),
        kernels.mean(rows)[0],
        kernels.mix(rows, weights[None].expand(5, -1)),
        kernels.mixed_order_mean(rows, weights[None].expand(5, -1), 1, 4),
        kernels.pulled_median(rows, point, 0.3),
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


@pytest.mark.parametrize("path", PATHS[:-1])  # an interpreter takes one call at a time
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
        "print(sorted({'numba', 'llvmlite', 'ray', 'triton'} & set(sys.modules)))"
    )
    assert run(script) == "[]"


SAME_NUMBERS = (
    "import sys\n"
    "{before}\n"
    "import torch\n"
    "from robust_agg import kernels\n"
    "from robust_agg.kernels import llvm, selection\n"
    "rows = torch.arange(7 * 30011.).mul(0.7).cos().view(7, -1)\n"
    "selection.COMPILE_AFTER = 0\n"
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
        "from robust_agg.kernels import blocks, selection\n"
        "torch.set_num_threads(2)\n"
        "blocks.TASK_NUMBERS, selection.COMPILE_AFTER = 1 << 10, 0\n"
        "rows = torch.arange(700.).view(7, 100).sin()\n"
        "rows = rows.repeat(1, 20)\n"
        "expected = kernels.sorted_mean(rows, 3, 4)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    os._exit(0 if torch.equal(kernels.sorted_mean(rows, 3, 4), expected) else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert run(script) == "0"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.skipif(not llvm.available(), reason="nothing is compiled without llvmlite")
def test_a_fork_amid_a_compilation_leaves_the_child_able_to_compile() -> None:
    script = (
        "import os, threading, torch\n"
        "from robust_agg import kernels\n"
        "from robust_agg.kernels import llvm, selection\n"
        "selection.COMPILE_AFTER = 0\n"
        "begun, compiled = threading.Event(), llvm._compiled\n"
        "def telling(*arguments):\n"
        "    begun.set()\n"
        "    return compiled(*arguments)\n"
        "llvm._compiled = telling\n"
        "rows = torch.randn(64, 100)\n"
        "thread = threading.Thread(target=kernels.mean_around, args=(rows, 31, 33, 20))\n"
        "thread.start()\n"
        "begun.wait()\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    kernels.sorted_mean(rows[:7], 3, 4)\n"
        "    os._exit(0)\n"
        "thread.join()\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert run(script) == "0"


@pytest.mark.skipif(not llvm.available(), reason="nothing is compiled without llvmlite")
def test_threads_that_want_the_same_kernel_share_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def function() -> llvm.Function:
        f = llvm.Function("shared_by_threads", {"cell": "ptr"})
        f.do("store i64 1, ptr %cell")
        return f

    compiled: list[str] = []
    compile_one = llvm._compiled

    def counting(function: llvm.Function, text: str, machine: llvm.Host) -> llvm.Kernel:
        compiled.append(function.name)
        return compile_one(function, text, machine)

    monkeypatch.setattr(llvm, "_compiled", counting)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: llvm.compile_function(function()), range(8)))
    assert len({id(kernel) for kernel in found}) == 1
    assert compiled == ["shared_by_threads"]


@pytest.mark.parametrize("n", [40, 64, 512])
def test_a_thread_with_a_small_stack(n: int) -> None:
    """What a value a row takes in a program must not lie on the stack."""
    script = (
        "import threading, torch\n"
        "from robust_agg import kernels\n"
        "from robust_agg.kernels import selection\n"
        "selection.COMPILE_AFTER = 0\n"
        "torch.set_num_threads(1)\n"
        f"rows = torch.randn({n}, 100)\n"
        "expected = kernels.mean_around(rows, 3, 4, 10)\n"
        "threading.stack_size(64 << 10)\n"
        "found = []\n"
        "call = lambda: found.append(kernels.mean_around(rows, 3, 4, 10))\n"
        "thread = threading.Thread(target=call)\n"
        "thread.start()\n"
        "thread.join()\n"
        "print(torch.equal(found[0], expected))\n"
    )
    assert run(script) == "True"


def test_an_llvmlite_that_cannot_be_loaded_is_none() -> None:
    script = (
        "import importlib.abc, sys, torch\n"
        "class Broken(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'llvmlite.binding':\n"
        "            raise OSError('Could not find/load shared object file')\n"
        "sys.meta_path.insert(0, Broken())\n"
        "from robust_agg import kernels\n"
        "from robust_agg.kernels import llvm, selection\n"
        "selection.COMPILE_AFTER = 0\n"
        "print(llvm.available(), kernels.sorted_mean(torch.ones(5, 9), 2, 3).tolist() == [1.0] * 9)"
    )
    assert run(script) == "False True"


def test_rows_farther_apart_than_32_bits_tell(path: str, tmp_path: Path) -> None:
    """Of a file with nothing in it but five short rows, which takes no room."""
    n, d, stride = 5, 40, (1 << 30) + 8
    file = np.memmap(tmp_path / "rows", np.float16, "w+", shape=(n * stride,))
    far = torch.from_numpy(file).as_strided((n, d), (stride, 1))
    rows, point = draw(n, d, torch.float16), draw(1, d, torch.float32, seed=1)[0]
    far.copy_(rows)
    with on_path(path):
        assert equal(everything(far, point), everything(rows, point))


def test_tensors_without_memory_of_their_own(path: str) -> None:
    zeros = torch._efficientzerotensor((9, 64))
    expected = everything(torch.zeros(9, 64), torch.zeros(64))
    with on_path(path):
        assert equal(everything(zeros, torch._efficientzerotensor((64,))), expected)


@pytest.mark.parametrize(
    "rows",
    [torch.zeros(5, 8, dtype=torch.float8_e4m3fn), torch.eye(5).to_sparse()],
    ids=["float8", "sparse"],
)
def test_rows_that_no_kernel_takes_are_named(rows: Tensor) -> None:
    with pytest.raises(ValueError, match="rows must be a dense float matrix"):
        kernels.sorted_mean(rows, 2, 3)
