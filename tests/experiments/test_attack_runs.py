"""Every attack and fault in a run: from its name to the ledger, interrupted or not."""

from __future__ import annotations

import inspect
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from run_samples import TINY, CtrlC, outcome, quiet, tiny

import attacks
from attacks import Attack, DataAttack, Fault, Identities
from experiments import assembly, report, runs
from experiments.config import ConfigError, RunConfig
from experiments.data import load
from experiments.metrics import Metrics
from experiments.run_folder import Run, Training, create, reopen
from experiments.simulation import LEDGER
from experiments.stopping import InterruptedRun
from robust_agg import Ledger

EVERY = [
    name
    for name in attacks.__all__
    if inspect.isclass(kind := getattr(attacks, name))
    and issubclass(kind, Attack | DataAttack | Fault)
    and not inspect.isabstract(kind)
]
VARIANTS = [
    "SignFlip(of='mean', scale=2.0)",
    "ALittleIsEnough(of='own', sign=1, z=1.0, ddof=1)",
    "OptimalALIE(sign=1, ddof=1, largest=10.0)",
    "MinMax(perturbation='unit')",
    "MinSum(perturbation='sign')",
    "FangAttack(against='krum')",
    "FangAttack(of='own')",
    "Mimic(target=0)",
    "AntiClip(norm='linf', direction='fixed', radius=0.1)",
    "BitFlip(probability=0.5, bits=(30,))",
    "Replay(every=2)",
    "LabelFlip(mapping={0: 1})",
    "Crash(round=2)",
    "Stale(age=2)",
]


def done(**changes: Any) -> tuple[Run, dict[Training, list[Metrics]]]:
    out = changes.pop("out")
    run = create(tiny(**{"rounds": 4, "evaluate_every": 2, **changes}), out)
    return run, runs.execute(run, quiet())


def lines(run: Run, defence: str, *, attacked: bool = True) -> list[dict[str, Any]]:
    return list(Ledger(run.path(Training(defence, attacked)) / LEDGER))


@pytest.mark.parametrize("attack", [*EVERY, *VARIANTS])
def test_every_attack_can_be_run(attack: str, tmp_path: Path) -> None:
    """Against a rule in weight space, and one that remembers."""
    rounds = {"rounds": 3, "evaluate_every": 3}
    run, results = done(attack=attack, aggregator=("GeometricMedian",), **rounds, out=tmp_path)
    for defence in ("GeometricMedian", "VClip"):
        ledger = lines(run, defence)
        assert [line["round"] for line in ledger] == [0, 1, 2]
        assert all(line["skipped"] is None for line in ledger)
        honest, attacked = (results[Training(defence, bad)] for bad in (False, True))
        assert honest[0].error != attacked[0].error or attack.startswith(("Crash", "Duplicate"))
        aims = attack.startswith("Backdoor")
        assert all((m.success is not None) == aims for m in (*honest, *attacked))


def test_the_table_has_them_all() -> None:
    assert len(EVERY) >= 26
    assert {"OptimalIPM", "Mimic", "Backdoor", "Crash", "DropCoordinates"} <= set(EVERY)


# --- the ledger of faults -------------------------------------------------------------------------


def test_crashed_workers_are_missing_and_the_ledger_says_why(tmp_path: Path) -> None:
    run, results = done(attack="Crash(round=1)", out=tmp_path)
    first, *later = lines(run, "VClip")
    assert first["senders"] == [*range(7)]
    assert first["rejected"] == []
    for line in later:
        assert line["senders"] == [*range(5)]
        assert [entry["reason"] for entry in line["rejected"]] == [
            f"lost: worker {i} crashed in round 1" for i in (5, 6)
        ]
    assert [m.missing for m in results[Training("VClip", True)]] == [2, 6]
    assert results[Training("VClip", False)][-1].missing == 0


def test_stale_and_duplicate_messages_are_in_the_ledger(tmp_path: Path) -> None:
    run, _ = done(attack="Stale(age=2)", out=tmp_path / "stale")
    said = [[entry["reason"] for entry in line["rejected"]] for line in lines(run, "VClip")]
    assert said == [
        ["missing: no message arrived"] * 2,
        ["missing: no message arrived"] * 2,
        ["stale: round 0, expected 2"] * 2,
        ["stale: round 1, expected 3"] * 2,
    ]
    run, results = done(attack="Duplicate(copies=3)", out=tmp_path / "duplicate")
    for line in lines(run, "VClip"):
        assert line["senders"] == [*range(7)]
        assert [entry["sender"] for entry in line["rejected"]] == [5, 5, 6, 6]
    # Copies change nothing.
    honest, attacked = (results[Training("VClip", bad)][-1] for bad in (False, True))
    assert honest.accuracy == attacked.accuracy
    assert honest.loss == attacked.loss


