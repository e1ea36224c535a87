"""Which messages count this round, and why the others do not.

A row that did not arrive, or is stale, reduces n and never f: its sender may be honest. A message
that arrived for this round but cannot be a row (wrong length or dtype, or no payload of the codec)
keeps its sender's place with a row of NaN, which no rule trusts (weight 0, or an extreme value of
its coordinate): its sender has shown itself faulty. A second message from one sender and a message
from nobody we asked are dropped.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from robust_agg.errors import as_integer
from robust_agg.messages import MessageError, Schema, Update


@dataclass(frozen=True)
class Rejection:
    """A message that does not count, or does not exist.

    Attributes:
        sender: the worker's id as the transport knows it; -1 where it knows none.
        reason: one line, e.g. ``"stale: round 3, expected 4"``.
        keeps_place: True where the sender stays in n with weight 0.
    """

    sender: int
    reason: str
    keeps_place: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "sender", as_integer("Rejection", "sender", self.sender))


@dataclass(frozen=True)
class Admitted:
    """The round's rows, ordered by sender.

    Attributes:
        rows: ``(n, d)``; a rejected message that keeps its place is a row of NaN.
        senders: the n senders, ascending.
        rejections: what was refused, in order of arrival, then what is missing.
    """

    rows: Tensor
    senders: tuple[int, ...]
    rejections: tuple[Rejection, ...]


class Reader(Protocol):
    """Makes rows of messages: a codec's :class:`~robust_agg.codecs.decoder.RoundReader`.

    Attributes:
        dim, dtype: of the rows.
    """

    dim: int
    dtype: torch.dtype

    def read(self, update: Update) -> Tensor:
        """The row ``(d,)`` in a message.

        Raises:
            MessageError: there is none.
        """
        ...


def admit(
    updates: Sequence[Update],
    schema: Schema,
    *,
    device: torch.device | str = "cpu",
    refused: Iterable[Rejection] = (),
    reader: Reader | None = None,
) -> Admitted:
    """Validate, deduplicate and order the updates of one round.

    Args:
        updates: what arrived, in order of arrival.
        schema: the round, row and senders expected.
        device: where the stacked rows are placed.
        refused: what the transport already knows to be missing or malformed; an entry with
            ``keeps_place`` becomes a row of NaN unless the same sender also has a good row.
        reader: reads those messages that would count; a row is what was sent, if None.
    """
    rows: dict[int, Tensor] = {}
    rejections = list(refused)
    placeholders = {r.sender for r in rejections if r.keeps_place and r.sender in schema.senders}
    for update in updates:
        refusal = _refuse(update, schema, rows)
        if refusal is None:
            try:
                row = update.row if reader is None else reader.read(update)
                rows[update.sender] = row.detach()
                continue
            except MessageError as error:
                refusal = Rejection(update.sender, f"malformed: {error}", keeps_place=True)
        rejections.append(refusal)
        if refusal.keeps_place:
            placeholders.add(refusal.sender)
    # Whose other message counts has a place with a weight of its own.
    rejections = [
        replace(r, keeps_place=r.keeps_place and r.sender not in rows) for r in rejections
    ]
    senders = tuple(sorted(rows.keys() | placeholders))
    explained = {r.sender for r in rejections}
    rejections += [
        Rejection(sender, "missing: no message arrived")
        for sender in sorted(schema.senders - set(senders) - explained)
    ]
    form = schema if reader is None else reader
    stacked = torch.empty(len(senders), form.dim, dtype=form.dtype, device=device)
    for place, sender in enumerate(senders):
        stacked[place] = rows.get(sender, torch.nan)
    return Admitted(stacked, senders, tuple(rejections))


def _refuse(update: Update, schema: Schema, seen: dict[int, Tensor]) -> Rejection | None:
    sender = update.sender
    if sender not in schema.senders:
        return Rejection(sender, f"unknown sender {sender}")
    if update.round != schema.round:
        return Rejection(sender, f"stale: round {update.round}, expected {schema.round}")
    if sender in seen:
        return Rejection(sender, "duplicate: an earlier message of this round counts")
    row: object = update.row
    if not isinstance(row, Tensor) or row.layout != torch.strided or row.is_meta:
        return Rejection(
            sender, f"a dense tensor is required, found {_kind(row)}", keeps_place=True
        )
    problem = schema.mismatch(dim=update.row.numel(), dtype=update.row.dtype)
    if problem is None and update.row.dim() != 1:
        problem = f"the row must have shape ({schema.dim},), found {tuple(update.row.shape)}"
    return None if problem is None else Rejection(sender, problem, keeps_place=True)


def _kind(row: object) -> str:
    return f"{row.layout} on {row.device}" if isinstance(row, Tensor) else type(row).__name__
