"""A small emitter of LLVM assembly, and its compilation in this process through llvmlite.

The kernels are straight-line vector code that depends on the number of rows. As LLVM assembly they
compile in tens of milliseconds. llvmlite is optional and is imported at the first compilation;
``ROBUST_AGG_JIT=0`` in the environment does without it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any
from weakref import WeakValueDictionary

OLDEST_LLVM = 20
"""The first LLVM of llvmlite in which every pointer is opaque."""

C_TYPES = {"ptr": ctypes.c_void_p, "i64": ctypes.c_int64}


@dataclass
class Loop:
    """A counted loop under construction, with values carried from one turn to the next.

    `index` and `carried` may be read in the body; before the body ends `following` must hold what
    `carried` becomes. After the loop `carried` holds the last values.
    """

    index: str
    carried: list[str]
    following: list[str] = field(default_factory=list)


class Function:
    """LLVM assembly of one function, written from top to bottom."""

    def __init__(self, name: str, parameters: dict[str, str]) -> None:
        self.name = name
        self.parameters = parameters
        self._lines = ["entry:"]
        self._block = "entry"
        self._names = 0
        self._declarations: set[str] = set()
        self.callees: dict[str, Function] = {}

    def let(self, expression: str) -> str:
        """Names the value of an instruction."""
        self._names += 1
        name = f"%v{self._names}"
        self.do(f"{name} = {expression}")
        return name

    def do(self, instruction: str) -> None:
        """Appends an instruction without a value."""
        self._lines.append(f"  {instruction}")

    def call(self, result: str, name: str, *arguments: tuple[str, str], flags: str = "") -> str:
        """Calls an LLVM intrinsic on ``(type, value)`` pairs."""
        types = ", ".join(kind for kind, _ in arguments)
        self._declarations.add(f"declare {result} @{name}({types})")
        values = ", ".join(f"{kind} {value}" for kind, value in arguments)
        return self.let(f"call {flags} {result} @{name}({values})")

    @contextmanager
    def loop(
        self, start: str, stop: str, step: int | str, carried: Sequence[tuple[str, str]] = ()
    ) -> Iterator[Loop]:
        """``for index in range(start, stop, step)``; `carried` are (type, first value) pairs."""
        self._names += 1
        mark, before = self._names, self._block
        loop = Loop(f"%index{mark}", [f"%carried{mark}.{k}" for k in range(len(carried))])
        self._jump(f"head{mark}")
        phis = len(self._lines)
        more = self.let(f"icmp slt i64 {loop.index}, {stop}")
        self.do(f"br i1 {more}, label %body{mark}, label %exit{mark}")
        self._label(f"body{mark}")
        yield loop
        following = [self.let(f"add i64 {loop.index}, {step}"), *loop.following]
        latch = self._block
        self._lines[phis:phis] = [
            f"  {name} = phi {kind} [ {first}, %{before} ], [ {then}, %{latch} ]"
            for name, (kind, first), then in zip(
                [loop.index, *loop.carried], [("i64", start), *carried], following, strict=True
            )
        ]
        self.do(f"br label %head{mark}")
        self._label(f"exit{mark}")

    def _jump(self, label: str) -> None:
        self.do(f"br label %{label}")
        self._label(label)

    def _label(self, label: str) -> None:
        self._lines.append(f"{label}:")
        self._block = label

    def invoke(self, callee: Function, *values: str) -> None:
        """Calls another function of the module, which is compiled along with this one."""
        self.callees[callee.name] = callee
        kinds = callee.parameters.values()
        given = ", ".join(f"{kind} {value}" for kind, value in zip(kinds, values, strict=True))
        self.do(f"call void @{callee.name}({given})")

    def __str__(self) -> str:
        functions = [*self.callees.values(), self]
        declarations = sorted({line for each in functions for line in each._declarations})
        return "\n".join([*declarations, *(each._definition() for each in functions)])

    def _definition(self) -> str:
        head = ", ".join(f"{kind} %{name}" for name, kind in self.parameters.items())
        lines = [f"define void @{self.name}({head}) {{", *self._lines]
        return "\n".join([*lines, "  ret void", "}"])


@dataclass(frozen=True, kw_only=True)
class Host:
    """What code is compiled for: the processor, its features, and the bytes of its vectors."""

    processor: str
    features: str
    vector_bytes: int
    converts_half: bool


def available() -> bool:
    """Whether kernels can be compiled: llvmlite is there and is not switched off."""
    return switched_on() and _binding() is not None


def switched_on() -> bool:
    """Whether the user lets kernels be compiled, by llvmlite or another."""
    return os.environ.get("ROBUST_AGG_JIT", "1") != "0"


_lock = threading.RLock()
if hasattr(os, "register_at_fork"):
    # No fork amid a compilation: the child would have the locks, llvmlite's too, and wait forever.
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


@cache
def _binding() -> Any:
    with _lock:
        try:
            binding = import_module("llvmlite.binding")
            if binding.llvm_version_info[0] < OLDEST_LLVM:
                return None
            binding.initialize_native_target()
            binding.initialize_native_asmprinter()
        except (ImportError, OSError):  # not there, or its library cannot be loaded
            return None
        return binding


@cache
def host() -> Host:
    """The processor of this machine."""
    binding = _binding()
    try:
        features = binding.get_host_cpu_features()
    except RuntimeError:  # LLVM cannot tell on some platforms
        features = binding.FeatureMap()
    x86 = binding.get_process_triple().startswith(("x86", "i386", "i686"))
    size = 64 if features.get("avx512f") else 32 if features.get("avx") else 16
    return Host(
        processor=binding.get_host_cpu_name(),
        features=features.flatten(),
        vector_bytes=size,
        converts_half=bool(features.get("f16c")) or not x86,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Kernel:
    """A compiled function. Its arguments are integers, pointers as addresses.

    A call releases the interpreter's lock.

    Attributes:
        code: the function.
        worker: address of a function that any number of threads may call with the address of a
            queue, int64: how many tasks are taken (0), how many there are, and the arguments of
            each. It takes tasks until none is left.
        parameters: the names of the arguments, in their order.
        engine: what owns the code.
    """

    code: Callable[..., None]
    worker: int
    parameters: tuple[str, ...]
    engine: Any


_kernels: WeakValueDictionary[str, Kernel] = WeakValueDictionary()


def compile_function(function: Function) -> Kernel:
    """Machine code of `function` for this machine; the same kernel for the same function."""
    text = f"{function}\n{_worker(function)}"
    with _lock:  # of several threads that want it, one compiles
        machine = host()
        key = f"{machine}\n{text}"
        kernel = _kernels.get(key)
        if kernel is None:
            kernel = _kernels[key] = _compiled(function, text, machine)
        return kernel


def _compiled(function: Function, text: str, machine: Host) -> Kernel:
    binding = _binding()
    module = binding.parse_assembly(text)
    module.verify()
    target = binding.Target.from_triple(binding.get_process_triple()).create_target_machine(
        cpu=machine.processor, features=machine.features, opt=2
    )
    engine = binding.create_mcjit_compiler(module, target)
    engine.finalize_object()
    kinds = [C_TYPES[kind] for kind in function.parameters.values()]
    return Kernel(
        code=ctypes.CFUNCTYPE(None, *kinds)(engine.get_function_address(function.name)),
        worker=engine.get_function_address(f"{function.name}_worker"),
        parameters=tuple(function.parameters),
        engine=engine,
    )


def _worker(function: Function) -> str:
    """Assembly of what calls `function` with the tasks of a queue, as :class:`Kernel` says."""
    kinds = list(function.parameters.values())
    lines = [f"  %first = mul i64 %turn, {len(kinds)}"]
    arguments = []
    for place, kind in enumerate(kinds):
        at = f"  %place{place} = add i64 %first, {2 + place}"
        lines += [at, f"  %at{place} = getelementptr i64, ptr %queue, i64 %place{place}"]
        lines.append(f"  %argument{place} = load {kind}, ptr %at{place}")
        arguments.append(f"{kind} %argument{place}")
    return "\n".join(
        [
            f"define void @{function.name}_worker(ptr %queue) {{",
            "entry:",
            "  %length = getelementptr i64, ptr %queue, i64 1",
            "  %tasks = load i64, ptr %length",
            "  br label %next",
            "next:",
            "  %turn = atomicrmw add ptr %queue, i64 1 monotonic",
            "  %more = icmp slt i64 %turn, %tasks",
            "  br i1 %more, label %work, label %done",
            "work:",
            *lines,
            f"  call void @{function.name}({', '.join(arguments)})",
            "  br label %next",
            "done:",
            "  ret void",
            "}",
        ]
    )
