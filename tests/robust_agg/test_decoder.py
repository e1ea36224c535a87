"""Both ends of a codec stay together, whatever becomes of the messages between them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robust_agg import Update
from robust_agg.codecs import EF21, Clip21, Codec, Compressed, ErrorFeedback, RandomK, TopK, wire
from robust_agg.codecs.decoder import ROUND, Decoder
from robust_agg.codecs.sender import message
from robust_agg.codecs.wire import NOTHING
from robust_agg.messages import MessageError
from robust_agg.types import State

D = 13
CODECS: dict[str, Codec] = {
    "compressed": Compressed(compressor=RandomK(share=0.3, unbiased=True)),
    "ef21": EF21(compressor=TopK(share=0.3)),
    "ef21 random-k": EF21(compressor=RandomK(share=0.3)),
    "ef sign": ErrorFeedback(),
    "clip21": Clip21(tau=1.5),
    "private clip21": Clip21(tau=1.5, noise=0.1),
}
every_codec = pytest.mark.parametrize("name", CODECS)
# What becomes of one round's message: it counts; it is lost on the way; the server skips the round;
# the host has lost its state before, or has an older one; so has the server; the worker is not
# asked; its row is no number.
EVENTS = (
    *("counts", "lost", "skipped", "host forgets", "host goes back", "server forgets"),
    *("server goes back", "not asked", "no number"),
)


def draws(*seeds: int) -> torch.Generator:
    return torch.Generator().manual_seed(hash(seeds) % 2**31)


def vector(seed: int) -> Tensor:
    return torch.randn(D, generator=draws(seed))


def decoder(codec: Codec) -> Decoder:
    return Decoder(codec, dim=D, dtype=torch.float32)


def sent(
    codec: Codec, end: Decoder, state: State, round: int, row: Tensor, sender: int = 4
) -> tuple[Update, State]:
    accepted = end.accepted.get(sender, NOTHING)
    given = {"round": round, "accepted": accepted, "generator": draws(round, sender)}
    found, state = message(codec, row, state, **given)  # type: ignore[arg-type]
    return Update(sender, round, found), state


def own(state: State, prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): value
        for name, value in state.items()
        if name.startswith(prefix) and name != prefix + ROUND
    }


@every_codec
@given(events=st.lists(st.sampled_from(EVENTS), max_size=25))
def test_both_ends_hold_the_same_after_every_message_that_counts(
    name: str, events: list[str]
) -> None:
    """And the row is what the codec makes of the rows that counted, as if there were no others."""
    codec = CODECS[name]
    end, state = decoder(codec), dict[str, Tensor]()
    old_state, old_states = state, end.states
    # The codec alone, told of nothing but what counts, by round; after a loss it begins anew.
    worker, server, last = codec.init(vector(0)), codec.expect(vector(0)), NOTHING
    past = {NOTHING: (worker, server)}
    for round, event in enumerate([*events, "counts", "counts"]):
        row = vector(round)
        if event == "not asked":
            continue
        if event == "host forgets":
            state = {}
        if event == "host goes back":
            state, old_state = old_state, state
        if event == "server forgets":
            end.states = {}
        if event == "server goes back":
            end.states, old_states = old_states, dict(end.states)
        if event == "no number":
            row[3] = torch.nan
        accepted = end.accepted.get(4, NOTHING)
        known = {int(v) for k, v in state.items() if k.endswith("/round")}
        update, state = sent(codec, end, state, round, row)
        base = last = accepted if accepted in known else NOTHING
        worker, server = past[base]
        if event == "lost":
            continue
        reader = end.reader()
        found = reader.read(update)
        payload, worker = codec.encode(row, worker, generator=draws(round, 4))
        expected = codec.decode(payload, server, row)
        if event == "no number" and not codec.noise:
            assert bool(found.isnan().all())
            assert reader.states == {}
            end.keep(reader)
            continue
        assert torch.equal(found, expected.row)
        assert reader.clipped == []
        if event == "skipped":
            continue
        end.keep(reader)
        past[round] = (worker, expected.state)
        assert end.accepted == {4: round}
        mine, theirs = own(state, "sent/"), own(end.states[4], "")
        for key in theirs.keys() - {ROUND}:
            assert torch.equal(theirs[key], mine[key])
    assert last == end.accepted[4] - 1


@every_codec
def test_senders_have_states_of_their_own(name: str) -> None:
    codec = CODECS[name]
    end, states = decoder(codec), dict[int, State]()
    alone = {sender: (decoder(codec), dict[str, Tensor]()) for sender in range(3)}
    for round in range(4):
        reader = end.reader()
        for sender in range(3):
            row = (sender + 1) * vector(round)
            update, states[sender] = sent(codec, end, states.get(sender, {}), round, row, sender)
            own_end, own_state = alone[sender]
            same, own_state = sent(codec, own_end, own_state, round, row, sender)
            own_reader = own_end.reader()
            assert torch.equal(reader.read(update), own_reader.read(same))
            own_end.keep(own_reader)
            alone[sender] = own_end, dict(own_state)
        end.keep(reader)
    assert end.accepted == {0: 3, 1: 3, 2: 3}


def test_a_message_that_builds_on_another_is_refused() -> None:
    codec = CODECS["clip21"]
    end, state = decoder(codec), dict[str, Tensor]()
    for round in range(3):
        update, state = sent(codec, end, state, round, vector(round))
        reader = end.reader()
        reader.read(update)
        end.keep(reader)
    payload, base = wire.unpack(codec, update.row, vector(0))
    assert base == 1
    with pytest.raises(MessageError, match=r"^it builds on round 1, the last that counts"):
        end.reader().read(update)
    # One that begins anew is read as the first of its sender.
    anew = Update(4, 3, wire.pack(codec, payload, NOTHING, vector(0)))
    assert torch.equal(end.reader().read(anew), payload["values"])
    stranger = Update(9, 3, update.row)
    with pytest.raises(MessageError, match="builds on round 1, the last that counts is -1"):
        end.reader().read(stranger)
    for wrong in (update.row[:-1], update.row.float(), update.row[None]):
        with pytest.raises(MessageError, match="60 bytes are required, found"):
            end.reader().read(Update(4, 3, wrong))


def test_reading_changes_nothing_until_it_is_kept() -> None:
    codec = CODECS["ef21"]
    end = decoder(codec)
    update, _ = sent(codec, end, {}, 0, vector(0))
    rows = end.read([update, update])
    assert [u.sender for u in rows] == [4]
    assert torch.equal(rows[0].row, end.reader().read(update))
    assert end.accepted == {}
    assert end.read([Update(4, 0, update.row[:-1])]) == []


@every_codec
def test_what_a_liar_writes_is_read(name: str) -> None:
    codec = CODECS[name]
    end, state = decoder(codec), dict[str, Tensor]()
    wanted = vector(99)
    for round in range(12):
        (lie,) = end.write([Update(4, round, wanted)], seed=3)
        (again,) = end.write([Update(4, round, wanted)], seed=3)
        assert torch.equal(lie.row, again.row)
        assert (lie.sender, lie.round) == (4, round)
        reader = end.reader()
        found = reader.read(lie)
        assert reader.clipped == []
        end.keep(reader)
    assert float((found - wanted).norm()) < 2 * float(wanted.norm())
    if isinstance(codec, EF21 | Clip21):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    assert state == {}


@every_codec
def test_states_are_saved_and_checked(name: str) -> None:
    codec = CODECS[name]
    end, state = decoder(codec), dict[str, Tensor]()
    for round in range(2):
        update, state = sent(codec, end, state, round, vector(round))
        reader = end.reader()
        reader.read(update)
        end.keep(reader)
    other = decoder(codec)
    other.states = other.checked(end.state_dict())
    third, _ = sent(codec, end, state, 2, vector(2))
    assert other.accepted == end.accepted == {4: 1}
    assert torch.equal(other.reader().read(third), end.reader().read(third))
    wide = Decoder(codec, dim=D, dtype=torch.float64)
    narrow = Decoder(codec, dim=D - 1, dtype=torch.float32)
    if codec.expect(vector(0)):
        for wrong in (wide, narrow):
            with pytest.raises(ValueError, match=r"^Decoder: the state of sender 4 must have"):
                wrong.checked(end.state_dict())
    with pytest.raises(ValueError, match=r"^Decoder: the state of sender 4 must have"):
        other.checked({4: {}})
    with pytest.raises(ValueError, match=r"^Decoder: sender must be an integer, found 'x'$"):
        other.checked({"x": end.state_dict()[4]})


def test_without_a_codec_messages_are_rows() -> None:
    end = Decoder(None, dim=D, dtype=torch.float32)
    updates = [Update(i, 0, vector(i)) for i in range(2)]
    assert end.form == (D, torch.float32)
    assert end.read(updates) == end.write(updates, seed=0) == updates
    reader = end.reader()
    assert reader.read(updates[0]) is updates[0].row
    end.keep(reader)
    assert end.accepted == {}
    assert end.checked(end.state_dict()) == {}
    with pytest.raises(ValueError, match=r"^Decoder: codec must be an instance of Codec, found"):
        Decoder(Clip21, dim=D, dtype=torch.float32)  # type: ignore[arg-type]
