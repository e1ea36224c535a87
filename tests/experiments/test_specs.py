"""Specifications: the objects that texts name, and that any other text is a ValueError."""

from __future__ import annotations

import contextlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from run_samples import OWN_ATTACK

import attacks
import robust_agg
from attacks import Attack, DataAttack, GaussianNoise, InnerProductManipulation, LabelFlip, SignFlip
from experiments.models import MLP, LogisticRegression, SmallCNN
from experiments.partitions import IID, Dirichlet, GammaSimilarity, LabelShards
from experiments.specs import (
    SpecError,
    own_modules,
    parse_attack,
    parse_defence,
    parse_estimator,
    parse_model,
    parse_partition,
)
from robust_agg import (
    L1,
    Adaptive,
    Aggregator,
    BetaTrimmedMean,
    Bucketing,
    CClip,
    CenteredClipping,
    Chain,
    ClippedClustering,
    ConstraintError,
    CoordinateWiseMedian,
    DivideAndConquer,
    Estimator,
    FLTrust,
    GeometricMedian,
    Huber,
    Krum,
    Mean,
    Momentum,
    MultiKrum,
    NearestNeighborMixing,
    OnlineMedian,
    TrimmedMean,
    VClip,
    chain,
)

DEFENCES: dict[str, Aggregator | Estimator] = {
    "Mean": Mean(),
    " Mean() ": Mean(),
    "Krum": Krum(f=3),
    "Krum(f=1)": Krum(f=1),
    "MultiKrum(m=2)": MultiKrum(f=3, m=2),
    "GeometricMedian(tolerance=1e-3)": GeometricMedian(tolerance=1e-3),
    "GeometricMedian(max_iterations=7,)": GeometricMedian(max_iterations=7),
    "NearestNeighborMixing + TrimmedMean": chain(NearestNeighborMixing(f=3), TrimmedMean(f=3)),
    "Bucketing(s=2)+NearestNeighborMixing(f=2)+Mean": chain(
        Bucketing(s=2), NearestNeighborMixing(f=2), Mean()
    ),
    "BetaTrimmedMean(beta=0.2)": BetaTrimmedMean(beta=0.2),
    "CoordinateWiseMedian(even='lower')": CoordinateWiseMedian(even="lower"),
    "DivideAndConquer(iterations=3)": DivideAndConquer(f=3, iterations=3),
    "ClippedClustering(window=50)": ClippedClustering(window=50),
    "VClip": VClip(),
    "VClip(tau=1)": VClip(tau=1),
    "VClip(tau=0.1, fusion='batch')": VClip(tau=0.1, fusion="batch"),
    "VClip(tau=Adaptive)": VClip(tau=Adaptive()),
    "CClip(tau=Adaptive(rho=0.5, quantile=0.4), iterations=2)": CClip(
        tau=Adaptive(rho=0.5, quantile=0.4), iterations=2
    ),
    "OnlineMedian(divergence=Huber(delta=2.0), tau=0.5)": OnlineMedian(
        divergence=Huber(delta=2.0), tau=0.5
    ),
    "OnlineMedian(divergence=L1)": OnlineMedian(divergence=L1()),
}


@pytest.mark.parametrize("text", DEFENCES)
def test_a_defence(text: str) -> None:
    found = parse_defence(text, f=3)
    assert found == DEFENCES[text]
    assert type(found) is type(DEFENCES[text])


def test_f_is_the_declared_one_only_where_it_is_left_open() -> None:
    assert parse_defence("TrimmedMean", f=2) == TrimmedMean(f=2)
    assert parse_defence("TrimmedMean(f=0)", f=2) == TrimmedMean(f=0)
    assert parse_defence("NearestNeighborMixing(f=1) + Krum", f=2) == chain(
        NearestNeighborMixing(f=1), Krum(f=2)
    )


def concrete(module: ModuleType, *kinds: type) -> list[type]:
    exported = [getattr(module, name) for name in module.__all__]
    return [
        value
        for value in exported
        if isinstance(value, type) and issubclass(value, kinds) and not inspect.isabstract(value)
    ]


# A Chain is written with '+', and FLTrust needs a tensor.
RULES = [r for r in concrete(robust_agg, Aggregator, Estimator) if r not in (Chain, FLTrust)]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_and_estimator_of_the_library_has_a_name(rule: type) -> None:
    needs = {Momentum: "beta=0.9", CenteredClipping: "radius=1.0", BetaTrimmedMean: "beta=0.2"}
    assert type(parse_defence(f"{rule.__name__}({needs.get(rule, '')})", f=1)) is rule


def test_an_estimator() -> None:
    assert parse_estimator("Momentum(beta=0.9)") == Momentum(beta=0.9)
    for text in ("Mean", "VClip + VClip", "Adaptive", "L1"):
        with pytest.raises(SpecError, match=r"an estimator|one of"):
            parse_estimator(text)


