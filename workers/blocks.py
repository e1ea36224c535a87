"""What travels between the driver and a host as bytes: parameters, rows and states; no pickle."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from robust_agg.messages import MessageError, Schema, Update, decode, decode_header, encode, unpack
from robust_agg.types import State

SLACK = 1 << 20
"""Bytes a reply may have beyond twice the rows asked for; a larger one is refused unread."""


def most_bytes(workers: int, row_bytes: int) -> int:
    """The bytes that the reply of a host with so many workers may have."""
    return SLACK + 2 * workers * row_bytes


def pack_parameters(round: int, parameters: Tensor) -> bytes:
    """The round and its parameters ``(d,)``, as the message of nobody."""
    return encode(Update(sender=-1, round=round, row=parameters))


def unpack_parameters(block: bytes | memoryview) -> Update:
    """What :func:`pack_parameters` has packed: ``round``, and ``row`` for the parameters."""
    message = memoryview(block)
    header = decode_header(message)
    assert header.dtype is not None
    schema = Schema(round=header.round, dim=header.dim, dtype=header.dtype, senders=frozenset())
    return decode(message, schema)


def open_rows(block: object, schema: Schema) -> Iterator[Update | MessageError]:
    """The messages of a reply, of which nothing is known; a bad one is its error."""
    if not isinstance(block, bytes | memoryview):
        yield MessageError(f"a block of bytes is required, found {type(block).__name__}")
        return
    messages = unpack(block)
    while True:
        try:
            yield decode(next(messages), schema)
        except StopIteration:
            return
        except MessageError as error:
            yield error


def pack_states(states: Mapping[int, State]) -> bytes:
    """States as the bytes of a safetensors file, under the names ``worker/name``."""
    return save(
        {
            f"{worker}/{name}": tensor.detach().to("cpu", copy=True).contiguous()
            for worker, state in states.items()
            for name, tensor in state.items()
        }
    )


def unpack_states(block: bytes) -> dict[int, State]:
    """The states in the bytes of :func:`pack_states`; a state without tensors is none.

    Raises:
        ValueError: the bytes are of something else.
    """
    states: dict[int, dict[str, Tensor]] = {}
    try:
        for key, tensor in load(block).items():
            worker, _, name = key.partition("/")
            states.setdefault(int(worker), {})[name] = tensor
    except (SafetensorError, TypeError) as error:
        raise ValueError(f"its states cannot be read: {error}") from error
    return dict(states)
