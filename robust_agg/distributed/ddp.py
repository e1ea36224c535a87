"""The communication hook that makes DistributedDataParallel's gradients robust.

DDP hands over the gradient in buckets as the backward pass makes them, in the same order on all
ranks. Each bucket's rows are exchanged at once; a separable rule acts on a bucket when the next one
comes, any other on all buckets when the last has come. Collectives are begun by the hook alone, in
the order of its calls, so that all ranks begin the same ones.
"""

# Without `from __future__ import annotations`: DDP looks at the hook's annotations.

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future

from robust_agg.aggregator import Aggregator, Explanation
from robust_agg.distributed.all_reduce import TIMEOUT
from robust_agg.distributed.exchanges import Trust, exchange
from robust_agg.distributed.later import Later
from robust_agg.distributed.layout import narrowed
from robust_agg.distributed.parts import Parts
from robust_agg.distributed.sharded_rule import ShardedRule, made_on_all
from robust_agg.distributed.torch_compat import GradBucket
from robust_agg.errors import TooManyRejectedError
from robust_agg.online.estimator import Estimator

Hook: TypeAlias = Callable[["RobustHook", GradBucket], Future[Tensor]]


def robust_hook(
    rule: Aggregator | Estimator,
    group: dist.ProcessGroup | None = None,
    *,
    f: int | None = None,
    seed: int = 0,
    timeout: float = TIMEOUT,
    trust: Trust = "sharded",
    groups: int | None = None,
    distances: bool = False,
    scaler: torch.amp.GradScaler | None = None,
    name: str = "robust_hook",
) -> tuple["RobustHook", Hook]:
    """A DDP model that steps by a robust rule: ``model.register_comm_hook(*robust_hook(rule))``.

    Coordinate-wise rules, and Momentum, CClip and SignedIncrement at a fixed τ, act bucket by
    bucket while the backward pass goes on; of a non-finite row momentum then leaves out the slices
    that are, and not all of it. Any other rule looks at whole gradients, and acts when the backward
    pass has ended; until then each rank holds all rows in its slice, as many numbers as a gradient
    has, and twice as many for a moment. All ranks make the hook together.

    DDP's own collectives (of buffers, and of where buckets begin, once) know neither ``timeout``
    nor :class:`RankError`: give ``init_process_group`` a timeout too. With ``static_graph=True``
    the model must have one bucket in its first step: parameters of one dtype.

    Args:
        rule: an aggregator, or an estimator whose state the hook keeps; the same on every rank.
        group: the ranks; all of them if None. It must be the ``process_group`` that the DDP model
            was given, if it was given one: DDP does not tell a hook, which would mix the gradients
            of models that have nothing to do with each other.
        f: declared number of bad ranks; see :class:`RobustAllReduce`.
        seed: of random draws, with the number of the step.
        timeout: seconds a collective may take; see :func:`robust_all_reduce`.
        trust: what ranks are trusted with; see :func:`robust_all_reduce`.
        groups: how many groups of neighbouring ranks there are, whose plain means are the rows;
            see :class:`RobustAllReduce`. Every rank is its own if None.
        distances: whether ``explanation`` has distances.
        scaler: the training's, if it has one: rows are divided by its scale first. A step in which
            too many rows are non-finite then gives Inf, for which the scaler skips it: more than f
            of them, or more than a minority if there is no f.
        name: see :class:`RobustAllReduce`.

    Returns:
        The hook's state, which explains the steps and can be saved, and the hook.

    Raises:
        ConstraintError, ValueError: the rule cannot be sharded, or does not go with n and f.
        DisagreementError: on another rank it, or an option, is another, or cannot be.
    """
    meeting = exchange(group, who=name, timeout=timeout, trust=trust, groups=groups)
    if scaler is not None and f is None:
        # Or who does not look at whole rows would not notice that the scale has made all overflow.
        f = (meeting.n - 1) // 2
    options = f", scaler={scaler is not None}"
    sharded = made_on_all(rule, meeting, f=f, seed=seed, distances=distances, options=options)
    return RobustHook(sharded, scaler), _hook


def _hook(state: "RobustHook", bucket: GradBucket) -> Future[Tensor]:
    return state.take(bucket)


@dataclass
class _Bucket:
    """A bucket of the step under way: being exchanged, aggregated, collected."""

    future: Future[Tensor]
    parameters: list[Tensor]
    d: int
    dtype: torch.dtype
    rows: Any
    found: Later | None = None


