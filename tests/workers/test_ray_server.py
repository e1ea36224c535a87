"""The server in an actor does what a server here does, and says what it would say."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from robust_agg import (
    ConstraintError,
    GeometricMedian,
    Ledger,
    Record,
    Rejection,
    Server,
    Update,
    VClip,
)
from robust_agg.seeding import generator
from robust_agg.span import measure
from workers.ray_server import RayServer
from workers.transport import HostError

DIM, WORKERS = 8, 7


def factory(seed: int = 3) -> Callable[[], Server]:
    def build() -> Server:
        # Within, so that it travels by value: an actor cannot import a test.
        model = nn.Linear(3, 2)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.linspace(-1, 1, parameter.numel()).view_as(parameter))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
        rule = VClip(fusion="sequential")
        return Server(model, optimizer, rule, f=2, seed=seed)

    return build


@pytest.fixture(scope="module")
def remote(
    ray_cluster: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RayServer, Ledger]]:
    ledger = Ledger(tmp_path_factory.mktemp("remote") / "ledger.jsonl")
    server = RayServer(factory(), ledger=ledger)
    yield server, ledger
    server.close()
    server.close()
    ledger.path.unlink()


def updates(round: int) -> list[Update]:
    """Rows in an order of arrival; the last worker sends none, the one before NaN."""
    rows = torch.randn(WORKERS, DIM, generator=generator(0, "rows", round))
    rows[WORKERS - 2] = torch.nan
    return [Update(sender=i, round=round, row=rows[i]) for i in (4, 0, 5, 3, 1, 2)]


def timeless(record: Record) -> Record:
    return replace(record, seconds={})


def test_it_is_a_server(remote: tuple[RayServer, Ledger], tmp_path: Path) -> None:
    there, ledger = remote
    here = factory()()
    here.ledger = Ledger(tmp_path / "ledger.jsonl")
    assert there.estimate is None
    assert (there.f, there.round) == (here.f, here.round) == (2, 0)
    for number in range(4):
        assert torch.equal(there.parameters(), here.parameters())
        rows = torch.stack([update.row for update in updates(number)])
        assert torch.equal(there.aggregate(rows), here.aggregate(rows))
        assert there.weights_from(measure(rows)[0]) is None
        missing = (Rejection(WORKERS - 1, "late"),)
        a, b = (
            server.step(updates(number), senders=range(WORKERS), refused=missing)
            for server in (there, here)
        )
        assert timeless(a) == timeless(b)
        assert a.seconds.keys() == b.seconds.keys()
        assert {rejection.sender for rejection in a.rejected} == {WORKERS - 2, WORKERS - 1}
        assert there.estimate is not None
        assert here.estimate is not None
        assert torch.equal(there.estimate, here.estimate)
        assert there.round == here.round == number + 1

    # A round that cannot be trusted is skipped there as here.
    a, b = (server.step(updates(4)[:2] + updates(4)[3:4]) for server in (there, here))
    assert timeless(a) == timeless(b)
    assert a.skipped == "Server: n >= 2f + 1 is required, found n=3, f=2"

    # The state moves from the actor to a new server here, and back.
    middle = factory()()
    middle.load_state_dict(there.state_dict())
    assert middle.round == there.round == 5
    for server in (middle, there, here):
        server.step(updates(5))
    there.load_state_dict(middle.state_dict())
    for server in (middle, there, here):
        server.step(updates(6))
    assert torch.equal(middle.parameters(), here.parameters())
    assert torch.equal(there.parameters(), here.parameters())
    with pytest.raises(ValueError, match=r"^Server: seed must be the checkpoint's 4, found 3$"):
        there.load_state_dict(factory(seed=4)().state_dict())

    written, expected = (
        [{name: value for name, value in line.items() if name != "seconds"} for line in lines]
        for lines in (ledger, here.ledger)
    )
    assert [line["round"] for line in written] == list(range(7))
    assert written == expected


def ask_again_and_again(server: RayServer) -> None:
    """A killed actor may answer once more before it dies."""
    for _ in range(10_000):
        server.parameters()


def test_what_goes_wrong_is_said(ray_cluster: None, tmp_path: Path) -> None:
    def impossible() -> Server:
        raise ValueError("no such server")

    with pytest.raises(
        HostError, match=r"^RayServer: the server cannot be built: .*no such server$"
    ):
        RayServer(impossible)
    with pytest.raises(HostError, match=r"^RayServer: the server did not start within 1 s; .*CPU"):
        RayServer(factory(), num_cpus=10_000, start_timeout=1)

    def strict() -> Server:
        server = build()
        server.on_failure = "raise"
        server.rule = GeometricMedian()
        return server

    build, ledger = factory(), Ledger(tmp_path / "ledger.jsonl")
    server = RayServer(strict, ledger=ledger)
    try:
        with pytest.raises(ConstraintError, match=r"^Server: n >= 2f \+ 1 is required, found n=3"):
            server.step(updates(0)[:3])
        assert server.round == 1
        server.step(updates(1))
        assert [line["skipped"] is None for line in ledger] == [False, True]
        # A geometry and its weights travel too.
        geometry, _ = measure(torch.stack([update.row for update in updates(2)]))
        weights = server.weights_from(geometry)
        assert weights is not None
        assert torch.equal(weights, strict().weights_from(geometry))
        server._ray.kill(server._actor)
        with pytest.raises(HostError, match=r"^RayServer: the server is lost: "):
            ask_again_and_again(server)
    finally:
        server.close()
