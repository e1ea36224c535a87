"""The adversary of a simulation: which workers are Byzantine, and the rows they send."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.attack import Attack
from attacks.threat import Defence, Knowledge, UnfitRoundError, View
from robust_agg.messages import Update
from robust_agg.types import State


@dataclass(frozen=True, kw_only=True)
class Adversary:
    """Replaces the rows of the Byzantine workers by those of an attack.

    Only the adversary knows who is Byzantine. The f that the defence is declared to withstand is no
    parameter here: there may be more of them, or fewer.

    Args:
        attack: what the Byzantine workers send.
        byzantine: the ids of the senders that are Byzantine.
    """

    attack: Attack
    byzantine: frozenset[int]

    def init(self, like: Tensor) -> State:
        """The attack's state before the first round, for rows like the ``(d,)`` tensor ``like``."""
        return self.attack.init(like)

    def unfit(self, workers: Iterable[int]) -> str | None:
        """Why no attack can be made in a round of these workers; None where one can.

        The Byzantine ones of such a round send their own honest rows: to send nothing would have
        rounds skipped that are small already, which is another attack (``Crash``).
        """
        bad = [worker in self.byzantine for worker in workers]
        try:
            if any(bad):
                self.attack.check(sum(bad), len(bad) - sum(bad))
        except UnfitRoundError as error:
            return str(error)
        return None

    def idle(self, workers: Sequence[int]) -> tuple[int, ...]:
        """Those of a round's workers whose honest rows nobody reads: they need not be computed.

        They are the Byzantine ones, unless the attack knows :attr:`Knowledge.OWN` or cannot be made
        in this round.
        """
        return () if self.unfit(workers) is not None else self._unread(workers)

    def _unread(self, workers: Iterable[int]) -> tuple[int, ...]:
        if Knowledge.OWN in self.attack.knows:
            return ()
        return tuple(worker for worker in workers if worker in self.byzantine)

    def corrupt(
        self,
        updates: Sequence[Update],
        state: State,
        *,
        round: int,
        generator: torch.Generator,
        defence: Defence | None = None,
        idle: Sequence[int] = (),
        like: Tensor | None = None,
    ) -> tuple[list[Update], State]:
        """The updates as the server receives them, and the attack's state for the next round.

        The Byzantine workers' updates keep their place, sender and round and get the attack's rows;
        the honest ones are passed on as they are. In a round without a Byzantine update, and in
        one that is :meth:`unfit`, nothing changes and the attack is not asked.

        Args:
            updates: what every worker that is not idle would send if it were honest; not changed.
            state: what the previous round returned, or ``init``; not changed.
            round: the number of the round.
            generator: a CPU generator for the attack's random choices.
            defence: the defence as it stands, for attacks that query it.
            idle: Byzantine workers that have computed nothing, as :meth:`idle` allows; they send
                the attack's last rows, in this order, after all others.
            like: ``(d,)``, of a row's dtype and device, where there may be no updates.

        Raises:
            ValueError: the updates' rows differ in shape, dtype or device; the attack knows a
                defence and there is none; the attack's rows are not ``(k, d)`` of the
                updates' dtype and device; a worker is idle that is not Byzantine or whose row the
                attack knows; or there are idle ones and neither updates nor ``like``.
            KnowledgeError: the attack reads more than it declares to know.
        """
        places = [i for i, update in enumerate(updates) if update.sender in self.byzantine]
        if not places and not idle:
            return list(updates), state
        _check_alike(updates)
        allowed = set(self._unread(idle)) - {update.sender for update in updates}
        if sorted(allowed) != sorted(idle):
            raise ValueError(
                "Adversary: idle must be different Byzantine workers that have sent nothing and "
                f"whose rows the attack does not know, found {sorted(idle)}"
            )
        if self.unfit([*(update.sender for update in updates), *idle]) is not None:
            return list(updates), state
        like = updates[0].row if updates else like
        if like is None:
            raise ValueError("Adversary: like is required with idle workers alone, found None")
        view = View(
            reader=type(self.attack).__name__,
            knows=self.attack.knows,
            round=round,
            # Where some are idle the attack knows no own row, and the view keeps none of these.
            own=[*(updates[i].row for i in places), *[like] * len(idle)],
            honest=[u.row for u in updates if u.sender not in self.byzantine],
            defence=defence,
            senders=[*(updates[i].sender for i in places), *idle],
            honest_senders=[u.sender for u in updates if u.sender not in self.byzantine],
        )
        rows, state = self._ask(view, state, generator)
        received = list(updates)
        sent = iter(rows.unbind())
        for i in places:
            received[i] = replace(updates[i], row=next(sent))
        received += [Update(sender=worker, round=round, row=next(sent)) for worker in idle]
        return received, state

    def _ask(self, view: View, state: State, generator: torch.Generator) -> tuple[Tensor, State]:
        answer: object = self.attack(view, state, generator)
        name = type(self.attack).__name__
        # Checked because a (2, d) tensor unpacks into two as well as the pair that is meant.
        if not (isinstance(answer, tuple) and len(answer) == 2):
            raise ValueError(f"{name}: (rows, state) is required, found {type(answer).__name__}")
        rows, state = answer
        expected = f"rows ({view.byzantine}, {view.dim}) of {view.dtype} on {view.device}"
        if not isinstance(rows, Tensor):
            raise ValueError(f"{name}: {expected} are required, found {type(rows).__name__}")
        if (rows.shape, rows.dtype, rows.device) != (
            (view.byzantine, view.dim),
            view.dtype,
            view.device,
        ):
            raise ValueError(
                f"{name}: {expected} are required, "
                f"found {tuple(rows.shape)} of {rows.dtype} on {rows.device}"
            )
        # A copy: what the attack keeps of its answer, in its state say, is no longer what it sent.
        return rows.detach().clone(memory_format=torch.contiguous_format), state


def check_some_round(attack: Attack, *, workers: int, byzantine: int, rows: int) -> None:
    """Raise :class:`UnfitRoundError` if no round of a run is one that ``attack`` can be made in.

    Args:
        attack: what the Byzantine workers send.
        workers: of the run.
        byzantine: how many of them are Byzantine; 0 needs no attack.
        rows: of a round, from workers drawn anew each time where these are fewer.
    """
    errors = []
    # With as many of them as can be drawn first: there the attack's own words say most.
    for k in range(min(byzantine, rows), max(0, rows - workers + byzantine - 1), -1):
        try:
            attack.check(k, rows - k)
        except UnfitRoundError as error:
            errors.append(error)
        else:
            return
    if errors:
        raise errors[0]


def _check_alike(updates: Sequence[Update]) -> None:
    if not updates:
        return
    first = updates[0].row
    for update in updates:
        row = update.row
        if row.dim() != 1 or (row.shape, row.dtype, row.device) != (
            first.shape,
            first.dtype,
            first.device,
        ):
            raise ValueError(
                f"Adversary: rows (d,) alike are required, found {tuple(first.shape)} of "
                f"{first.dtype} on {first.device} from sender {updates[0].sender}, "
                f"{tuple(row.shape)} of {row.dtype} on {row.device} from sender {update.sender}"
            )