class RobustHook:
    """The state of a hook that :func:`robust_hook` has made."""

    def __init__(self, sharded: ShardedRule, scaler: torch.amp.GradScaler | None) -> None:
        self._sharded, self._scaler = sharded, scaler
        self._exchange, self.ranks = sharded.exchange, sharded.exchange.ranks
        self._parts = Parts(sharded)
        self._buckets: list[_Bucket] = []

    @property
    def step(self) -> int:
        """How many steps are done; one with accumulated gradients is one."""
        return self.ranks.step

    @property
    def explanation(self) -> Explanation | None:
        """Why the last step came out as it did; None before it, and where the rule has failed.

        Its output is empty, and of a rule that acts bucket by bucket it has no weights.
        """
        return self._parts.explanation

    def take(self, bucket: GradBucket) -> Future[Tensor]:
        """The hook: begin with a bucket, and finish what can be finished.

        Raises:
            TooManyRejectedError, ValueError: the rule's own, on every rank, without a scaler; the
                state is as before the step, but DDP bears no error in a backward pass: to go on,
                the model must be wrapped anew.
            RankError: a rank is gone, or stalls.
        """
        if bucket.index() == 0:
            self._check_first(bucket)
            self._begin()
        vector = bucket.buffer()
        rows = self._exchange.rows(vector)
        if self._buckets:
            self._act(self._buckets[-1])
        future = Future[Tensor](devices=[vector.device] if vector.is_cuda else [])
        arrived = _Bucket(future, bucket.parameters(), vector.numel(), vector.dtype, rows)
        self._buckets.append(arrived)
        if bucket.is_last():
            self._act(arrived)
            self._finish()
        return future

    def _check_first(self, bucket: GradBucket) -> None:
        """Raise where DDP gives all buckets of a step as the first one.

        That is how it begins with a static graph, and nothing then tells which is the last.
        """
        of_others = [id(p) for other in self._buckets for p in other.parameters]
        if of_others and not {id(p) for p in bucket.parameters()} & set(of_others):
            raise ValueError(
                f"{self.ranks.who}: model must have one bucket in its first step with "
                "static_graph=True, found more, as for parameters of several dtypes"
            )

    def _begin(self) -> None:
        self._buckets = []
        self._parts.begin(1.0 if self._scaler is None else self._scaler.get_scale())

    def _act(self, bucket: _Bucket) -> None:
        """The rows of a bucket are here, or are waited for."""
        counts = self._exchange.counts(bucket.d)
        output = self._parts.add(bucket.parameters, bucket.rows.result(), counts)
        bucket.rows = None  # or the rows of all buckets would be kept
        if output is not None:
            self._collect(bucket, output)

    def _collect(self, bucket: _Bucket, output: Tensor) -> None:
        bucket.found = self._exchange.whole(narrowed(output, bucket.dtype), bucket.d)

    def _finish(self) -> None:
        """Give DDP the gradient."""
        buckets, self._buckets = self._buckets, []
        failed = False
        try:
            outputs = self._parts.finish()
        except TooManyRejectedError:
            if self._scaler is None:
                raise
            failed, outputs = True, []
        for bucket, output in zip(buckets, outputs, strict=False):
            self._collect(bucket, output)
        self.ranks.step += 1
        for bucket in buckets:
            if failed or bucket.found is None:
                inf = torch.full((bucket.d,), torch.inf, dtype=bucket.dtype)
                bucket.future.set_result(inf.to(self.ranks.device))
            else:
                bucket.future.set_result(bucket.found.result())

    def state_dict(self, model: nn.Module) -> dict[str, Any]:
        """Step, rule and the estimator's state, its estimate by the names of the parameters.

        All ranks must call it, for the slices of the estimate are collected; all get the same.

        Args:
            model: the one within DDP, or DDP itself.
        """
        return self._parts.state_dict(_parameters(model))

    def load_state_dict(self, tree: Mapping[str, Any], model: nn.Module) -> None:
        """Continue where :meth:`state_dict` was taken, with any number of ranks; all call it.

        Args:
            tree: the state.
            model: the one within DDP, or DDP itself.

        Raises:
            ValueError: it is of another rule, of the same one with other parameters, or of another
                model.
            DisagreementError: on another rank it is of another step, or cannot be loaded.
        """
        self._parts.load_state_dict(tree, _parameters(model))


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """By names that do not depend on how the model is wrapped."""
    ddp = nn.parallel.DistributedDataParallel
    return dict((model.module if isinstance(model, ddp) else model).named_parameters())
