"""A host: many logical workers in one process, from parameters to rows; no I/O."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from robust_agg.checkpoint import to_device
from robust_agg.codecs import Codec, sender
from robust_agg.codecs.wire import NOTHING
from robust_agg.errors import check_count, check_positive
from robust_agg.messages import Update, encode, pack
from robust_agg.online.estimator import Estimator
from robust_agg.online.streams import Steps, step_in_turn
from robust_agg.seeding import derive, generator
from robust_agg.types import State
from workers.gradients import Gradients, Loss
from workers.worker import LogicalWorker, batches

_CHUNK_BYTES = 16 << 20
# Gradients of one vectorised call: large enough to keep the cores busy, small beside the rows.
_CODEC = "codec/"
# Before the names of a codec's states, beside those of an estimator.

Spec = TypeVar("Spec", bound="HostSpec")


class LocalEstimator(Steps, Protocol):
    """What a worker passes its row through; every ``robust_agg.online`` estimator is one."""

    def init(self, like: Tensor) -> State: ...


@dataclass(frozen=True, kw_only=True)
class LocalSGD:
    """Local work of ``steps`` plain SGD steps of size ``lr``: the row is w₀ - w_k.

    With one step the row is ``lr`` times the gradient.

    Raises:
        ValueError: ``steps`` < 1 or ``lr`` not positive.
    """

    steps: int
    lr: float

    def __post_init__(self) -> None:
        check_count("LocalSGD", "steps", self.steps, minimum=1)
        check_positive("LocalSGD", "lr", self.lr)


@dataclass(frozen=True, kw_only=True, eq=False)
class HostSpec:
    """All that a host is made from. It is pickled once, when the host starts on another machine.

    Attributes:
        workers: the logical workers; their samples have the same shape and dtype.
        model: builds the module; its weights do not matter, the server's are used.
        loss: ``loss(model(inputs), targets)``, a scalar.
        seed: of batches, data attacks, dropout, estimators and codecs; rows do not depend on how
            workers are grouped into hosts, but for rounding.
        batch_size: samples a local step, fewer where the shard is smaller; None for the whole
            shard. Workers with batches of one size are vectorised together.
        local: local SGD steps; None to send the gradient.
        estimator: what each worker passes its row through, with a state of its own.
        codec: how each worker sends its row, with a state of its own; as it is, if None.
        vectorize: True or False to insist; None to decide from the model.
        pure: see :class:`~workers.gradients.Gradients`.
        chunk: workers per vectorised call; None for 16 MiB of gradients. Activations come on top.
        device: where the host computes.
        threads: of torch, within the host.

    Raises:
        ValueError: no workers, an id twice, unequal samples, or a number out of range.
    """

    workers: tuple[LogicalWorker, ...]
    model: Callable[[], nn.Module]
    loss: Loss
    seed: int
    batch_size: int | None = None
    local: LocalSGD | None = None
    estimator: LocalEstimator | None = None
    codec: Codec | None = None
    vectorize: bool | None = None
    pure: bool = False
    chunk: int | None = None
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        if not self.workers:
            raise ValueError("HostSpec: workers must not be empty, found ()")
        if len(set(self.ids)) != len(self.ids):
            raise ValueError(f"HostSpec: workers must have different ids, found {self.ids}")
        samples = {
            (s.inputs.shape[1:], s.inputs.dtype, s.targets.shape[1:], s.targets.dtype)
            for s in (worker.shard for worker in self.workers)
        }
        if len(samples) > 1:
            raise ValueError(
                "HostSpec: workers must have samples of one shape and dtype, "
                f"found {len(samples)} kinds"
            )
        for name, value in (("batch_size", self.batch_size), ("chunk", self.chunk)):
            if value is not None:
                check_count("HostSpec", name, value, minimum=1)
        check_count("HostSpec", "threads", self.threads, minimum=1)

    @property
    def ids(self) -> tuple[int, ...]:
        """The workers' ids, in their order."""
        return tuple(worker.id for worker in self.workers)

    def build(self) -> Host:
        """The host, wherever this is called."""
        return Host(self)

    def split(self: Spec, hosts: int) -> tuple[Spec, ...]:
        """The same workers in ``hosts`` hosts, as evenly as can be, neighbours together.

        Raises:
            ValueError: ``hosts`` < 1 or more than there are workers.
        """
        n = len(self.workers)
        if not 1 <= hosts <= n:
            raise ValueError(f"HostSpec: hosts must be in [1, {n}], found {hosts}")
        bounds = [n * i // hosts for i in range(hosts + 1)]
        return tuple(
            replace(self, workers=self.workers[start:stop]) for start, stop in pairwise(bounds)
        )


class Host:
    """The workers of one :class:`HostSpec` and the states of their local estimators and codecs."""

    def __init__(self, spec: HostSpec) -> None:
        self.spec = spec
        # Building a module draws weights that nobody uses from the caller's global generator; and a
        # factory may hand out the module that another host, in another thread, is using.
        with torch.random.fork_rng(devices=[]):
            model = copy.deepcopy(spec.model()).to(spec.device)
        self._gradients = Gradients(model, spec.loss, vectorize=spec.vectorize, pure=spec.pure)
        self._workers = {worker.id: worker.to(spec.device) for worker in spec.workers}
        self._states: dict[int, State] = {}
        self._sent: dict[int, State] = {}

    @property
    def ids(self) -> tuple[int, ...]:
        """The workers' ids, in the order of the specification."""
        return self.spec.ids

    def compute(
        self,
        round: int,
        parameters: Tensor,
        active: Collection[int] | None = None,
        accepted: Mapping[int, int] | None = None,
    ) -> list[Update]:
        """One update per worker: its gradient or local steps, through its estimator and codec.

        Args:
            round: what all randomness is derived from, beside the seed and the worker's id.
            parameters: ``(d,)``, the trainable parameters in the order of ``model.parameters()``;
                not changed.
            active: the workers asked this round; all if None. The others' states stay.
            accepted: by worker, the round of its last message that counts, for the codec; one that
                is not in it has none.

        Returns:
            Updates in the order of ``active``; their rows are views of a ``(k, d)`` block for each
            chunk, which nothing else refers to, or messages ``(b,)`` of the codec.

        Raises:
            ValueError: parameters of another size, or a worker that is not of this host.
        """
        asked = list(self.ids if active is None else active)
        unknown = set(asked) - self._workers.keys()
        if unknown:
            raise ValueError(f"Host: active must be among {self.ids}, found {sorted(unknown)}")
        if parameters.shape != (self._gradients.dim,):
            raise ValueError(
                f"Host: parameters must have shape ({self._gradients.dim},), "
                f"found {tuple(parameters.shape)}"
            )
        parameters = parameters.detach().to(self.spec.device)
        rows: dict[int, Tensor] = {}
        states: dict[int, State] = {}
        sent: dict[int, State] = {}
        for chunk in self._chunks(asked, parameters):
            ids = [worker.id for worker in chunk]
            block = self._work(chunk, round, parameters)
            if self.spec.estimator is not None:
                block, new = self._estimate(self.spec.estimator, ids, round, block)
                states.update(zip(ids, new, strict=True))
            if self.spec.codec is None:
                rows.update(zip(ids, block, strict=True))
                continue
            for i, row in zip(ids, block, strict=True):
                last = (accepted or {}).get(i, NOTHING)
                rows[i], sent[i] = self._encode(self.spec.codec, i, round, row, last)
        # All or none, though old and new live side by side until here: a round that fails may be
        # asked for again, and then no worker's memory may hold a row that nobody has received.
        self._states |= states
        self._sent |= sent
        return [Update(sender=i, round=round, row=rows[i]) for i in asked]

    def reply(
        self,
        round: int,
        parameters: Tensor,
        active: Collection[int] | None = None,
        accepted: Mapping[int, int] | None = None,
    ) -> bytes:
        """:meth:`compute` as one block of messages, for a transport that sends bytes."""
        return pack(encode(each) for each in self.compute(round, parameters, active, accepted))

    def state(self) -> dict[int, State]:
        """The states of estimators and codecs, of the workers that have been asked so far."""
        both = dict(self._states)
        for i, sent in self._sent.items():
            coded = {_CODEC + name: value for name, value in sent.items()}
            both[i] = {**both.get(i, {}), **coded}
        return both

    def load_state(self, states: Mapping[int, State]) -> None:
        """Make the states exactly ``states``; a worker without one starts anew."""
        self._states, self._sent = {}, {}
        for i, state in states.items():
            here = to_device(state, self.spec.device)
            coded = [name for name in here if name.startswith(_CODEC)]
            own = {name: value for name, value in here.items() if name not in coded}
            if own:
                self._states[i] = own
            if coded:
                self._sent[i] = {name.removeprefix(_CODEC): here[name] for name in coded}

    def _encode(
        self, codec: Codec, worker: int, round: int, row: Tensor, accepted: int
    ) -> tuple[Tensor, State]:
        return sender.message(
            codec,
            row,
            self._sent.get(worker, {}),
            round=round,
            accepted=accepted,
            generator=generator(self.spec.seed, "codec", worker, round),
        )

    def _chunks(self, asked: list[int], parameters: Tensor) -> Iterator[list[LogicalWorker]]:
        """Workers to be vectorised together: equally long batches, limited memory."""
        row_bytes = parameters.numel() * parameters.element_size()
        size = self.spec.chunk or max(1, _CHUNK_BYTES // row_bytes)
        by_length: dict[int, list[LogicalWorker]] = {}
        for i in asked:
            worker = self._workers[i]
            by_length.setdefault(worker.batch_length(self.spec.batch_size), []).append(worker)
        for workers in by_length.values():
            for start in range(0, len(workers), size):
                yield workers[start : start + size]

    def _work(self, workers: list[LogicalWorker], round: int, parameters: Tensor) -> Tensor:
        """``(k, d)``: the workers' gradients, or what their local steps take away."""
        local = self.spec.local
        if local is None:
            return self._step(workers, round, 0, parameters)
        # What the steps have taken away so far: w₀ - w_k without cancellation.
        taken = parameters.new_zeros(len(workers), len(parameters))
        for step in range(local.steps):
            weights = parameters if step == 0 else parameters - taken
            taken.add_(self._step(workers, round, step, weights), alpha=local.lr)
        return taken

    def _step(self, workers: list[LogicalWorker], round: int, step: int, weights: Tensor) -> Tensor:
        spec = self.spec
        inputs, targets = batches(workers, spec.batch_size, seed=spec.seed, round=round, step=step)
        seeds = (derive(spec.seed, "layers", worker.id, round, step) for worker in workers)
        return self._gradients(weights, inputs, targets, seeds)

    def _estimate(
        self, estimator: LocalEstimator, ids: list[int], round: int, rows: Tensor
    ) -> tuple[Tensor, list[State]]:
        """``(k, d)``: the rows as the workers' estimators pass them on; and the new states."""

        def draw(place: int) -> torch.Generator:
            return generator(self.spec.seed, "local estimator", ids[place], round)

        states = [
            self._states[i] if i in self._states else estimator.init(row)
            for i, row in zip(ids, rows, strict=True)
        ]
        out = torch.empty_like(rows)
        if isinstance(estimator, Estimator):
            new = estimator.step_streams(rows, states, senders=ids, generators=draw, out=out)
        else:
            new = step_in_turn(estimator, rows, states, senders=ids, generators=draw, out=out)
        return out, new
