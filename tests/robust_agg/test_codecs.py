"""Codecs as pure functions: their oracles, what they promise, and payloads that are none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import codecs as oracles
from torch import Tensor

from robust_agg.codecs import (
    EF21,
    Clip21,
    Codec,
    Compressed,
    Compressor,
    ErrorFeedback,
    Field,
    Layout,
    RandomK,
    Sign,
    TopK,
)
from robust_agg.codecs.clipping import Clipping
from robust_agg.codecs.sign import packed, unpacked
from robust_agg.messages import MessageError

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
D = 21
COMPRESSORS: dict[str, Compressor] = {
    "top-k": TopK(share=0.3),
    "random-k": RandomK(share=0.3),
    "unbiased random-k": RandomK(share=0.3, unbiased=True),
    "all of them": TopK(share=1),
    "sign": Sign(),
    "clipping": Clipping(tau=1.5),
}
CODECS: dict[str, Codec] = {
    "compressed": Compressed(compressor=RandomK(share=0.3, unbiased=True)),
    "ef21 top-k": EF21(compressor=TopK(share=0.3)),
    "ef21 random-k": EF21(compressor=RandomK(share=0.3)),
    "ef21 sign": EF21(compressor=Sign()),
    "ef sign": ErrorFeedback(),
    "ef top-k": ErrorFeedback(compressor=TopK(share=0.3)),
    "clip21": Clip21(tau=1.5),
    "private clip21": Clip21(tau=1.5, noise=0.5),
}
every_codec = pytest.mark.parametrize("name", CODECS)
every_compressor = pytest.mark.parametrize("name", COMPRESSORS)


def draws(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def vector(seed: int, dim: int = D, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(dim, generator=draws(seed)).to(dtype)


def whole_numbers(seed: int, dim: int = D) -> Tensor:
    """Many ties, and zeros of both signs."""
    drawn = torch.randint(-2, 3, (dim,), generator=draws(seed)).float()
    return torch.where(drawn == 0, torch.where(vector(seed, dim) > 0, 0.0, -0.0), drawn)


def array(x: Tensor) -> oracles.Array:
    return x.double().numpy()


def expanded(compressor: Compressor, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """C(x), by way of the bytes."""
    layout = compressor.layout(x.numel(), x.dtype)
    message = layout.pack(compressor.compress(x, x.dtype, generator))
    return compressor.expand(layout.unpack(message), x).vector


# --- layouts --------------------------------------------------------------------------------------


def test_fields_come_back_as_they_were_and_nothing_else_is_taken() -> None:
    layout = Layout((Field("a", torch.int64, 2), Field("b", torch.float16, 3)))
    payload = {"a": torch.tensor([-1, 2**60]), "b": torch.tensor([1.0, math.nan, -0.0]).half()}
    message = layout.pack(payload)
    assert message.dtype == torch.uint8
    assert message.shape == (layout.bytes,) == (22,)
    # Anywhere in memory: rows of a block do not begin at multiples of 8.
    for start in range(9):
        room = torch.zeros(start + 22, dtype=torch.uint8)
        room[start:] = message
        found = layout.unpack(room[start:])
        assert torch.equal(found["a"], payload["a"])
        assert torch.equal(found["b"].view(torch.int16), payload["b"].view(torch.int16))
    strided = torch.zeros(44, dtype=torch.uint8)
    strided[::2] = message
    assert torch.equal(layout.unpack(strided[::2])["a"], payload["a"])
    with pytest.raises(MessageError, match=r"^22 bytes are required, found \(21,\) of torch.uint8"):
        layout.unpack(message[:-1])
    with pytest.raises(MessageError, match="22 bytes are required"):
        layout.unpack(message.float())
    for wrong in ({**payload, "b": payload["b"].float()}, {"a": payload["a"]}, {**payload, "c": 1}):
        with pytest.raises((ValueError, AttributeError)):
            layout.pack(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must stand in the order of their width, found"):
        Layout((Field("b", torch.float16, 3), Field("a", torch.int64, 2)))


@pytest.mark.parametrize(
    ("compressor", "dtype", "expected"),
    [
        (TopK(share=0.1), torch.float32, 100 * (4 + 4)),
        (TopK(share=0.1), torch.bfloat16, 100 * (4 + 2)),
        (RandomK(share=0.001), torch.float64, 1 * (4 + 8)),
        (Sign(), torch.float32, 4 + 125),
        (Sign(), torch.float64, 8 + 125),
        (Sign(), torch.float16, 4 + 125),
        (Clipping(tau=1.0), torch.float16, 2 * 1000),
    ],
    ids=str,
)
def test_a_payload_has_the_bytes_its_layout_says(
    compressor: Compressor, dtype: torch.dtype, expected: int
) -> None:
    layout = compressor.layout(1000, dtype)
    assert layout.bytes == expected
    payload = compressor.compress(vector(0, 1000), dtype, draws(0))
    assert layout.pack(payload).numel() == expected


@every_codec
@every_dtype
@pytest.mark.parametrize("dim", [1, 2, 7, 8, 9, 64])
def test_every_payload_is_of_the_layout(name: str, dtype: torch.dtype, dim: int) -> None:
    codec, row = CODECS[name], vector(1, dim, dtype)
    payload, state = codec.encode(row, codec.init(row), generator=draws(0))
    layout = codec.layout(dim, dtype)
    back = layout.unpack(layout.pack(payload))
    found = codec.decode(back, codec.expect(row), row)
    assert found.row.dtype == dtype
    assert found.row.shape == (dim,)
    assert bool(found.row.isfinite().all())
    assert state.keys() == codec.init(row).keys()


# --- compressors ----------------------------------------------------------------------------------


@given(dim=st.integers(1, 40), seed=st.integers(0, 2**31), share=st.floats(0.01, 1.0))
def test_top_k_is_the_oracles_ties_included(dim: int, seed: int, share: float) -> None:
    k = max(1, math.ceil(round(share * dim, 9)))
    for x in (whole_numbers(seed, dim), vector(seed, dim)):
        found = expanded(TopK(share=share), x)
        assert np.array_equal(array(found), oracles.top_k(array(x), k))


def test_shares_of_the_coordinates_are_whole_numbers() -> None:
    for share, dim, k in [(0.1, 30, 3), (0.3, 10, 3), (1e-9, 5, 1), (1.0, 5, 5), (0.5, 3, 2)]:
        assert TopK(share=share).layout(dim, torch.float32).bytes == 8 * k
    with pytest.raises(ValueError, match=r"^TopK: d must be at most 2147483648, found 2147483649$"):
        TopK(share=1e-9).layout(2**31 + 1, torch.float32)


@given(dim=st.integers(1, 70), seed=st.integers(0, 2**31))
def test_signs_are_the_oracles(dim: int, seed: int) -> None:
    for x in (whole_numbers(seed, dim).double(), vector(seed, dim).double()):
        found = expanded(Sign(), x)
        np.testing.assert_allclose(array(found), oracles.scaled_sign(array(x)), rtol=1e-14)


@given(bits=st.lists(st.booleans(), min_size=1, max_size=70))
def test_bits_are_packed_for_any_length(bits: list[bool]) -> None:
    packed_bits = packed(torch.tensor(bits))
    assert packed_bits.numpy().tolist() == np.packbits(bits, bitorder="little").tolist()
    assert unpacked(packed_bits, len(bits)).tolist() == bits


@given(seed=st.integers(0, 2**31), tau=st.floats(1e-3, 1e3))
def test_clipping_is_the_oracles(seed: int, tau: float) -> None:
    x = vector(seed).double()
    found = expanded(Clipping(tau=tau), x)
    np.testing.assert_allclose(array(found), oracles.clip(array(x), tau), rtol=1e-13)


def test_random_k_sends_k_coordinates_as_they_are_or_scaled() -> None:
    x = vector(3)
    kept = [expanded(RandomK(share=0.3), x, draws(seed)) for seed in range(50)]
    scaled = [expanded(RandomK(share=0.3, unbiased=True), x, draws(seed)) for seed in range(50)]
    for a, b in zip(kept, scaled, strict=True):
        places = a != 0
        assert int(places.sum()) == 7
        assert torch.equal(a[places], x[places])
        torch.testing.assert_close(b, 3 * a)
    assert len({tuple((a != 0).tolist()) for a in kept}) > 40
    with pytest.raises(ValueError, match=r"^RandomK: generator is required, found None$"):
        RandomK(share=0.3).compress(x, x.dtype)


@every_compressor
@settings(max_examples=30)
@given(dim=st.integers(1, 30), seed=st.integers(0, 2**31), exponent=st.integers(-6, 6))
def test_contraction(name: str, dim: int, seed: int, exponent: int) -> None:
    """E‖C(x) - x‖² <= (1 - α)‖x‖²; of one draw, for those that draw none."""
    compressor = COMPRESSORS[name]
    alpha = compressor.contraction(dim)
    if alpha is None:
        assert name in ("unbiased random-k", "clipping")
        return
    assert 0 < alpha <= 1
    for x in (10.0**exponent * vector(seed, dim).double(), whole_numbers(seed, dim).double()):
        square = float(x @ x)
        if isinstance(compressor, RandomK):
            count = 100
            left = [expanded(compressor, x, draws(seed + i)) - x for i in range(count)]
            squares = torch.stack([each @ each for each in left])
            # Four standard errors of the mean.
            found = float(squares.mean()) - 4 * float(squares.std()) / count**0.5
        else:
            left_out = expanded(compressor, x) - x
            found = float(left_out @ left_out)
        assert found <= (1 - alpha) * square + 1e-12 * square


def test_scaled_random_k_is_unbiased() -> None:
    x, count = vector(5, 12).double(), 4000
    compressor = RandomK(share=0.25, unbiased=True)
    found = torch.stack([expanded(compressor, x, draws(seed)) for seed in range(count)])
    error = found.std(dim=0) / count**0.5
    assert bool(((found.mean(dim=0) - x).abs() <= 4 * error).all())
    # E‖C(x) - x‖² = (d/k - 1)‖x‖².
    squares = (found - x).square().sum(dim=1)
    assert float(squares.mean()) == pytest.approx(3 * float(x @ x), rel=0.1)
    biased = torch.stack([expanded(RandomK(share=0.25), x, draws(seed)) for seed in range(count)])
    assert float((biased.mean(dim=0) - x).norm()) > 0.5 * float(x.norm())


# --- codecs ---------------------------------------------------------------------------------------


def conversation(
    codec: Codec, rows: list[Tensor], *, seed: int = 0
) -> tuple[list[Tensor], Any, Any]:
    """The rows as they are read, one message after the other; and both sides' last states."""
    worker, server = codec.init(rows[0]), codec.expect(rows[0])
    read = []
    for place, row in enumerate(rows):
        payload, worker = codec.encode(row, worker, generator=draws(seed + place))
        found, server, clipped = codec.decode(payload, server, row)
        assert not clipped
        read.append(found)
    return read, worker, server


