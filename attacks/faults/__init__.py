"""Faults without malice: what goes wrong with the messages of honest workers, one a file."""

from __future__ import annotations

from attacks.faults.crash import Crash
from attacks.faults.drop_coordinates import DropCoordinates
from attacks.faults.duplicate import Duplicate
from attacks.faults.fault import Fault, Message
from attacks.faults.faulty_workers import FaultyWorkers
from attacks.faults.stale import Stale
from attacks.faults.straggle import Straggle

__all__ = [
    "Crash",
    "DropCoordinates",
    "Duplicate",
    "Fault",
    "FaultyWorkers",
    "Message",
    "Stale",
    "Straggle",
]
