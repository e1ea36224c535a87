"""Codecs on every transport: the same rows to the last bit, and both ends together, always."""

from __future__ import annotations

from contextlib import nullcontext
from functools import cache
from pathlib import Path

import pytest
import torch
from host_faults import FaultySpec, impatient
from host_samples import mlp, parameters, spec
from torch import Tensor

from robust_agg import Momentum
from robust_agg.admission import admit
from robust_agg.codecs import EF21, Clip21, Codec, ErrorFeedback, RandomK
from robust_agg.codecs.decoder import Decoder
from robust_agg.messages import Schema
from robust_agg.seeding import generator
from robust_agg.types import State
from workers import HostSpec, InlineHosts, LocalRanks, RayHosts
from workers.pool import HostPool

WEIGHTS = parameters(mlp)
EVERYONE = (0, 1, 2, 3, 4, 5)
CODECS: dict[str, Codec] = {
    "ef21 random-k": EF21(compressor=RandomK(share=0.2)),
    "ef sign": ErrorFeedback(),
    "private clip21": Clip21(tau=0.3, noise=0.05),
}
KINDS: dict[str, type[HostPool]] = {"inline": InlineHosts, "ray": RayHosts, "ranks": LocalRanks}
# Processes take seconds to start, and what a codec makes of a row it makes anywhere.
CASES = [
    *(("inline", name) for name in CODECS),
    ("ray", "ef21 random-k"),
    ("ranks", "ef21 random-k"),
]
# Of host 1, which has workers 2 and 3; those of messages are worker 2's.
FAULTS = {
    1: "exception",
    3: "duplicate",
    4: "stale",
    5: "wrong shape",
    7: "late",
    8: "bytes: 2^40 elements",  # of which hosts in threads send none
    9: "forged",
}
# By round, the workers whose message does not count.
LOST = {1: {2, 3}, 4: {2}, 5: {2}, 7: {2, 3}, 9: {2}}
IN_BYTES = {**LOST, 8: {2}}
ROUNDS = 11


class Driver:
    """Collects rounds, and reads what is admitted, as a server does."""

    def __init__(self, transport: HostPool, codec: Codec | None) -> None:
        self.transport = transport
        self.decoder = Decoder(codec, dim=len(WEIGHTS), dtype=WEIGHTS.dtype)

    def round(self, number: int) -> dict[int, Tensor]:
        """The rows that count."""
        weights = (1 + number / 10) * WEIGHTS
        found = self.transport.collect(number, weights, accepted=self.decoder.accepted)
        dim, dtype = self.decoder.form
        schema = Schema(round=number, dim=dim, dtype=dtype, senders=frozenset(found.asked))
        reader = self.decoder.reader()
        admitted = admit(found.updates, schema, refused=found.refused, reader=reader)
        self.decoder.keep(reader)
        rows = dict(zip(admitted.senders, admitted.rows, strict=True))
        return {i: row for i, row in rows.items() if not bool(row.isnan().any())}


@cache
def gradients() -> list[dict[int, Tensor]]:
    with InlineHosts(spec().split(3)) as transport:
        driver = Driver(transport, None)
        return [driver.round(number) for number in range(ROUNDS)]


def expected(codec: Codec, lost: dict[int, set[int]]) -> list[dict[int, Tensor]]:
    """What the codec makes of the gradients that count, as if there were no others."""
    worker = {i: codec.init(WEIGHTS) for i in EVERYONE}
    server = {i: codec.expect(WEIGHTS) for i in EVERYONE}
    read: list[dict[int, Tensor]] = []
    for number, rows in enumerate(gradients()):
        read.append({})
        for i in set(EVERYONE) - lost.get(number, set()):
            draw = generator(7, "codec", i, number)
            payload, worker[i] = codec.encode(rows[i], worker[i], generator=draw)
            read[-1][i], server[i], _ = codec.decode(payload, server[i], WEIGHTS)
    return read


