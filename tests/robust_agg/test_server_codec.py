"""A server under a codec: what it reads, what it refuses, remembers and writes down."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from server_training import held, honest, perceptron, picture, serve
from torch import Tensor

import robust_agg as ra
from robust_agg import Ledger, Record, Server, Update
from robust_agg.checkpoint import load_checkpoint, save_checkpoint
from robust_agg.codecs import EF21, Clip21, Codec, Compressed, ErrorFeedback, RandomK, TopK, wire
from robust_agg.codecs.sender import message
from robust_agg.codecs.wire import NOTHING
from robust_agg.seeding import generator
from robust_agg.types import State

N, F = 5, 1
CODECS: dict[str, Codec] = {
    "compressed": Compressed(compressor=RandomK(share=0.2, unbiased=True)),
    "ef21": EF21(compressor=TopK(share=0.2)),
    "ef sign": ErrorFeedback(),
    "clip21": Clip21(tau=0.5),
    "private clip21": Clip21(tau=0.5, noise=0.1),
}
every_codec = pytest.mark.parametrize("name", CODECS)


def fresh(codec: Codec | None, rule: Any = None, **options: Any) -> Server:
    return serve(rule or ra.VClip(), **{"f": F, "seed": 6, "codec": codec, **options})


class Workers:
    """Honest workers' ends of the codec; a state for each."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.states: dict[int, State] = {}

    def send(self, server: Server, senders: Any = range(N)) -> list[Update]:
        return [self.one(server, update) for update in honest(server, senders)]

    def one(self, server: Server, update: Update) -> Update:
        found, self.states[update.sender] = message(
            self.codec,
            update.row,
            self.states.get(update.sender, {}),
            round=update.round,
            accepted=server.accepted.get(update.sender, NOTHING),
            generator=generator(0, "codec", update.sender, update.round),
        )
        return Update(update.sender, update.round, found)


def shift(server: Server, sender: int) -> Tensor:
    found: Tensor = server.state_dict()["decoder"][sender]["shift"]
    return found


def rounds(server: Server, workers: Workers, count: int) -> list[Record]:
    """Rounds with a message lost, one twice, one stale, one cut and a skipped round among them."""
    records = []
    for _ in range(count):
        updates = workers.send(server)
        match server.round % 6:
            case 1:
                updates = updates[1:]
            case 2:
                updates = [*updates, updates[0]]
            case 3:
                updates[2] = Update(2, server.round - 1, updates[2].row)
            case 4:
                updates[4] = Update(4, server.round, updates[4].row[:-1])
            case 5:
                updates = []
        records.append(server.step(updates, senders=range(N)))
    return records


@every_codec
def test_the_rule_is_given_the_rows_that_are_read(name: str) -> None:
    codec = CODECS[name]
    server, plain = fresh(codec, ra.Mean(), f=0), fresh(None, ra.Mean(), f=0)
    workers = Workers(codec)
    for _ in range(4):
        updates = workers.send(server)
        rows = server.read(updates)
        before = held(server)
        assert held(server) == before
        server.step(updates, senders=range(N))
        plain.step(rows, senders=range(N))
        assert server.estimate is not None
        assert plain.estimate is not None
        assert torch.equal(server.estimate, plain.estimate)
        assert server.accepted == dict.fromkeys(range(N), server.round - 1)
    assert torch.equal(server.parameters(), plain.parameters())


@every_codec
def test_a_message_that_does_not_count_moves_no_shift(name: str) -> None:
    codec = CODECS[name]
    server, workers = fresh(codec), Workers(codec)
    expected = dict.fromkeys(range(N), NOTHING)
    for record in rounds(server, workers, 12):
        number = record.round
        lost = {1: 0, 3: 2, 4: 4}.get(number % 6)
        if number % 6 != 5:
            expected |= {i: number for i in range(N) if i != lost}
        refused = {r.sender: r.reason for r in record.rejected}
        match number % 6:
            case 1:
                assert refused == {0: "missing: no message arrived"}
            case 2:
                assert "duplicate" in refused[0]
            case 3:
                assert refused[2].startswith("stale")
            case 4:
                assert "the row must have" in refused[4]
                assert record.senders == tuple(range(N))
            case 5:
                assert record.skipped is not None
            case _:
                assert refused == {}
        assert record.clipped == ()
        if number % 6 == 5:
            assert record.bytes == 0
    assert server.accepted == expected


@every_codec
def test_a_resumed_server_is_the_uninterrupted_one(name: str, tmp_path: Path) -> None:
    codec = CODECS[name]
    whole, senders = fresh(codec), Workers(codec)
    rounds(whole, senders, 11)
    first, workers = fresh(codec), Workers(codec)
    rounds(first, workers, 5)
    states = {str(i): dict(state) for i, state in workers.states.items()}
    save_checkpoint(tmp_path / "x", {"server": first.state_dict(), "workers": states})
    rounds(first, workers, 2)  # of another life
    tree = load_checkpoint(tmp_path / "x")
    resumed = fresh(codec, model=perceptron(seed=99))
    resumed.load_state_dict(tree["server"])
    workers.states = {int(i): state for i, state in tree["workers"].items()}
    rounds(resumed, workers, 6)
    assert held(resumed) == held(whole)
    assert picture(workers.states) == picture(senders.states)


