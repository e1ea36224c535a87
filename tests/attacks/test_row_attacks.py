"""Every attack against its formula in numpy float64, and what all attacks have in common."""

from __future__ import annotations

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from attack_rounds import (
    ATTACKS,
    as_numpy,
    check,
    forge,
    open_view,
    random_rows,
    seeded,
    too_small,
)
from torch import Tensor

from attacks import (
    ALittleIsEnough,
    AntiClip,
    Attack,
    BitFlip,
    FangAttack,
    GaussianNoise,
    InnerProductManipulation,
    Knowledge,
    NonFinite,
    SignFlip,
    z_max,
)
from robust_agg import State
from robust_agg.checkpoint import load_checkpoint, save_checkpoint

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
# Byzantine and honest rows; the smallest rounds included.
SIZES = [(1, 1), (1, 2), (1, 6), (2, 1), (3, 5), (4, 4)]


def sized(k: int, h: int, dtype: torch.dtype, d: int = 5) -> tuple[Tensor, Tensor]:
    return random_rows(k, d, dtype, seed=1), random_rows(h, d, dtype, seed=2)


@pytest.mark.parametrize(("k", "h"), SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_sign_flip(k: int, h: int, dtype: torch.dtype, scale: float) -> None:
    own, honest = sized(k, h, dtype)
    check(forge(SignFlip(scale=scale), own, honest), -scale * as_numpy(own), own)
    mean = as_numpy(honest).sum(axis=0) / h
    found = forge(SignFlip(of="mean", scale=scale), own, honest)
    check(found, np.tile(-scale * mean, (k, 1)), own)


@pytest.mark.parametrize(("k", "h"), SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("epsilon", [0.1, 10.0])
def test_inner_product_manipulation(k: int, h: int, dtype: torch.dtype, epsilon: float) -> None:
    own, honest = sized(k, h, dtype)
    mean = as_numpy(honest).sum(axis=0) / h
    found = forge(InnerProductManipulation(epsilon=epsilon), own, honest)
    check(found, np.tile(-epsilon * mean, (k, 1)), own)


def test_inner_product_manipulation_reverses_a_mean_beyond_h_over_k() -> None:
    own, honest = sized(3, 6, torch.float64)
    direction = honest.mean(dim=0)
    for epsilon, sign in [(1.9, 1.0), (2.1, -1.0)]:
        forged = forge(InnerProductManipulation(epsilon=epsilon), own, honest)
        aggregate = torch.cat([honest, forged]).mean(dim=0)
        assert torch.sign(aggregate @ direction).item() == sign


@pytest.mark.parametrize(("k", "h"), SIZES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("ddof", [0, 1])
@pytest.mark.parametrize("of", ["honest", "own"])
def test_a_little_is_enough(k, h, dtype, sign, ddof, of) -> None:
    own, honest = sized(k, h, dtype)
    attack = ALittleIsEnough(z=1.25, sign=sign, ddof=ddof, of=of)
    base = as_numpy(honest if of == "honest" else own)
    if len(base) < 2:
        with pytest.raises(
            ValueError, match=rf"at least 2 {of} rows are required, .*found 1 of n={k + h}"
        ):
            forge(attack, own, honest)
        return
    mean = base.sum(axis=0) / len(base)
    std = np.sqrt(((base - mean) ** 2).sum(axis=0) / (len(base) - ddof))
    check(forge(attack, own, honest), np.tile(mean + sign * 1.25 * std, (k, 1)), own)


def test_a_little_is_enough_takes_z_from_the_round() -> None:
    own, honest = sized(4, 7, torch.float64)
    explicit = ALittleIsEnough(z=z_max(11, 4))
    assert torch.equal(forge(ALittleIsEnough(), own, honest), forge(explicit, own, honest))


def test_a_little_is_enough_keeps_a_small_shift_in_a_narrow_dtype() -> None:
    # The mean 1 + 2^-8 and the deviation 2^-8 sum to 1 + 3.5 * 2^-8, next to 1 + 4 * 2^-8; a mean
    # rounded to bfloat16 first, to 1, would give 1 + 2 * 2^-8.
    honest = torch.tensor([[1.0], [1.0 + 2**-7]], dtype=torch.bfloat16)
    row = forge(ALittleIsEnough(z=2.5, sign=1), honest[:1], honest)
    assert row.item() == 1.0 + 2**-6


def exact_share(n: int, k: int) -> Fraction:
    supporters = math.floor(Fraction(n, 2) + 1) - k
    return Fraction(n - k - supporters, n - k)


@pytest.mark.parametrize("n", range(1, 41))
def test_z_max_inverts_the_normal_distribution_or_says_why_not(n: int) -> None:
    for k in range(n + 1):
        usable = 1 <= k <= n / 2 and exact_share(n, k) > Fraction(1, 2)
        if usable:
            z = z_max(n, k)
            assert z > 0
            share = 0.5 * (1 + math.erf(z / math.sqrt(2)))
            assert share == pytest.approx(float(exact_share(n, k)), abs=1e-12)
        else:
            with pytest.raises(ValueError, match=rf"^ALittleIsEnough: .*n={n}, k={k}; give z$"):
                z_max(n, k)


def test_z_max_of_the_published_examples() -> None:
    # 24 of 50 need 2 supporters among 26 honest rows: 24/26; 5 of 25 need 8 among 20: 12/20.
    assert z_max(50, 24) == pytest.approx(1.4260768722728)
    assert z_max(25, 5) == pytest.approx(0.2533471031358)


def test_a_little_is_enough_without_z_in_a_round_too_small_for_it() -> None:
    own, honest = sized(2, 8, torch.float64)
    with pytest.raises(ValueError, match=r"k > 2 Byzantine rows of an even n, .* n=10, k=2;"):
        forge(ALittleIsEnough(), own, honest)
    own, honest = sized(6, 5, torch.float64)
    with pytest.raises(ValueError, match=r"1 <= k <= n/2 Byzantine rows, found n=11, k=6; give z"):
        forge(ALittleIsEnough(), own, honest)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gaussian_noise_is_the_generator_s_normal_draw(k: int, dtype: torch.dtype) -> None:
    own, honest = sized(k, 4, dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    drawn = as_numpy(torch.randn(k, 5, dtype=wide, generator=seeded(3)))
    pure = forge(GaussianNoise(scale=2.0, mean=-1.0), own, honest, seed=3)
    check(pure, -1.0 + 2.0 * drawn, own)
    added = forge(GaussianNoise(scale=2.0, mean=-1.0, around="own"), own, honest, seed=3)
    check(added, as_numpy(own) - 1.0 + 2.0 * drawn, own)


def test_gaussian_noise_has_the_mean_and_the_deviation_asked_for() -> None:
    own, honest = sized(4, 2, torch.float32, d=25_000)
    rows = as_numpy(forge(GaussianNoise(mean=3.0), own, honest))
    # Five standard errors of the mean and of the deviation of 10^5 draws with sigma = 200.
    assert rows.mean() == pytest.approx(3.0, abs=5 * 200 / 1e5**0.5)
    assert rows.std() == pytest.approx(200.0, abs=5 * 200 / 2e5**0.5)
    correlation = np.corrcoef(rows)[~np.eye(4, dtype=bool)]
    assert np.abs(correlation).max() < 5 / 25_000**0.5


def test_gaussian_noise_differs_between_seeds() -> None:
    own, honest = sized(2, 4, torch.float32)
    first, second = (forge(GaussianNoise(), own, honest, seed=s) for s in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
def test_non_finite(k: int, dtype: torch.dtype) -> None:
    own, honest = random_rows(k, 7, dtype), random_rows(4, 7, dtype)
    rows = {kind: forge(NonFinite(kind=kind), own, honest) for kind in ("nan", "inf", "-inf")}
    assert rows["nan"].isnan().all()
    assert (rows["inf"] == math.inf).all()
    assert (rows["-inf"] == -math.inf).all()
    for found in rows.values():
        assert found.shape == (k, 7)
        assert found.dtype == dtype


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
def test_huge_is_finite_and_alternates(dtype: torch.dtype) -> None:
    rows = forge(NonFinite(kind="huge"), random_rows(2, 7, dtype), random_rows(3, 7, dtype))
    assert rows.dtype == dtype
    assert rows.isfinite().all()
    expected = 65504.0 if dtype == torch.float16 else 3e38
    np.testing.assert_allclose(np.abs(as_numpy(rows)), expected, rtol=4e-3)
    assert torch.equal(rows[0].sign(), -rows[1].sign())
    assert rows[0].sign().tolist() == [1, -1, 1, -1, 1, -1, 1]
    if dtype != torch.float64:
        assert rows.square().isinf().all()
        assert (rows + rows).isinf().all()


def test_mixed_holds_every_kind_in_turn() -> None:
    rows = forge(NonFinite(kind="mixed"), random_rows(2, 6), random_rows(3, 6))
    cycle = [math.nan, math.inf, -math.inf, 3e38, -3e38]
    expected = [[cycle[(i + j) % 5] for j in range(6)] for i in range(2)]
    np.testing.assert_array_equal(as_numpy(rows), np.array(expected))


@pytest.mark.parametrize(("k", "h"), [(2, 2), (3, 6)])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_every_attack_is_pure(attack: Attack, dtype: torch.dtype, k: int, h: int) -> None:
    own, honest = sized(k, h, dtype)
    if too_small(attack, k, h):
        with pytest.raises(ValueError, match=rf"^{type(attack).__name__}: .*found .*n={k + h}"):
            forge(attack, own, honest)
        return
    kept = own.clone(), honest.clone()
    parameters = repr(attack)
    state = {**attack.init(own[0])}
    answers = []
    # The second round as well, for what remembers; and both twice.
    for _ in range(2):
        first, later = attack(open_view(attack, own, honest), state, seeded(5))
        before = {name: tensor.clone() for name, tensor in later.items()}
        second, last = attack(open_view(attack, own, honest, round=8), later, seeded(6))
        assert_same(later, before)
        answers.append((first, second, last))
    for rows in (*answers[0][:2], *answers[1][:2]):
        assert rows.shape == (k, 5)
        assert rows.dtype == dtype
    for one, other in zip(answers[0][:2], answers[1][:2], strict=True):
        assert torch.equal(one.nan_to_num(9.0), other.nan_to_num(9.0))
    assert_same(answers[0][2], answers[1][2])
    assert torch.equal(own, kept[0])
    assert torch.equal(honest, kept[1])
    assert_same(state, attack.init(own[0]))
    assert repr(attack) == parameters


def assert_same(one: State, other: State) -> None:
    assert list(one) == list(other)
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_the_state_of_an_attack_can_be_saved_and_loaded(attack: Attack, tmp_path: Path) -> None:
    """As a run does that is interrupted: the rounds after it are the same."""
    own, honest = sized(2, 5, torch.float32)
    _, state = attack(open_view(attack, own, honest), attack.init(own[0]), seeded(5))
    save_checkpoint(tmp_path / "attack", {"attack": dict(state)})
    loaded = load_checkpoint(tmp_path / "attack")["attack"]
    rows = [
        attack(open_view(attack, own, honest, round=8), memory, seeded(6))[0]
        for memory in (state, loaded)
    ]
    assert torch.equal(rows[0].nan_to_num(9.0), rows[1].nan_to_num(9.0))


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_an_attack_does_not_touch_the_global_generator(attack: Attack) -> None:
    own, honest = sized(2, 5, torch.float32)
    before = torch.get_rng_state()
    forge(attack, own, honest)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_an_attack_makes_its_rows_where_the_others_are(attack: Attack) -> None:
    """And draws on the CPU, whatever torch's default device is."""
    own, honest = sized(2, 5, torch.float32)
    expected = forge(attack, own, honest)
    with torch.device("meta"):
        rows, _ = attack(
            open_view(attack, own, honest),
            attack.init(own[0]),
            torch.Generator("cpu").manual_seed(0),
        )
    assert rows.device == own.device
    assert torch.equal(rows.nan_to_num(9.0), expected.nan_to_num(9.0))


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_rows_that_are_all_zero(attack: Attack) -> None:
    """As gradients of what is not in use: a direction of length 0 is no reason for NaN."""
    own, honest = torch.zeros(2, 4), torch.zeros(5, 4)
    rows = forge(attack, own, honest)
    if not isinstance(attack, NonFinite | BitFlip):
        assert rows.isfinite().all()


def test_what_each_attack_knows() -> None:
    assert SignFlip().knows == Knowledge.OWN
    assert SignFlip(of="mean").knows == Knowledge.HONEST
    assert InnerProductManipulation.knows == Knowledge.HONEST
    assert ALittleIsEnough().knows == Knowledge.HONEST
    assert ALittleIsEnough(of="own").knows == Knowledge.OWN
    assert GaussianNoise().knows == Knowledge.NOTHING
    assert GaussianNoise(around="own").knows == Knowledge.OWN
    assert NonFinite.knows == Knowledge.NOTHING
    assert FangAttack().knows == Knowledge.HONEST
    assert FangAttack(of="own").knows == Knowledge.OWN
    assert AntiClip().knows == Knowledge.HONEST | Knowledge.ESTIMATE
    assert AntiClip(direction="fixed").knows == Knowledge.HONEST | Knowledge.ESTIMATE
    assert AntiClip(direction="fixed", radius=1.0).knows == Knowledge.ESTIMATE


@pytest.mark.parametrize(
    ("attack", "parameters", "message"),
    [
        (SignFlip, {"of": "other"}, "SignFlip: of must be 'own' or 'mean', found 'other'"),
        (SignFlip, {"scale": 0.0}, "SignFlip: scale must be .*, found 0.0"),
        (SignFlip, {"scale": math.inf}, "SignFlip: scale must be .*, found inf"),
        (InnerProductManipulation, {"epsilon": -1.0}, "epsilon must be .*, found -1.0"),
        (InnerProductManipulation, {"epsilon": math.nan}, "epsilon must be .*, found nan"),
        (ALittleIsEnough, {"z": -0.5}, "ALittleIsEnough: z must be .*, found -0.5"),
        (ALittleIsEnough, {"sign": 2}, "ALittleIsEnough: sign must be -1 or 1, found 2"),
        (ALittleIsEnough, {"ddof": 2}, "ALittleIsEnough: ddof must be 0 or 1, found 2"),
        (ALittleIsEnough, {"of": "all"}, "ALittleIsEnough: of must be .*, found 'all'"),
        (GaussianNoise, {"scale": -1.0}, "GaussianNoise: scale must be .*, found -1.0"),
        (GaussianNoise, {"mean": math.nan}, "GaussianNoise: mean must be finite, found nan"),
        (GaussianNoise, {"around": "mean"}, "GaussianNoise: around must be .*, found 'mean'"),
        (NonFinite, {"kind": "none"}, "NonFinite: kind must be one of .*, found 'none'"),
    ],
)
def test_bad_parameters(attack, parameters, message) -> None:
    with pytest.raises(ValueError, match=message):
        attack(**parameters)
