"""Compiles the Triton programs that calls of `robust_agg.kernels.cuda` launch, on no device at all.

Run as a script, because the process that runs the tests may have Triton's interpreter in the place
of its compiler. Prints, as JSON, what each call's program became.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from robust_agg.kernels import cuda, triton_source
from robust_agg.kernels.reference import OrderMean, median

KINDS = {
    torch.float64: "*fp64",
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
}


def calls(rows: Tensor, extra: int) -> dict[str, Callable[[], object]]:
    """A call for each of the programs."""
    n, d = rows.shape
    work = torch.promote_types(rows.dtype, torch.float32)
    point = torch.zeros(d, dtype=work)
    far = (n - 1) // 3
    few = torch.full((n,), 0.1 / n, dtype=torch.float64)
    programs = {
        "median": lambda: cuda.order_mean(rows, median(n)),
        "mean around": lambda: cuda.order_mean(rows, OrderMean(far, n - far, far)),
        "pulled median": lambda: cuda.pulled_median(rows, point, 0.5),
        "gram": lambda: cuda.centred_gram(rows, point.expand(extra, d) if extra else None),
    }
    if n >= 32:
        return programs
    return {
        **programs,  # and those that are the same whatever n is
        "distances": lambda: cuda.row_distances(rows, point),
        "combine": lambda: cuda.combine(rows, 9 * few),
        "combine, a pull": lambda: cuda.combine(rows, 9 * few, point),
        "combine, a step": lambda: cuda.combine(rows, few, point),
        "mix": lambda: cuda.mix(rows, few.expand(11, n)),
    }


def all_calls() -> dict[str, Callable[[], object]]:
    """The programs for few rows and for as many as they take, and for every dtype and stride."""
    cases = {
        f"{n} {dtype}": (torch.zeros(n, 4096, dtype=getattr(torch, dtype)), int(n > 8))
        for n in (1, 8, 32, 64)
        for dtype in ("float32", "bfloat16")
        if n <= 32 or dtype == "float32"  # the longest to compile
    }
    cases["7 float16"] = torch.zeros(7, 4097, dtype=torch.float16), cuda.LARGEST_EXTRA
    cases["9 float64"] = torch.zeros(9, 4096, dtype=torch.float64), 1
    cases["5 float32, transposed"] = torch.zeros(4097, 5).T, 1
    cases["5 float32, spread"] = torch.zeros(5, 4097, 3)[:, :, 1], 1
    return {
        f"{name}: {case}": call
        for case, (rows, extra) in cases.items()
        for name, call in calls(rows, extra).items()
    }


def launched(call: Callable[[], object]) -> tuple[triton_source.Program, tuple[Any, ...]]:
    """The one program that a call launches, and its arguments."""
    seen: list[tuple[triton_source.Program, tuple[Any, ...]]] = []

    def launch(program: triton_source.Program, instances: int, *arguments: Any) -> None:
        assert instances >= 1
        seen.append((program, arguments))

    cuda._launch = launch
    call()
    (one,) = seen
    return one


def compiled(
    program: triton_source.Program, arguments: tuple[Any, ...], capability: int
) -> dict[str, Any]:
    """Machine code for arguments specialised as a launch specialises them."""
    function = triton_source.kernel(program)
    signature, constants, attributes = {}, {}, {}
    for place, (name, value) in enumerate(zip(function.arg_names, arguments, strict=True)):
        if isinstance(value, int) and value == 1:
            signature[name], constants[place,] = "constexpr", 1
            continue
        if isinstance(value, Tensor):
            signature[name], aligned = KINDS[value.dtype], value.data_ptr() % 16 == 0
        else:
            assert isinstance(value, int), name  # a float would be rounded to float32
            signature[name] = "i32" if abs(value) < 1 << 31 else "i64"
            aligned = value % 16 == 0
        if aligned:
            attributes[place,] = [["tt.divisibility", 16]]
    begun = time.perf_counter()
    code = triton.compile(
        ASTSource(function, signature, constants, attributes),
        target=GPUTarget("cuda", capability, 32),
        options=program.options,
    )
    seconds = time.perf_counter() - begun
    return {"seconds": seconds, "ptx": code.asm["ptx"], **usage(code.asm["cubin"])}


def usage(cubin: bytes) -> dict[str, int]:
    """Registers and bytes of stack, onto which registers spill, of a thread."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        command = [tool, "--dump-resource-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", text)
    assert found, text
    registers, stack, shared, local = map(int, found.groups())
    return {"registers": registers, "stack": stack + local, "shared": shared}


if __name__ == "__main__":
    cuda.SMALLEST_COMPILED = 0
    answers = {}
    for name, call in all_calls().items():
        answers[name] = compiled(*launched(call), int(sys.argv[1]))
    json.dump(answers, sys.stdout)
