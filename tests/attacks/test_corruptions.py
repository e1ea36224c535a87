"""Attacks without malice on a worker's own row: zeros, scaling, flipped bits."""

from __future__ import annotations

import math

import pytest
import torch
from attack_rounds import as_numpy, check, forge, random_rows, seeded

from attacks import BitFlip, Knowledge, Scale, Zero
from attacks.bit_flip import flipped
from attacks.chance import happens

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
WORDS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zero(k: int, dtype: torch.dtype) -> None:
    own = random_rows(k, 5, dtype)
    rows = forge(Zero(), own, own)
    assert torch.equal(rows, torch.zeros(k, 5, dtype=dtype))
    assert Zero.knows == Knowledge.NOTHING


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("factor", [10.0, -0.5, 0.0])
@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
def test_scale(k: int, factor: float, dtype: torch.dtype) -> None:
    own = random_rows(k, 5, dtype)
    check(forge(Scale(factor=factor), own, own), factor * as_numpy(own), own)


def changed(before: torch.Tensor, after: torch.Tensor) -> list[list[int]]:
    """The bits that differ, of each number; counted in Python's own integers."""
    width = 8 * before.itemsize
    words = (tensor.view(WORDS[before.itemsize]).flatten().tolist() for tensor in (before, after))
    return [
        [bit for bit in range(width) if (a ^ b) >> bit & 1] for a, b in zip(*words, strict=True)
    ]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_bit_flips_of_each_number_that_is_hit(dtype: torch.dtype) -> None:
    own = random_rows(2, 5000, dtype)
    kept = own.clone()
    bits = changed(own, forge(BitFlip(probability=0.1), own, own))
    assert torch.equal(own, kept)
    hit = [each for each in bits if each]
    assert all(len(each) == 1 for each in hit)
    assert 850 < len(hit) < 1150
    width = 8 * dtype.itemsize
    counts = [sum(each == [bit] for each in hit) for bit in range(width)]
    # Six standard deviations of a count of mean 1000/width.
    assert all(abs(count - 1000 / width) < 6 * math.sqrt(1000 / width) for count in counts)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_the_chosen_bits_flip(dtype: torch.dtype) -> None:
    own = random_rows(2, 400, dtype)
    top = 8 * dtype.itemsize - 1
    for chosen in ((top,), (0, top - 1), (3,)):
        bits = changed(own, forge(BitFlip(probability=1.0, bits=chosen), own, own))
        assert {each[0] for each in bits} == set(chosen)
        assert all(len(each) == 1 for each in bits)
    sign = forge(BitFlip(probability=1.0, bits=(top,)), own, own)
    assert torch.equal(sign, -own)


def test_the_top_of_the_exponent_makes_a_small_number_huge() -> None:
    own = torch.full((1, 50), 1e-4)
    rows = forge(BitFlip(probability=1.0, bits=(30,)), own, own)
    assert float(rows.min()) > 1e33
    assert torch.equal(forge(BitFlip(probability=1.0, bits=(30,)), own * 0, own), own * 0 + 2)


def test_flips_follow_the_generator() -> None:
    numbers = random_rows(3, 100, torch.float32)
    one, other = (flipped(numbers, 0.3, seeded(seed)) for seed in (1, 2))
    assert not torch.equal(one, other)
    assert torch.equal(one.view(torch.int32), flipped(numbers, 0.3, seeded(1)).view(torch.int32))


def test_rows_that_do_not_lie_in_one_piece() -> None:
    numbers = random_rows(6, 6, torch.float32)
    columns = numbers.T.contiguous().T
    expected = flipped(numbers, 0.5, seeded()).view(torch.int32)
    assert torch.equal(flipped(columns, 0.5, seeded()).view(torch.int32), expected)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"probability": 0.0}, r"BitFlip: probability must be in \(0, 1\], found 0.0"),
        ({"probability": math.nan}, r"BitFlip: probability must be in \(0, 1\], found nan"),
        ({"bits": ()}, r"BitFlip: bits must be one or more of 0 ... 63, found \(\)"),
        ({"bits": (64,)}, r"BitFlip: bits must be one or more of 0 ... 63, found \(64,\)"),
        ({"bits": (-1,)}, r"BitFlip: bits must be one or more of 0 ... 63, found \(-1,\)"),
    ],
)
def test_bad_parameters_of_bit_flips(parameters, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^{message}$"):
        BitFlip(**parameters)


def test_a_bit_that_the_rows_do_not_have() -> None:
    own = random_rows(1, 3, torch.float16)
    with pytest.raises(ValueError, match=r"^BitFlip: bits must be below 16 .*float16, found \(30,"):
        forge(BitFlip(bits=(30,)), own, own)


@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_a_factor_that_is_not_finite(factor: float) -> None:
    with pytest.raises(ValueError, match=r"^Scale: factor must be finite, found (inf|nan)$"):
        Scale(factor=factor)


def test_what_is_rarer_than_one_in_2_to_the_24_is_so() -> None:
    """Of 2²⁷ numbers float32's own draws would be 0, and hit, 8 times on average."""
    zeros = torch.zeros(2**24, dtype=torch.float16)
    draw = seeded(0)

    def changes(numbers: torch.Tensor) -> int:
        return int(numbers.view(torch.int16).count_nonzero())

    hits = sum(changes(flipped(zeros, 2.0**-40, draw)) for _ in range(8))
    assert hits == 0
    often = 2.0**-20  # 16 on average; six standard deviations either way
    hits = changes(flipped(zeros, often, draw))
    assert 0 < hits < 40


def test_things_happen_as_often_as_they_should() -> None:
    for probability in (1e-3, 0.25, 1.0):
        found = happens(probability, (1000, 1000), seeded(1))
        spread = math.sqrt(1e6 * probability * (1 - probability))
        assert abs(int(found.sum()) - 1e6 * probability) <= 5 * spread
    assert happens(0.5, (), seeded(0)).shape == ()
