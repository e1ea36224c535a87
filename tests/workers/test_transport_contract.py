"""What every transport promises, faults included: one table of tests for all of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from host_faults import PASSED, FaultySpec, impatient
from host_samples import dropout, mlp, parameters, spec
from torch import Tensor

from robust_agg.admission import Admitted, admit
from robust_agg.messages import Schema
from robust_agg.online.named import VClip
from workers import (
    Collection,
    HostError,
    HostSpec,
    InlineHosts,
    LocalRanks,
    RayHosts,
    RayRanks,
)
from workers.pool import HostPool

WEIGHTS = parameters(mlp)
EVERYONE = (0, 1, 2, 3, 4, 5)
LONG = 120.0
Open = Callable[..., HostPool]

# By fault of worker 2's message: its reason, whether the sender keeps its place, and the ledger's
# sender.
MESSAGE_FAULTS = {
    "stale": ("stale: round {before}, expected {round}", False, 2),
    "wrong shape": ("the row must have 83 elements, found 82", True, 2),
    "wrong dtype": ("dtype must be torch.float32, found torch.float64", True, 2),
    "oversize": ("the row must have 83 elements, found 4150", True, 2),
    "forged": ("forged: host 1 answers for worker 0, not asked of it", False, -1),
}
BYTE_FAULTS = {
    "bytes: 2^40 elements": ("the header declares 1099511627776 elements", True, 2),
    "bytes: long body": ("found 65868 bytes of tensor", True, 2),
    "bytes: no header": ("host 1: a message has at least 32 bytes, found 10", False, -1),
    "bytes: another format": ("host 1: format b'RAGG' version 1 expected", False, -1),
}
# By fault of the whole of host 1: the reason, and the ledger's senders.
HOST_FAULTS = {"exception": ("failed: host 1: RuntimeError: the disk is gone", [2, 3])}
FLOOD = "malformed: host 1: over 6 messages"
BLOCK_FAULTS = {
    "bytes: huge": ("oversize: host 1 answers {size} bytes, at most 1049904 expected", [2, 3]),
    "bytes: no bytes": ("{problem}: a block of bytes is required, found list", [-1]),
}
OTHER_FAULTS = ["duplicate", "flood", "non-finite", "bytes: cut block"]
FAULTS = [*MESSAGE_FAULTS, *BYTE_FAULTS, *HOST_FAULTS, *BLOCK_FAULTS, *OTHER_FAULTS]
# Every fault has a round of its own and an honest round after it, on one transport: a process
# that imports torch takes seconds to start.
ROUND_OF = {fault: 2 * place + 1 for place, fault in enumerate(FAULTS)}


@pytest.fixture(scope="module", params=["inline", "ray", "ranks", "ray ranks"])
def kind(request: pytest.FixtureRequest) -> type[HostPool]:
    if request.param.startswith("ray"):
        request.getfixturevalue("ray_cluster")
    kinds: dict[str, type[HostPool]] = {
        "inline": InlineHosts,
        "ray": RayHosts,
        "ranks": LocalRanks,
        "ray ranks": RayRanks,
    }
    return kinds[request.param]


# Hosts in threads send no bytes.
SEND_BYTES = pytest.mark.parametrize(
    "kind", ["ray", "ranks", "ray ranks"], indirect=True, scope="module"
)


@pytest.fixture
def open_transport(kind: type[HostPool]) -> Iterator[Open]:
    opened: list[HostPool] = []

    def open_(specs: Sequence[HostSpec], **options: Any) -> HostPool:
        opened.append(kind(specs, **options))
        return opened[-1]

    yield open_
    for transport in opened:
        transport.close()


@pytest.fixture(scope="module")
def trusty(kind: type[HostPool]) -> Iterator[HostPool]:
    """Three hosts of two workers each."""
    with kind(spec().split(3), deadline=None, quorum=1) as transport:
        yield transport


@pytest.fixture(scope="module")
def faulty(kind: type[HostPool]) -> Iterator[HostPool]:
    """The same, with every fault in its round at host 1, which has workers 2 and 3."""
    specs: list[HostSpec] = list(spec().split(3))
    specs[1] = FaultySpec.of(specs[1], {round: fault for fault, round in ROUND_OF.items()})
    with kind(specs, deadline=LONG, quorum=1) as transport:
        yield transport


@cache
def honest(round: int) -> dict[int, Tensor]:
    """What the workers of ``spec().split(3)`` send where nothing fails."""
    with InlineHosts(spec().split(3)) as transport:
        return rows(transport.collect(round, WEIGHTS))


def rows(collection: Collection) -> dict[int, Tensor]:
    return {update.sender: update.row for update in collection.updates}


def admitted(collection: Collection, round: int) -> Admitted:
    schema = Schema(
        round=round, dim=len(WEIGHTS), dtype=WEIGHTS.dtype, senders=frozenset(collection.asked)
    )
    return admit(collection.updates, schema, refused=collection.refused)


def same(a: dict[int, Tensor], b: dict[int, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[i], b[i]) for i in a)


def only(rows: dict[int, Tensor], *ids: int) -> dict[int, Tensor]:
    return {i: rows[i] for i in ids}


def reasons(collection: Collection) -> list[tuple[int, str]]:
    return [(rejection.sender, rejection.reason) for rejection in collection.refused]


class TestHonestRounds:
    def test_same_seed_same_rows_on_every_transport(self, trusty: HostPool) -> None:
        assert trusty.workers == EVERYONE
        for round in range(2):
            collection = trusty.collect(round, WEIGHTS)
            assert same(rows(collection), honest(round))
            assert collection.asked == EVERYONE
            assert collection.refused == ()
            assert collection.quorum_met
        assert not same(honest(0), honest(1))

    def test_looped_models_draw_the_same_dropout(self, open_transport: Open) -> None:
        weights = parameters(dropout)
        with InlineHosts([spec(model=dropout)]) as reference:
            expected = rows(reference.collect(0, weights))
        transport = open_transport([spec(model=dropout)])
        assert same(rows(transport.collect(0, weights)), expected)

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_rows_have_the_dtype_of_the_parameters(
        self, trusty: HostPool, dtype: torch.dtype
    ) -> None:
        weights = WEIGHTS.to(dtype)
        before = weights.clone()
        found = rows(trusty.collect(0, weights))
        assert found.keys() == honest(0).keys()
        for i, row in found.items():
            assert row.dtype == dtype
            torch.testing.assert_close(row.float(), honest(0)[i], rtol=0.1, atol=0.02)
        assert torch.equal(weights, before)

    def test_only_active_workers_are_asked(self, trusty: HostPool) -> None:
        collection = trusty.collect(0, WEIGHTS, active=[5, 2, 3])
        assert collection.asked == (2, 3, 5)
        assert collection.refused == ()
        found = rows(collection)
        assert found.keys() == {2, 3, 5}
        for i, row in found.items():
            torch.testing.assert_close(row, honest(0)[i])

    def test_quorum(self, trusty: HostPool) -> None:
        trusty.quorum = 4
        assert not trusty.collect(0, WEIGHTS, active=[0, 1, 2]).quorum_met
        assert trusty.collect(0, WEIGHTS, active=[0, 1, 2, 3]).quorum_met

    def test_arguments_are_checked(self, open_transport: Open) -> None:
        with pytest.raises(ValueError, match="specs must not be empty"):
            open_transport([])
        with pytest.raises(ValueError, match="specs must have different workers"):
            open_transport([spec(), spec()])
        with pytest.raises(ValueError, match="deadline must be a positive finite number, found 0"):
            open_transport([spec()], deadline=0)
        with pytest.raises(ValueError, match="quorum must be at most the number of workers 6"):
            open_transport([spec()], quorum=7)

    def test_closed_and_unknown(self, open_transport: Open) -> None:
        transport = open_transport([spec()])
        with pytest.raises(
            ValueError, match=r"active must be among the workers \(0, 1, 2, 3, 4, 5\), found 9"
        ):
            transport.collect(0, WEIGHTS, active=[9])
        with pytest.raises(ValueError, match=r"states must be among the workers .*, found 9"):
            transport.load_state({9: {}})
        transport.close()
        transport.close()
        with pytest.raises(ValueError, match="the transport is closed"):
            transport.collect(0, WEIGHTS)


class TestStates:
    def test_saved_and_loaded_states_give_the_same_rows(self, open_transport: Open) -> None:
        specs = spec(estimator=VClip()).split(2)
        transport = open_transport(specs)
        assert transport.state() == {}
        first = rows(transport.collect(0, WEIGHTS))
        for round in (1, 2):
            transport.collect(round, WEIGHTS, active=EVERYONE[round:])
        saved = transport.state()
        assert sorted(saved) == list(EVERYONE)
        expected = rows(transport.collect(3, WEIGHTS))
        assert not same(rows(transport.collect(3, WEIGHTS)), expected)
        transport.load_state(saved)
        assert same(rows(transport.collect(3, WEIGHTS)), expected)
        with InlineHosts(specs) as elsewhere:
            elsewhere.load_state(saved)
            assert same(rows(elsewhere.collect(3, WEIGHTS)), expected)

        transport.load_state({1: saved[1]})
        assert list(transport.state()) == [1]
        anew = rows(transport.collect(0, WEIGHTS))
        assert same(only(anew, 0, 2, 3, 4, 5), only(first, 0, 2, 3, 4, 5))
        assert not torch.equal(anew[1], first[1])


class TestFaults:
    def check_next_round(self, faulty: HostPool, fault: str) -> None:
        round = ROUND_OF[fault] + 1
        collection = faulty.collect(round, WEIGHTS)
        assert same(rows(collection), honest(round))
        assert collection.refused == ()

    def check_bad_message(
        self, faulty: HostPool, fault: str, expected: tuple[str, bool, int]
    ) -> None:
        round = ROUND_OF[fault]
        faulty.quorum = 6
        collection = faulty.collect(round, WEIGHTS)
        assert not collection.quorum_met
        counted = admitted(collection, round)
        reason, keeps_place, sender = expected
        entry = counted.rejections[0]
        assert reason.format(round=round, before=round - 1) in entry.reason
        assert (entry.sender, entry.keeps_place) == (sender, keeps_place)
        place = [2] if keeps_place else []
        assert counted.senders == tuple(sorted([0, 1, 3, 4, 5, *place]))
        for i, row in zip(counted.senders, counted.rows, strict=True):
            assert torch.equal(row, honest(round)[i]) if i != 2 else bool(row.isnan().all())
        self.check_next_round(faulty, fault)

    @pytest.mark.parametrize("fault", MESSAGE_FAULTS)
    def test_a_bad_message_costs_only_its_sender(self, faulty: HostPool, fault: str) -> None:
        self.check_bad_message(faulty, fault, MESSAGE_FAULTS[fault])

    @SEND_BYTES
    @pytest.mark.parametrize("fault", BYTE_FAULTS)
    def test_bad_bytes_cost_only_their_sender(self, faulty: HostPool, fault: str) -> None:
        self.check_bad_message(faulty, fault, BYTE_FAULTS[fault])

    def check_bad_answer(
        self, faulty: HostPool, fault: str, expected: tuple[str, list[int]]
    ) -> None:
        round = ROUND_OF[fault]
        collection = faulty.collect(round, WEIGHTS)
        assert same(rows(collection), only(honest(round), 0, 1, 4, 5))
        reason, senders = expected
        assert reasons(collection) == [(sender, reason) for sender in senders]
        assert admitted(collection, round).senders == (0, 1, 4, 5)
        self.check_next_round(faulty, fault)

    @pytest.mark.parametrize("fault", HOST_FAULTS)
    def test_a_host_that_fails_costs_its_workers_one_round(
        self, faulty: HostPool, fault: str
    ) -> None:
        self.check_bad_answer(faulty, fault, HOST_FAULTS[fault])

    @SEND_BYTES
    @pytest.mark.parametrize("fault", BLOCK_FAULTS)
    def test_a_block_that_is_none_costs_its_host_one_round(
        self, faulty: HostPool, fault: str
    ) -> None:
        reason, senders = BLOCK_FAULTS[fault]
        if isinstance(faulty, RayHosts):  # what it fetches is pickled, whatever it is
            found = {"size": 8388611, "problem": "malformed: host 1"}
        else:
            found = {"size": 8388608, "problem": "failed: host 1: TypeError"}
            senders = [2, 3]
        self.check_bad_answer(faulty, fault, (reason.format(**found), senders))

    @SEND_BYTES
    def test_a_cut_block_costs_what_is_missing(self, faulty: HostPool) -> None:
        fault = "bytes: cut block"
        collection = faulty.collect(ROUND_OF[fault], WEIGHTS)
        assert same(rows(collection), only(honest(ROUND_OF[fault]), 0, 1, 2, 4, 5))
        rejections = admitted(collection, ROUND_OF[fault]).rejections
        assert [r.sender for r in rejections] == [-1, 3]
        assert "a message of 364 bytes is announced, 360 remain" in rejections[0].reason
        assert rejections[1].reason == "missing: no message arrived"
        self.check_next_round(faulty, fault)

    def test_a_duplicate_counts_once(self, faulty: HostPool) -> None:
        round = ROUND_OF["duplicate"]
        faulty.quorum = 6
        assert not faulty.collect(round, WEIGHTS, active=EVERYONE[:5]).quorum_met
        collection = faulty.collect(round, WEIGHTS)
        assert collection.quorum_met
        assert len(collection.updates) == 7
        counted = admitted(collection, round)
        assert same(dict(zip(counted.senders, counted.rows, strict=True)), honest(round))
        assert [(r.sender, r.reason) for r in counted.rejections] == [
            (2, "duplicate: an earlier message of this round counts")
        ]
        self.check_next_round(faulty, "duplicate")

    def test_a_flood_of_messages_is_cut(self, faulty: HostPool) -> None:
        round = ROUND_OF["flood"]
        collection = faulty.collect(round, WEIGHTS)
        assert len(collection.updates) == 4 + 6
        assert reasons(collection) == [(-1, FLOOD)]
        counted = admitted(collection, round)
        assert same(dict(zip(counted.senders, counted.rows, strict=True)), honest(round))
        self.check_next_round(faulty, "flood")

    def test_a_non_finite_row_arrives_as_it_is(self, faulty: HostPool) -> None:
        round = ROUND_OF["non-finite"]
        collection = faulty.collect(round, WEIGHTS)
        assert collection.refused == ()
        found = rows(collection)
        assert bool(found.pop(2).isnan().all())
        assert same(found, only(honest(round), 0, 1, 3, 4, 5))
        self.check_next_round(faulty, "non-finite")


class TestHostsThatStayAway:
    def test_dead_hosts_are_lost_for_good(self, open_transport: Open, kind: type[HostPool]) -> None:
        specs: list[HostSpec] = list(spec().split(3))
        specs[1] = FaultySpec.of(specs[1], {1: "exit"})
        # os._exit would take this process along with a thread.
        specs[2] = FaultySpec.of(specs[2], {1: "exit" if kind is InlineHosts else "kill"})
        transport = open_transport(specs)
        assert same(rows(transport.collect(0, WEIGHTS)), honest(0))
        for round in (1, 2):
            collection = transport.collect(round, WEIGHTS)
            assert same(rows(collection), only(honest(round), 0, 1))
            lost = sorted((r.sender, r.reason.split(":")[1]) for r in collection.refused)
            assert lost == [
                (2, " host 1 died in round 1"),
                (3, " host 1 died in round 1"),
                (4, " host 2 died in round 1"),
                (5, " host 2 died in round 1"),
            ]
            assert not any(r.keeps_place for r in collection.refused)
        with pytest.raises(HostError, match="load_state: lost: host 1 died in round 1"):
            transport.load_state({})

    def test_late_and_hung_hosts(self, open_transport: Open, tmp_path: Path) -> None:
        flag = tmp_path / "flag"
        specs: list[HostSpec] = list(spec(estimator=VClip()).split(3))
        specs[1] = FaultySpec.of(specs[1], {1: "late"}, flag=str(flag))
        specs[2] = FaultySpec.of(specs[2], {1: "hang"})
        transport = open_transport(specs, deadline=LONG)
        assert transport.collect(0, WEIGHTS).refused == ()

        with impatient(transport, answers=1):
            collection = transport.collect(1, WEIGHTS)
        assert rows(collection).keys() == {0, 1}
        assert reasons(collection) == [
            (2, f"late: host 1 did not answer round 1 within {PASSED} s"),
            (3, f"late: host 1 did not answer round 1 within {PASSED} s"),
            (4, f"late: host 2 did not answer round 1 within {PASSED} s"),
            (5, f"late: host 2 did not answer round 1 within {PASSED} s"),
        ]
        collection = transport.collect(2, WEIGHTS)
        assert rows(collection).keys() == {0, 1}
        assert reasons(collection)[::2] == [
            (2, "late: host 1 is still busy with round 1"),
            (4, "late: host 2 is still busy with round 1"),
        ]
        transport.deadline = 0.2
        for method, ask in (
            ("state", transport.state),
            ("load_state", partial(transport.load_state, {})),
        ):
            # The deadline may have passed before a host that could answer did.
            said = f": {method}: late: host [012] "
            with pytest.raises(HostError, match=said):
                ask()
        transport.deadline = LONG

        flag.touch()
        # The late host is released, but when it is done with round 1 is for it to say.
        give_up = time.monotonic() + 60
        while len((collection := transport.collect(3, WEIGHTS)).updates) < 4:
            assert time.monotonic() < give_up
            assert rows(collection).keys() == {0, 1}
        assert rows(collection).keys() == {0, 1, 2, 3}
        assert {update.round for update in collection.updates} == {3}
        assert {reason for _, reason in reasons(collection)} == {
            "late: host 2 is still busy with round 1"
        }

    def test_states_are_complete_whoever_is_late(
        self, open_transport: Open, tmp_path: Path
    ) -> None:
        """A late host is waited for, what a dead one had is gone, and the others' is never lost."""
        flag = tmp_path / "flag"
        specs: list[HostSpec] = list(spec(estimator=VClip()).split(3))
        specs[1] = FaultySpec.of(specs[1], {1: "late", 2: "late"}, flag=str(flag))
        specs[2] = FaultySpec.of(specs[2], {1: "exit"})
        transport = open_transport(specs, deadline=LONG)
        transport.collect(0, WEIGHTS)
        for round, change in ((1, transport.state), (2, partial(transport.load_state, {}))):
            transport.deadline = 0.5
            late = reasons(transport.collect(round, WEIGHTS))
            assert (2, f"late: host 1 did not answer round {round} within 0.5 s") in late
            transport.deadline = LONG
            release = threading.Timer(0.3, flag.touch)
            release.start()
            if round == 1:
                assert sorted(change()) == [0, 1, 2, 3]
            else:
                with pytest.raises(HostError, match="load_state: lost: host 2 died in round 1"):
                    change()
                assert transport.state() == {}
            release.join()
            flag.unlink()
