"""Tasks in threads: each runs once, wherever the threads come from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from robust_agg.kernels import llvm, team
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


@pytest.mark.usefixtures("threads")
@pytest.mark.skipif(not llvm.available(), reason="nothing is compiled without llvmlite")
@pytest.mark.parametrize("own", [False, True], ids=["torch's threads", "our threads"])
def test_a_compiled_task_runs_once(own: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if own:
        monkeypatch.setattr(team, "_fork_join", lambda: None)
    cells = torch.zeros(MANY, dtype=torch.int64)
    tasks = [(cells.data_ptr() + 8 * place, place) for place in range(MANY)]
    team.run(adding(), tasks)
    assert torch.equal(cells, torch.arange(MANY))
    team.run(adding(), [])
    team.run(adding(), tasks[5:6])
    assert cells[5] == 10


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
