"""The line between two ranks, and hosts that serve from threads of this process: no start-up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from host_faults import FaultySpec
from host_samples import CountThreads, mlp, parameters, spec
from torch.distributed import HashStore, ProcessGroup, Store

from robust_agg.messages import Update
from workers import Host, HostError, HostSpec, InlineHosts, RankHosts, serve
from workers.rank_meeting import corner, meet, meet_as_told, open_store
from workers.rank_wire import Answer, Call, Line, in_a_line, in_bytes, numbers, reason, whole

WEIGHTS = parameters(mlp)


def groups(size: int) -> list[ProcessGroup]:
    """The same group as each of its ranks has it."""
    store = HashStore()
    join = partial(meet, store, size=size, timeout=60.0, host="127.0.0.1")
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(join, range(size)))


@contextmanager
def serving(*specs: HostSpec) -> Iterator[tuple[ProcessGroup, list[Future[None]]]]:
    """The driver's group, and what becomes of the hosts on the other ranks."""
    driver, *others = groups(len(specs) + 1)
    with ThreadPoolExecutor(len(specs)) as pool:
        yield driver, list(map(partial(pool.submit, serve), specs, others))


@pytest.fixture
def ends() -> tuple[Line, Line]:
    """The driver's end of a line and the host's."""
    driver, host = groups(2)
    return Line(driver, 1), Line(host, 0)