STREAMS: dict[str, Callable[[list[oracles.Array]], list[oracles.Array]]] = {
    "ef21 top-k": lambda rows: oracles.shifted(rows, lambda x: oracles.top_k(x, 7)),
    "ef21 sign": lambda rows: oracles.shifted(rows, oracles.scaled_sign),
    "ef sign": lambda rows: oracles.error_feedback(rows, oracles.scaled_sign),
    "ef top-k": lambda rows: oracles.error_feedback(rows, lambda x: oracles.top_k(x, 7)),
    "clip21": lambda rows: oracles.shifted(rows, lambda x: oracles.clip(x, 1.5)),
}


@pytest.mark.parametrize("name", STREAMS)
def test_a_conversation_is_the_oracles(name: str) -> None:
    rows = [vector(seed).double() for seed in range(12)]
    read, _, _ = conversation(CODECS[name], rows)
    expected = STREAMS[name]([array(row) for row in rows])
    for found, wanted in zip(read, expected, strict=True):
        np.testing.assert_allclose(array(found), wanted, rtol=1e-9, atol=1e-12)


@every_dtype
@pytest.mark.parametrize("name", [name for name in CODECS if "21" in name])
def test_both_sides_hold_the_same_shift_to_the_last_bit(name: str, dtype: torch.dtype) -> None:
    rows = [vector(seed, dtype=dtype) for seed in range(10)]
    read, worker, server = conversation(CODECS[name], rows)
    assert worker.keys() == server.keys() == {"shift"}
    assert worker["shift"].dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(worker["shift"], server["shift"])
    assert torch.equal(read[-1], server["shift"].to(dtype))


