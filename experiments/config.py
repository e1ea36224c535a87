"""What a run is: every choice in one frozen dataclass, checked before anything starts."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch

from attacks import Attack, DataAttack, Fault, UnfitRoundError, check_some_round
from experiments import specs
from experiments.annotations import mismatch
from experiments.data import SplitName
from experiments.specs import AnyAttack
from robust_agg import Aggregator, Estimator
from robust_agg.codecs import Codec
from robust_agg.declared import check_declared


class ConfigError(ValueError):
    """A run that cannot be; one line with the parameter, the constraint and the value found."""


class UnfitDefenceError(ConfigError):
    """There is no such defence, or it is not declared for so many Byzantine rows among so many."""


class UnfitAttackError(ConfigError):
    """No round of the run is one in which the attack can be made."""


def check_device(name: str, *, here: bool = True) -> None:
    """Raise :class:`ConfigError` for what is no device, or, if ``here``, not there."""
    form = re.fullmatch(r"auto|cpu|cuda(?::(\d{1,4}))?", name)
    if form is None:
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, found {name!r}")
    found = torch.cuda.device_count()
    if here and name.startswith("cuda") and found <= int(form[1] or 0):
        raise ConfigError(f"device must exist, found {name!r} and {found} CUDA devices")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A comparison of defences: each trains the same model, once attacked and once not."""

    workers: int = 20
    """Logical workers."""
    byzantine: int = 4
    """How many of them are Byzantine. Known to the attack only."""
    identities: Literal["last", "run", "round"] = "last"
    """Which: the last ones, or drawn from the seed, for the run or anew every round."""
    f: int = 4
    """How many Byzantine workers the defences are declared to withstand."""
    attack: str = "InnerProductManipulation(epsilon=10.0)"
    """What they do: a name of 'robust-agg list', or your own as path/to/file.py:Class(…)."""
    aggregator: tuple[str, ...] = ("Mean", "GeometricMedian", "NearestNeighborMixing + TrimmedMean")
    """One-shot defences: Rule(…) or Mixing(…) + Rule(…), the declared f filled in; or 'none'."""
    estimator: tuple[str, ...] = ("VClip",)
    """Online defences: e.g. VClip(tau=0.1, fusion='batch'); or 'none'."""
    local_estimator: str | None = "Momentum(beta=0.9)"
    """What every worker does to its gradients before it sends them; 'none' for nothing."""
    codec: str | None = None
    """How workers send their rows: e.g. EF21(compressor=TopK(share=0.01)); 'none' as they are."""
    delta: float = 1e-5
    """δ at which the report says the ε of a codec with noise."""
    dataset: Literal["digits", "mnist"] = "digits"
    """digits comes with scikit-learn; mnist from ROBUST_AGG_DATA or a download."""
    partition: str = "Dirichlet(alpha=1.0)"
    """How the training data is divided: IID, Dirichlet, LabelShards, GammaSimilarity."""
    model: str = "MLP(hidden=(64,))"
    """LogisticRegression, MLP(hidden=(…)) or SmallCNN(channels=(…))."""
    rounds: int = 200
    """Rounds of every training."""
    batch_size: int = 32
    """Samples a worker draws for a gradient."""
    lr: float = 1.0
    """The server's learning rate; 1 is usual where local_steps > 1 makes rows model changes."""
    weight_decay: float = 0.0
    """Of the server's SGD: this times the parameters is added to the estimate."""
    local_steps: int = 1
    """1 sends a gradient; more send the model's change after so many local SGD steps."""
    local_lr: float = 0.1
    """The workers' learning rate where local_steps > 1."""
    sample: int | None = None
    """Workers drawn each round; all if not given."""
    transport: Literal["ray", "inline", "ranks"] = "ray"
    """Where workers run: Ray actors, this process, or ranks of torch.distributed (processes)."""
    hosts: int = 2
    """Actors (ray), threads (inline) or processes (ranks) that the workers are spread over."""
    threads: int = 1
    """Torch threads of each host."""
    num_gpus: float = 0.0
    """GPUs that each actor reserves, fractions allowed; above 0 the workers compute on CUDA."""
    deadline: float | None = 60.0
    """Seconds to wait for the rows of a round; later ones do not count, the ledger names them."""
    quorum: int = 1
    """Rows without which a round is skipped."""
    server: Literal["driver", "ray"] = "driver"
    """Where the server runs: in this process, or in a Ray actor (with a GPU for device cuda)."""
    device: str = "auto"
    """The server's device: auto (CUDA where there is one), cpu, cuda, cuda:1, …"""
    evaluate_every: int = 10
    """Rounds between two evaluations."""
    split: SplitName = "test"
    """What the model is evaluated on: validation data, to choose by, or test data."""
    checkpoint_every: int = 50
    """Rounds between two checkpoints."""
    seed: int = 0
    """Of everything random."""

    def __post_init__(self) -> None:
        wrong = mismatch(RunConfig, vars(self))
        if wrong is not None:
            raise ConfigError(wrong)
        for name in _COUNTS:
            most = _MOST.get(name, 10**9)
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise ConfigError(f"{name} must be in [1, {most}], found {value}")
        for name in ("lr", "local_lr"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be a positive number, found {getattr(self, name)}")
        if self.deadline is not None and not 0 < self.deadline <= threading.TIMEOUT_MAX:
            limit = f"(0, {threading.TIMEOUT_MAX:.0f}]"
            raise ConfigError(f"deadline must be in {limit} seconds, found {self.deadline}")
        if not 0 < self.delta < 1:
            raise ConfigError(f"delta must be in (0, 1), found {self.delta}")
        if not 0 <= self.num_gpus < math.inf:
            raise ConfigError(f"num_gpus must be a number >= 0, found {self.num_gpus}")
        if not 0 <= self.weight_decay < math.inf:
            raise ConfigError(f"weight_decay must be a number >= 0, found {self.weight_decay}")
        if self.f < 0 or self.rows < 2 * self.f + 1:
            raise UnfitDefenceError(
                f"f must be >= 0 with 2f + 1 <= {self.rows} rows a round, found {self.f}"
            )
        if not 0 <= self.byzantine < self.workers:
            raise ConfigError(
                f"byzantine must be >= 0 and below workers={self.workers}, found {self.byzantine}"
            )
        for name, of in (("sample", "workers"), ("hosts", "workers"), ("quorum", "rows")):
            value, most = getattr(self, name), getattr(self, of)
            if value is not None and value > most:
                raise ConfigError(
                    f"{name} must be at most the number of {of}, {most}, found {value}"
                )
        self._check_devices()
        self._check_specs()

    def _check_devices(self) -> None:
        # What a Ray actor has is for Ray to find out.
        check_device(self.device, here=self.server == "driver")
        if self.transport != "ray" and self.num_gpus > 0 and not torch.cuda.is_available():
            raise ConfigError(f"num_gpus must be 0 where there is no CUDA, found {self.num_gpus}")

    def _check_specs(self) -> None:
        """Build everything once, so that a misspelt name fails before a folder is made."""
        if not self.defences:
            raise ConfigError("aggregator, estimator: at least one defence is required, found none")
        with _about("aggregator", UnfitDefenceError):
            for text in _given(self.aggregator):
                check_declared(self.defence(text), f=self.f, n=self.rows, who=text)
        with _about("estimator", UnfitDefenceError):
            for text in _given(self.estimator):
                rule = self.defence(text)
                if not isinstance(rule, Estimator):
                    raise ConfigError(f"an online estimator is required, found {text!r}")
                check_declared(rule, f=self.f, n=self.rows, who=text)
        with _about("local_estimator"):
            self.worker_estimator()
        with _about("codec"):
            codec = self.row_codec()
        with _about("attack"):
            attack = self.attack_on(num_classes=10)
        self._check_fit(attack)
        if codec is not None and isinstance(attack, Fault):
            raise ConfigError(
                f"attack must not be a fault where rows travel by a codec, found {self.attack} "
                f"and codec={self.codec}"
            )
        if codec is not None and self.identities == "round":
            raise ConfigError(
                "identities must be 'last' or 'run' where rows travel by a codec, of which every "
                f"sender has a state, found 'round' and codec={self.codec}"
            )
        if self.identities == "round" and isinstance(attack, DataAttack):
            raise ConfigError(
                "identities must be 'last' or 'run' for an attack on data, which workers have for "
                f"the whole run, found 'round' and {self.attack}"
            )
        with _about("partition"):
            specs.parse_partition(self.partition)
        with _about("model"):
            specs.parse_model(self.model)

    def _check_fit(self, attack: AnyAttack) -> None:
        """Refuse an attack that no round of this run is fit for."""
        if not isinstance(attack, Attack):
            return
        try:
            check_some_round(attack, workers=self.workers, byzantine=self.byzantine, rows=self.rows)
        except UnfitRoundError as error:
            raise UnfitAttackError(f"attack: {error}") from error
        except Exception as error:  # of a user's own code, anything
            raise ConfigError(f"attack: {type(error).__name__}: {error}") from error

    @property
    def rows(self) -> int:
        """Rows a round if all arrive."""
        return self.workers if self.sample is None else self.sample

    @property
    def defences(self) -> tuple[str, ...]:
        """All defences as texts, each once, in the order of the tables."""
        return tuple(dict.fromkeys(_given((*self.aggregator, *self.estimator))))

    def defence(self, text: str) -> Aggregator | Estimator:
        return specs.parse_defence(text, f=self.f)

    def worker_estimator(self) -> Estimator | None:
        given = _given((self.local_estimator or "none",))
        return specs.parse_estimator(given[0]) if given else None

    def row_codec(self) -> Codec | None:
        given = _given((self.codec or "none",))
        return specs.parse_codec(given[0]) if given else None

    def attack_on(self, *, num_classes: int) -> AnyAttack:
        return specs.parse_attack(self.attack, num_classes=num_classes)

    @property
    def attack_label(self) -> str:
        """The attack as figures show it: an own one's file without its folder."""
        file, rest = specs.own_file(self.attack)
        return self.attack if file is None else f"{file.name}:{rest}"

    @property
    def digest(self) -> str:
        """The first eight hexadecimal digits of :attr:`sha256`."""
        return self.sha256[:8]

    @property
    def sha256(self) -> str:
        """The SHA-256 of the parameters, in hexadecimal digits.

        The code of an own attack counts, the place of its file does not.
        """
        values = dataclasses.asdict(self)
        file, rest = specs.own_file(self.attack)
        if file is not None:
            values["attack"] = f"{hashlib.sha256(file.read_bytes()).hexdigest()}:{rest}"
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()


_COUNTS = (
    "workers",
    "rounds",
    "batch_size",
    "local_steps",
    "sample",
    "hosts",
    "threads",
    "quorum",
    "evaluate_every",
    "checkpoint_every",
)
_MOST = {"workers": 10**6, "threads": 256}


def _given(texts: Sequence[str]) -> tuple[str, ...]:
    return tuple(text for text in texts if text.strip().lower() != "none")


@contextmanager
def _about(parameter: str, kind: type[ConfigError] = ConfigError) -> Iterator[None]:
    """Put the parameter's name before what is wrong with it."""
    try:
        yield
    except ValueError as error:
        raise kind(f"{parameter}: {error}") from error
