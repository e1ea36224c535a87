"""One training under one defence, attacked or not: the loop that everything here is about."""

from __future__ import annotations

import math
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attacks import Adversary, FaultyWorkers, Identities
from experiments.coded import Coded
from experiments.data import Split
from experiments.metrics import METRICS, Metrics, line, read_metrics
from robust_agg import Ledger, Record, State, Update
from robust_agg.admission import Rejection
from robust_agg.checkpoint import CheckpointError, load_checkpoint, save_checkpoint
from robust_agg.codecs import Codec
from robust_agg.seeding import generator
from robust_agg.span import Geometry
from workers.transport import Transport

CHECKPOINT = "checkpoint.safetensors"
LEDGER = "ledger.jsonl"

_COUNTS = ("skipped", "missing", "bytes", "spared")


class Aggregating(Protocol):
    """What the loop needs of a server: the library's own, or one that lives in a Ray actor."""

    f: int
    round: int

    @property
    def estimate(self) -> Tensor | None: ...
    @property
    def accepted(self) -> dict[int, int]: ...
    def read(self, updates: list[Update]) -> list[Update]: ...
    def write(self, updates: list[Update]) -> list[Update]: ...
    def parameters(self) -> Tensor: ...
    def aggregate(self, rows: Tensor) -> Tensor: ...
    def weights_from(self, geometry: Geometry) -> Tensor | None: ...
    def step(
        self, updates: list[Update], *, senders: list[int], refused: tuple[Rejection, ...]
    ) -> Record: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, tree: dict[str, Any]) -> None: ...


class AttackError(ValueError):
    """The attack has failed, which may be the user's own; one line with the place in its code."""


@contextmanager
def _blaming(adversary: Adversary | FaultyWorkers) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:
        culprit = adversary.attack if isinstance(adversary, Adversary) else adversary.fault
        attack = type(culprit)
        frames = traceback.extract_tb(error.__traceback__)
        file = sys.modules[attack.__module__].__file__
        place = ([frame for frame in frames if frame.filename == file] or frames)[-1]
        raise AttackError(
            f"attack: {attack.__name__} failed at {place.filename}:{place.lineno}: "
            f"{type(error).__name__}: {error}"
        ) from error


