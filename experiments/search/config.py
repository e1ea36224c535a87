"""What a search for the worst attack is about, checked before anything starts."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from experiments.annotations import mismatch
from experiments.config import ConfigError, RunConfig
from experiments.data import SplitName
from experiments.search.families import CHEAP, check
from experiments.sweeps.cells import run_config
from experiments.sweeps.config import NONE


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """What is searched, for which training; what both have has the meaning it has in a run."""

    defence: str = "NearestNeighborMixing + TrimmedMean"
    """An aggregator, Mixing(…) + Rule(…), or an online estimator; the declared f is filled in."""
    trials: int = 40
    """Attacks that are tried."""
    seeds: int = 2
    """Trainings of each; its accuracy is their mean."""
    fresh: int = 5
    """Seeds that took no part in the search, on which the worst attack is tried once more."""
    families: tuple[str, ...] = CHEAP
    """Attacks that are tried."""
    workers: int = 20
    """Logical workers."""
    byzantine: int = 4
    """How many of them are Byzantine."""
    f: int = 4
    """How many Byzantine workers the defence is declared to withstand."""
    local_estimator: str | None = "Momentum(beta=0.9)"
    """What every worker does to its gradients before it sends them; 'none' for nothing."""
    dataset: Literal["digits", "mnist"] = "digits"
    """digits comes with scikit-learn; mnist from ROBUST_AGG_DATA or a download."""
    partition: str = "Dirichlet(alpha=1.0)"
    """How the training data is divided."""
    model: str = "MLP(hidden=(64,))"
    """LogisticRegression, MLP(hidden=(…)) or SmallCNN(channels=(…))."""
    rounds: int = 100
    """Rounds of every training."""
    batch_size: int = 32
    """Samples a worker draws for a gradient."""
    lr: float = 1.0
    """The server's learning rate."""
    seed: int = 0
    """Of the search, and the first one of the trainings."""

    def __post_init__(self) -> None:
        wrong = mismatch(SearchConfig, vars(self))
        if wrong is not None:
            raise ConfigError(wrong)
        for name in ("trials", "seeds", "fresh"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be >= 1, found {getattr(self, name)}")
        if self.byzantine < 1:
            raise ConfigError(f"byzantine must be >= 1, found {self.byzantine}")
        check(self.families)
        self.run(NONE, self.seed)
        for name in self.families:
            self.run(name, self.seed)

    def run(self, attack: str, seed: int, split: SplitName = "test") -> RunConfig:
        """One training of the defence under an attack, or under none.

        Raises:
            ConfigError: a parameter is out of range, or names nothing.
        """
        names = ("workers", "f", "defence", "local_estimator", "dataset", "partition", "model")
        numbers = ("rounds", "batch_size", "lr")
        given = {name: getattr(self, name) for name in (*names, *numbers)}
        given |= {"byzantine": self.byzantine, "attack": attack, "seed": seed, "split": split}
        run = run_config(given)
        # As the command that repeats it says it.
        no = (NONE,)
        return replace(run, aggregator=run.aggregator or no, estimator=run.estimator or no)
