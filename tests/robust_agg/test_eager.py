"""Rules in a function that torch.compile works on: what is around them is traced, they are not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from rule_table import ESTIMATORS, RULES, D, Row, describe
from torch import Tensor
from torch._dynamo.testing import CompileCounter

import robust_agg as ra
from robust_agg.eager import eager


def drawn(n: int, seed: int) -> Tensor:
    return torch.randn(n, D, generator=torch.Generator().manual_seed(seed))


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(autouse=True)
def nothing_is_compiled_yet() -> None:
    torch._dynamo.reset()


@pytest.mark.parametrize("row", RULES, ids=str)
def test_a_compiled_function_calls_a_rule_as_it_is(row: Row) -> None:
    rule, counter = row.make(), CompileCounter()

    def around(rows: Tensor, draw: torch.Generator) -> Tensor:
        return rule(rows * 2, generator=draw) + 1

    compiled = torch.compile(around, backend=counter)
    for seed in range(12):  # more often than a function is compiled anew
        rows = drawn(11, seed)
        assert torch.equal(compiled(rows, generator()), around(rows, generator()))
    # What is before the rule, and what is after it.
    assert counter.frame_count == 2


@pytest.mark.parametrize("make", ESTIMATORS, ids=lambda make: describe(make))
def test_a_compiled_function_steps_an_estimator_as_it_is(
    make: Callable[[], ra.OnlineMedian],
) -> None:
    estimator = make()
    state = estimator.init(torch.zeros(D))

    def around(rows: Tensor, draw: torch.Generator) -> Tensor:
        return estimator.step(rows * 2, state, generator=draw)[0] + 1

    compiled = torch.compile(around, backend="eager")
    for seed in range(3):
        rows = drawn(5, seed)
        assert torch.equal(compiled(rows, generator()), around(rows, generator()))


def test_a_rule_that_is_compiled_itself_explains_itself() -> None:
    rule, rows = ra.GeometricMedian(), drawn(7, 0)
    assert torch.equal(torch.compile(rule, backend="eager")(rows), rule(rows))
    found = torch.compile(lambda rows: rule.explain(rows), backend="eager")(rows)
    assert torch.equal(found.output, rule(rows))
    weights = torch.compile(lambda rows: rule.weights(rows), backend="eager")(rows)
    assert torch.equal(weights, found.weights)


def test_a_method_keeps_its_name_its_result_and_its_error() -> None:
    @eager
    def inverse(x: float) -> float:
        """1/x."""
        return 1 / x

    assert (inverse.__name__, inverse.__doc__) == ("inverse", "1/x.")
    assert inverse(x=4) == 0.25
    with pytest.raises(ZeroDivisionError):
        inverse(0)
