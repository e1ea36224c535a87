"""A run that was interrupted, saved and continued is the run that was not, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from server_training import Optimizer, Rule, constant, held, honest, perceptron, picture, serve
from torch import nn

import robust_agg as ra
from robust_agg import Ledger, Server
from robust_agg.checkpoint import load_checkpoint, save_checkpoint

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
}
RULES: dict[str, Callable[[], Rule]] = {
    "mean": ra.Mean,
    "nnm": lambda: ra.chain(ra.NearestNeighborMixing(f=1), ra.TrimmedMean(f=1)),
    "bucketing": lambda: ra.chain(ra.Bucketing(s=2), ra.GeometricMedian()),
    "vclip adaptive": ra.VClip,
    "vclip sequential": lambda: ra.VClip(fusion="sequential"),
    "vclip batch": lambda: ra.VClip(fusion="batch"),
    "cclip": ra.CClip,
    "clipped clustering": ra.ClippedClustering,
    "momentum": lambda: ra.Momentum(beta=0.9),
}
PAIRS = [
    *((optimizer, rule) for optimizer in ("momentum", "adam") for rule in RULES),
    ("sgd", "mean"),
    ("adamw", "vclip adaptive"),
    ("rmsprop", "vclip sequential"),
]
SEED = 6
BEFORE, AFTER = 3, 3


def fresh(
    rule: str, optimizer: str = "momentum", *, model: nn.Module | None = None, **options: Any
) -> Server:
    return serve(
        RULES[rule](),
        optimizer=OPTIMIZERS[optimizer],
        model=model,
        **{"f": 1, "seed": SEED, **options},
    )


def other_weights(dtype: torch.dtype = torch.float32) -> nn.Module:
    return perceptron(dtype, seed=99)


def rounds(server: Server, count: int, senders: int = 5) -> None:
    """Rounds with a bad row, a missing one and a skipped one among them."""
    for _ in range(count):
        updates = honest(server, range(senders))
        if senders > 1:
            updates = [*updates[:-1], *constant(server, {senders - 1: 3.0})]
        if server.round == 1:
            updates = []
        server.step(updates, senders=range(senders + 1))


def through_a_file(tree: Any, folder: Path) -> Any:
    save_checkpoint(folder / "checkpoint", tree)
    return load_checkpoint(folder / "checkpoint")


@pytest.mark.parametrize(("optimizer", "rule"), PAIRS)
def test_a_resumed_run_is_the_uninterrupted_one(optimizer: str, rule: str, tmp_path: Path) -> None:
    whole = fresh(rule, optimizer)
    rounds(whole, BEFORE + AFTER)
    first = fresh(rule, optimizer)
    rounds(first, BEFORE)
    tree = through_a_file(first.state_dict(), tmp_path)
    resumed = fresh(rule, optimizer, model=other_weights())
    resumed.load_state_dict(tree)
    assert resumed.round == BEFORE
    assert picture(resumed.state_dict()) == picture(first.state_dict())
    rounds(resumed, AFTER)
    assert held(resumed) == held(whole)
    # Neither the interrupted server nor what was loaded had a part in it.
    rounds(first, AFTER)
    assert held(first) == held(whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("rule", ["vclip adaptive", "cclip", "bucketing"])
def test_a_resumed_run_of_other_dtypes(rule: str, dtype: torch.dtype, tmp_path: Path) -> None:
    whole, first = (fresh(rule, model=perceptron(dtype)) for _ in range(2))
    rounds(whole, BEFORE + AFTER)
    rounds(first, BEFORE)
    resumed = fresh(rule, model=other_weights(dtype))
    resumed.load_state_dict(through_a_file(first.state_dict(), tmp_path))
    rounds(resumed, AFTER)
    assert held(resumed) == held(whole)


@pytest.mark.parametrize("rule", ["vclip adaptive", "cclip"])
def test_the_history_of_a_single_worker_s_distances_is_resumed(rule: str, tmp_path: Path) -> None:
    # With n = 1 the adaptive τ depends on the rounds before.
    whole, first, amnesiac = (fresh(rule, f=0) for _ in range(3))
    rounds(whole, BEFORE + AFTER, senders=1)
    rounds(first, BEFORE, senders=1)
    resumed = fresh(rule, f=0)
    resumed.load_state_dict(through_a_file(first.state_dict(), tmp_path))
    rounds(resumed, AFTER, senders=1)
    assert held(resumed) == held(whole)
    tree = load_checkpoint(tmp_path / "checkpoint")
    tree["estimator"]["distances"] = torch.full_like(tree["estimator"]["distances"], torch.nan)
    amnesiac.load_state_dict(tree)
    rounds(amnesiac, AFTER, senders=1)
    assert held(amnesiac) != held(whole)


def test_the_ledger_of_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    def timeless(ledger: Ledger) -> list[dict[str, Any]]:
        return [{k: v for k, v in line.items() if k != "seconds"} for line in ledger]

    whole = fresh("bucketing", ledger=Ledger(tmp_path / "whole"))
    rounds(whole, BEFORE + AFTER)
    first = fresh("bucketing", ledger=Ledger(tmp_path / "resumed"))
    rounds(first, BEFORE)
    tree = through_a_file(first.state_dict(), tmp_path)
    rounds(first, 2)  # done after the checkpoint, and done again
    ledger = Ledger(tmp_path / "resumed")
    resumed = fresh("bucketing", ledger=ledger)
    resumed.load_state_dict(tree)
    ledger.truncate(resumed.round)
    rounds(resumed, AFTER)
    assert len(timeless(ledger)) == BEFORE + AFTER
    assert timeless(ledger) == timeless(Ledger(tmp_path / "whole"))


_PART = """
import sys
import torch
torch.set_num_threads(2)
from test_server_resume import fresh, rounds
from robust_agg.checkpoint import load_checkpoint, save_checkpoint
path, rule, resume = sys.argv[1:]
server = fresh(rule, "adam")
if resume == "yes":
    server.load_state_dict(load_checkpoint(path))
