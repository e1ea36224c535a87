"""An all-reduce by a robust rule: every rank gives a row, every rank gets their aggregate.

The rows are exchanged once, so that each rank holds all rows in one slice of the coordinates, and
the slices of the result are collected: about the bytes of a plain all-reduce. In between the rule
acts on the slice; what it must know of whole rows (a Gram matrix, distances) it sums over ranks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

import torch
import torch.distributed as dist
from torch import Tensor

from robust_agg.aggregator import Aggregator, Explanation
from robust_agg.distributed.asked import are_on, asked_for, check_usable, described
from robust_agg.distributed.exchanges import Exchange, Trust, exchange, exchange_of
from robust_agg.distributed.layout import Layout, narrowed, side_by_side
from robust_agg.distributed.ranks import Ranks
from robust_agg.distributed.sharded_rule import made_on_all
from robust_agg.errors import as_integer
from robust_agg.online.estimator import ESTIMATE, Estimator
from robust_agg.types import State

TIMEOUT = 60.0
"""Seconds that a collective may take, unless told otherwise."""


@overload
def robust_all_reduce(
    tensor: Tensor, aggregator: Aggregator, group: dist.ProcessGroup | None = None, *,
    f: int | None = None, seed: int = 0, timeout: float = TIMEOUT, trust: Trust = "sharded",
) -> Tensor: ...  # fmt: skip


@overload
def robust_all_reduce(
    tensor: Sequence[Tensor], aggregator: Aggregator, group: dist.ProcessGroup | None = None, *,
    f: int | None = None, seed: int = 0, timeout: float = TIMEOUT, trust: Trust = "sharded",
) -> list[Tensor]: ...  # fmt: skip


def robust_all_reduce(
    tensor: Tensor | Sequence[Tensor],
    aggregator: Aggregator,
    group: dist.ProcessGroup | None = None,
    *,
    f: int | None = None,
    seed: int = 0,
    timeout: float = TIMEOUT,
    trust: Trust = "sharded",
) -> Tensor | list[Tensor]:
    """The aggregate of all ranks' tensors, the same to the bit on every rank.

    Ranks may give any numbers (bad hardware, bad data). What else they are trusted with is
    ``trust``.

    Args:
        tensor: this rank's row, of any shape; or several tensors that are one row together, which
            may be of several dtypes. Not changed.
        aggregator: the rule, with the same parameters on every rank.
        group: the ranks; all of them if None.
        f: declared number of bad ranks, if the rule is to be checked against it.
        seed: of a random rule's draws, with the number of the call.
        timeout: seconds a collective may take, the wait for the slowest rank included. Ranks then
            ask each other who is missing, so that the error comes 2 s later, and a little more
            where the process that holds the group's store is stopped.
        trust: ``"sharded"``: a rank may give any row, but runs the collective as it is written.
            ``"replicated"``: each rank gathers all rows, compares them with what others received,
            and aggregates them itself, for n/2 times the bytes and n times the memory.

    Raises:
        DisagreementError: ranks give different shapes, dtypes or rules; before data moves.
        ConstraintError, TooManyRejectedError, ValueError: the rule's own, on every rank; or a rule
            that cannot be sharded.
        RankError: a rank is gone, or stalls.
        EquivocationError: replicated, and a row has not reached all ranks alike.
    """
    ranks = Ranks(group, who="robust_all_reduce", timeout=timeout, anew=False)
    with ranks.telling_refusals():
        given: object = aggregator
        if isinstance(given, Estimator):
            raise ValueError(
                "robust_all_reduce: aggregator must have no memory from call to call, "
                f"found {given.name}; RobustAllReduce keeps it"
            )
    met = exchange_of(ranks, trust=trust)
    return RobustAllReduce(aggregator, met, f=f, seed=seed)(tensor)


class RobustAllReduce:
    """A robust all-reduce with memory: of a rule, or of an online estimator whose state it shards.

    All ranks make it together, and compare what they ask for. Each rank holds the estimate's slice
    of the coordinates that it aggregates, in at least float32.

    Args:
        rule: an aggregator, or an estimator; the same on every rank.
        group: the ranks; all of them if None. Or an exchange, with what it says of ranks, timeout,
            trust, groups and name; ranks then compare what they ask for when it is called.
        f: declared number of bad ranks, if the rule is to be checked against it. More than f rows
            that are non-finite are then an error whatever the rule bears; for rules that do not
            look at whole rows this costs what ``distances`` does.
        seed: of random draws, with the number of the step.
        timeout: seconds a collective may take; see :func:`robust_all_reduce`.
        trust: see :func:`robust_all_reduce`.
        groups: how many groups of neighbouring ranks there are, whose plain means are the rows: it
            divides the number of all ranks, and one bad rank spoils its group's row. Every rank is
            its own if None.
        distances: whether ``explanation`` has the rows' distances to the result: one more pass over
            the slice and one more small all-reduce.
        name: of this among the group's robust collectives, the same on every rank; two that are
            used at the same time must have different ones.

    Attributes:
        explanation: why the last result came out as it did: weights, rejected ranks, distances; its
            output is empty. None before there is one, and where a step has failed.

    Raises:
        ConstraintError, ValueError: the rule cannot be sharded, or does not go with n and f.
        DisagreementError: on another rank it, or an option, is another, or cannot be.
    """

    def __init__(
        self,
        rule: Aggregator | Estimator,
        group: dist.ProcessGroup | Exchange | None = None,
        *,
        f: int | None = None,
        seed: int = 0,
        timeout: float = TIMEOUT,
        trust: Trust = "sharded",
        groups: int | None = None,
        distances: bool = False,
        name: str = "RobustAllReduce",
    ) -> None:
        if isinstance(group, Exchange):
            self._exchange = group
        else:
            self._exchange = exchange(group, who=name, timeout=timeout, trust=trust, groups=groups)
        self.ranks = self._exchange.ranks
        self._sharded = made_on_all(
            rule,
            self._exchange,
            f=f,
            seed=seed,
            distances=distances,
            later=isinstance(group, Exchange),
        )
        self.explanation: Explanation | None = None
        self._layout: Layout | None = None
        self._rooms: Sequence[Tensor | None] = ()
        # Where the last rows were, for the next.
        self._state: State = {}
        self._loaded: State = {}

    @property
    def step(self) -> int:
        """How many steps are done."""
        return self.ranks.step

    @overload
    def __call__(self, tensor: Tensor, *, out: Tensor | None = None) -> Tensor: ...

    @overload
    def __call__(self, tensor: Sequence[Tensor]) -> list[Tensor]: ...

    def __call__(
        self, tensor: Tensor | Sequence[Tensor], *, out: Tensor | None = None
    ) -> Tensor | list[Tensor]:
        """The aggregate of all ranks' tensors; arguments and errors of :func:`robust_all_reduce`.

        A step that raises, but by ``RankError``, leaves the state as it was, and may be done again.

        Args:
            tensor: this rank's row.
            out: where the result goes: a dense tensor of the same shape, dtype and device, which
                may be ``tensor``. Fresh memory if None.
        """
        self.explanation = None
        tensors = _listed(tensor)
        fits = out is None or _fits(out, tensor)
        usable = fits and are_on(self.ranks.device, tensors)
        asked = asked_for(tensors, step=self.step, rule=self._sharded.asked, usable=usable)
        self.ranks.agree(asked)
        layout = check_usable(self.ranks.who, tensors, device=self.ranks.device)
        if not fits:
            raise ValueError(
                f"{self.ranks.who}: out must be a contiguous tensor of tensor's shape, dtype and "
                f"device, found {described(out)}"
            )
        self._settle(layout)
        vectors = layout.flatten(tensors)
        rooms = self._rooms if len(self._rooms) == len(vectors) else [None] * len(vectors)
        pending = [self._exchange.rows(*pair) for pair in zip(vectors, rooms, strict=True)]
        arrived = [rows.result() for rows in pending]
        rows, self._rooms = side_by_side(arrived, layout.dtype), arrived
        flat = None if out is None else out.detach().view(-1)
        of_kinds = [self._exchange.counts(length) for length in layout.lengths]
        columns = self._exchange.columns([sum(counts) for counts in zip(*of_kinds, strict=True)])
        why, state = self._sharded.step(rows, self._state, columns)
        self._sharded.check_rejected(why.rejected)
        found = layout.unflatten(self._whole(why.output, layout, layout.kinds, flat))
        self.explanation = replace(why, output=why.output.new_empty(0))
        self._layout, self._state = layout, state
        self.ranks.step += 1
        return found[0] if isinstance(tensor, Tensor) else found

    def _settle(self, layout: Layout) -> None:
        """Make the state that of rows of this layout; it is the same on all ranks.

        Raises:
            ValueError: the state is that of rows of another layout.
        """
        if isinstance(self._sharded.rule, Estimator) and self._layout not in (None, layout):
            raise ValueError(
                f"{self.ranks.who}: tensor must have the shapes and dtypes of the first step, "
                f"found {layout}"
            )
        if self._loaded:
            whole = self._loaded[ESTIMATE]
            if len(whole) != layout.d:
                raise ValueError(
                    f"{self.ranks.who}: tensor must have the {len(whole)} numbers of the state "
                    f"that was loaded, found {layout.d}"
                )
            parts = torch.split(whole, list(layout.lengths))
            own = side_by_side([self._exchange.own(part)[None] for part in parts], whole.dtype)
            self._state, self._loaded = {**self._loaded, ESTIMATE: own[0].clone()}, {}
            self._layout = layout

    def _whole(
        self,
        own: Tensor,
        layout: Layout,
        dtypes: Sequence[torch.dtype],
        out: Tensor | None = None,
    ) -> list[Tensor]:
        """The vectors of each kind, of which ``own`` has this rank's columns side by side."""
        rank = self.ranks.rank
        widths = [self._exchange.counts(length)[rank] for length in layout.lengths]
        pieces = torch.split(own[: sum(widths)], widths)
        pending = [
            self._exchange.whole(narrowed(piece, dtype), length, out)
            for piece, dtype, length in zip(pieces, dtypes, layout.lengths, strict=True)
        ]
        return [vector.result() for vector in pending]

    def state_dict(self) -> dict[str, Any]:
        """Step, rule and the estimator's whole state, as a tree for ``save_checkpoint``.

        All ranks must call it, for the slices of the estimate are collected; all get the same.

        Raises:
            DisagreementError: some ranks do something else.
        """
        self.ranks.agree(f"the state at step {self.step}")
        state = dict(self._loaded or self._state)
        if ESTIMATE in state and self._layout is not None:
            own = state[ESTIMATE]
            kinds = [own.dtype] * len(self._layout.kinds)
            state[ESTIMATE] = torch.cat(self._whole(own, self._layout, kinds))
        return {"step": self.step, "rule": self._sharded.specification, "estimator": state}

    def load_state_dict(self, tree: Mapping[str, Any]) -> None:
        """Continue where :meth:`state_dict` was taken, with any number of ranks.

        Raises:
            ValueError: it is of another rule, or of the same one with other parameters.
        """
        who = self.ranks.who
        for name in ("step", "rule", "estimator"):
            if name not in tree:
                raise ValueError(f"{who}: a state must have {name!r}, found {sorted(tree)}")
        if tree["rule"] != self._sharded.specification:
            found = self._sharded.specification
            raise ValueError(f"{who}: rule must be the state's {tree['rule']}, found {found}")
        self.ranks.step = as_integer(who, "step", tree["step"])
        self._layout, self._state = None, {}
        device = self.ranks.device
        self._loaded = {
            name: value.to(device) if name == ESTIMATE else value
            for name, value in tree["estimator"].items()
        }


def _listed(given: object) -> list[Any]:
    """What is no tensor too: that is for all ranks to learn before it is refused."""
    if hasattr(given, "shape") or not isinstance(given, Iterable):  # an array of any library
        return [given]
    return list(given)


def _fits(out: object, tensor: object) -> bool:
    return (
        isinstance(out, Tensor)
        and isinstance(tensor, Tensor)
        and (out.shape, out.dtype, out.device) == (tensor.shape, tensor.dtype, tensor.device)
        and out.is_contiguous()
    )