def test_clip21_is_exact_after_finitely_many_messages() -> None:
    g = torch.tensor([3.0, -4.0, 0.0, 12.0])  # of length 13
    read, _, _ = conversation(Clip21(tau=2.0), [g] * 8)
    distances = [float((row - g).norm()) for row in read]
    assert distances[:6] == pytest.approx([11, 9, 7, 5, 3, 1], rel=1e-6)
    torch.testing.assert_close(read[6], g, rtol=1e-6, atol=1e-6)
    # Within τ the difference itself is sent.
    near = [g, g + torch.tensor([1.0, 0.0, -1.0, 0.0]), g - 1]
    read, _, _ = conversation(Clip21(tau=13.5), near)
    assert all(torch.equal(a, b) for a, b in zip(read, near, strict=True))


@pytest.mark.parametrize("name", ["ef21 top-k", "ef21 random-k", "ef21 sign"])
def test_ef21_converges_to_a_row_that_stays(name: str) -> None:
    g = vector(8).double()
    read, _, _ = conversation(CODECS[name], [g] * 400)
    assert float((read[-1] - g).norm()) < 1e-5 * float(g.norm())


@pytest.mark.parametrize("name", ["ef sign", "ef top-k"])
def test_error_feedback_leaves_out_nothing_in_the_end(name: str) -> None:
    """Σ of what is read = Σ of the rows - the error that is left."""
    rows = [vector(seed).double() for seed in range(200)]
    read, worker, server = conversation(CODECS[name], rows)
    assert server == {}
    total = torch.stack(rows).sum(dim=0)
    torch.testing.assert_close(torch.stack(read).sum(dim=0) + worker["error"], total)
    assert float(worker["error"].norm()) < 10 * float(rows[0].norm())


