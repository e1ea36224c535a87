"""What a worker sends: an update, the schema it must match, and its byte format.

A message is data, never an object: a fixed header followed by the raw little-endian tensor. The
header is checked against what the server expects before any memory is allocated for the row, and
nothing is ever unpickled.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from robust_agg.errors import as_integer

_MAGIC = b"RAGG"
_VERSION = 1
# magic, version, dtype code, padding, sender, round, number of elements
_HEADER = struct.Struct("<4sBB2xqqQ")
# Codes are part of the format: append, never renumber.
_CODES = {
    torch.float32: 1,
    torch.float64: 2,
    torch.float16: 3,
    torch.bfloat16: 4,
    torch.uint8: 5,  # the bytes of a codec
}
_DTYPES = {code: dtype for dtype, code in _CODES.items()}


class MessageError(ValueError):
    """A message that cannot be accepted; the text says what was expected and what was found.

    Attributes:
        sender: who the message says it is from, where that much of it can be read.
    """

    def __init__(self, text: str, sender: int | None = None) -> None:
        super().__init__(text)
        self.sender = sender


@dataclass(frozen=True)
class Update:
    """One row from one worker for one round.

    Attributes:
        sender: the worker's id, as the transport knows it.
        round: the round the worker computed it for.
        row: a ``(d,)`` floating tensor (a gradient, a momentum or a model difference); under a
            codec the ``(b,)`` uint8 tensor of its message.

    Raises:
        ValueError: sender or round is no integer; one of numpy or torch is kept as an ``int``.
    """

    sender: int
    round: int
    row: Tensor

    def __post_init__(self) -> None:
        for name in ("sender", "round"):
            object.__setattr__(self, name, as_integer("Update", name, getattr(self, name)))


@dataclass(frozen=True, kw_only=True)
class Schema:
    """What every message of a round must look like.

    Attributes:
        round: the round being collected.
        dim: the number of elements d of a row, or of bytes b of a codec's message.
        dtype: the rows' floating dtype, or uint8.
        senders: the ids that were asked for a row this round.
    """

    round: int
    dim: int
    dtype: torch.dtype
    senders: frozenset[int]

    def mismatch(self, *, dim: int, dtype: torch.dtype | None) -> str | None:
        """Why a row of ``dim`` elements of ``dtype`` cannot be stacked, or None if it can."""
        if dtype != self.dtype:
            return f"dtype must be {self.dtype}, found {dtype}"
        if dim != self.dim:
            return f"the row must have {self.dim} elements, found {dim}"
        return None


@dataclass(frozen=True)
class Header:
    """The parsed head of a message: everything the server decides on before reading the tensor."""

    sender: int
    round: int
    dtype: torch.dtype | None
    dim: int


def encode(update: Update) -> bytes:
    """The bytes of one update: 32 bytes of header, then the row's elements in little-endian order.

    Raises:
        MessageError: the row is not a one-dimensional tensor of a supported dtype, or
            sender or round needs more than 64 bits.
    """
    row = update.row
    if row.dim() != 1 or row.dtype not in _CODES:
        raise MessageError(
            f"row: a (d,) tensor of one of {[str(d) for d in _CODES]} is required, "
            f"found {tuple(row.shape)} of {row.dtype}"
        )
    code = _CODES[row.dtype]
    try:
        header = _HEADER.pack(_MAGIC, _VERSION, code, update.sender, update.round, row.numel())
    except struct.error as error:
        raise MessageError(
            f"sender and round must be integers of 64 bits, "
            f"found {update.sender} and {update.round}"
        ) from error
    raw = row.detach().to("cpu").contiguous().view(torch.uint8).numpy()
    return header + raw.tobytes()


def size(update: Update) -> int:
    """The number of bytes of :func:`encode`; of what is no tensor, those of the header."""
    row: object = update.row
    return _HEADER.size + (row.numel() * row.element_size() if isinstance(row, Tensor) else 0)


def decode_header(message: memoryview) -> Header:
    """Parse and check the fixed head of a message, its length included.

    Raises:
        MessageError: too short, another format or version, or a length that disagrees with the
            number of elements the header declares.
    """
    if len(message) < _HEADER.size:
        raise MessageError(f"a message has at least {_HEADER.size} bytes, found {len(message)}")
    magic, version, code, sender, round_, dim = _HEADER.unpack_from(message)
    if magic != _MAGIC or version != _VERSION:
        raise MessageError(
            f"format {_MAGIC!r} version {_VERSION} expected, found {magic!r} {version}"
        )
    dtype = _DTYPES.get(code)
    body = len(message) - _HEADER.size
    if dtype is None or body != dim * dtype.itemsize:
        raise MessageError(
            f"the header declares {dim} elements of dtype code {code}, "
            f"found {body} bytes of tensor",
            sender,
        )
    return Header(sender=sender, round=round_, dtype=dtype, dim=dim)


def decode(message: memoryview, schema: Schema) -> Update:
    """The update in ``message``, if its row matches ``schema``; nothing is allocated otherwise.

    Round and sender are carried over for admission to judge: a stale message is no malformed one.

    Raises:
        MessageError: the message is malformed or its row does not match the schema.
    """
    header = decode_header(message)
    problem = schema.mismatch(dim=header.dim, dtype=header.dtype)
    if problem is not None:
        raise MessageError(problem, header.sender)
    row = torch.empty(header.dim, dtype=schema.dtype, device="cpu")
    row.view(torch.uint8).numpy()[:] = memoryview(message)[_HEADER.size :]
    return Update(sender=header.sender, round=header.round, row=row)


_LENGTH = struct.Struct("<Q")


def pack(messages: Iterable[bytes]) -> bytes:
    """Several messages as one block, each preceded by its length in 8 bytes."""
    return b"".join(part for m in messages for part in (_LENGTH.pack(len(m)), m))


def unpack(block: bytes | memoryview) -> Iterator[memoryview]:
    """The messages of a block, as views.

    Raises:
        MessageError: the block ends inside a message; those before it have been given out.
    """
    view = memoryview(block)
    while view:
        if len(view) < _LENGTH.size:
            raise MessageError(f"a block ends with {len(view)} stray bytes")
        (length,) = _LENGTH.unpack_from(view)
        if length > len(view) - _LENGTH.size:
            raise MessageError(
                f"a message of {length} bytes is announced, {len(view) - _LENGTH.size} remain"
            )
        yield view[_LENGTH.size : _LENGTH.size + length]
        view = view[_LENGTH.size + length :]
