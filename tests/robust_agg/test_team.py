"""Tasks in threads: each runs once, wherever the threads come from."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from robust_agg.kernels import llvm, team
from robust_agg.kernels import threads as threading_of_ours
from robust_agg.kernels.threads import map_ranges

MANY = 10_000


@pytest.fixture(params=[1, 2, 4], ids="{} threads".format)
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def adding() -> llvm.Kernel:
    """``*cell += number``."""
    f = llvm.Function("adding", {"cell": "ptr", "number": "i64"})
    before = f.let("load i64, ptr %cell")
    f.do(f"store i64 {f.let(f'add i64 {before}, %number')}, ptr %cell")
    return llvm.compile_function(f)


@pytest.mark.skipif(not llvm.available(), reason="nothing is compiled without llvmlite")
@pytest.mark.parametrize(
    "own",
    [
        pytest.param(
            False, marks=pytest.mark.skipif(sys.platform != "linux", reason="libgomp is Linux's")
        ),
        True,
    ],
    ids=["torch's threads", "our threads"],
)
def test_a_compiled_task_runs_once(
    own: bool, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fork_join, regions = team._fork_join(), 0

    def counting(*arguments: int) -> None:
        nonlocal regions
        regions += 1
        assert fork_join is not None
        fork_join(*arguments)

    monkeypatch.setattr(team, "_fork_join", lambda: None if own else counting)
    cells = torch.zeros(MANY, dtype=torch.int64)
    addresses = [cells.data_ptr() + 8 * place for place in range(MANY)]
    team.run(adding(), MANY, {"cell": addresses, "number": range(MANY)})
    assert torch.equal(cells, torch.arange(MANY))
    team.run(adding(), 0, {"cell": [], "number": 5})
    team.run(adding(), 1, {"cell": addresses[5:6], "number": 5})
    assert cells[5] == 10
    assert regions == (not own and threads > 1)


@pytest.mark.usefixtures("threads")
def test_results_are_in_the_order_of_the_parts() -> None:
    def task(start: int, stop: int) -> int:
        return sum(map_ranges(lambda value: value, [(each,) for each in range(start, stop)]))

    assert map_ranges(task, [(k, 2 * k) for k in range(200)]) == [
        sum(range(k, 2 * k)) for k in range(200)
    ]


@pytest.mark.usefixtures("threads")
def test_an_error_in_a_part_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        map_ranges(lambda value: 1 // value, [(k - 50,) for k in range(100)])


def test_an_interrupt_waits_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """What they write to may be gone once the caller goes on."""
    monkeypatch.setattr(threading_of_ours, "torch", SimpleNamespace(get_num_threads=lambda: 2))
    begun, ended = threading.Event(), threading.Event()
    here = threading.current_thread()

    def task(_: int) -> None:
        if threading.current_thread() is here:
            begun.wait(10)
            raise KeyboardInterrupt
        begun.set()
        time.sleep(0.2)
        ended.set()

    with pytest.raises(KeyboardInterrupt):
        map_ranges(task, [(0,), (1,)])
    assert ended.is_set()