def check_together(driver: Driver, states: dict[int, State]) -> None:
    """Workers and server hold the same shifts."""
    assert driver.decoder.states.keys() == set(EVERYONE)
    for i, own in driver.decoder.states.items():
        assert int(states[i]["codec/sent/round"]) == int(own["round"]) == ROUNDS - 1
        for name in own.keys() - {"round"}:
            assert torch.equal(states[i][f"codec/sent/{name}"], own[name])


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_the_same_rows_on_every_transport_faults_included(
    kind: str, name: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if kind == "ray":
        request.getfixturevalue("ray_cluster")
    codec, flag = CODECS[name], tmp_path / "flag"
    specs: list[HostSpec] = list(spec(codec=codec).split(3))
    specs[1] = FaultySpec.of(specs[1], FAULTS, flag=str(flag))
    with KINDS[kind](specs, deadline=120, quorum=1) as transport:
        driver = Driver(transport, codec)
        for number, rows in enumerate(expected(codec, LOST if kind == "inline" else IN_BYTES)):
            late = FAULTS.get(number) == "late"
            with impatient(transport, answers=2) if late else nullcontext():
                found = driver.round(number)
            assert found.keys() == rows.keys()
            assert all(torch.equal(found[i], rows[i]) for i in rows)
            if late:
                flag.touch()
                transport.state()  # waits for the host
        saved = transport.state()
        check_together(driver, saved)

        # Hosts that have forgotten begin anew, and are read; their states bring them back.
        states, last = driver.decoder.states, driver.round(ROUNDS)
        driver.decoder.states = states
        transport.load_state({})
        anew = driver.round(ROUNDS)
        draws = [generator(7, "codec", i, ROUNDS) for i in EVERYONE]
        assert anew.keys() == last.keys() == set(EVERYONE)
        if name == "ef21 random-k":
            first = {
                i: codec.encode(last[i], codec.init(WEIGHTS), generator=draw)[0]["indices"].long()
                for i, draw in zip(EVERYONE, draws, strict=True)
            }
            for i, row in anew.items():
                assert set(row.nonzero().flatten().tolist()) <= set(first[i].tolist())
        driver.decoder.states = states
        transport.load_state(saved)
        again = driver.round(ROUNDS)
        assert all(torch.equal(again[i], last[i]) for i in EVERYONE)


def test_states_of_estimators_and_codecs_are_saved_together() -> None:
    codec = CODECS["private clip21"]
    specs = spec(codec=codec, estimator=Momentum(beta=0.5)).split(2)
    with InlineHosts(specs) as transport:
        driver = Driver(transport, codec)
        for number in range(3):
            driver.round(number)
        saved, states = transport.state(), driver.decoder.states
        assert saved.keys() == set(EVERYONE)
        names = {"estimate", "steps", "codec/sent/shift", "codec/sent/round"}
        assert all(names < state.keys() for state in saved.values())
        expected = driver.round(3)
    with InlineHosts(specs) as transport:
        transport.load_state(saved)
        driver = Driver(transport, codec)
        driver.decoder.states = states
        found = driver.round(3)
    assert all(torch.equal(found[i], expected[i]) for i in EVERYONE)


def test_without_word_of_what_counts_every_message_begins_anew() -> None:
    codec = CODECS["ef sign"]
    with InlineHosts(spec(codec=codec).split(2)) as transport:
        for number in range(2):
            found = transport.collect(number, WEIGHTS)
            decoder = Decoder(codec, dim=len(WEIGHTS), dtype=WEIGHTS.dtype)
            assert len(decoder.read(found.updates)) == 6


def test_hosts_have_one_codec() -> None:
    a, b = spec(codec=CODECS["ef sign"]).split(2)[0], spec().split(2)[1]
    with pytest.raises(ValueError, match=r"must have one codec, found ErrorFeedback\(.*None$"):
        InlineHosts([a, b])