def test_too_many_crashes_end_the_training_and_not_the_run(tmp_path: Path) -> None:
    run, results = done(attack="Crash(round=2)", byzantine=3, f=2, out=tmp_path)
    assert [line["skipped"] is None for line in lines(run, "VClip")] == [True, True, False, False]
    assert results[Training("VClip", True)][-1].skipped == 2


# --- who is Byzantine -----------------------------------------------------------------------------


@pytest.mark.parametrize("identities", ["last", "run", "round"])
def test_who_is_byzantine_follows_the_configuration(identities: str, tmp_path: Path) -> None:
    run, _ = done(
        attack="NonFinite",
        identities=identities,
        aggregator=("GeometricMedian",),
        rounds=6,
        seed=5,
        out=tmp_path,
    )
    who = Identities(workers=7, count=2, choice=identities, seed=5)  # type: ignore[arg-type]
    found = []
    for line in lines(run, "GeometricMedian"):
        bad = {entry["sender"] for entry in line["rejected"]}
        assert bad == who.at(line["round"])
        weights = dict(zip(line["senders"], line["weights"], strict=True))
        assert {i for i, weight in weights.items() if weight == 0} == bad
        found.append(frozenset(bad))
    assert (len(set(found)) > 1) == (identities == "round")
    assert (set(found) == {frozenset({5, 6})}) == (identities == "last")
    assert all(line["rejected"] == [] for line in lines(run, "GeometricMedian", attacked=False))


def test_the_weight_of_the_byzantine_rows_is_of_those_of_the_round(tmp_path: Path) -> None:
    run, results = done(
        attack="SignFlip", identities="round", rounds=6, evaluate_every=1, out=tmp_path
    )
    who = Identities(workers=7, count=2, choice="round")
    ledger = lines(run, "VClip")
    for metrics, line in zip(results[Training("VClip", True)], ledger, strict=True):
        weights = dict(zip(line["senders"], line["weights"], strict=True))
        share = sum(weights[i] for i in who.at(line["round"])) / sum(weights.values())
        assert metrics.byzantine_weight == pytest.approx(share, rel=1e-9)


def test_bad_data_is_drawn_for_the_run() -> None:
    """The drawn workers compute on other labels, and nobody else does."""
    config = tiny(attack="LabelFlip", identities="run", seed=3, local_estimator="none")
    data = load(config.dataset)
    weights = torch.nn.utils.parameters_to_vector(
        assembly.ModelFactory.of(config, data)().parameters()
    )
    rows = []
    for attacked in (True, False):
        with assembly.transport(config, data, attacked=attacked) as workers:
            rows.append({u.sender: u.row for u in workers.collect(0, weights).updates})
    changed = {i for i in range(7) if not torch.equal(rows[0][i], rows[1][i])}
    assert changed == Identities(workers=7, count=2, choice="run", seed=3).at(0)
    assert changed != {5, 6}


def test_bad_data_cannot_change_hands_every_round() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^identities must be 'last' or 'run' for an attack on data, .* and LabelFlip$",
    ):
        tiny(attack="LabelFlip", identities="round")
    with pytest.raises(
        ConfigError, match=r"^identities must be one of 'last', 'run', 'round', fou"
    ):
        tiny(identities="first")


# --- a backdoor's success -------------------------------------------------------------------------


def test_a_backdoor_succeeds_against_the_mean_and_is_reported(tmp_path: Path) -> None:
    config: dict[str, Any] = {
        "attack": "Backdoor(target=3, share=0.5, size=2)",
        "aggregator": ("Mean",),
        "estimator": ("none",),
        "byzantine": 3,
        "f": 2,
        "rounds": 120,
        "evaluate_every": 60,
        "batch_size": 32,
    }
    run, results = done(**config, out=tmp_path)
    honest, attacked = (results[Training("Mean", bad)][-1] for bad in (False, True))
    assert honest.success is not None
    assert attacked.success is not None
    assert honest.success < 0.2
    assert attacked.success > 0.8
    assert attacked.accuracy > 0.8
    cells = {(cell.defence, cell.attacked): found for cell, found in results.items()}
    shown = report.table(run.config, cells, samples=300)
    assert [column.header for column in shown.columns][4] == "success"
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(shown)
    text = console.export_text()
    assert f"{attacked.success:.1%} ({honest.success:.1%})" in text
    assert "success: share of the attacker's test samples labelled as it wants" in text
    report.write_summary(tmp_path / "summary.json", run.config, cells, "made up", samples=300)
    summary = json.loads((tmp_path / "summary.json").read_text())["defences"]["Mean"]
    assert summary["success"] == honest.success
    assert summary["success_under_attack"] == attacked.success