def test_an_attack() -> None:
    assert parse_attack("SignFlip", num_classes=10) == SignFlip()
    assert parse_attack("GaussianNoise(scale=2)", num_classes=10) == GaussianNoise(scale=2)
    assert parse_attack("InnerProductManipulation(epsilon=0.5)", num_classes=10) == (
        InnerProductManipulation(epsilon=0.5)
    )
    assert parse_attack("LabelFlip", num_classes=7) == LabelFlip(num_classes=7)
    assert parse_attack("LabelFlip(num_classes=3)", num_classes=7) == LabelFlip(num_classes=3)
    assert parse_attack("LabelFlip(mapping={5: 7, 1: 2})", num_classes=10) == LabelFlip(
        num_classes=10, mapping={5: 7, 1: 2}
    )


@pytest.mark.parametrize("attack", concrete(attacks, Attack, DataAttack))
def test_every_attack_of_the_library_has_a_name(attack: type) -> None:
    assert type(parse_attack(attack.__name__, num_classes=10)) is attack


def test_what_is_no_attack() -> None:
    for name in ("Attack", "DataAttack"):
        with pytest.raises(SpecError, match=f"abstract class {name}"):
            parse_attack(name, num_classes=10)
    for name in ("Adversary", "View", "z_max", "Mean"):
        with pytest.raises(
            SpecError, match=f"unknown name '{name}', known are ROP, ALittleIsEnough"
        ):
            parse_attack(name, num_classes=10)


def test_a_partition_and_a_model() -> None:
    assert parse_partition("IID") == IID()
    assert parse_partition("Dirichlet(alpha=0.5)") == Dirichlet(alpha=0.5)
    assert parse_partition("LabelShards(shards_per_worker=3)") == LabelShards(shards_per_worker=3)
    assert parse_partition("GammaSimilarity(gamma=0.3)") == GammaSimilarity(gamma=0.3)
    assert parse_model("LogisticRegression") == LogisticRegression()
    assert parse_model("MLP(hidden=(10, 5))") == MLP(hidden=(10, 5))
    assert parse_model("SmallCNN(channels=(4,))") == SmallCNN(channels=(4,))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Meen", "unknown name 'Meen', did you mean 'Mean'?"),
        ("mean", "unknown name 'mean', did you mean 'Mean'?"),
        ("TrimedMean(f=1)", "unknown name 'TrimedMean', did you mean 'TrimmedMean'?"),
        ("Krum(F=1)", "Krum has no parameter 'F', did you mean 'f'?"),
        ("MultiKrum(k=1)", "MultiKrum has no parameter 'k', known are f, m"),
        ("Krum(**{'f': 1})", "every parameter must be given by name, once"),
        ("Krum(f=1, f=2)", "every parameter must be given by name, once"),
        ("Krum(*(1,))", "every value must be a literal, found '*(1,)'"),
        ("Krum(f=1 + 1)", "every value must be a literal, found '1 + 1'"),
        ("Krum(f=[i for i in (1,)])", "every value must be a literal, found '[i for i in (1,)]'"),
        ("Krum(f={[]: 1})", "every value must be a literal, found '{[]: 1}'"),
        ("Krum(f=f'{1}')", "every value must be a literal"),
        ("Krum(f=open('x'))", "unknown name 'open'"),
        ("Krum(f=True)", "Krum: f must be int, found True"),
        ("Krum(f=1.0)", "Krum: f must be int, found 1.0"),
        ("VClip(tau='1')", "VClip: tau must be float | Adaptive | None, found '1'"),
        ("VClip(tau=Mean)", "VClip: tau must be float | Adaptive | None, found Mean()"),
        ("VClip(fusion='all')", "VClip: fusion must be one of 'sequential', 'averaged', 'batch', "),
        ("OnlineMedian(divergence=3)", "OnlineMedian: divergence must be Divergence, found 3"),
        ("Chain(mixings=(1,), rule=Mean)", "Chain: mixings must be Sequence[Mixing], found (1,)"),
        ("FLTrust", "FLTrust: reference is a tensor, which no text can give, found 'FLTrust'"),
        ("FLTrust(reference=[1.0])", "FLTrust: reference is a tensor, which no text can give"),
        ("CoordinateWiseMedian(even='upper')", "even must be one of 'midpoint', 'lower', found"),
        ("Mean(1)", "takes 1 positional argument but 2 were given"),
        ("Bucketing", "Bucketing"),
        ("NearestNeighborMixing", "a defence is required, found NearestNeighborMixing"),
        ("Adaptive", "a defence is required, found Adaptive"),
        ("Mean + Mean", "a mixing before '+' is required, found Mean"),
        ("NearestNeighborMixing + VClip", "an aggregator is required, found VClip"),
        ("Mean - Mean", "Name(parameter=value, …) is required"),
        ("robust_agg.Mean", "Name(parameter=value, …) is required"),
        ("Mean()()", "Name(parameter=value, …) is required"),
        ("Mean; Krum", "Name(parameter=value, …) is required, found: invalid syntax"),
        ("Mean\x00", "Name(parameter=value, …) is required, found: source code string cannot"),
        ("", "'': Name(parameter=value, …) is required"),
        ("Mean" * 251, "at most 1000 characters are allowed, found 1004"),
        ("Krum(f=" + "-" * 900 + "1)", ""),
        ("Krum(f=" + "(" * 400 + "1" + ")" * 400 + ")", "too many nested parentheses"),
        ("Krum(f=" + "[" * 400 + "]" * 400 + ")", ""),
    ],
    ids=lambda text: text[:40],
)
def test_a_wrong_defence(text: str, message: str) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011 - the message is compared below
        parse_defence(text, f=1)
    assert message in str(raised.value)