def test_workers_of_another_life_begin_anew_and_are_read() -> None:
    """As where a server resumes, and the hosts have gone on, or have been lost."""
    codec = Clip21(tau=0.5)
    server, workers = fresh(codec), Workers(codec)
    rounds(server, workers, 1)
    tree = picture_free(server.state_dict())
    rounds(server, workers, 1)
    server.load_state_dict(tree)
    del workers.states[1]
    updates = workers.send(server)
    bases = [wire.unpack(codec, u.row, server.parameters())[1] for u in updates]
    assert bases == [NOTHING if i == 1 else 0 for i in range(N)]
    record = server.step(updates, senders=range(N))
    assert record.rejected == ()
    for i in range(N):
        assert torch.equal(shift(server, i), workers.states[i]["sent/shift"])


def picture_free(tree: Any) -> Any:
    """A copy of a tree, for the tensors of a server are live."""
    if isinstance(tree, Tensor):
        return tree.clone()
    if isinstance(tree, dict):
        return {key: picture_free(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [picture_free(value) for value in tree]
    return tree


def test_a_message_longer_than_tau_is_clipped_and_noted(tmp_path: Path) -> None:
    codec = Clip21(tau=0.5)
    ledger = Ledger(tmp_path / "ledger")
    server, workers = fresh(codec, ledger=ledger), Workers(codec)
    rounds(server, workers, 1)
    before = shift(server, 3).clone()
    updates = workers.send(server)
    payload, base = wire.unpack(codec, updates[3].row, server.parameters())
    long = {"values": 1e6 * payload["values"]}
    updates[3] = Update(3, server.round, wire.pack(codec, long, base, server.parameters()))
    record = server.step(updates, senders=range(N))
    assert record.clipped == (3,)
    assert record.rejected == ()
    assert record.senders == tuple(range(N))
    step = (shift(server, 3) - before).double()
    assert float(step.norm()) == pytest.approx(0.5, rel=1e-5)
    assert [line["clipped"] for line in ledger] == [[], [3]]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_payload_that_is_no_number_is_a_rejected_row_and_moves_nothing(bad: float) -> None:
    codec = Clip21(tau=0.5)
    server, workers = fresh(codec), Workers(codec)
    rounds(server, workers, 1)
    before = shift(server, 3).clone()
    updates = workers.send(server)
    payload, base = wire.unpack(codec, updates[3].row, server.parameters())
    values = payload["values"].clone()
    values[0] = bad
    wrong = wire.pack(codec, {"values": values}, base, server.parameters())
    updates[3] = Update(3, server.round, wrong)
    record = server.step(updates, senders=range(N))
    assert [(r.sender, r.reason, r.keeps_place) for r in record.rejected] == [
        (3, "non-finite or too far to measure", True)
    ]
    assert torch.equal(shift(server, 3), before)
    assert server.accepted[3] == 0
    # And its sender is told, and goes on from there.
    record = server.step(workers.send(server), senders=range(N))
    assert record.rejected == ()
    assert torch.equal(shift(server, 3), workers.states[3]["sent/shift"])


def test_what_is_no_payload_keeps_its_senders_place() -> None:
    codec = EF21(compressor=TopK(share=0.2))
    server, workers = fresh(codec), Workers(codec)
    updates = workers.send(server)
    payload, _ = wire.unpack(codec, updates[1].row, server.parameters())
    unordered = {**payload, "indices": payload["indices"].flip(0)}
    updates[1] = Update(1, 0, wire.pack(codec, unordered, NOTHING, server.parameters()))
    updates[2] = Update(2, 0, wire.pack(codec, payload, 7, server.parameters()))
    record = server.step(updates, senders=range(N))
    dim = server.parameters().numel()
    assert [(r.sender, r.reason, r.keeps_place) for r in record.rejected] == [
        (1, f"malformed: indices must ascend within [0, {dim})", True),
        (
            2,
            "malformed: it builds on round 7, the last that counts is -1",
            True,
        ),
    ]
    assert record.senders == tuple(range(N))
    # Two bad rows are more than f: nothing has moved, and nothing counts.
    assert record.skipped is not None
    assert server.accepted == {}


def test_rows_are_not_messages_and_messages_no_rows() -> None:
    codec = Clip21(tau=0.5)
    server, plain = fresh(codec), fresh(None)
    record = server.step(honest(server, [0]), senders=range(N))
    assert "dtype must be torch.uint8, found torch.float32" in record.rejected[0].reason
    record = plain.step(Workers(codec).send(plain, [0]), senders=range(N))
    assert "dtype must be torch.float32, found torch.uint8" in record.rejected[0].reason


@pytest.mark.parametrize(
    ("codec", "each"),
    [
        (None, 4),
        (Clip21(tau=1.0), 4),
        (EF21(compressor=TopK(share=0.1)), 8 * 0.1),
        (ErrorFeedback(), 1 / 8),
    ],
    ids=str,
)
def test_the_ledger_counts_the_bytes_of_the_messages(
    codec: Codec | None, each: float, tmp_path: Path
) -> None:
    ledger = Ledger(tmp_path / "ledger")
    server = fresh(codec, ledger=ledger)
    dim = server.parameters().numel()
    workers = None if codec is None else Workers(codec)
    for count in (N, N - 1):
        updates = honest(server) if workers is None else workers.send(server)
        server.step([*updates[:count], updates[0]], senders=range(N))
    size = {None: 32 + 4 * dim}.get(codec, 32 + server.schema([]).dim)
    assert [line["bytes"] for line in ledger] == [(N + 1) * size, N * size]
    # Head, base and scale come on top.
    assert each * dim <= size - 32 <= each * dim + 8 + 8 + 8


def test_another_codec_is_refused_and_changes_nothing() -> None:
    codec = Clip21(tau=0.5)
    server, workers = fresh(codec), Workers(codec)
    rounds(server, workers, 2)
    tree = server.state_dict()
    for other, found in (
        (None, "None"),
        (Clip21(tau=0.6), r"'Clip21\(tau=0.6, noise=0\)'"),
        (ErrorFeedback(), r"'ErrorFeedback\(compressor=Sign\(\)\)'"),
    ):
        resumed = fresh(other)
        before = held(resumed)
        with pytest.raises(ValueError, match=rf"codec must be the checkpoint's .*, found {found}"):
            resumed.load_state_dict(tree)
        assert held(resumed) == before
    # An older checkpoint is one without a codec.
    plain = fresh(None)
    older = {k: v for k, v in plain.state_dict().items() if k not in ("codec", "decoder")}
    fresh(None).load_state_dict(older)
    with pytest.raises(ValueError, match="codec must be the checkpoint's None, found 'Clip21"):
        fresh(codec).load_state_dict(older)


def test_a_liar_is_bound_by_the_decoder_whatever_it_sends() -> None:
    """Rows that an attack asks for are messages, and a step of a message is no longer than τ."""
    codec = Clip21(tau=0.5)
    server, workers = fresh(codec), Workers(codec)
    for _ in range(4):
        updates = workers.send(server, range(N - 1))
        state = server.state_dict()["decoder"].get(4)
        before = torch.zeros_like(server.parameters()) if state is None else state["shift"].clone()
        target = 1e4 * torch.ones_like(before)
        lies = server.write([Update(4, server.round, target)])
        (read,) = server.read(lies)
        record = server.step([*updates, *lies], senders=range(N))
        assert record.clipped == ()
        step = shift(server, 4) - before
        assert torch.equal(read.row, shift(server, 4))
        assert float(step.double().norm()) == pytest.approx(0.5, rel=1e-5)
        # As near to what it wants as any such step.
        cosine = torch.nn.functional.cosine_similarity(step, target - before, dim=0)
        assert float(cosine) == pytest.approx(1, abs=1e-5)


def test_a_server_says_what_a_codec_is() -> None:
    with pytest.raises(ValueError, match="codec must be an instance of Codec, found"):
        fresh(Clip21)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["ef21", "clip21", "private clip21"])
def test_rows_of_every_dtype_are_read(name: str, dtype: torch.dtype) -> None:
    codec = CODECS[name]
    server, workers = fresh(codec, model=perceptron(dtype)), Workers(codec)
    for record in rounds(server, workers, 5):
        assert record.clipped == ()
        assert record.skipped is None
    for update in server.read(workers.send(server)):
        assert update.row.dtype == dtype
    for i in range(N - 1):
        assert shift(server, i).dtype == torch.promote_types(dtype, torch.float32)
        kept = {state["kept/round"].item(): state for state in [workers.states[i]]}
        assert torch.equal(kept[server.accepted[i]]["kept/shift"], shift(server, i))


def test_a_liar_that_begins_anew_is_near_to_nothing() -> None:
    """Which it may do in every round: the row is then no longer than τ."""
    codec = Clip21(tau=0.5)
    server, workers = fresh(codec), Workers(codec)
    like = server.parameters()
    for _ in range(3):
        lie = {"values": torch.full_like(like, 1e3)}
        anew = Update(4, server.round, wire.pack(codec, lie, NOTHING, like))
        record = server.step([*workers.send(server, range(N - 1)), anew], senders=range(N))
        assert record.clipped == (4,)
        assert float(shift(server, 4).double().norm()) == pytest.approx(0.5, rel=1e-5)
