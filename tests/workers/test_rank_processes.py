"""Ranks in processes: started here, by Ray or by torchrun; stopped, killed and left behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from host_faults import PASSED, FaultySpec, impatient
from host_samples import CountThreads, mlp, parameters, spec
from torch import nn

from workers import HostError, InlineHosts, LocalRanks, RayRanks, ray_compat
from workers.transport import Collection

WEIGHTS = parameters(mlp)
LONG = 120.0
# What a driver tells of host 1, in whose path a fault is.
DIED = "host 1 died in round 1, and its workers (3, 4, 5) with it\n"


def senders(collection: Collection) -> set[int]:
    return {update.sender for update in collection.updates}


def broken() -> nn.Module:
    raise OSError("no such checkpoint")


def leave_a_note(path: Path) -> None:
    path.write_text(f"{os.getpid()}\n")


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalRanks]:
    """Hosts of two workers each."""
    with LocalRanks(spec(estimator=CountThreads(), threads=2).split(3), deadline=LONG) as transport:
        yield transport


class TestLocalRanks:
    def test_threads_are_set_within_hosts_only(self, three: LocalRanks) -> None:
        before = torch.get_num_threads()
        assert {float(u.row[0]) for u in three.collect(0, WEIGHTS).updates} == {2.0}
        assert torch.get_num_threads() == before

    def test_the_caller_can_be_interrupted_and_go_on(self, three: LocalRanks) -> None:
        process = three._processes[0]
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        timer = threading.Timer(0.5, signal.pthread_kill, [threading.get_ident(), signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            three.collect(1, WEIGHTS)
        timer.join()
        collection = three.collect(2, WEIGHTS)
        assert senders(collection) == {2, 3, 4, 5}
        busy = "late: host 0 is still busy with round 1"
        assert {r.reason for r in collection.refused} == {busy}
        os.kill(process.pid, signal.SIGCONT)
        three.state()  # waits for the host
        assert senders(three.collect(3, WEIGHTS)) == {0, 1, 2, 3, 4, 5}

    def test_signals_of_the_terminal_are_the_drivers(self, three: LocalRanks) -> None:
        for process in three._processes:
            for number in (signal.SIGINT, signal.SIGHUP):
                os.kill(process.pid or 0, number)
        assert len(three.collect(4, WEIGHTS).updates) == 6
        assert all(process.is_alive() for process in three._processes)

    def test_a_killed_process_costs_its_workers(self, three: LocalRanks) -> None:
        """The last test of these hosts."""
        three._processes[1].kill()
        collection = three.collect(5, WEIGHTS)
        assert senders(collection) == {0, 1, 4, 5}
        (lost,) = {r.reason for r in collection.refused}
        assert lost.startswith("lost: host 1 died in round 5: the connection to rank 2 broke: ")
        assert "\n" not in lost
        assert senders(three.collect(6, WEIGHTS)) == {0, 1, 4, 5}

    def test_nothing_is_left_when_it_is_closed(self, tmp_path: Path) -> None:
        specs = list(spec().split(2))
        specs[1] = FaultySpec.of(specs[1], {0: "hang"})
        with LocalRanks(
            specs, deadline=LONG, prepare=partial(leave_a_note, tmp_path / "note")
        ) as transport:
            with impatient(transport, answers=1):
                assert senders(transport.collect(0, WEIGHTS)) == {0, 1, 2}
            processes = list(transport._processes)
            assert int((tmp_path / "note").read_text()) in {p.pid for p in processes}
        assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]

    @pytest.mark.parametrize(
        ("changes", "options", "found"),
        [
            ({"model": broken}, {}, "host 0 cannot be built: OSError: no such checkpoint"),
            ({"model": lambda: mlp()}, {}, "host 0 cannot be sent to a process: "),
            (
                {},
                {"prepare": partial(os._exit, 3)},
                "host 0 cannot be built: the connection to rank 1 broke",
            ),
            (
                {},
                {"start_timeout": 0.05},
                r"rank 1 \(host 0\) did not come within 0.05 s",
            ),
        ],
    )
    def test_what_does_not_start_is_an_error_at_once(
        self, changes: dict[str, Any], options: dict[str, Any], found: str
    ) -> None:
        with pytest.raises(HostError, match=found) as raised:
            LocalRanks([spec(**changes)], **options)
        assert "\n" not in str(raised.value)


def ask_for_long(actor: Any) -> None:
    """Ray's kill does not wait for the death: who is killed may answer once more."""
    end = time.monotonic() + 100
    while time.monotonic() < end:
        ray_compat.require().get(actor.__ray_ready__.remote(), timeout=60)
        time.sleep(0.05)