BAD = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf, "too far": 3e38}


@every_dtype
@pytest.mark.parametrize("bad", BAD)
@every_codec
def test_a_row_that_is_none_is_read_as_none_and_moves_nothing(
    name: str, bad: str, dtype: torch.dtype
) -> None:
    codec, row = CODECS[name], vector(0, dtype=dtype)
    _, worker, server = conversation(codec, [vector(s, dtype=dtype) for s in range(3)])
    # 3e38 is a number of float64, and of the others one whose distance cannot be measured, or Inf.
    row[4] = BAD[bad] if dtype != torch.float64 else {"too far": 1e300}.get(bad, BAD[bad])
    payload, after = codec.encode(row, worker, generator=draws(0))
    found = codec.decode(payload, server, row).row
    if codec.noise or (isinstance(codec, Clip21) and bool(row.isfinite().all())):
        # Noise must not tell of the row, and what clips takes any number.
        assert bool(found.isfinite().all())
        return
    assert not bool(found.isfinite().all())
    assert after is worker


@every_codec
def test_nothing_given_is_changed(name: str) -> None:
    codec = CODECS[name]
    _, worker, server = conversation(codec, [vector(seed) for seed in range(3)])
    row = vector(9)
    given = [row, *worker.values(), *server.values()]
    before = [each.clone() for each in given]
    payload, _ = codec.encode(row, worker, generator=draws(1))
    kept = {key: part.clone() for key, part in payload.items()}
    codec.decode(payload, server, row)
    codec.forge(row, server, generator=draws(1))
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))
    assert all(torch.equal(part, kept[key]) for key, part in payload.items())


