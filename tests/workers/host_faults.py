"""Hosts that really fail, in the path of an honest one: shipped to threads and actors alike."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from robust_agg.messages import Update, encode, pack
from workers import Host, HostSpec
from workers.pool import HostPool

PASSED = 0.1
"""Seconds that are over by the time that a host has answered, or soon after."""


@dataclass(frozen=True, kw_only=True, eq=False)
class FaultySpec(HostSpec):
    """A host with a fault in some rounds; those of messages are its worker ``victim``'s.

    A late host waits for the file ``flag``.
    """

    faults: Mapping[int, str]
    victim: int = 2
    flag: str = ""

    @classmethod
    def of(cls, spec: HostSpec, faults: Mapping[int, str], **plan: Any) -> FaultySpec:
        known = {field.name: getattr(spec, field.name) for field in fields(spec)}
        return cls(**known, faults=faults, **plan)

    def build(self) -> Host:
        return FaultyHost(self)


class FaultyHost(Host):
    def __init__(self, spec: FaultySpec) -> None:
        super().__init__(spec)
        self.plan = spec

    def compute(
        self,
        round: int,
        parameters: Tensor,
        active: Collection[int] | None = None,
        accepted: Mapping[int, int] | None = None,
    ) -> list[Update]:
        fault = self.plan.faults.get(round, "")
        self._fail(fault)
        return self._tamper(fault, super().compute(round, parameters, active, accepted))

    def reply(
        self,
        round: int,
        parameters: Tensor,
        active: Collection[int] | None = None,
        accepted: Mapping[int, int] | None = None,
    ) -> bytes:
        fault = self.plan.faults.get(round, "")
        if not fault.startswith("bytes: "):
            return super().reply(round, parameters, active, accepted)
        return self._tamper_bytes(fault, super().compute(round, parameters, active, accepted))

    def _fail(self, fault: str) -> None:
        match fault:
            case "exception":
                raise RuntimeError("the disk is gone")
            case "interrupt":
                raise KeyboardInterrupt
            case "exit":
                raise SystemExit(1)
            case "kill":
                os._exit(1)
            case "hang":
                time.sleep(3600)
            case "late":
                while not Path(self.plan.flag).exists():
                    time.sleep(0.01)

    def _tamper(self, fault: str, updates: list[Update]) -> list[Update]:
        place = next((i for i, u in enumerate(updates) if u.sender == self.plan.victim), None)
        if place is None:
            return updates
        honest = updates[place]
        row = honest.row
        match fault:
            case "no updates":
                return "nothing"  # type: ignore[return-value]  # a host that breaks its contract
            case "duplicate":
                return [*updates, replace(honest, row=row + 1)]
            case "flood":
                return [*updates, *[honest] * 50]
            case "stale":
                changed = replace(honest, round=honest.round - 1)
            case "wrong shape":
                changed = replace(honest, row=row[:-1])
            case "wrong dtype":
                changed = replace(honest, row=row.double())
            case "non-finite":
                changed = replace(honest, row=torch.full_like(row, torch.nan))
            case "oversize":
                changed = replace(honest, row=row.repeat(50))
            case "forged":
                changed = replace(honest, sender=0)
            case _:
                changed = honest
        return [*updates[:place], changed, *updates[place + 1 :]]

    def _tamper_bytes(self, fault: str, updates: list[Update]) -> bytes:
        messages = {update.sender: encode(update) for update in updates}
        honest = messages[self.plan.victim]
        match fault.removeprefix("bytes: "):
            case "2^40 elements":
                messages[self.plan.victim] = honest[:24] + struct.pack("<Q", 1 << 40) + honest[32:]
            case "long body":
                messages[self.plan.victim] = honest + bytes(1 << 16)
            case "no header":
                messages[self.plan.victim] = honest[:10]
            case "another format":
                messages[self.plan.victim] = b"XXXX" + honest[4:]
            case "cut block":
                return pack(messages.values())[:-4]
            case "huge":
                return bytes(1 << 23)
            case "no bytes":
                return [honest]  # type: ignore[return-value]  # a host that breaks its contract
        return pack(messages.values())


@contextmanager
def impatient(transport: HostPool, *, answers: int) -> Iterator[None]:
    """The deadline of a collection passes as soon as so many hosts have answered.

    No clock decides then who is late, and nobody waits for one that hangs.
    """
    wait, deadline, arrived = transport._next, transport.deadline, 0

    def next_answer(timeout: float | None) -> Any:
        nonlocal arrived
        answer = wait(timeout)
        arrived += answer is not None
        if arrived == answers:
            transport.deadline = PASSED
        return answer

    transport._next = next_answer  # type: ignore[method-assign]
    try:
        yield
    finally:
        del transport._next
        transport.deadline = deadline
