"""The search for the worst attack: what it draws, how it goes on, and what it says at the end."""

from __future__ import annotations

import shlex
from dataclasses import replace
from math import log10
from pathlib import Path
from statistics import fmean

import optuna
import pytest

from experiments import cli, specs
from experiments.config import ConfigError
from experiments.data import SplitName
from experiments.robustness.training import train
from experiments.search.attack_search import AttackSearch
from experiments.search.config import SearchConfig
from experiments.search.families import CHEAP, FAMILIES, choose
from experiments.search.trials import Trials, Tried
from experiments.studies.carry_out import carry_out
from experiments.studies.study import Row
from experiments.sweeps.cells import command
from experiments.sweeps.config import NONE


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_drawn_can_be_built_and_differs(family: str) -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = [choose(study.ask(), [family]) for _ in range(30)]
    for text in drawn:
        assert type(specs.parse_attack(text, num_classes=10)).__name__ == family
    settings = len(FAMILIES[family].ranges) or len(FAMILIES[family].choices)
    assert (len(set(drawn)) > 1) == bool(settings)


def made_up(attack: str) -> float:
    """Lowest for an inner product of ε = 10^0.5, which no family's default is near."""
    name, _, rest = attack.partition("(epsilon=")
    return abs(log10(float(rest[:-1])) - 0.5) if name == "InnerProductManipulation" else 2.0


FEW = ("SignFlip", "InnerProductManipulation", "Mimic")


def test_the_first_trials_are_one_of_each_and_the_later_ones_learn(tmp_path: Path) -> None:
    trials = Trials(tmp_path, FEW, seed=1)
    found = [trials.next(made_up) for _ in range(40)]
    assert [each.attack.partition("(")[0] for each in found[:3]] == [*FEW]
    assert min(each.accuracy for each in found) < 0.1
    later = [each for each in found[20:] if each.attack.startswith("InnerProduct")]
    assert len(later) > 10  # of 20: a third by chance


def test_an_interrupted_search_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    def asked_only(attack: str) -> float:
        raise KeyboardInterrupt

    (tmp_path / "whole").mkdir()
    (tmp_path / "parts").mkdir()
    whole = Trials(tmp_path / "whole", FEW, seed=3)
    expected = [whole.next(made_up) for _ in range(16)]
    found: list[Tried] = []
    interrupted = 0
    while len(found) < 16:
        if len(found) % 3 == 1:
            try:  # an attack that was tried before needs no training
                found.append(Trials(tmp_path / "parts", FEW, seed=3).next(asked_only))
            except KeyboardInterrupt:
                interrupted += 1
        trials = Trials(tmp_path / "parts", FEW, seed=3)
        assert trials.done == found
        found.append(trials.next(made_up))
    assert interrupted > 2
    assert found[:16] == expected


def test_a_trial_that_was_queued_and_not_asked_for_is_not_the_next_one_s(tmp_path: Path) -> None:
    """A process that dies between the two leaves it behind."""
    trials = Trials(tmp_path, FEW, seed=1)
    trials._study.enqueue_trial({"family": "Mimic"})
    found = Trials(tmp_path, FEW, seed=1).next(made_up)
    assert found.attack.startswith("SignFlip")


def test_an_attack_is_not_trained_twice(tmp_path: Path) -> None:
    asked: list[str] = []

    def counted(attack: str) -> float:
        asked.append(attack)
        return 0.5

    trials = Trials(tmp_path, ("Mimic", "Zero"), seed=0)
    for _ in range(6):
        trials.next(counted)
    assert sorted(asked) == ["Mimic", "Zero"]
    assert len(trials.done) == 6


CONFIG = SearchConfig(
    trials=4, seeds=2, fresh=2, rounds=4, families=("SignFlip", "Zero"), lr=0.5, seed=7
)