# --- what the decoder does not believe ------------------------------------------------------------


@every_dtype
@given(seed=st.integers(0, 2**31), exponent=st.integers(-5, 3), dim=st.integers(1, 50))
def test_an_honest_step_is_never_clipped_again(
    dtype: torch.dtype, seed: int, exponent: int, dim: int
) -> None:
    for noise in (0.0, 0.1, 3.0):
        codec = Clip21(tau=2.0**exponent, noise=noise)
        rows = [(10 * vector(seed + i, dim)).to(dtype) for i in range(3)]
        conversation(codec, rows, seed=seed)


@every_dtype
@given(seed=st.integers(0, 2**31), scale=st.floats(1.02, 1e3))
def test_a_longer_step_is_clipped(dtype: torch.dtype, seed: int, scale: float) -> None:
    codec, row = Clip21(tau=1.0), vector(seed, dtype=dtype)
    _, server = conversation(codec, [row] * 3)[1:]
    step = torch.nn.functional.normalize(vector(seed + 1), dim=0)
    found = codec.decode({"values": (scale * step).to(dtype)}, server, row)
    assert found.clipped
    moved = found.state["shift"].double() - server["shift"].double()
    assert float(moved.norm()) <= 1 + 1e-5
    assert float(torch.nn.functional.cosine_similarity(moved, step.double(), dim=0)) > 0.999


def test_with_noise_a_step_may_be_as_long_as_noise_makes_it() -> None:
    d = 10_000
    codec = Clip21(tau=1.0, noise=0.01)
    like = torch.zeros(d)
    longest = 1 + 0.01 * (100 + 9.2)
    for length, clipped in ((longest - 0.01, False), (longest + 0.01, True)):
        step = torch.full((d,), length / 100)
        assert codec.decode({"values": step}, codec.expect(like), like).clipped == clipped


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf], ids=str)
def test_steps_that_are_no_numbers_are_no_rows(value: float) -> None:
    like = torch.zeros(3, dtype=torch.float64)
    codec = Clip21(tau=1.0)
    payload = {"values": torch.full((3,), value, dtype=torch.float64)}
    assert bool(codec.decode(payload, codec.expect(like), like).row.isnan().all())


HUGE = [
    (torch.float32, 3e38),
    (torch.float32, 1e25),
    (torch.bfloat16, 3e38),
    (torch.float16, 6e4),
    (torch.float64, 3e38),
    (torch.float64, 1e300),
]