rounds(server, 3)
save_checkpoint(path, server.state_dict())
"""


@pytest.mark.parametrize("rule", ["bucketing", "vclip sequential"])
def test_a_run_may_be_continued_by_another_process(rule: str, tmp_path: Path) -> None:
    tests = Path(__file__).parent
    for resume, hash_seed in (("no", "1"), ("yes", "2")):
        subprocess.run(
            [sys.executable, "-c", _PART, str(tmp_path / "checkpoint"), rule, resume],
            env={**os.environ, "PYTHONPATH": str(tests), "PYTHONHASHSEED": hash_seed},
            cwd=tests.parents[1],
            check=True,
        )
    whole = fresh(rule, "adam")
    rounds(whole, 6)
    assert picture(load_checkpoint(tmp_path / "checkpoint")) == picture(whole.state_dict())


def test_buffers_of_the_model_are_saved(tmp_path: Path) -> None:
    first = fresh("mean")
    first.model.train()(torch.randn(16, 3, generator=torch.Generator().manual_seed(0)))
    resumed = fresh("mean", model=other_weights())
    resumed.load_state_dict(through_a_file(first.state_dict(), tmp_path))
    found = dict(resumed.model.named_buffers())
    assert int(found["1.num_batches_tracked"]) == 1
    assert picture(found) == picture(dict(first.model.named_buffers()))


def test_a_restored_server_has_no_estimate_of_other_rounds(tmp_path: Path) -> None:
    first = fresh("mean")
    tree = through_a_file(first.state_dict(), tmp_path)
    rounds(first, 1)
    first.load_state_dict(tree)
    assert first.estimate is None
    assert first.round == 0


def checkpoint(rule: str = "vclip adaptive", optimizer: str = "momentum", **options: Any) -> Any:
    server = fresh(rule, optimizer, **options)
    rounds(server, 1)
    return server.state_dict()


class Renamed(ra.Mean):
    """A rule of another name, with as little state."""


WRONG: dict[str, tuple[Callable[[], Server], str]] = {
    "seed": (
        lambda: fresh("vclip adaptive", seed=SEED + 1),
        f"^Server: seed must be the checkpoint's {SEED}, found {SEED + 1}$",
    ),
    "another estimator": (
        lambda: fresh("cclip"),
        "^Server: rule must be the checkpoint's 'VClip', found 'CClip'$",
    ),
    "an aggregator": (
        lambda: fresh("mean"),
        "^Server: rule must be the checkpoint's 'VClip', found 'Mean'$",
    ),
    "other parameters": (
        lambda: serve(ra.VClip(tau=1.0), seed=SEED, optimizer=OPTIMIZERS["momentum"]),
        r"^Server: rule specification must be the checkpoint's \"VClip\(.*tau=None.*found "
        r"\"VClip\(.*tau=1, ",
    ),
    "another model": (
        lambda: fresh("vclip adaptive", model=nn.Linear(21, 1)),
        "^Server: the model must be the checkpoint's, which has",
    ),
    "another dtype": (
        lambda: fresh("vclip adaptive", model=perceptron(torch.float64)),
        "^Server: the .* must be the checkpoint's, which has",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_checkpoint_of_something_else_is_refused_and_changes_nothing(wrong: str) -> None:
    make, message = WRONG[wrong]
    tree = checkpoint()
    server = make()
    server.step(honest(server) if wrong != "another model" else constant(server, {0: 1.0}))
    before, number = held(server), server.round
    with pytest.raises(ValueError, match=message) as caught:
        server.load_state_dict(tree)
    assert "\n" not in str(caught.value)
    assert held(server) == before
    assert server.round == number


@pytest.mark.parametrize(
    ("saved", "found"),
    [(ra.Mean(), Renamed()), (ra.Krum(f=1), ra.MultiKrum(f=1)), (ra.VClip(), ra.Mean())],
    ids=["mean", "krum", "estimator"],
)
def test_a_rule_is_told_from_another_of_the_same_state(saved: Rule, found: Rule) -> None:
    tree = serve(saved, seed=SEED).state_dict()
    with pytest.raises(ValueError, match=f"'{saved.name}', found '{found.name}'"):
        serve(found, seed=SEED).load_state_dict(tree)


WITHOUT_SPECIFICATION: dict[str, tuple[Callable[[], Rule], str]] = {
    "a state without history": (lambda: ra.VClip(tau=1.0), "'distances'.*None$"),
    "a shorter history": (lambda: ra.VClip(tau=ra.Adaptive(window=7)), "'distances'"),
}


@pytest.mark.parametrize("wrong", WITHOUT_SPECIFICATION)
def test_a_state_of_another_kind_is_refused_even_where_the_parameters_are_unknown(
    wrong: str,
) -> None:
    make, message = WITHOUT_SPECIFICATION[wrong]
    tree = checkpoint()
    del tree["rule specification"]
    server = serve(make(), seed=SEED, optimizer=OPTIMIZERS["momentum"])
    before = held(server)
    start = "^Server: the estimator's state must be the checkpoint's, which has "
    with pytest.raises(ValueError, match=start + message):
        server.load_state_dict(tree)
    assert held(server) == before


@pytest.mark.parametrize("number", ["1", None, 1.0, True])
def test_a_checkpoint_whose_round_is_no_number_changes_nothing(number: Any) -> None:
    tree = {**checkpoint(), "round": number}
    server = fresh("vclip adaptive")
    before = held(server)
    with pytest.raises(ValueError, match=r"^Server: round must be an integer, found"):
        server.load_state_dict(tree)
    assert held(server) == before
    assert server.round == 0


def test_a_checkpoint_without_specification_is_continued() -> None:
    tree = checkpoint()
    del tree["rule specification"]
    server = fresh("vclip adaptive")
    server.load_state_dict(tree)
    assert server.round == 1


class Drifting(ra.Divergence):
    """One's own, no dataclass: its repr is an address, another one in every process."""

    def __init__(self, speed: float) -> None:
        self.speed = speed

    @property
    def invariances(self) -> frozenset[ra.Invariance]:
        return frozenset()

    def prox(self, row: torch.Tensor, m: torch.Tensor, tau: float) -> torch.Tensor:
        return m + self.speed * tau * (row - m)

    def subgradient(self, row: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        return self.speed * (m - row)


class Described(Drifting):
    def __repr__(self) -> str:
        return f"Described({self.speed})"


def own(divergence: ra.Divergence) -> Rule:
    return ra.OnlineMedian(divergence=divergence, tau=0.1)


def ball(value: float) -> Rule:
    return ra.CenteredClipping(start=torch.full((22,), value))


DIFFERENT: dict[str, tuple[Rule, Rule]] = {
    "f": (ra.Krum(f=1), ra.Krum(f=2)),
    "m": (ra.MultiKrum(f=1), ra.MultiKrum(f=1, m=2)),
    "tau": (ra.VClip(tau=0.1), ra.VClip(tau=1.0)),
    "rho": (ra.VClip(tau=ra.Adaptive(rho=0.1)), ra.VClip(tau=ra.Adaptive(rho=0.2))),
    "beta": (ra.Momentum(beta=0.9), ra.Momentum(beta=0.8)),
    "fusion": (ra.VClip(), ra.VClip(fusion="batch")),
    "delta": (own(ra.Huber(1.0)), own(ra.Huber(2.0))),
    "sizes": (own(ra.BlockL2((20, 2))), own(ra.BlockL2((2, 20)))),
    "divergence": (own(ra.L1()), own(ra.L2())),
    "start": (ball(1.0), ball(2.0)),
    "a mixing": (
        ra.chain(ra.Clip(threshold=1.0), ra.Mean()),
        ra.chain(ra.Clip(threshold=2.0), ra.Mean()),
    ),
    "the rule of a chain": (
        ra.chain(ra.Bucketing(s=2), ra.TrimmedMean(f=0)),
        ra.chain(ra.Bucketing(s=2), ra.TrimmedMean(f=1)),
    ),
    "one's own": (own(Described(0.5)), own(Described(0.7))),
}

EQUAL: dict[str, tuple[Rule, Rule]] = {
    "equal": (ra.Krum(f=1), ra.Krum(f=1)),
    "tau and beta": (ra.Momentum(tau=0.5), ra.Momentum(beta=0.5)),
    "an integer": (ra.VClip(tau=1), ra.VClip(tau=1.0)),
    "numpy's integers": (ra.Krum(f=np.int64(1)), ra.Krum(f=1)),
    "numpy's numbers": (ra.VClip(tau=np.float64(0.5)), ra.VClip(tau=0.5)),
    "a list of mixings": (
        ra.Chain(mixings=[ra.Bucketing(s=2)], rule=ra.Mean()),
        ra.chain(ra.Bucketing(s=2), ra.Mean()),
    ),
    "a start": (ball(1.0), ball(1.0)),
    "many sizes": (own(ra.BlockL2((1,) * 22)), own(ra.BlockL2([1] * 22))),
    "one's own": (own(Drifting(0.5)), own(Drifting(0.5))),
    "one's own, described": (own(Described(0.5)), own(Described(0.5))),
}


@pytest.mark.parametrize("what", DIFFERENT)
def test_a_rule_is_told_from_itself_with_other_parameters(what: str) -> None:
    saved, found = DIFFERENT[what]
    assert saved.name == found.name
    tree = serve(saved, seed=SEED).state_dict()
    with pytest.raises(ValueError, match=r"^Server: rule specification must be") as caught:
        serve(found, seed=SEED).load_state_dict(tree)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("what", EQUAL)
def test_a_rule_of_equal_parameters_continues(what: str, tmp_path: Path) -> None:
    saved, found = EQUAL[what]
    server = serve(saved, seed=SEED)
    rounds(server, 1)
    again = serve(found, seed=SEED)
    again.load_state_dict(through_a_file(server.state_dict(), tmp_path))
    assert again.round == 1


@pytest.mark.parametrize("tree", [{}, {"seed": SEED}, {"server": {}}], ids=str)
def test_a_tree_that_is_no_server_s_is_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^Server: \w+ must be the checkpoint's None"):
        fresh("mean").load_state_dict(tree)