def test_what_a_class_says_of_its_parameters_is_left_as_it_is() -> None:
    with pytest.raises(
        ValueError, match=r"^VClip: tau must be a positive finite number, found -1$"
    ):
        parse_defence("VClip(tau=-1)", f=1)
    rule = parse_defence("Krum", f=1)
    assert isinstance(rule, Aggregator)
    with pytest.raises(ConstraintError, match=r"^Krum: n >= 2f \+ 3 is required, found n=4, f=1$"):
        rule.check(4)


@pytest.mark.parametrize("parse", [parse_partition, parse_model, parse_estimator])
def test_what_is_no_partition_model_or_estimator(parse: Callable[[str], object]) -> None:
    for text in ("Krum(f=1)", "Partition", "Model", "Path", "dataclass", "a.b", "1", "IID + MLP"):
        with pytest.raises(SpecError):
            parse(text)


WORDS = st.sampled_from(
    [
        *("Mean", "Krum", "VClip", "Bucketing", "Adaptive", "SignFlip", "LabelFlip", "MLP", "IID"),
        *("f", "s", "tau", "m", "mapping", "hidden", "alpha", "fusion", "iterations", "rule"),
        *(
            "(",
            ")",
            "=",
            ",",
            "+",
            "-",
            "*",
            "**",
            ".",
            "[",
            "]",
            "{",
            "}",
            ":",
            " ",
            "\n",
            "lambda",
        ),
        *("0", "1", "2", "1e400", "9" * 30, "'a'", "b'a'", "None", "True", "...", "1j", "mine.py:"),
    ]
)


@settings(max_examples=400)
@given(st.one_of(st.text(max_size=40), st.lists(WORDS, max_size=12).map("".join)))
def test_any_text_is_an_object_or_a_value_error(text: str) -> None:
    for parse in (
        lambda: parse_defence(text, f=1),
        lambda: parse_estimator(text),
        lambda: parse_attack(text, num_classes=10),
        lambda: parse_partition(text),
        lambda: parse_model(text),
    ):
        with contextlib.suppress(ValueError):
            assert parse() is not None


def test_an_attack_of_ones_own_is_one_small_class(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    # Text of its own: a file that was read before, wherever it was, is not read again.
    path.write_text(f"{OWN_ATTACK}# {tmp_path}\n")
    attack = parse_attack(f"{path}:Drift(step=0.75)", num_classes=10)
    assert isinstance(attack, Attack)
    assert vars(attack) == {"step": 0.75}
    assert vars(parse_attack(f"{path}:Drift", num_classes=10)) == {"step": 0.5}
    (module,) = own_modules(attack)
    assert module.__file__ == str(path)
    assert own_modules(SignFlip()) == []


def test_ones_own_file_may_have_any_name_and_use_the_librarys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch_before, names_before = sys.modules["torch"], sys.modules.get("my own")
    for name in ("torch.py", "my own.py"):
        Path(name).write_text(
            "from __future__ import annotations\n"
            "from dataclasses import dataclass\n"
            "from attacks import Attack, DataAttack\n\n\n"
            "@dataclass(frozen=True)\n"
            "class SignFlip(Attack):\n"
            "    of: Attack\n"
            "    def __call__(self, view, state, generator):\n"
            "        return self.of(view, state, generator)\n"
        )
        attack = parse_attack(f"{name}:SignFlip(of=GaussianNoise(scale=2.0))", num_classes=10)
        assert not isinstance(attack, SignFlip)
        assert isinstance(attack, Attack)
        assert vars(attack) == {"of": GaussianNoise(scale=2.0)}
        with pytest.raises(SpecError, match=r"SignFlip: of must be Attack, found 1"):
            parse_attack(f"{name}:SignFlip(of=1)", num_classes=10)
    assert sys.modules["torch"] is torch_before is torch
    assert sys.modules.get("my own") is names_before


def test_ones_own_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(OWN_ATTACK)
    assert vars(parse_attack(f"{path}:Drift", num_classes=10)) == {"step": 0.5}
    path.write_text(OWN_ATTACK.replace("float = 0.5", "float = 0.125"))
    assert vars(parse_attack(f"{path}:Drift", num_classes=10)) == {"step": 0.125}