@pytest.mark.parametrize("tau", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize(("dtype", "size"), HUGE, ids=str)
def test_a_step_of_any_length_is_clipped_to_tau(
    dtype: torch.dtype, size: float, tau: float
) -> None:
    """Whether the server clips it, a liar does or an honest worker; of one worked out by hand."""
    row = torch.tensor([size, -size, 0.0, size / 2], dtype=dtype)
    codec, expected = Clip21(tau=tau), tau / 1.5 * torch.tensor([1, -1, 0, 0.5]).double()
    start = codec.init(row)
    read = codec.decode({"values": row}, start, row)
    assert read.clipped
    sent, after = codec.encode(row, start)
    forged = codec.forge(row, start)
    rounding = 4 * torch.finfo(dtype).eps
    for found in (
        read.state["shift"],
        codec.decode(sent, start, row).state["shift"],
        after["shift"],
        codec.decode(forged, start, row).state["shift"],
    ):
        torch.testing.assert_close(found.double(), expected, rtol=rounding, atol=0)


@pytest.mark.parametrize(
    "indices",
    [[0, 0, 1], [2, 1, 3], [0, 1, 21], [-1, 0, 1], [0, 1, 2**31 - 1], [-(2**31), 0, 1]],
    ids=str,
)
@pytest.mark.parametrize("compressor", [TopK(share=0.1), RandomK(share=0.1)], ids=str)
def test_indices_that_are_none_are_refused(compressor: Compressor, indices: list[int]) -> None:
    payload = {"indices": torch.tensor(indices, dtype=torch.int32), "values": torch.ones(3)}
    with pytest.raises(MessageError, match=r"^indices must ascend within \[0, 21\)$"):
        compressor.expand(payload, torch.zeros(D))


@every_codec
@given(data=st.data())
def test_whatever_bytes_are_decoded_nothing_is_longer_than_allowed(
    name: str, data: st.DataObject
) -> None:
    codec, like = CODECS[name], torch.zeros(9)
    layout = codec.layout(9, torch.float32)
    raw = data.draw(st.binary(min_size=layout.bytes, max_size=layout.bytes))
    message = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
    before = codec.expect(like)
    try:
        row, state, _ = codec.decode(layout.unpack(message), before, like)
    except MessageError:
        return
    assert row.shape == (9,)
    assert row.dtype == torch.float32
    if isinstance(codec, Clip21) and bool(row.isfinite().all()):
        longest = Clipping(tau=codec.tau, noise=codec.noise).radius(9)
        assert float((state["shift"] - before["shift"]).double().norm()) <= longest * (1 + 1e-6)


@every_codec
def test_a_liar_is_read_as_near_to_its_row_as_the_decoder_lets_any(name: str) -> None:
    codec, wanted = CODECS[name], 50 * vector(30)
    _, _, server = conversation(codec, [vector(seed) for seed in range(3)])
    payload = codec.forge(wanted, server, generator=draws(0))
    row, state, clipped = codec.decode(payload, server, wanted)
    assert not clipped
    if isinstance(codec, Clip21):
        reach = Clipping(tau=codec.tau, noise=codec.noise).radius(D)
        start = server["shift"]
        gap = float((wanted - start).norm())
        torch.testing.assert_close(row, start + (wanted - start) * (reach / gap))
        near = start + 0.9 * torch.nn.functional.normalize(wanted, dim=0)
        payload = codec.forge(near, server)
        torch.testing.assert_close(codec.decode(payload, server, near).row, near)
    elif isinstance(codec, EF21):
        assert float((row - wanted).norm()) < float((server["shift"] - wanted).norm())
    else:
        assert float((row - wanted).norm()) < 2 * float(wanted.norm())
    assert state.keys() == server.keys()


@every_dtype
@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
@every_codec
def test_a_liar_can_say_what_is_no_number(name: str, bad: str, dtype: torch.dtype) -> None:
    """Under noise too: it has nothing to hide."""
    codec, row = CODECS[name], vector(0, dtype=dtype)
    _, _, server = conversation(codec, [vector(s, dtype=dtype) for s in range(3)])
    row[4] = BAD[bad]
    payload = codec.forge(row, server, generator=draws(0))
    layout = codec.layout(D, dtype)
    found = codec.decode(layout.unpack(layout.pack(payload)), server, row)
    assert not bool(found.row.isfinite().all())


@pytest.mark.parametrize("size", [1e25, 3e38])
@every_codec
def test_a_huge_row_of_a_liar_is_huge_or_clipped_but_a_row(name: str, size: float) -> None:
    codec, row = CODECS[name], size * vector(0).sign()
    server = codec.expect(row)
    found = codec.decode(codec.forge(row, server, generator=draws(0)), server, row)
    assert bool(found.row.isfinite().all())
    if isinstance(codec, Clip21):
        longest = Clipping(tau=codec.tau, noise=codec.noise).radius(D)
        assert float(found.row.norm()) == pytest.approx(longest, rel=1e-5)
    else:
        assert float(found.row.abs().max()) == pytest.approx(size, rel=1e-5)


@pytest.mark.parametrize(
    "codec",
    [
        wrap(compressor=RandomK(share=0.3, unbiased=unbiased))
        for wrap, unbiased in (
            (Compressed, True),
            (Compressed, False),
            (EF21, False),
            (ErrorFeedback, False),
        )
    ],
    ids=repr,
)
def test_a_liar_chooses_the_places_that_others_draw(codec: Codec) -> None:
    wanted, start = vector(8), codec.expect(vector(0))
    for seed in range(3):
        payload = codec.forge(wanted, start, generator=draws(seed))
        found = codec.decode(payload, start, wanted).row
        assert np.array_equal(array(found), oracles.top_k(array(wanted), 7))


# --- noise ----------------------------------------------------------------------------------------


def test_noise_is_drawn_from_the_generator_after_the_clip() -> None:
    codec, row = Clip21(tau=2.0, noise=0.5), torch.full((40_000,), 3.0)
    state = codec.init(row)
    sent, after = codec.encode(row, state, generator=draws(1))
    again, _ = codec.encode(row, state, generator=draws(1))
    other, _ = codec.encode(row, state, generator=draws(2))
    assert torch.equal(sent["values"], again["values"])
    noise = sent["values"] - 2.0 * row / row.norm()
    assert float(noise.std()) == pytest.approx(0.5 * 2.0, rel=0.02)
    assert abs(float(noise.mean())) < 4 * 1.0 / 200
    assert float((sent["values"] - other["values"]).std()) == pytest.approx(2**0.5, rel=0.02)
    # The shift moves by what is sent.
    assert torch.equal(after["shift"], sent["values"])
    with pytest.raises(ValueError, match=r"^Clipping: generator is required"):
        codec.encode(row, state)


def test_noise_does_not_pile_up() -> None:
    """Each message takes out of the row the noise of the ones before, as far as it may."""
    codec, g = Clip21(tau=10.0, noise=0.01), vector(0, 400)
    read, _, _ = conversation(codec, [g] * 60)
    late = [float((row - g).norm()) for row in read[20:]]
    one = 0.01 * 10.0 * 20  # σ√d
    assert max(late) < 1.3 * one


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TopK(share=0), r"^TopK: share must be in \(0, 1\], found 0$"),
        (lambda: TopK(share=1.5), r"^TopK: share must be in \(0, 1\], found 1\.5$"),
        (lambda: RandomK(share=True), r"^RandomK: share must be in \(0, 1\], found True$"),
        (lambda: Clip21(tau=0), "^Clip21: tau must be a positive finite number, found 0$"),
        (lambda: Clip21(tau=1, noise=-1), "^Clip21: noise must be a finite number >= 0, found -1$"),
        (lambda: Clip21(tau=1, noise=math.inf), "noise must be a finite number >= 0, found inf$"),
        (
            lambda: EF21(compressor=RandomK(share=0.5, unbiased=True)),
            r"^EF21: compressor must be contractive, found RandomK\(share=0.5, unbiased=True\)$",
        ),
        (
            lambda: ErrorFeedback(compressor=Clipping(tau=1.0)),
            "^ErrorFeedback: compressor must be contractive, found Clipping",
        ),
        (
            lambda: Compressed(compressor=Sign),  # type: ignore[arg-type]
            "^Compressed: compressor must be an instance of Compressor, found <class",
        ),
    ],
)
def test_the_message_says_what_is_required(make: Callable[[], Codec], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_random_k_of_all_is_contractive() -> None:
    assert RandomK(share=1.0, unbiased=True).contraction(5) == 1
    assert EF21(compressor=RandomK(share=1.0, unbiased=True)).compressor.contraction(7) == 1
