"""The errors a caller may want to tell apart, and the checks every rule starts with."""

from __future__ import annotations

import operator
from numbers import Integral, Real
from typing import SupportsIndex

import torch
from torch import Tensor


class ConstraintError(ValueError):
    """n and f (or the number of neighbours, buckets, …) make the rule's guarantee impossible."""


class TooManyRejectedError(ValueError):
    """More rows are non-finite or too far to measure than the rule can bear."""


class SearchLimitError(ValueError):
    """An exact search takes more steps than its rule allows; it does not approximate instead."""


def check_rows(who: str, rows: Tensor) -> None:
    """Raise ``ValueError`` unless ``rows`` is a floating tensor ``(n, d)`` with n, d >= 1."""
    if not isinstance(rows, Tensor):
        raise TypeError(f"{who}: rows must be a torch.Tensor, found {type(rows).__name__}")
    if rows.dim() != 2 or 0 in rows.shape:
        raise ValueError(
            f"{who}: rows must have shape (n, d) with n, d >= 1, found {tuple(rows.shape)}"
        )
    if rows.layout != torch.strided:
        raise ValueError(f"{who}: rows must be a dense tensor, found {rows.layout}")
    if rows.is_meta:
        raise ValueError(f"{who}: rows must be on a device that keeps numbers, found meta")
    if not rows.is_floating_point() or rows.dtype.itemsize < 2:
        raise ValueError(
            f"{who}: rows must have a floating dtype of 16 bits or more, found {rows.dtype}"
        )


def check_count(who: str, name: str, value: object, *, minimum: int) -> None:
    """Raise ``ValueError`` unless ``value`` is an int >= ``minimum`` (bool is no int here)."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
        raise ValueError(f"{who}: {name} must be an integer >= {minimum}, found {shown(value)}")


def check_positive(who: str, name: str, value: object, *, zero: bool = False) -> None:
    """Raise ``ValueError`` unless ``value`` is a positive finite number, or 0 where allowed."""
    number = _number(value)
    if not (0 < number < float("inf") or (zero and number == 0)):
        kind = "finite number >= 0" if zero else "positive finite number"
        raise ValueError(f"{who}: {name} must be a {kind}, found {shown(value)}")


def check_share(
    who: str,
    name: str,
    value: object,
    *,
    zero: bool = False,
    one: bool = False,
    end: float = 1,
) -> None:
    """Raise ``ValueError`` unless ``value`` is in (0, ``end``), or 0 or the end where allowed."""
    number = _number(value)
    if not (0 < number < end or (zero and number == 0) or (one and number == end)):
        interval = f"{'[' if zero else '('}0, {end}{']' if one else ')'}"
        raise ValueError(f"{who}: {name} must be in {interval}, found {shown(value)}")


def check_choice(who: str, name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ``ValueError`` unless ``value`` is one of two or more strings."""
    if not isinstance(value, str) or value not in choices:
        words = [repr(choice) for choice in choices]
        listed = f"{', '.join(words[:-1])} or {words[-1]}"
        raise ValueError(f"{who}: {name} must be {listed}, found {shown(value)}")


def check_instance(who: str, name: str, value: object, kind: type) -> None:
    """Raise ``ValueError`` unless ``value`` is an instance of ``kind``, not the class itself."""
    if not isinstance(value, kind):
        raise ValueError(
            f"{who}: {name} must be an instance of {kind.__name__}, found {shown(value)}"
        )


def as_integer(who: str, name: str, value: object) -> int:
    """``value`` as an ``int``, if it is any kind of integer: numpy's and torch's are none to JSON.

    Raises:
        ValueError: it is none, or a bool.
    """
    if type(value) is int:  # what nearly all are, and the protocol takes long to check
        return value
    if isinstance(value, SupportsIndex) and not isinstance(value, bool):
        try:
            return operator.index(value)
        except TypeError:  # a tensor that holds no integer
            pass
    raise ValueError(f"{who}: {name} must be an integer, found {shown(value)}")


def shown(value: object) -> str:
    """The ``repr`` of a value on one line of a message, cut short where it is long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= _LONGEST else text[:_LONGEST] + "…"


_LONGEST = 200


def _number(value: object) -> float:
    """A number's value, and NaN for what is none; bool is no number here."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return float("nan")
    try:
        return float(value)
    except OverflowError:
        return float("inf")


def check_honest_majority(who: str, n: int, f: int) -> None:
    """Raise :class:`ConstraintError` unless ``n >= 2f + 1``."""
    if n < 2 * f + 1:
        raise ConstraintError(f"{who}: n >= 2f + 1 is required, found n={n}, f={f}")


def check_rejected(who: str, rejected: int, tolerance: int, n: int) -> None:
    """Raise :class:`TooManyRejectedError` where more rows are rejected than are tolerated."""
    if rejected > tolerance:
        raise TooManyRejectedError(
            f"{who}: at most {tolerance} of the n={n} rows may be non-finite or too far to "
            f"measure, found {rejected}"
        )
