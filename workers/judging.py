"""Whose message it may be: what a host sends, against what was asked of it."""

from __future__ import annotations

from collections.abc import Sequence

from robust_agg.admission import Rejection
from robust_agg.messages import MessageError, Schema, Update


def judge(
    message: Update | MessageError, host: int, asked: Sequence[int], schema: Schema
) -> Update | Rejection:
    """An update that its host may send and that can be stacked, or why it cannot be accepted."""
    sender = message.sender
    if sender is None:
        return Rejection(-1, f"malformed: host {host}: {message}")
    if sender not in asked:
        return Rejection(-1, f"forged: host {host} answers for worker {sender}, not asked of it")
    if isinstance(message, MessageError):
        return Rejection(sender, f"malformed: {message}", keeps_place=True)
    row = message.row
    problem = schema.mismatch(dim=row.numel() if row.dim() == 1 else -1, dtype=row.dtype)
    if problem is not None:
        return Rejection(sender, f"malformed: {problem}", keeps_place=True)
    return message
