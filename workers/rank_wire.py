"""The line between rank 0 and the rank of a host: calls and answers as tensors, nothing pickled."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.distributed import ProcessGroup, Work

Method: TypeAlias = Literal["ready", "compute", "state", "load_state", "stop"]
Outcome: TypeAlias = Literal["done", "failed", "gone"]

UNBOUNDED = 2**62
_METHODS: tuple[Method, ...] = ("ready", "compute", "state", "load_state", "stop")
_OUTCOMES: tuple[Outcome, ...] = ("done", "failed", "gone")
_TAG = 0x5241
_FOREVER = timedelta(days=3650)
# Gloo closes all connections of a process when one wait times out: deadlines are kept elsewhere.
_LONGEST_TEXT = 4096


@dataclass(frozen=True)
class Call:
    """What a host is asked to do.

    Attributes:
        method: its name.
        parts: up to two tensors of bytes.
        most: bytes that the answer may have; a longer one stays where it is.
    """

    method: Method
    parts: tuple[Tensor, ...] = ()
    most: int = UNBOUNDED


@dataclass(frozen=True)
class Answer:
    """What came of a call.

    Attributes:
        outcome: ``"failed"`` and ``"gone"`` have the reason as their body, in UTF-8.
        body: ``(size,)`` bytes; None where they are more than the call allows.
        size: the number of bytes.
    """

    outcome: Outcome
    body: Tensor | None
    size: int

    @property
    def text(self) -> str:
        """The body of a failure."""
        return "" if self.body is None else bytes(self.body.numpy()).decode(errors="replace")


class Line:
    """One end of the line to another rank of a process group.

    Messages are a head of four numbers of 64 bits and then the bytes that it announces. What a head
    says is checked before memory is allocated for them. Both ends are trusted to speak this
    protocol: gloo ends a process that is sent more bytes than it waits for.

    Args:
        group: of ranks that exchange tensors in the memory of the CPU.
        peer: the other end's rank.

    Every method raises ConnectionError where the connection is broken, or the other end speaks of
    something else.
    """

    def __init__(self, group: ProcessGroup, peer: int) -> None:
        self._group, self.peer = group, peer
        self._sending = threading.Lock()

    def call(self, call: Call) -> None:
        """Send a call."""
        sizes = [len(part) for part in call.parts]
        self._send([_METHODS.index(call.method), call.most, *sizes], call.parts)

    def next_call(self) -> Call:
        """Wait for a call."""
        method, most, *sizes = self._receive_head()
        if not 0 <= method < len(_METHODS) or min(most, *sizes) < 0:
            raise ConnectionError(f"rank {self.peer} sends what is no call")
        return Call(_METHODS[method], tuple(self._receive(size) for size in sizes if size), most)

    def answer(self, outcome: Outcome, body: Tensor, *, most: int) -> None:
        """Send an answer; without its body where that has more than ``most`` bytes."""
        head = [_OUTCOMES.index(outcome), len(body)]
        self._send(head, [body] if len(body) <= most else [])

    def next_answer(self, most: int) -> Answer:
        """Wait for the answer to a call that allows ``most`` bytes."""
        code, size, *_ = self._receive_head()
        if not 0 <= code < len(_OUTCOMES) or size < 0:
            raise ConnectionError(f"rank {self.peer} sends what is no answer")
        outcome = _OUTCOMES[code]
        if outcome != "done" and size > _LONGEST_TEXT:
            raise ConnectionError(f"rank {self.peer} gives a reason of {size} bytes")
        return Answer(outcome, self._receive(size) if size <= most else None, size)

    def _send(self, head: Sequence[int], parts: Iterable[Tensor]) -> None:
        padded = torch.tensor([*head, *[0] * (4 - len(head))])
        tensors = [padded, *(part for part in parts if len(part))]
        try:
            # Two threads may speak, and what the one says must stay together.
            with self._sending:
                works = [self._group.send([each], self.peer, _TAG) for each in tensors]
            self._wait(works)
        except RuntimeError as error:
            raise self._broken(error) from error

    def _receive_head(self) -> list[int]:
        # A message that is too short leaves the rest as it was.
        numbers: list[int] = self._fill(torch.full((4,), -1)).tolist()
        return numbers

    def _receive(self, size: int) -> Tensor:
        try:
            body = torch.zeros(size, dtype=torch.uint8)
        except RuntimeError as error:
            raise ConnectionError(f"rank {self.peer} announces {size} bytes: {error}") from error
        return self._fill(body) if size else body

    def _fill(self, tensor: Tensor) -> Tensor:
        try:
            self._wait([self._group.recv([tensor], self.peer, _TAG)])
        except RuntimeError as error:
            raise self._broken(error) from error
        return tensor

    @staticmethod
    def _wait(works: Iterable[Work]) -> None:
        for work in works:
            work.wait(_FOREVER)

    def _broken(self, error: RuntimeError) -> ConnectionError:
        return ConnectionError(f"the connection to rank {self.peer} broke: {in_a_line(error)}")


def in_a_line(error: BaseException) -> str:
    """What torch says, without the file that gloo puts before it, and the advice and the trace
    behind."""
    said = re.sub(
        r"^\[.*?\.cc:\d+\] |\. This is typically.*|\n.*", "", str(error).strip(), flags=re.DOTALL
    )
    return said or type(error).__name__


def in_bytes(block: bytes) -> Tensor:
    """A copy of the bytes as a tensor."""
    return torch.frombuffer(bytearray(block), dtype=torch.uint8) if block else _NOTHING


def reason(text: str) -> Tensor:
    """The body of a failure, no longer than the other end accepts."""
    return in_bytes(text.encode()[:_LONGEST_TEXT])


def numbers(ids: Iterable[int]) -> Tensor:
    """Integers as bytes; :func:`whole` is the way back."""
    return torch.tensor(list(ids), dtype=torch.int64).view(torch.uint8)


def whole(part: Tensor) -> list[int]:
    """The integers in the bytes of :func:`numbers`; those of a cut one are left out."""
    found: list[int] = part[: len(part) // 8 * 8].view(torch.int64).tolist()
    return found


_NOTHING = torch.empty(0, dtype=torch.uint8)