def at_once(*tasks: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(len(tasks)) as pool:
        return [future.result(60) for future in [pool.submit(task) for task in tasks]]


class TestLine:
    def test_calls_and_answers_arrive_as_they_were_sent(self, ends: tuple[Line, Line]) -> None:
        driver, host = ends
        call = Call("compute", (in_bytes(b"parameters"), numbers([7, -1, 2**40])), 1000)
        _, found = at_once(lambda: driver.call(call), host.next_call)
        assert (found.method, found.most) == ("compute", 1000)
        assert bytes(found.parts[0].numpy()) == b"parameters"
        assert whole(found.parts[1]) == [7, -1, 2**40]
        for body in (b"", b"row"):
            _, answer = at_once(
                partial(host.answer, "done", in_bytes(body), most=3), lambda: driver.next_answer(3)
            )
            assert (answer.outcome, bytes(answer.body.numpy()), answer.size) == (
                *("done", body),
                len(body),
            )

    def test_what_is_too_long_stays_where_it_is(self, ends: tuple[Line, Line]) -> None:
        driver, host = ends
        _, answer = at_once(
            partial(host.answer, "done", in_bytes(bytes(11)), most=10),
            lambda: driver.next_answer(10),
        )
        assert answer == Answer("done", None, 11)
        _, after = at_once(
            partial(host.answer, "failed", reason("ö" * 5000), most=10**4),
            lambda: driver.next_answer(10**4),
        )
        assert after.text.startswith("ö" * 2000)
        assert after.size == 4096

    @pytest.mark.parametrize(
        ("head", "found"),
        [
            ([3, 0, 0, 0], "rank 1 sends what is no answer"),
            ([-1, 0, 0, 0], "rank 1 sends what is no answer"),
            ([0, -5, 0, 0], "rank 1 sends what is no answer"),
            ([0], "rank 1 sends what is no answer"),
            ([1, 4097, 0, 0], "rank 1 gives a reason of 4097 bytes"),
            ([0, 2**61, 0, 0], f"rank 1 announces {2**61} bytes"),
        ],
    )
    def test_an_answer_that_is_none_is_not_waited_for(self, head: list[int], found: str) -> None:
        driver, host = groups(2)
        work = host.send([torch.tensor(head)], 0, 0x5241)
        with pytest.raises(ConnectionError, match=found):
            Line(driver, 1).next_answer(2**62)
        work.wait()

    def test_a_call_that_is_none(self) -> None:
        driver, host = groups(2)
        work = driver.send([torch.tensor([9, 0, 0, 0])], 1, 0x5241)
        with pytest.raises(ConnectionError, match="rank 0 sends what is no call"):
            Line(host, 0).next_call()
        work.wait()


class TestHosts:
    def test_rows_states_and_leave(self) -> None:
        specs = spec().split(2)
        with InlineHosts(specs) as here:
            expected = {u.sender: u.row for u in here.collect(0, WEIGHTS).updates}
        with serving(*specs) as (group, hosts):
            with RankHosts(specs, group, deadline=60.0) as transport:
                found = {u.sender: u.row for u in transport.collect(0, WEIGHTS).updates}
            assert [host.result(60) for host in hosts] == [None, None]
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[i], expected[i]) for i in found)

    def test_threads_are_the_specifications(self) -> None:
        before = torch.get_num_threads()
        settings = spec(estimator=CountThreads(), threads=before + 1)
        with serving(settings) as (group, _), RankHosts([settings], group) as transport:
            updates = transport.collect(0, WEIGHTS).updates
            assert {float(update.row[0]) for update in updates} == {before + 1}

    def test_a_host_that_cannot_be_built_is_told_on_both_sides(self) -> None:
        def broken() -> torch.nn.Module:
            raise OSError("no such checkpoint")

        specs = list(spec().split(2))
        specs[1] = replace(specs[1], model=broken)
        with serving(*specs) as (group, hosts):
            with pytest.raises(
                HostError, match=r"^RankHosts: host 1 cannot be built: OSError: no such checkpoint$"
            ):
                RankHosts(specs, group)
            assert hosts[0].result(60) is None
            with pytest.raises(OSError, match="no such checkpoint"):
                hosts[1].result(60)

    def test_a_rank_with_other_workers_is_refused(self) -> None:
        specs = spec().split(2)
        found = r"host 1 on rank 2 must have the workers \(3, 4, 5\), found \(0, 1, 2\)"
        with serving(specs[0], specs[0]) as (group, _), pytest.raises(HostError, match=found):
            RankHosts(specs, group)

    def test_a_rank_that_serves_nothing_is_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("workers.rank_hosts._PATIENCE", 0.5)  # with one that never hears it
        specs = spec().split(2)
        driver, first, _ = groups(3)
        with ThreadPoolExecutor(1) as pool:
            host = pool.submit(serve, specs[0], first)
            with pytest.raises(HostError, match=r"host 1 on rank 2 did not start within 1 s"):
                RankHosts(specs, driver, start_timeout=1.0)
            host.result(60)

    def test_a_late_answer_is_for_its_own_round(self) -> None:
        """What a host computes while the driver gives up must not be taken for the next round."""
        released = threading.Event()

        class Slow(Host):
            def compute(
                self,
                round: int,
                parameters: torch.Tensor,
                active: Collection[int] | None = None,
                accepted: Mapping[int, int] | None = None,
            ) -> list[Update]:
                if round == 0:
                    released.wait(60)
                return super().compute(round, parameters, active, accepted)

        class SlowSpec(FaultySpec):
            def build(self) -> Host:
                return Slow(self)

        settings = SlowSpec.of(spec(), {})
        with serving(settings) as (group, _), RankHosts([settings], group) as transport:
            transport.deadline = 0.2
            assert transport.collect(0, WEIGHTS).updates == ()
            released.set()
            transport.deadline = 60.0
            transport.state()  # waits for the host
            assert {u.round for u in transport.collect(1, WEIGHTS).updates} == {1}

    def test_the_group_is_checked(self) -> None:
        driver, host = groups(2)
        with pytest.raises(
            ValueError, match=r"rank 0 of 3, one more than specs, found rank 0 of 2"
        ):
            RankHosts(spec().split(2), driver)
        with pytest.raises(
            ValueError, match=r"rank 0 of 2, one more than specs, found rank 1 of 2"
        ):
            RankHosts([spec()], host)
        bare = ProcessGroup(HashStore(), 0, 2)
        with pytest.raises(ValueError, match="group must send CPU tensors by gloo, found"):
            RankHosts([spec()], bare)


