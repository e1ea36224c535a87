"""Who knows what: the knowledge an attack declares, and the view that holds it to that."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from robust_agg.span import Geometry
from robust_agg.torch_compat import in_memory


class Knowledge(enum.Flag):
    """What an attack may read besides the shape of the round; combine with ``|``.

    Attributes:
        NOTHING: the number of rows, their size and type, and the round.
        OWN: the rows the attackers themselves would have sent, had they been honest.
        HONEST: the rows of every honest worker of the round.
        DEFENCE: an :class:`Oracle` of the defence: what it would answer to rows of the attack's
            choice, and its declared f.
        ESTIMATE: what the defence answered last; whoever is sent two models in a row can tell.
    """

    NOTHING = 0
    OWN = enum.auto()
    HONEST = enum.auto()
    DEFENCE = enum.auto()
    ESTIMATE = enum.auto()


class KnowledgeError(RuntimeError):
    """An attack read something its ``knows`` does not declare."""


class UnfitRoundError(ValueError):
    """An attack cannot be made in a round of so many Byzantine and honest rows."""


def check_known(who: str, knows: Knowledge, *, byzantine: int, honest: int) -> None:
    """Raise :class:`UnfitRoundError` if a round has no honest row, and the attack knows them."""
    if Knowledge.HONEST in knows and honest < 1:
        raise UnfitRoundError(
            f"{who}: at least one honest row is required by {knows}, "
            f"found 0 of n={byzantine + honest}"
        )


class Defence(Protocol):
    """The defence as it stands, from which a round's attack is given what it knows of it."""

    @property
    def f(self) -> int:
        """The number of Byzantine rows the defence is declared to withstand."""
        ...

    @property
    def estimate(self) -> Tensor | None:
        """Its last answer ``(d,)`` that the model stepped by; None before there is one."""
        ...

    def aggregate(self, rows: Tensor) -> Tensor:
        """Its answer ``(d,)`` to the rows ``(n, d)``, were it asked now; changes nothing."""
        ...

    def weights_from(self, geometry: Geometry) -> Tensor | None:
        """The weights ``(n,)`` in that answer, from the geometry of the rows alone; or None."""
        ...


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Oracle:
    """All that ``Knowledge.DEFENCE`` grants of a defence: its f, and answers to questions.

    Answers are copies, and no question changes the defence. It is asked of rows as the server has
    them before it: what a codec makes of a row on the way there it does not tell.

    Python hides nothing from who digs for it: this is a fence against mistakes, not against malice.

    Attributes:
        f: the number of Byzantine rows the defence is declared to withstand.
        aggregate: its answer ``(d,)`` to the rows ``(n, d)``, were it asked now.
        weights_from: the weights ``(n,)`` in that answer, from the geometry of the rows alone; None
            where it must see the rows. A search among rows that are combinations of a few is then
            one pass over memory, whatever the number of questions.
    """

    f: int
    aggregate: Callable[[Tensor], Tensor]
    weights_from: Callable[[Geometry], Tensor | None]


def _oracle_of(defence: Defence) -> Oracle:
    """What of a defence may be handed to an attack."""

    def aggregate(rows: Tensor) -> Tensor:
        return defence.aggregate(rows).clone()

    def weights_from(geometry: Geometry) -> Tensor | None:
        weights = defence.weights_from(geometry)
        return None if weights is None else weights.clone()

    return Oracle(defence.f, aggregate, weights_from)