def searched(config: SearchConfig, folder: Path) -> list[str]:
    """The pieces that were done, not kept."""
    done: list[str] = []

    def on_piece(name: str, place: int, count: int, kept: bool) -> None:
        if not kept:
            done.append(name)
        return lambda share: None  # type: ignore[return-value]  # a tick that nobody looks at

    study = AttackSearch(config=config)
    carry_out(study, folder, command="again", where="here", on_piece=on_piece)  # type: ignore[arg-type]  # as above
    return done


def test_the_worst_is_tried_again_on_fresh_seeds_and_the_test_set(tmp_path: Path) -> None:
    study = AttackSearch(config=CONFIG)
    rows: list[Row] = []
    for piece in study.pieces(tmp_path).values():
        rows += piece(lambda share: None)
    trials = [row for row in rows if row["part"] == "trial"]
    assert [row["trial"] for row in trials] == [0, 1, 2, 3]
    worst = min(trials, key=lambda row: row["accuracy"])
    fresh = [(row["attack"], row["seed"]) for row in rows if row["part"] == "fresh"]
    assert fresh == [(NONE, 9), (NONE, 10), (worst["attack"], 9), (worst["attack"], 10)]

    def accuracy(attack: str, seed: int, split: SplitName) -> float:
        return train(CONFIG.run(attack, seed, split), lambda share: None).accuracy

    assert worst["accuracy"] == fmean(
        accuracy(worst["attack"], seed, "validation") for seed in (7, 8)
    )
    last = rows[-1]
    assert last["accuracy"] == accuracy(worst["attack"], 10, "test")
    tables = study.tables(rows)
    assert tables["The worst of each family"][1][0] == worst["attack"]
    assert tables["On fresh seeds"][2][0] == worst["attack"]
    lost = fmean(row["accuracy"] * (1 if row["attack"] == NONE else -1) for row in rows[-4:]) * 2
    assert tables["On fresh seeds"][3][:2] == ("lost, by seed", f"{lost:.1%}")
    assert any(command(CONFIG.run(worst["attack"], 7)) in note for note in study.notes(rows))


def test_a_search_is_kept_piece_by_piece(tmp_path: Path) -> None:
    smoke = AttackSearch.preset("smoke").config
    assert searched(smoke, tmp_path)[0] == "no attack"
    assert searched(smoke, tmp_path) == ["figures and page"]
    with pytest.raises(ConfigError, match=r"another study, found config.trials=3 instead of 4;"):
        searched(replace(smoke, trials=4), tmp_path)
    (tmp_path / "pieces" / "trial 2.json").unlink()  # died after it was told, before it was kept
    assert searched(smoke, tmp_path) == ["trial 2", "figures and page"]
    assert (tmp_path / "search.png").stat().st_size > 1000


def test_the_command_is_the_run() -> None:
    run = CONFIG.run("SignFlip(scale=3.0, of='mean')", 7)
    _, bound, _ = cli.app.parse_args(shlex.split(command(run))[3:])
    assert bound.arguments["config"] == run


def test_attackers_differ_from_seed_to_seed() -> None:
    assert CONFIG.run("Zero", 0).identities == "run"
    assert CONFIG.run(NONE, 0).byzantine == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"trials": 0}, "trials must be >= 1, found 0"),
        ({"byzantine": 0}, "byzantine must be >= 1, found 0"),
        ({"families": ()}, "families: at least one is required"),
        ({"families": ("Zero", "Zero")}, "families must be different, found Zero, Zero"),
        ({"families": ("SignFlp",)}, "unknown family 'SignFlp', did you mean 'SignFlip'"),
        ({"defence": "TrimedMean"}, "defence: unknown name 'TrimedMean', did you mean"),
        ({"f": 10}, "2f \\+ 1 <= 20"),
        ({"rounds": "many"}, "rounds must be int, found 'many'"),
    ],
)
def test_what_cannot_be_is_said_at_once(wrong: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        SearchConfig(**wrong)  # type: ignore[arg-type]  # it is what is refused


def test_cheap_families_do_not_ask_the_defence() -> None:
    assert set(FAMILIES) - set(CHEAP) == {"OptimalIPM", "OptimalALIE"}
