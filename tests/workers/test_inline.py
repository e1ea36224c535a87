"""What only hosts in threads promise: the caller's process stays as it was."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
import torch
from host_faults import FaultyHost, FaultySpec
from host_samples import CountThreads, batch_norm, mlp, parameters, spec
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from robust_agg.messages import Update
from robust_agg.online.named import Momentum
from robust_agg.types import State
from workers import Host, InlineHosts, inline


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_set_within_hosts_only(threads: int) -> None:
    callers = torch.get_num_threads()
    settings = spec(estimator=CountThreads(), threads=threads)
    with InlineHosts(settings.split(2)) as transport:
        found = transport.collect(0, parameters(mlp)).updates
        assert torch.get_num_threads() == callers
        later: list[int] = []
        thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
        thread.start()
        thread.join()
        assert later == [callers]
        assert {float(update.row[0]) for update in found} == {threads}
        # Again once the caller has set its own.
        torch.set_num_threads(callers)
        found = transport.collect(1, parameters(mlp)).updates
        assert {float(update.row[0]) for update in found} == {threads}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    "mode",
    [
        nullcontext,
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("meta"),
    ],
)
@pytest.mark.parametrize("model", [mlp, batch_norm])
def test_a_single_host_answers_alike_in_either_thread(
    mode: Callable[[], AbstractContextManager[None]], model: Callable[[], nn.Module], threads: int
) -> None:
    """Without a deadline it works in the caller's, whose modes must not reach it."""
    callers, weights = torch.get_num_threads(), parameters(model)
    settings = spec(model=model, threads=threads, estimator=Momentum(beta=0.5))
    with (
        InlineHosts([settings]) as direct,
        InlineHosts([settings], deadline=60.0) as apart,
    ):
        for round in range(2):
            with mode():
                found = direct.collect(round, weights).updates
            expected = apart.collect(round, weights).updates
            assert len(found) == len(expected) == 6
            for a, b in zip(found, expected, strict=True):
                assert a.sender == b.sender
                assert torch.equal(a.row, b.row)
    assert torch.get_num_threads() == callers


def test_where_a_host_works() -> None:
    class Where(CountThreads):
        def step(self, rows: Tensor, state: State, **_: object) -> tuple[Tensor, State]:
            here.append(threading.get_ident())
            return rows[0], state

    here: list[int] = []
    own = {threading.get_ident()}
    settings = spec(estimator=Where())
    for specs, deadline, callers in (
        (settings.split(1), None, True),
        (settings.split(1), 60.0, False),
        (settings.split(2), None, False),
    ):
        here.clear()
        with InlineHosts(specs, deadline=deadline) as transport:
            transport.collect(0, parameters(mlp))
        assert len(here) == 6
        assert own.isdisjoint(here) != callers


FAILED = "failed: host 0: RuntimeError: the disk is gone"


@pytest.mark.parametrize(
    ("fault", "ended"), [("exit", "SystemExit: 1"), ("interrupt", "KeyboardInterrupt")]
)
def test_what_ends_a_host_in_its_thread_does_not_end_the_caller(fault: str, ended: str) -> None:
    faulty = FaultySpec.of(spec(), {0: "exception", 2: fault})
    with InlineHosts([faulty], deadline=60.0) as transport:
        found = [transport.collect(round, parameters(mlp)) for round in range(4)]
    assert [len(collection.updates) for collection in found] == [0, 6, 0, 0]
    assert [{r.reason for r in collection.refused} for collection in found] == [
        {FAILED},
        set(),
        {f"lost: host 0 died in round 2: {ended}"},
        {"lost: host 0 died in round 2"},
    ]


def test_what_ends_the_callers_thread_is_raised_there() -> None:
    faults = {0: "exception", 2: "interrupt", 4: "exit"}
    with InlineHosts([FaultySpec.of(spec(), faults)]) as transport:
        failed = transport.collect(0, parameters(mlp))
        assert {r.reason for r in failed.refused} == {FAILED}
        for round, ended in ((2, KeyboardInterrupt), (4, SystemExit)):
            assert len(transport.collect(round - 1, parameters(mlp)).updates) == 6
            with pytest.raises(ended):
                transport.collect(round, parameters(mlp))
        assert len(transport.collect(5, parameters(mlp)).updates) == 6


def test_a_signal_that_ends_the_caller_ends_the_round() -> None:
    def leave(*_: object) -> None:
        sys.exit(143)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        if signalled:
            signal.raise_signal(signal.SIGTERM)
        return cross_entropy(outputs, targets)

    callers, before = torch.get_num_threads(), signal.signal(signal.SIGTERM, leave)
    signalled: list[bool] = []
    try:
        with InlineHosts([spec(loss=loss, estimator=Momentum(beta=0.5), chunk=2)]) as transport:
            transport.collect(0, parameters(mlp))
            states = transport.state()
            signalled.append(True)
            with pytest.raises(SystemExit, match="143"):
                transport.collect(1, parameters(mlp))
            assert torch.get_num_threads() == callers
            signalled.clear()
            assert all(transport.state()[i] is state for i, state in states.items())
            assert len(transport.collect(1, parameters(mlp)).updates) == 6
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("device", ["cpu", "meta", "cuda"])
def test_the_callers_autocast_reaches_no_host(device: str) -> None:
    """Whichever device the host computes on, autocast knowing of it or not."""
    settings = spec(device=device)
    with (
        torch.autocast("cpu", dtype=torch.bfloat16),
        inline._as_in_a_thread_of_its_own(settings),
    ):
        assert not torch.is_autocast_enabled("cpu")
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32