class View:
    """What one attack sees of one round.

    Only what ``knows`` declares is kept here at all; reading anything else raises. ``own`` and
    ``honest`` are copies, made at the first read, so that an attack may work in them: nothing it
    does to a view reaches the rows that the server receives.

    Attributes:
        round: the number of the round.
        n: the number of rows the server receives this round, honest and Byzantine.
        byzantine: the number k of rows the attack must produce.
        dim: the number d of elements of a row.
        dtype: the rows' dtype; the attack's rows must have it too.
        device: the rows' device; the attack's rows must be on it too.
        senders: the ids of the Byzantine workers, in the order of their rows.
    """

    def __init__(
        self,
        *,
        reader: str,
        knows: Knowledge,
        round: int,
        own: Sequence[Tensor],
        honest: Sequence[Tensor],
        defence: Defence | None = None,
        senders: Sequence[int] | None = None,
        honest_senders: Sequence[int] | None = None,
    ) -> None:
        """Open a round to an attack.

        Args:
            reader: the attack's name, for errors.
            knows: what the attack declares to read.
            round: the number of the round.
            own: the k rows ``(d,)`` that the Byzantine workers would have sent; k >= 1.
            honest: the h rows ``(d,)`` of the honest workers, of the same dtype and device.
            defence: what ``Knowledge.DEFENCE`` gives access to, and whose last answer
                ``Knowledge.ESTIMATE`` is.
            senders: who the Byzantine workers are; the last k of n if None.
            honest_senders: who the honest ones are; the first h of n if None.

        Raises:
            UnfitRoundError: the attack declares to know honest rows, and there is none.
            ValueError: there is no row to replace, or no defence that the attack declares to know.
        """
        if not own:
            raise ValueError(f"{reader}: at least one Byzantine row is required, found 0")
        check_known(reader, knows, byzantine=len(own), honest=len(honest))
        if knows & (Knowledge.DEFENCE | Knowledge.ESTIMATE) and defence is None:
            raise ValueError(f"{reader}: a defence to query is required by {knows}, found None")
        self.round = round
        self.n = len(own) + len(honest)
        self.byzantine = len(own)
        self.dim = own[0].numel()
        self.dtype = own[0].dtype
        self.device = own[0].device
        self._reader = reader
        self._knows = knows
        self._rows = {
            granted: rows
            for granted, rows in ((Knowledge.OWN, own), (Knowledge.HONEST, honest))
            if granted in knows
        }
        self.senders = tuple(range(len(honest), self.n) if senders is None else senders)
        self._honest_senders: tuple[int, ...] = ()
        if Knowledge.HONEST in knows:
            everyone = range(len(honest)) if honest_senders is None else honest_senders
            self._honest_senders = tuple(everyone)
        self._copies: dict[Knowledge, Tensor] = {}
        self._oracle = None
        if Knowledge.DEFENCE in knows and defence is not None:
            self._oracle = _oracle_of(defence)
        self._estimate: Tensor | None = None
        if Knowledge.ESTIMATE in knows and defence is not None:
            self._estimate = defence.estimate

    @property
    def own(self) -> Tensor:
        """The attackers' own honest rows, ``(k, d)``; needs ``Knowledge.OWN``."""
        return self._copy("own", Knowledge.OWN)

    @property
    def honest(self) -> Tensor:
        """The rows of all honest workers, ``(h, d)`` with h = n - k; needs ``Knowledge.HONEST``."""
        return self._copy("honest", Knowledge.HONEST)

    @property
    def honest_mean(self) -> Tensor:
        """Their mean as they were sent, ``(d,)``; needs ``Knowledge.HONEST``. No copy is made."""
        if Knowledge.HONEST not in self._rows:
            raise self._refusal("honest_mean", Knowledge.HONEST)
        return _together(self._rows[Knowledge.HONEST]).mean(dim=0)

    @property
    def honest_senders(self) -> tuple[int, ...]:
        """Whose rows those are, ids in their order; needs ``Knowledge.HONEST``."""
        if Knowledge.HONEST not in self._rows:
            raise self._refusal("honest_senders", Knowledge.HONEST)
        return self._honest_senders

    @property
    def estimate(self) -> Tensor | None:
        """What the defence answered last, ``(d,)``; needs ``Knowledge.ESTIMATE``.

        A copy of the rows' dtype on their device; None before there is one.
        """
        if Knowledge.ESTIMATE not in self._knows:
            raise self._refusal("estimate", Knowledge.ESTIMATE)
        if self._estimate is None:
            return None
        return self._estimate.detach().to(self.device, self.dtype, copy=True)

    @property
    def defence(self) -> Oracle:
        """The defence, to ask and nothing else; needs ``Knowledge.DEFENCE``."""
        return self._query("defence")

    @property
    def f(self) -> int:
        """The declared f, which need not be k; needs ``Knowledge.DEFENCE``."""
        return self._query("f").f

    def _copy(self, attribute: str, needed: Knowledge) -> Tensor:
        if needed not in self._rows:
            raise self._refusal(attribute, needed)
        if needed not in self._copies:
            self._copies[needed] = torch.stack([row.detach() for row in self._rows[needed]])
        return self._copies[needed]

    def _query(self, attribute: str) -> Oracle:
        if self._oracle is None:
            raise self._refusal(attribute, Knowledge.DEFENCE)
        return self._oracle

    def _refusal(self, attribute: str, needed: Knowledge) -> KnowledgeError:
        return KnowledgeError(
            f"{self._reader}: reading view.{attribute} requires {needed}, declared {self._knows}"
        )


def _together(rows: Sequence[Tensor]) -> Tensor:
    """Rows ``(d,)`` as one matrix, not to be changed: a view where they lie in one block."""
    rows = [row.detach() for row in rows]
    first = rows[0]
    begin = first.storage_offset()
    step = rows[1].storage_offset() - begin if len(rows) > 1 else first.numel()
    one_block = step >= 0 and all(
        in_memory(row)
        and row.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and row.storage_offset() == begin + place * step
        and row.stride() == (1,)
        for place, row in enumerate(rows)
    )
    return (
        first.as_strided((len(rows), first.numel()), (step, 1)) if one_block else torch.stack(rows)
    )