def test_images_that_are_smaller_than_the_mark(tmp_path: Path) -> None:
    run = create(tiny(attack="Backdoor(size=9)"), tmp_path)
    with pytest.raises(
        ConfigError, match=r"^attack: Backdoor: inputs must be images .* least 9, f"
    ):
        runs.execute(run, quiet())


# --- rounds that are too small for an attack ------------------------------------------------------


@pytest.mark.parametrize("codec", [None, "EF21(compressor=TopK(share=0.5))"])
@pytest.mark.parametrize(
    ("attack", "byzantine", "fits"),
    [
        ("ALittleIsEnough", 3, {3}),  # Byzantine rows among 6, for which it has a positive z
        ("FangAttack(against='krum')", 2, {1}),
    ],
)
def test_a_round_too_small_for_the_attack_is_honest_and_ends_no_run(
    attack: str, byzantine: int, fits: set[int], codec: str | None, tmp_path: Path
) -> None:
    small = {"workers": 8, "sample": 6, "rounds": 12, "evaluate_every": 3}
    run, results = done(attack=attack, byzantine=byzantine, codec=codec, **small, out=tmp_path)
    attacked, honest = (lines(run, "VClip", attacked=bad) for bad in (True, False))
    spared, before = 0, True
    for number, line in enumerate(attacked, start=1):
        assert line["skipped"] is None
        assert len(line["senders"]) == 6
        bad = sum(sender >= 8 - byzantine for sender in line["senders"])
        spared += bad > 0 and bad not in fits
        before &= bad not in fits
        if before and codec is None:
            same = [{**each, "seconds": None} for each in (line, honest[number - 1])]
            assert same[0] == same[1]
        if number % 3 == 0:
            assert results[Training("VClip", True)][number // 3 - 1].spared == spared
    assert 0 < spared < 12
    cells = {(cell.defence, cell.attacked): found for cell, found in results.items()}
    caption = str(report.table(run.config, cells, samples=300).caption)
    assert f"spared by it, of 12: VClip attacked {spared}" in caption


def test_an_attack_that_no_round_is_fit_for_fails_before_there_is_a_run() -> None:
    for attack, found in (
        ("ALittleIsEnough", "z_max > 0 needs k > 2 Byzantine rows of an even n, .* n=6, k=2; give"),
        ("FangAttack(against='krum')", "needs n >= 2k \\+ 3 rows, found n=6, k=2"),
    ):
        with pytest.raises(ConfigError, match=f"^attack: {attack.partition('(')[0]}: .*{found}"):
            tiny(attack=attack, workers=6)
        assert tiny(attack=attack, workers=6, byzantine=0).byzantine == 0


def test_an_attack_of_one_s_own_that_fails_to_say_what_fits_is_said(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "from attacks import Attack\n\n"
        "class Mine(Attack):\n"
        "    def check(self, byzantine, honest):\n"
        "        return 1 / 0\n\n"
        "    def __call__(self, view, state, generator):\n"
        "        return view.own, state\n"
    )
    with pytest.raises(ConfigError, match=r"^attack: ZeroDivisionError: division by zero$"):
        tiny(attack=f"{path}:Mine")


# --- interruption ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "attack",
    [
        "Mimic(warmup=8)",
        "FangAttack(against='krum')",
        "Replay(every=5)",
        "Drift",
        "ROP",
        "AntiClip(direction='fixed')",
        "OptimalIPM",
        "Stale(age=2)",
        "Straggle",
    ],
)
def test_interrupted_and_resumed_equals_undisturbed(attack: str, tmp_path: Path) -> None:
    changes = {"rounds": 10, "aggregator": ("TrimmedMean",), "estimator": ("none",), "sample": 6}
    config = RunConfig(**{**TINY, **changes, "attack": attack, "identities": "round"})
    undisturbed = create(config, tmp_path / "undisturbed")
    runs.execute(undisturbed, quiet())
    folder = create(config, tmp_path / "interrupted").folder
    # In the second training, the one under attack.
    for rounds in (10 + 4, 3):
        with pytest.raises(InterruptedRun):
            runs.execute(reopen(folder), CtrlC(rounds))
    runs.execute(reopen(folder), quiet())
    assert outcome(folder) == outcome(undisturbed.folder)