class KeepParameters(FaultyHost):
    """Answers with the parameters as it finds them when it is done."""

    def compute(
        self,
        round: int,
        parameters: Tensor,
        active: Collection[int] | None = None,
        accepted: Mapping[int, int] | None = None,
    ) -> list[Update]:
        super().compute(round, parameters, active, accepted)
        return [Update(i, round, parameters.clone()) for i in active or self.ids]


class KeepSpec(FaultySpec):
    def build(self) -> Host:
        return KeepParameters(self)


def test_a_late_host_reads_the_parameters_it_was_sent(tmp_path: Path) -> None:
    """Not what the caller's optimizer has made of them in the meantime."""
    flag = tmp_path / "flag"
    with InlineHosts([KeepSpec.of(spec(), {0: "late"}, flag=str(flag))]) as transport:
        weights = parameters(mlp)

        def change() -> None:
            weights.add_(1)
            flag.touch()

        timer = threading.Timer(0.5, change)
        timer.start()
        for update in transport.collect(0, weights).updates:
            assert torch.equal(update.row, parameters(mlp))
        timer.join()
        assert torch.equal(weights, parameters(mlp) + 1)


def test_hosts_that_share_a_module_do_not_disturb_each_other() -> None:
    module = batch_norm()
    with InlineHosts(spec(model=batch_norm).split(3)) as separate:
        expected = {u.sender: u.row for u in separate.collect(0, parameters(batch_norm)).updates}
    with InlineHosts(spec(model=lambda: module).split(3)) as shared:
        for update in shared.collect(0, parameters(batch_norm)).updates:
            assert torch.equal(update.row, expected[update.sender])


def test_the_caller_can_be_interrupted_and_go_on() -> None:
    specs = [*spec().split(3)]
    specs[0] = FaultySpec.of(specs[0], {1: "hang"})
    with InlineHosts(specs) as transport:
        transport.collect(0, parameters(mlp))
        timer = threading.Timer(1.0, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            transport.collect(1, parameters(mlp))
        timer.join()
        transport.deadline = 60.0
        collection = transport.collect(2, parameters(mlp))
        assert {u.sender for u in collection.updates} == {2, 3, 4, 5}
        assert {r.reason for r in collection.refused} == {"late: host 0 is still busy with round 1"}


def test_an_answer_that_is_no_list_of_updates_is_refused() -> None:
    specs = [*spec().split(3)]
    specs[1] = FaultySpec.of(specs[1], {0: "no updates"})
    with InlineHosts(specs) as transport:
        collection = transport.collect(0, parameters(mlp))
    assert {u.sender for u in collection.updates} == {0, 1, 4, 5}
    assert [(r.sender, r.reason) for r in collection.refused] == [
        (-1, "malformed: host 1: an update is required, found str")
    ]


def test_threads_end_with_the_transport() -> None:
    def hosts() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name.startswith("host ")]

    before = set(hosts())
    closed = InlineHosts(spec().split(2))
    forgotten = InlineHosts(spec().split(2))
    started = set(hosts()) - before
    assert len(started) == 4
    closed.close()
    del forgotten
    gc.collect()
    for thread in started:
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_what_a_specification_raises_is_raised() -> None:
    def broken() -> nn.Module:
        raise OSError("no such checkpoint")

    with pytest.raises(OSError, match="no such checkpoint"):
        InlineHosts([spec(model=broken)])


def test_states_of_hosts_without_estimator_are_empty() -> None:
    with InlineHosts([spec()]) as transport:
        transport.collect(0, parameters(mlp))
        states: Mapping[int, State] = transport.state()
        assert states == {}


# A process of its own, because it is about a process' first call and its end.
_FIRST_AND_LAST = """
import sys
from host_samples import mlp, parameters, spec
from workers import InlineHosts

transport = InlineHosts(spec().split(3))
before = set(sys.modules)
assert len(transport.collect(0, parameters(mlp)).updates) == 6
print(sorted(set(sys.modules) - before))
{close}
"""


@pytest.mark.parametrize("close", ["transport.close()", "pass"])
def test_threads_import_nothing_and_do_not_outlive_the_process(close: str) -> None:
    """Half imported modules would fail in some threads, unwinding ones abort the interpreter."""
    program = _FIRST_AND_LAST.format(close=close)
    path = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    begun = [
        subprocess.Popen(
            [sys.executable, "-c", program],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        for _ in range(3)
    ]
    ended = [(*process.communicate(timeout=100), process.returncode) for process in begun]
    assert ended == [("[]\n", "", 0)] * 3