@pytest.mark.usefixtures("ray_cluster")
class TestRayRanks:
    def test_rows_deaths_and_hangs(self) -> None:
        # A model that only Ray's pickling can send.
        specs = list(spec(model=lambda: mlp()).split(3))
        with InlineHosts(specs) as here:
            expected = {u.sender: u.row for u in here.collect(0, WEIGHTS).updates}
        specs[1] = FaultySpec.of(specs[1], {1: "kill"})
        specs[2] = FaultySpec.of(specs[2], {1: "hang"})
        with RayRanks(specs, deadline=LONG) as transport:
            found = {u.sender: u.row for u in transport.collect(0, WEIGHTS).updates}
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[i], expected[i]) for i in found)
            with impatient(transport, answers=2):
                collection = transport.collect(1, WEIGHTS)
            assert senders(collection) == {0, 1}
            reasons = {r.sender: r.reason for r in collection.refused}
            assert reasons[2].startswith("lost: host 1 died in round 1: the connection to rank 2")
            assert reasons[4] == f"late: host 2 did not answer round 1 within {PASSED} s"
            actors = list(transport._actors)
        for actor in actors:
            with pytest.raises(ray_compat.require().exceptions.RayActorError):
                ask_for_long(actor)

    def test_what_does_not_start_is_an_error(self) -> None:
        def failing() -> nn.Module:
            raise OSError("no such checkpoint")

        with pytest.raises(
            HostError, match=r"^RayRanks: host 0 cannot be built: OSError: no such checkpoint$"
        ):
            RayRanks([spec(model=failing)])
        with pytest.raises(HostError, match=r"rank 1 \(host 0\) did not come within 1 s"):
            RayRanks([spec()], num_gpus=5, start_timeout=1.0)


_RANK = """
import os, time
from contextlib import nullcontext
from datetime import timedelta
import torch.distributed as dist
from host_faults import FaultySpec, impatient
from host_samples import mlp, parameters, spec
from workers import RankHosts, serve
from workers.rank_meeting import meet_as_told

if __name__ == "__main__":
    idle = float(os.environ.get("IDLE", 0))
    if idle:
        dist.init_process_group("gloo", timeout=timedelta(seconds=2))
        rank, size, group = dist.get_rank(), dist.get_world_size(), None
    else:
        group = meet_as_told(timeout=float(os.environ.get("PATIENCE", 100)))
        rank, size = group.rank(), group.size()
    specs = list(spec().split(size - 1))
    specs[-1] = FaultySpec.of(specs[-1], {1: os.environ.get("FAULT", "")})
    if rank > 0:
        serve(specs[rank - 1], group)
    else:
        hosts = RankHosts(specs, group, deadline=100.0)
        for round in range(3):
            time.sleep(idle if round == 1 else 0)
            hangs = round == 1 and os.environ.get("FAULT") == "hang"
            with impatient(hosts, answers=1) if hangs else nullcontext():
                print(len(hosts.collect(round, parameters(mlp)).updates), flush=True)
            if os.environ.get("LEAVE"):
                os._exit(7)
        if not os.environ.get("FORGET"):
            hosts.close()
    if idle:
        dist.destroy_process_group()
"""


def environment(**changes: str) -> dict[str, str]:
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path), os.getcwd()])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **changes}