def test_ranks_that_do_not_come_are_named() -> None:
    store = HashStore()
    late = partial(meet, store, size=4, timeout=0.5, host="127.0.0.1")
    with ThreadPoolExecutor(2) as pool:
        driver, host = pool.submit(late, 0), pool.submit(late, 2)
        with pytest.raises(
            HostError, match=r"^rank 1 \(host 0\), rank 3 \(host 2\) did not come within 0\.5 s$"
        ):
            driver.result(60)
        with pytest.raises(HostError, match="rank 2 is here, but not all others within"):
            host.result(60)


class TestCorners:
    """Ranks that are started again, with the store that they had."""

    def test_each_start_has_its_own(self) -> None:
        store = HashStore()
        join = partial(corner, store, size=3, timeout=60.0)
        before: list[Store] = []
        for _ in range(3):
            with ThreadPoolExecutor(3) as pool:
                # What the ranks before have left must not do for those that come early.
                others = [pool.submit(join, rank) for rank in (1, 2)]
                time.sleep(0.2)
                assert not any(other.done() for other in others)
                met = [join(0), *(other.result(60) for other in others)]
            met[0].set("address", "mine")
            assert all(each.check(["address"]) for each in met)
            met[1].set("another", "theirs")
            assert met[0].check(["another"])
            for each in before:
                each.set("address of the dead", "")
            assert not met[2].check(["address of the dead"])
            before.append(met[0])

    def test_a_rank_that_follows_the_dead_is_called_again(self) -> None:
        store = HashStore()
        join = partial(corner, store, size=2)
        with pytest.raises(HostError, match=r"rank 1 \(host 0\) did not come within 0\.1 s"):
            join(0, timeout=0.1)
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(join, 1, timeout=60.0)
            time.sleep(0.2)
            met = join(0, timeout=60.0)
            met.set("address", "")
            assert other.result(60).check(["address"])


class TestAddresses:
    @pytest.fixture(autouse=True)
    def told(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """This process is rank 1 of two, each on a machine of its own."""
        store = open_store("127.0.0.1", 60.0)
        told = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
        told |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)}
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
        yield
        del store

    def test_other_machines_do_not_reach_a_loopback(self) -> None:
        found = r"rank 1 must have an address that other machines reach, found 127\.0\.0\.1; GLOO_"
        with pytest.raises(HostError, match=found):
            meet_as_told(timeout=60.0)

    def test_an_interface_may_be_named(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
        with pytest.raises(HostError, match=r"rank 1 is here, but not all others within 0\.5 s"):
            meet_as_told(timeout=0.5)
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none0")
        found = "rank 1 has no address by GLOO_SOCKET_IFNAME=none0: .*No such device"
        with pytest.raises(HostError, match=found):
            meet_as_told(timeout=60.0)

    def test_an_address_of_another_machine_is_none(self) -> None:
        with pytest.raises(HostError, match=r"a store cannot be opened at 192\.0\.2\.1: .*assign"):
            open_store("192.0.2.1", 1.0)

    def test_a_store_that_is_not_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("MASTER_PORT", "1")
        with pytest.raises(HostError, match=r"^rank 1 cannot reach 127\.0\.0\.1:1: ") as raised:
            meet_as_told(timeout=1.0)
        assert "\n" not in str(raised.value)


def test_what_gloo_says_fits_a_line() -> None:
    file = "/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:547"
    for said, found in (
        (
            f"[{file}] Connection closed by peer [127.0.0.1]:1",
            "Connection closed by peer [127.0.0.1]:1",
        ),
        (
            f"[enforce fail at {file}] rp != nullptr. Unable to resolve",
            "rp != nullptr. Unable to resolve",
        ),
        ("Timed out. This is typically\nmuch advice\nand a trace", "Timed out"),
        ("", "RuntimeError"),
    ):
        assert in_a_line(RuntimeError(said)) == found
