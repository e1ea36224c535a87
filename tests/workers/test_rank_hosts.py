"""The line between two ranks, and hosts that serve from threads of this process: no start-up."""

from __future__ import annotations

import threading
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
from torch.distributed import HashStore, ProcessGroup

from robust_agg.messages import Update
from workers import Host, HostError, HostSpec, InlineHosts, RankHosts, serve
from workers.rank_meeting import meet
from workers.rank_wire import Answer, Call, Line, in_bytes, numbers, reason, whole

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

    def test_a_rank_that_serves_nothing_is_named(self) -> None:
        specs = spec().split(2)
        driver, first, _ = groups(3)
        with ThreadPoolExecutor(1) as pool:
            host = pool.submit(serve, specs[0], first)
            with pytest.raises(HostError, match=r"host 1 on rank 2 did not start within 3 s"):
                RankHosts(specs, driver, start_timeout=3.0)
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