class Simulation:
    """A resumable training of ``server``'s model by ``transport``'s workers.

    Args:
        server: holds model, rule and ledger.
        transport: where the workers are.
        adversary: replaces the Byzantine workers' rows, or loses their messages; None for an honest
            run, or for workers whose data is bad. Its own ids do not count, ``byzantine`` does.
        byzantine: who is Byzantine in which round, for adversary and metrics.
        model: a model of the same architecture, to evaluate with.
        evaluated: the samples that it is evaluated on.
        goal: inputs and the labels that the attacker wants for them, to measure its success.
        folder: where ledger, metrics and checkpoint are.
        seed: of sampling and attack.
        sample: workers drawn each round; all if None.
        codec: how rows are sent; as they are, if None.
        delta: δ of the privacy that a codec with noise gives.
    """

    def __init__(
        self,
        *,
        server: Aggregating,
        transport: Transport,
        adversary: Adversary | FaultyWorkers | None,
        byzantine: Identities,
        model: nn.Module,
        evaluated: Split,
        folder: Path,
        seed: int,
        sample: int | None = None,
        goal: tuple[Tensor, Tensor] | None = None,
        codec: Codec | None = None,
        delta: float = 1e-5,
    ) -> None:
        self.server, self.transport, self.adversary = server, transport, adversary
        self.byzantine, self.model, self.evaluated = byzantine, model, evaluated
        self.folder, self.seed, self.sample, self.goal = folder, seed, sample, goal
        self.skipped = 0
        self.missing = 0
        self.bytes = 0
        self.spared = 0
        self._coded: Coded | None = None
        if codec is not None:
            liars = frozenset[int]() if adversary is None else byzantine.at(0)
            self._coded = Coded(codec, server, liars, server.parameters(), delta=delta)
        self._attack_state: State = {}
        if isinstance(adversary, Adversary):
            with _blaming(adversary):
                self._attack_state = adversary.init(server.parameters())

    def run(self, rounds: int, *, evaluate_every: int) -> Iterator[Metrics | None]:
        """Do rounds until ``rounds`` are done; yields after each, with metrics where evaluated."""
        while self.server.round < rounds:
            honest, record = self.one_round()
            done = self.server.round
            if done % evaluate_every == 0 or done == rounds:
                metrics = self._evaluate(honest, record)
                with (self.folder / METRICS).open("a", encoding="utf-8") as file:
                    file.write(line(metrics))
                yield metrics
            else:
                yield None

    def one_round(self) -> tuple[list[Update], Record]:
        """The round's honest updates, and what the server made of it."""
        number = self.server.round
        # 1. The server sends the parameters to the workers of this round.
        active = self._draw(number)
        parameters = self.server.parameters()
        bad = self.byzantine.at(number)
        adversary = None if self.adversary is None else replace(self.adversary, byzantine=bad)
        # A Byzantine worker whose own gradient the attack does not look at computes none.
        idle: tuple[int, ...] = ()
        if isinstance(adversary, Adversary):
            with _blaming(adversary):
                idle = adversary.idle(active)
        asked = [worker for worker in active if worker not in idle]
        accepted = None if self._coded is None else self._coded.ask(asked)
        collection = self.transport.collect(
            number, parameters, active=asked, accepted=accepted, others=len(idle)
        )
        # 2. The adversary sees what its threat model allows and fills the Byzantine rows.
        # By sender, not by who was fast: an attack's sums must not depend on that.
        messages = sorted(collection.updates, key=lambda update: update.sender)
        updates = messages if self._coded is None else self._coded.shown(messages)
        honest = [u for u in updates if u.sender not in bad]
        refused = collection.refused
        draw = generator(self.seed, "attack", number)
        if isinstance(adversary, FaultyWorkers):
            with _blaming(adversary):
                updates, lost, self._attack_state = adversary.deliver(
                    updates, self._attack_state, generator=draw
                )
            refused = (*refused, *lost)
        elif adversary is not None:
            with _blaming(adversary):
                here = [*(update.sender for update in updates), *idle]
                self.spared += adversary.unfit(here) is not None
                updates, self._attack_state = adversary.corrupt(
                    updates,
                    self._attack_state,
                    round=number,
                    generator=draw,
                    defence=self.server,
                    idle=idle,
                    like=parameters,
                )
        # 3. Admission, estimate, model step, ledger.
        if self._coded is not None:
            updates = self._coded.sent(messages, updates)
        record = self.server.step(updates, senders=active, refused=refused)
        if self._coded is not None and record.skipped is None:
            self._coded.keep()
        self.skipped += record.skipped is not None
        self.missing += len(active) - len(record.senders)
        self.bytes += record.bytes or 0
        return honest, record

    def save(self, *, complete: bool = False) -> None:
        """Checkpoint everything that the remaining rounds depend on.

        Args:
            complete: whether the states of workers that died with their host must be there too.

        Raises:
            HostError: a host keeps its workers' states back; the last checkpoint stays.
        """
        workers = {str(i): dict(s) for i, s in self.transport.state(complete=complete).items()}
        for name in (LEDGER, METRICS):
            _sync(self.folder / name)
        save_checkpoint(
            self.folder / CHECKPOINT,
            {
                "server": self.server.state_dict(),
                "workers": workers,
                "attack": dict(self._attack_state),
                "skipped": self.skipped,
                "missing": self.missing,
                "bytes": self.bytes,
                "spared": self.spared,
                "coded": {} if self._coded is None else self._coded.state_dict(),
            },
        )

    def restore(self) -> None:
        """Continue from the checkpoint, if there is one; lines of later rounds are dropped.

        Raises:
            CheckpointError: checkpoint or ledger are damaged, or of another version.
        """
        path = self.folder / CHECKPOINT
        clean(self.folder)
        if not path.exists():
            self.transport.load_state({})
            for name in (LEDGER, METRICS):
                (self.folder / name).unlink(missing_ok=True)
            return
        tree = load_checkpoint(path)
        missing = {"server", "workers", "attack", *_COUNTS, "coded"} - set(tree)
        if missing:
            raise CheckpointError(f"{path}: {', '.join(sorted(missing))} are required, found none")
        self.server.load_state_dict(tree["server"])
        self.transport.load_state({int(i): s for i, s in tree["workers"].items()})
        self._attack_state = tree["attack"]
        self.skipped, self.missing, self.bytes, self.spared = (tree[name] for name in _COUNTS)
        if self._coded is not None:
            self._coded.load_state_dict(tree["coded"])
        ledger = Ledger(self.folder / LEDGER)
        ledger.truncate(self.server.round)
        found = sum(1 for _ in ledger)
        if found != self.server.round:
            raise CheckpointError(
                f"{ledger.path}: the checkpoint's {self.server.round} rounds are required, "
                f"found {found}"
            )
        kept = [m for m in read_metrics(self.folder) if m.round <= self.server.round]
        lines = "".join(line(m) for m in kept)
        temporary = self.folder / f".{METRICS}"
        temporary.write_text(lines, encoding="utf-8")
        os.replace(temporary, self.folder / METRICS)

    def _draw(self, number: int) -> list[int]:
        everyone = list(self.transport.workers)
        if self.sample is None:
            return everyone
        drawn = torch.randperm(len(everyone), generator=generator(self.seed, "sample", number))
        return sorted(everyone[i] for i in drawn[: self.sample].tolist())

    def _evaluate(self, honest: list[Update], record: Record) -> Metrics:
        nn.utils.vector_to_parameters(self.server.parameters(), self.model.parameters())
        self.model.eval()
        with torch.inference_mode():
            logits = self.model(self.evaluated.inputs)
            loss = nn.functional.cross_entropy(logits, self.evaluated.targets)
            accuracy = (logits.argmax(dim=1) == self.evaluated.targets).double().mean()
            success = self._success()
        error, kappa = self._errors(honest, record)
        byzantine_weight, accepted = self._of_byzantine(record)
        return Metrics(
            round=self.server.round,
            accuracy=float(accuracy),
            loss=min(float(loss.nan_to_num(nan=1e9)), 1e9),
            error=error,
            kappa=kappa,
            byzantine_weight=byzantine_weight,
            accepted=accepted,
            skipped=self.skipped,
            missing=self.missing,
            seconds=record.seconds.get("aggregate"),
            success=success,
            bytes=self.bytes,
            spared=self.spared,
            epsilon=None if self._coded is None else self._coded.epsilon,
        )

    def _success(self) -> float | None:
        if self.goal is None or not len(self.goal[0]):
            return None
        inputs, wanted = self.goal
        return float((self.model(inputs).argmax(dim=1) == wanted).double().mean())

    def _errors(self, honest: list[Update], record: Record) -> tuple[float | None, float | None]:
        """‖m - ḡ‖/‖ḡ‖ and ‖m - ḡ‖² / (1/|H|)Σ‖g_i - ḡ‖², over honest rows that count."""
        estimate = self.server.estimate
        rejected = {rejection.sender for rejection in record.rejected}
        rows = [update.row.cpu() for update in honest if update.sender not in rejected]
        if record.skipped is not None or estimate is None or not rows:
            return None, None
        stacked = torch.stack(rows).double()
        mean = stacked.mean(dim=0)
        gap = (estimate.cpu().double() - mean).norm()
        spread = (stacked - mean).square().sum(dim=1).mean()
        error = float(gap / mean.norm().clamp(min=1e-300))
        kappa = float(gap.square() / spread) if spread > 0 else math.inf
        return _finite(error), _finite(kappa)

    def _of_byzantine(self, record: Record) -> tuple[float | None, float | None]:
        """The Byzantine rows' share of the weights, and the share of them that has any."""
        if record.weights is None:
            return None, None
        total = sum(abs(w) for w in record.weights)
        pairs = zip(record.senders, record.weights, strict=True)
        byzantine = self.byzantine.at(record.round)
        bad = [abs(w) for sender, w in pairs if sender in byzantine]
        accepted = sum(w > 0 for w in bad) / len(bad) if bad else None
        return sum(bad) / total if total > 0 else 0.0, accepted


def clean(folder: Path) -> None:
    """Remove what a process leaves that dies while it writes a checkpoint."""
    for path in folder.glob(f".{CHECKPOINT}.*"):
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Let what was written outlive the machine, not the process alone."""
    if path.exists():
        with path.open("ab") as file:
            os.fsync(file.fileno())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
