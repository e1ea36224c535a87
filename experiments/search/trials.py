"""The trials of a search, in a file that outlives the process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import optuna
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from experiments.search.families import choose
from robust_agg.seeding import derive

FILE = "trials.log"
_ATTACK = "attack"
_STARTUP = 10
# Trials that are drawn at random before the others' values count.


class Tried(NamedTuple):
    """An attack, and the accuracy that it left."""

    attack: str
    accuracy: float


class Trials:
    """A search by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011).

    The first trials are one of each family. What is drawn next depends on the seed and on what was
    found before, so that a search that was interrupted goes on as if it had not been.

    Args:
        folder: where the file is, or will be.
        families: which attacks are tried.
        seed: of all draws.
    """

    def __init__(self, folder: Path, families: Sequence[str], seed: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._families, self._seed = families, seed
        self._study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(str(folder / FILE))),
            study_name="attack search",
            direction="minimize",
            load_if_exists=True,
        )
        # Of a process that has died: in the middle of a trial, or before it asked for one.
        while self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            self._study.ask()
        for trial in self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self._study.tell(trial.number, state=TrialState.FAIL)

    def __getitem__(self, place: int) -> Tried | None:
        """What was found in a trial; None if it was not done."""
        done = self.done
        return done[place] if place < len(done) else None

    @property
    def done(self) -> list[Tried]:
        """What was found, in order."""
        trials = self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return [Tried(trial.user_attrs[_ATTACK], _value(trial)) for trial in trials]

    def next(self, accuracy: Callable[[str], float]) -> Tried:
        """Do one more trial with a function that says what accuracy an attack leaves.

        An attack that was tried before has the accuracy it had then.
        """
        done = self.done
        place = len(done)
        self._study.sampler = TPESampler(
            seed=derive(self._seed, "trial", place) % 2**32,
            n_startup_trials=max(_STARTUP, len(self._families)),
            multivariate=False,  # a parameter is there only in the trials of its family
            constant_liar=False,
        )
        if place < len(self._families):
            self._study.enqueue_trial({"family": self._families[place]})
        trial = self._study.ask()
        attack = choose(trial, self._families)
        trial.set_user_attr(_ATTACK, attack)
        known = {tried.attack: tried.accuracy for tried in done}
        found = known[attack] if attack in known else accuracy(attack)
        self._study.tell(trial, found)
        return Tried(attack, found)


def _value(trial: FrozenTrial) -> float:
    assert trial.value is not None, "a trial that is complete has a value"
    return trial.value