def torchrun(program: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "3", str(program)),
        ],
        env=environment(**changes),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def by_hand(program: Path, *ranks: int, **changes: str) -> list[subprocess.Popen[str]]:
    """Some of the ranks of three, as any launcher may start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    told = {"WORLD_SIZE": "3", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **changes}
    return [
        subprocess.Popen(
            [sys.executable, str(program)],
            env=environment(RANK=str(rank), **told),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "rank.py"
    path.write_text(_RANK)
    return path


class TestLaunchers:
    def test_torchrun(self, program: Path) -> None:
        done = torchrun(program)
        assert (done.returncode, done.stdout) == (0, "6\n6\n6\n"), done.stderr

    def test_torchrun_ends_although_a_host_hangs(self, program: Path) -> None:
        done = torchrun(program, FAULT="hang")
        assert (done.returncode, done.stdout) == (0, "6\n3\n3\n"), done.stderr

    def test_a_driver_that_forgets_a_hung_host_ends_all_the_same(self, program: Path) -> None:
        """A thread that waits in gloo for an answer would abort it."""
        processes = by_hand(program, 0, 1, 2, FAULT="hang", FORGET="1")
        assert processes[0].communicate(timeout=100) == ("6\n3\n3\n", "")
        assert processes[1].communicate(timeout=100) == ("", "")
        assert "does not end: exit code 0" in processes[2].communicate(timeout=100)[1]
        assert [process.returncode for process in processes] == [0, 0, 0]

    def test_the_others_go_on_when_a_rank_dies(self, program: Path) -> None:
        driver, first, second = by_hand(program, 0, 1, 2, FAULT="kill")
        assert driver.communicate(timeout=100) == ("6\n3\n3\n", DIED)
        assert first.communicate(timeout=100) == ("", "")
        assert second.communicate(timeout=100) == ("", "")
        assert [p.returncode for p in (driver, first, second)] == [0, 0, 1]

    def test_a_rank_that_exits_says_so(self, program: Path) -> None:
        processes = by_hand(program, 0, 1, 2, FAULT="exit")
        out, err = zip(*(p.communicate(timeout=100) for p in processes), strict=True)
        assert (out, err) == (("6\n3\n3\n", "", ""), (DIED, "", ""))
        assert [p.returncode for p in processes] == [0, 0, 1]

    def test_ranks_end_with_their_driver(self, program: Path) -> None:
        driver, first, second = by_hand(program, 0, 1, 2, LEAVE="1")
        assert driver.communicate(timeout=100) == ("6\n", "")
        assert driver.returncode == 7
        for host in (first, second):
            _, err = host.communicate(timeout=100)
            assert host.returncode == 1
            said = (
                "workers.transport.HostError: serve: the driver is gone: the connection to rank 0"
            )
            assert err.splitlines()[-1].startswith(said)

    def test_ranks_that_never_come_are_named(self, program: Path) -> None:
        (driver,) = by_hand(program, 0, PATIENCE="1")
        said = driver.communicate(timeout=100)[1].splitlines()[-1]
        found = "rank 1 (host 0), rank 2 (host 1) did not come within 1 s"
        assert said == f"workers.transport.HostError: {found}"

    def test_rounds_may_be_further_apart_than_a_default_groups_timeout(self, program: Path) -> None:
        """Gloo closes all connections of a process where one wait takes longer than it may."""
        done = torchrun(program, IDLE="2.5")
        assert (done.returncode, done.stdout) == (0, "6\n6\n6\n"), done.stderr

    def test_without_a_launcher_it_is_said(self, program: Path) -> None:
        done = subprocess.run(
            [sys.executable, str(program)],
            env={k: v for k, v in environment().items() if k not in ("RANK", "WORLD_SIZE")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "RANK, WORLD_SIZE, MASTER_PORT and MASTER_ADDR must be in the" in done.stderr


def run(program: str, path: Path) -> subprocess.CompletedProcess[str]:
    path.write_text(program)
    return subprocess.run(
        [sys.executable, str(path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


_FORGOTTEN = """
from host_faults import FaultySpec, impatient
from host_samples import mlp, parameters, spec
from workers import LocalRanks

if __name__ == "__main__":
    specs = list(spec().split(2))
    specs[1] = FaultySpec.of(specs[1], {1: "hang"})
    transport = LocalRanks(specs)
    print(len(transport.collect(0, parameters(mlp)).updates))
    with impatient(transport, answers=1):
        print(len(transport.collect(1, parameters(mlp)).updates))
"""


def test_a_transport_that_is_not_closed_keeps_no_process(tmp_path: Path) -> None:
    done = run(_FORGOTTEN, tmp_path / "forgotten.py")
    assert (done.returncode, done.stdout) == (0, "6\n3\n")
    # The hung process ends itself, unless this one has ended it before.
    hung = "nobody waits for this host any more, and it does not end: exit code 0\n"
    assert done.stderr in ("", hung)


def test_a_script_that_starts_processes_when_it_is_imported_is_an_error(tmp_path: Path) -> None:
    program = (
        "from host_samples import spec\nfrom workers import LocalRanks\nLocalRanks([spec()])\n"
    )
    done = run(program, tmp_path / "unguarded.py")
    found = "host 0 on rank 1 did not start: its process ended with exit code 1"
    assert done.stderr.splitlines()[-1] == f"workers.transport.HostError: LocalRanks: {found}"
    assert "if __name__ == '__main__':" in done.stderr
