"""How coordinates are dealt out, what ranks compare, and what holds where all columns are here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from robust_agg import kernels
from robust_agg.distributed.asked import asked_for, check_usable, layout_of
from robust_agg.distributed.layout import Layout
from robust_agg.distributed.slices import Slices
from robust_agg.distributed.words import around_difference, as_bytes, as_text
from robust_agg.shards import WHOLE, evenly_spaced, randomly_drawn

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@given(d=st.integers(1, 5000), n=st.integers(1, 300))
def test_slices_are_the_vector_in_order(d: int, n: int) -> None:
    slices = Slices(d, n)
    vector = list(range(d))
    assert [i for rank in range(n) for i in vector[slices.of(rank)]] == vector
    assert slices.sizes == [len(vector[slices.of(rank)]) for rank in range(n)]
    # Buffers of the longest slice, side by side, are the vector with its padding at the end.
    assert all(size == slices.width for size in slices.sizes[: d // slices.width])
    assert sum(slices.sizes[d // slices.width + 1 :]) == 0


@given(d=st.integers(1, 10**10), n=st.integers(1, 20_000))
def test_no_slice_is_longer_than_it_need_be(d: int, n: int) -> None:
    width = Slices(d, n).width
    assert -(-d // n) <= width < -(-d // n) + 16
    if d >= 16 * n * n:
        assert width % 16 == 0
        assert all(size > 0 for size in (Slices(d, n).size(0), Slices(d, n).size(n - 1)))


SHAPES = st.lists(st.integers(0, 3), max_size=3).map(tuple)


def ramp(shapes: list[tuple[int, ...]], dtypes: list[torch.dtype]) -> list[Tensor]:
    tensors, start = [], 0
    for shape, dtype in zip(shapes, dtypes, strict=True):
        count = torch.Size(shape).numel()
        tensors.append(torch.arange(start, start + count).to(dtype).view(shape))
        start += count
    return tensors


@given(st.lists(st.tuples(SHAPES, st.sampled_from(DTYPES)), min_size=1, max_size=6))
def test_tensors_come_back_from_their_vectors(given: list[tuple[tuple[int, ...], torch.dtype]]):
    tensors = ramp([shape for shape, _ in given], [dtype for _, dtype in given])
    layout = Layout.of(tensors)
    vectors = layout.flatten(tensors)
    assert [v.dtype for v in vectors] == list(layout.kinds)
    assert [len(v) for v in vectors] == list(layout.lengths)
    assert layout.d == sum(t.numel() for t in tensors)
    assert all(torch.promote_types(layout.dtype, kind) == layout.dtype for kind in layout.kinds)
    for tensor, back in zip(tensors, layout.unflatten(vectors), strict=True):
        assert back.dtype == tensor.dtype
        assert back.shape == tensor.shape
        assert torch.equal(back, tensor)


def test_a_dense_tensor_is_its_own_vector() -> None:
    tensor = torch.ones(3, 4)
    (vector,) = Layout.of([tensor]).flatten([tensor])
    assert vector.data_ptr() == tensor.data_ptr()


BASE = [torch.zeros(2, 3), torch.zeros(4, dtype=torch.float64)]


@pytest.mark.parametrize(
    "other",
    [
        [torch.zeros(3, 2), torch.zeros(4, dtype=torch.float64)],
        [torch.zeros(2, 3), torch.zeros(4)],
        [torch.zeros(2, 3, dtype=torch.float64), torch.zeros(4)],
        [torch.zeros(4, dtype=torch.float64), torch.zeros(2, 3)],
        [torch.zeros(2, 3), torch.zeros(2, dtype=torch.float64), torch.zeros(2).double()],
        [*BASE, torch.zeros(0)],
        [torch.zeros(2, 3)],
        [],
        [torch.zeros(2, 3), torch.zeros(4, dtype=torch.int64)],
        [torch.zeros(2, 3), None],
    ],
    ids=lambda tensors: "; ".join(
        f"{t.dtype} {tuple(t.shape)}" if t is not None else "None" for t in tensors
    ),
)
def test_words_tell_apart_what_cannot_go_together(other: list[Tensor]) -> None:
    mine, theirs = (asked_for(given, step=3, rule="Mean()") for given in (BASE, other))
    assert mine != theirs


def test_words_are_of_step_and_rule_and_not_of_numbers() -> None:
    mine = asked_for(BASE, step=3, rule="Mean()")
    assert mine == asked_for([t + 1 for t in BASE], step=3, rule="Mean()")
    assert mine != asked_for(BASE, step=4, rule="Mean()")
    assert mine != asked_for(BASE, step=3, rule="Krum(f=1, m=1)")
    assert mine == (
        "step 3 of Mean() with 10 numbers in 2 tensors: "
        "torch.float32 of shape (2, 3), torch.float64 of shape (4,)"
    )
    one = asked_for([torch.zeros(2, 3)], step=0, rule="Mean()")
    assert one == "step 0 of Mean() with torch.float32 of shape (2, 3)"


@given(st.text(max_size=300))
def test_texts_of_any_length_travel_as_equally_many_bytes(text: str) -> None:
    raw = as_bytes(text)
    assert raw.shape == as_bytes("").shape
    assert as_text(raw) == text.rstrip("\0")


def test_of_long_texts_an_error_shows_where_they_differ() -> None:
    assert around_difference("a", "b") == ["a", "b"]
    same = 500 * "s"
    first, other = around_difference(same + "one" + same, same + "other")
    assert first[0] == other[0] == "…"
    assert "sone" in first
    assert first.endswith("s…")
    assert other.endswith("sother")
    assert len(first) <= 302


@pytest.mark.parametrize(
    "given",
    [
        [],
        [torch.zeros(0)],
        [torch.zeros(0), torch.zeros(3, 0)],
        [torch.zeros(3, dtype=torch.int64)],
        [torch.zeros(3), torch.zeros(3, dtype=torch.bool)],
        [torch.zeros(3, dtype=torch.complex64)],
        [torch.zeros(3).to(torch.float8_e4m3fn)],
        [torch.eye(3).to_sparse()],
        [torch.zeros(3), None],
        [3.0],
        ["tensor"],
    ],
    ids=lambda given: str(len(given)),
)
def test_what_is_no_row_is_refused(given: list[object]) -> None:
    assert layout_of(given) is None
    with pytest.raises(ValueError, match=r"^me: tensor must be .*, found .") as caught:
        check_usable("me", given, device=torch.device("cpu"))
    assert "\n" not in str(caught.value)


@given(d=st.integers(1, 10**9), count=st.integers(2, 1000))
def test_evenly_spaced_places_go_from_end_to_end(d: int, count: int) -> None:
    places = evenly_spaced(d, count)
    assert len(places) == count
    assert (int(places[0]), int(places[-1])) == (0, d - 1)
    gaps = places.diff()
    assert int(gaps.min()) >= 0
    assert int(gaps.max()) - int(gaps.min()) <= 1


def test_where_all_columns_are_here_sums_are_what_was_measured() -> None:
    rows, point = torch.randn(4, 9), torch.randn(9)
    assert WHOLE.sum(rows) is rows
    assert WHOLE.largest(3.0) == 3.0
    assert WHOLE.join(rows) is rows
    assert WHOLE.columns(9) == 9
    assert torch.equal(WHOLE.distances(rows, point), kernels.row_distances(rows, point))
    assert WHOLE.spread(9, 9) == slice(None)
    chosen = WHOLE.spread(9, 5)
    assert isinstance(chosen, Tensor)
    assert chosen.tolist() == [0, 2, 4, 6, 8]
    assert WHOLE.drawn(9, 9, torch.Generator()) == slice(None)
    drawn = WHOLE.drawn(9, 5, torch.Generator().manual_seed(3))
    assert isinstance(drawn, Tensor)
    assert drawn.tolist() == randomly_drawn(9, 5, torch.Generator().manual_seed(3)).tolist()
